"""Run the Python blocks of the README and the docs, and compare what they print with what the page shows.

    python docs/check_snippets.py            exits with 1 and a diff if a page shows something else
    python docs/check_snippets.py --write    writes what is printed into the pages

The blocks of a page run from top to bottom in one namespace. A ``text`` block right after a ``python`` block is its
output; a block that prints must have one. Figures below 1e-4 are rounding: one stands for any other. A block after
``<!-- needs: package -->`` is left out where the package is not installed.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib.util
import io
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import reparamkit

ROOT = Path(__file__).resolve().parent.parent
NEEDS = r"(?:^<!-- needs: (?P<needs>\w+) -->\n+)?"
SNIPPET = re.compile(rf"{NEEDS}^```python\n(?P<code>.*?)^```\n(?:\n*^```text\n(?P<output>.*?)^```$)?", re.M | re.S)
ROUNDING = re.compile(r"\d(\.\d+)?e-(0[5-9]|[1-9]\d)")


@dataclass(frozen=True)
class Snippet:
    """One block. line: where its code begins. shown: the output on the page. at: where that is in the text. needs: a
    package without which it is left out.
    """

    code: str
    line: int
    shown: str | None
    at: tuple[int, int]
    needs: str | None

    @property
    def runs(self) -> bool:
        """Whether it can run here."""
        return self.needs is None or importlib.util.find_spec(self.needs) is not None


def pages() -> list[Path]:
    """The pages with code, the README first."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def snippets(text: str) -> Iterator[Snippet]:
    """The Python blocks of a page, in order."""
    for found in SNIPPET.finditer(text):
        line = text.count("\n", 0, found.start("code")) + 1
        yield Snippet(found["code"], line, found["output"], found.span("output"), found["needs"])


def run(snippet: Snippet, page: Path, names: dict[str, Any]) -> str:
    """Run a block and return what it prints; tracebacks name the line of the page."""
    code = compile("\n" * (snippet.line - 1) + snippet.code, str(page), "exec")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, names)
    return "".join(f"{line.rstrip()}\n" for line in printed.getvalue().splitlines())


@contextlib.contextmanager
def namespace(page: Path) -> Iterator[dict[str, Any]]:
    """The namespace of a page: a module, so that its classes can be imported; its rules and readers do not stay."""
    module = ModuleType(f"page_{re.sub(r'[^a-z]', '_', page.stem.lower())}")
    sys.modules[module.__name__] = module
    with reparamkit.rules.restored(), reparamkit.reader.__self__.restored(), warnings.catch_warnings():  # type: ignore[attr-defined]
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module=r"torch\.")  # what torch's own files deprecate in torch
        yield vars(module)
    del sys.modules[module.__name__]


def difference(shown: str | None, printed: str) -> list[str]:
    """What differs between the output on the page and the real one, as lines of a diff; none if nothing does."""
    if ROUNDING.sub("rounding", shown or "") == ROUNDING.sub("rounding", printed):
        return []
    return list(difflib.unified_diff((shown or "").splitlines(), printed.splitlines(), "page", "printed", lineterm=""))


def check(page: Path, write: bool) -> bool:
    """Run a page; whether all its blocks run and print what it shows."""
    text = page.read_text()
    good, new = True, text
    with namespace(page) as names:
        for snippet in filter(lambda each: each.runs, snippets(text)):
            where = f"{page.relative_to(ROOT)}:{snippet.line}"
            try:
                printed = run(snippet, page, names)
            except Exception:
                print(f"{where}: fails\n{traceback.format_exc()}")
                return False
            lines = difference(snippet.shown, printed)
            if lines and write and snippet.shown is not None:
                shift = len(new) - len(text)
                start, stop = (place + shift for place in snippet.at)
                new = new[:start] + printed + new[stop:]
            elif lines:
                good = False
                print(f"{where}: prints something else\n" + "\n".join(lines))
    if new != text:
        page.write_text(new)
    return good


def main() -> int:
    """Check all pages."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write what is printed into the pages")
    options = parser.parse_args()
    results = {page: check(page, options.write) for page in pages()}
    count = sum(len(list(snippets(page.read_text()))) for page in results)
    print(f"{count} snippets on {len(results)} pages, {sum(not good for good in results.values())} pages wrong")
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
