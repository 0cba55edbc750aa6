"""Figures that scripts write into pages: each page has those that are committed."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from example_modules import ROOT, import_example

found = import_example(("../benchmarks", "repmlpnet"), "pages", "readmes", "gpu", "gpu_engines")
gpu: ModuleType = found.gpu
engines: ModuleType = found.gpu_engines
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
QUICK = ["--model", "repmlpnet_tiny32", "--batches", "1", "2", "--training-batch", "2", "--rounds", "6"]


def gpu_table(page: Path, device: str) -> list[str]:
    """What gpu.py writes into a page."""
    page.write_text("before\n<!-- gpu:begin -->\nold\n<!-- gpu:end -->\nafter\n")
    gpu.main([*QUICK, "--device", device, "--page", str(page)])
    lines = page.read_text().splitlines()
    assert (lines[:2], lines[-2:]) == (["before", "<!-- gpu:begin -->"], ["<!-- gpu:end -->", "after"])
    return lines[2:-2]


def test_the_script_for_gpus_measures_every_format(tmp_path):
    """On a CPU here: all but TensorFloat-32."""
    where, _, heads, _, *rows = gpu_table(tmp_path / "page.md", "cpu")
    assert where.startswith("repmlpnet_tiny32 on cpu")
    assert heads == "| | training, batch 2 | batch 1: trained, fused | batch 2: trained, fused |"
    assert [row.split(" | ")[0] for row in rows] == ["| float32, TF32 off", "| bfloat16", "| float16"]
    assert all("images/s" in row and row.count(" ms, ") == 2 for row in rows)


@needs_cuda
def test_a_gpu_is_measured_with_tf32_off_and_on(tmp_path):
    rows = gpu_table(tmp_path / "page.md", "cuda")[4:]
    assert [row.split(" | ")[0] for row in rows] == [f"| {each.name}" for each in gpu.FORMATS]
    assert not torch.backends.cuda.matmul.allow_tf32


def test_the_page_has_a_place_for_each_table():
    assert all(gpu.PAGE.read_text().count(f"<!-- {mark}:begin -->\n") == 1 for mark in ("gpu", "gpu-engines"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_script_says_so(capsys):
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "--device cuda: torch finds no CUDA device here" in capsys.readouterr().err


@pytest.mark.parametrize("name", found.readmes.SEEDS)
def test_the_tables_of_the_examples_are_those_of_the_committed_runs(name):
    runs = json.loads(found.readmes.RESULTS.read_text())[name]
    assert len(runs) == found.readmes.SEEDS[name]
    text = found.readmes.readme(name).read_text()
    assert found.pages.filled(text, found.readmes.MARK, found.readmes.TABLES[name](runs)) == text


@pytest.mark.parametrize("name", ["injection", "injection_cuda"])
def test_the_page_of_injection_has_the_committed_table(name):
    page = (ROOT / "docs" / "inject.md").read_text()
    _, table = page.split(f"<!-- benchmark: benchmarks/results/{name}.md -->\n")
    assert table.startswith((ROOT / "benchmarks" / "results" / f"{name}.md").read_text())


def test_the_page_of_engines_on_a_gpu_has_the_committed_rows():
    rows = [json.loads(line) for line in engines.RESULTS.read_text().splitlines()]
    assert "\n".join(engines.table(rows)) in gpu.PAGE.read_text()
