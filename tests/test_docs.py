"""What the pages say about the code is there; what is drawn and tabled for them is well formed."""

from __future__ import annotations

import ast
import importlib
import re
import sys
import xml.etree.ElementTree as xml
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from example_modules import import_example
from structures import DENSE, Sum, conv_norm, norm, seq
from test_imports import PUBLIC
from torch import nn

import reparamkit
from reparamkit.testing import randomize

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "docs"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import graphs
import peers_table

ROOT = Path(__file__).resolve().parent.parent


def test_the_tests_beside_the_laws_are_there():
    """The page The algebra names properties; each is a test of the algebra."""
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "algebra.md").read_text()))
    texts = [path.read_text() for path in (ROOT / "tests" / "algebra").glob("test_*.py")]
    there = {name for text in texts for name in re.findall(r"^def (test_\w+)", text, re.M)}
    assert len(named) > 30
    assert named - there == set()


def keys_of_nodes(path: Path) -> Iterator[str]:
    """The keys under which a module looks into the meta of a node; those of the command line are of graphs."""
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for node in ast.walk(ast.parse(path.read_text())):
        keys: list[ast.expr] = []
        if isinstance(node, ast.Subscript) and getattr(node.value, "attr", "") == "meta":
            keys = [node.slice]
        elif isinstance(node, ast.Call) and getattr(getattr(node.func, "value", None), "attr", "") == "meta":
            yield from (each.arg for each in node.keywords if each.arg is not None)
            keys = node.args[:1]
        yield from (each.value for each in keys if isinstance(each, ast.Constant))
        yield from (getattr(module, each.id) for each in keys if isinstance(each, ast.Name) and each.id.isupper())


def test_the_design_tells_what_the_meta_of_a_node_has():
    """Each key that any stage reads or writes is in the table, and no other."""
    package = ROOT / "reparamkit"
    files = [path for path in package.rglob("*.py") if "cli" not in path.parts and path.stem != "__main__"]
    _, _, table = (ROOT / "docs" / "design.md").read_text().partition("## What a node knows")
    told = re.findall(r"^\| `([^`]+)` \|", table.partition("\n## ")[0], re.M)
    assert len(told) == len(set(told))
    assert {*told} == {key for path in files for key in keys_of_nodes(path)}


def parts(kind: object) -> Iterator[type]:
    """The dataclasses that the fields of one are made of, itself included."""
    if isinstance(kind, type) and is_dataclass(kind):
        yield kind
        for hint in get_type_hints(kind).values():
            yield from parts(hint)
    for inner in get_args(kind):
        yield from parts(inner)


def test_the_reference_has_all_that_is_public():
    """All names of the package, and all that a report, a verification and a measurement consist of."""
    pages = "".join((ROOT / "docs" / name).read_text() for name in ("reference.md", "inject.md"))
    there = {name.rpartition(".")[2] for name in re.findall(r"^::: reparamkit\.([\w.]+)$", pages, re.M)}
    there |= set(re.findall(r"^### (\w+)$", pages, re.M)) | {
        each.__name__ for each in vars(reparamkit.errors).values() if isinstance(each, type)
    }
    made = {
        part.__name__
        for kind in (reparamkit.Report, reparamkit.Verification, reparamkit.Benchmark)
        for part in parts(kind)
    }
    assert {*PUBLIC, *made} - {"__version__"} - there == set()


def test_the_hooks_run_what_ci_runs():
    """Each command of the pre-commit hooks is a step of .ci/run."""
    entries = re.findall(r"entry: ([^,}\n]+)", (ROOT / ".pre-commit-config.yaml").read_text())
    steps = (ROOT / ".ci" / "run").read_text()
    assert len(entries) == 6
    assert [entry for entry in entries if f"step {entry}" not in steps] == []


example = import_example(("segmentation", "repmlpnet"), "model", "segmenter")
FIGURES = [
    ("repmlpnet", lambda: example.model.create_model("repmlpnet_tiny32", 10, in_channels=1), 64),
    ("segmentation", lambda: example.segmenter.new_segmenter("small", 1, 11, 16), 2),
]


@pytest.mark.parametrize(("name", "make", "batch"), FIGURES, ids=[name for name, *_ in FIGURES])
def test_the_readmes_of_the_examples_count_as_the_report_does(name: str, make: Callable[[], nn.Module], batch: int):
    """Parameters, operations and FLOPs do not depend on the training, so a page that has others is old."""
    found = reparamkit.explain(randomize(make()), torch.randn(batch, 1, 32, 32))
    text = (ROOT / "examples" / name / "README.md").read_text()
    for line in ("parameters", "ops", "flops"):
        shown = {"ops": "operations", "flops": "FLOPs of the affine layers"}.get(line, line)
        assert f"| {shown} | {getattr(found.before, line):,} | {getattr(found.after, line):,} |" in text


def drawn(model: nn.Module, x: torch.Tensor) -> list[xml.Element]:
    """The two graphs of the gallery, parsed."""
    return list(xml.fromstring(f"<p>{graphs.before_and_after(reparamkit.explain(randomize(model), x))}</p>"))


def test_a_graph_of_the_gallery_has_a_box_per_operation():
    before, after = drawn(seq(Sum([conv_norm(4, 4), norm(4)]), nn.ReLU()), torch.randn(1, 4, 5, 5))
    words = [[text.text for text in each.iter("{http://www.w3.org/2000/svg}text")] for each in (before, after)]
    assert sorted(words[0]) == ["add", "conv", "norm", "norm", "relu", "x", "y"]
    assert sorted(words[1]) == ["conv", "relu", "x", "y"]


@pytest.mark.parametrize("case", DENSE[-1:], ids=lambda case: case.name)
def test_boxes_of_a_row_do_not_overlap(case: object):
    for each in drawn(case.make(), torch.randn(case.shapes[0])):
        boxes = [rect.attrib for rect in each.iter("{http://www.w3.org/2000/svg}rect")]
        spans = sorted((float(b["y"]), float(b["x"]), float(b["x"]) + float(b["width"])) for b in boxes)
        assert all(a[2] < b[1] for a, b in pairwise(spans) if a[0] == b[0])


ROW = {
    "row": "net",
    "batch": 1,
    "threads": 2,
    "machine": "x86_64",
    "merges": True,
    "fuse_s": 2.0,
    "versions": {"torch": "2.14.1"},
    "engines": {
        "eager": {"alone": [8.0] * 8, "after": [4.0] * 8, "alone_error": 1e-7, "after_error": 2e-7},
        "slow": {"alone": [6.0] * 8, "after": [9.0] * 8, "alone_error": 1e-7, "after_error": 2e-7},
        "none": {"alone_refused": "ModuleNotFoundError", "after_refused": "ModuleNotFoundError"},
    },
}


def test_the_page_of_engines_says_who_is_fastest_and_who_is_slower():
    for entry in ROW["engines"].values():
        entry |= {"alone_s": 0.1, "after_s": 0.1}
    text = "\n".join(peers_table.page([ROW]))
    assert "| net, batch 1 | slow, 6.0 ms | eager, 4.0 ms | 1.50 [1.50, 1.50] | slow | 2 s |" in text
    assert "| none | ModuleNotFoundError | ModuleNotFoundError |" in text
    assert "Nothing has been measured" in "\n".join(peers_table.page([]))
