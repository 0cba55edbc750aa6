"""MkDocs hooks: pages that are not written twice.

The README, CONTRIBUTING, the changelog, the READMEs of the examples and some results become pages as they are, with
their links turned to the site and the pictures beside them. The page Rules is made from the registry and the table of
readers, the page Gallery from the structures of the tests, the page Engines from the results of its benchmark.
"""

from __future__ import annotations

import importlib.util
import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from torch import nn

import reparamkit

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples/repmlpnet/README.md": "repmlpnet.md",
    "examples/resmlp/README.md": "resmlp.md",
    "examples/segmentation/README.md": "segmentation.md",
    "benchmarks/results/growth.md": "growth.md",
    "benchmarks/results/large.md": "large.md",
}
"""Files of the repository that are pages of the site."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for source, page in PAGES.items():
        text, folder = (ROOT / source).read_text(), posixpath.dirname(source)
        files.append(File.generated(config, page, content=relinked(text, folder)))
        for picture in filter(is_outside, targets(text, folder)):
            files.append(File.generated(config, picture, abs_src_path=str(ROOT / picture)))
    files.append(File.generated(config, "rules.md", content="\n".join(rules_page())))
    gallery = loaded(ROOT / "docs" / "gallery.py")
    files.append(File.generated(config, "gallery.md", content="\n".join(gallery.gallery_page(gallery.structures()))))
    engines = loaded(ROOT / "benchmarks" / "peers_table.py")
    files.append(File.generated(config, "engines.md", content="\n".join(engines.page(engines.results()))))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links to files of the repository, which work where the repository is browsed, lead to their pages."""
    return relinked(markdown, "docs")


LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)(#[^)]*)?\)")
"""A link to a file, with its anchor."""


def targets(text: str, folder: str) -> list[str]:
    """The files that a file in `folder` of the repository links to."""
    return [posixpath.normpath(posixpath.join(folder, found[1])) for found in LINK.finditer(text)]


def is_outside(target: str) -> bool:
    """Whether a file is no page, and none of those in docs/, which are on the site by themselves."""
    return target not in PAGES and not target.startswith("docs/")


def relinked(text: str, folder: str) -> str:
    """The text of a file in `folder` of the repository, with links as the site has them."""

    def link(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, found[1]))
        return f"]({PAGES.get(target, target.removeprefix('docs/'))}{found[2] or ''})"

    return LINK.sub(link, text)


# --- Rules ------------------------------------------------------------------------------------------

RULES_INTRODUCTION = """\
# Rules

A rule is a permission that `fuse` asks for. The report names the rules of each merge. One call can do without some of
them, `fuse(model, without=["parallel_sum"])`, or with [one of your own](extend.md).
"""


def rules_page() -> Iterator[str]:
    """The page Rules, line by line."""
    yield RULES_INTRODUCTION
    for rule in reparamkit.rules:
        yield f"## {rule.name}\n\n    {rule.equation}\n\n{rule.doc}\n"
    yield from readers()


def readers() -> Iterator[str]:
    """What is read, by the module of the package that reads it."""
    table: dict[str, list[str]] = {}
    for reader in reparamkit.reader.__self__:  # type: ignore[attr-defined]
        subject = (sys.modules[reader.read.__module__].__doc__ or "").split("\n\n")[0]
        table.setdefault(" ".join(subject.split()), []).extend(map(spelled, reader.targets))
    yield "## What is read\n"
    yield "Calls of these, and of classes that inherit their `forward` unchanged; in place or not.\n"
    yield "| subject | layers, functions and methods |\n|---|---|"
    for subject, names in sorted(table.items()):
        yield f"| {subject} | {', '.join(f'`{name}`' for name in dict.fromkeys(names))} |"


def spelled(target: Any) -> str:
    """A layer, function or method as one writes it."""
    if isinstance(target, str):
        return f".{target}()"
    name, home = target.__name__, target.__module__ or "torch"
    if isinstance(target, type):
        return f"nn.{name}" if getattr(nn, name, None) is target else f"{home}.{name}"
    return {"torch._C._nn": "F", "torch.nn.functional": "F", "_operator": "operator"}.get(home, "torch") + f".{name}"


def loaded(path: Path) -> ModuleType:
    """A Python file as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
