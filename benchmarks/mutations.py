"""Break the laws on purpose, one at a time, and see which test notices: ``python -m benchmarks.mutations``.

Each mutation is a text of the source that is replaced in a copy of the repository; the text must be there exactly once.
The tests run with the built-in proofs of `fuse` switched off, so that none of them hides behind the others. Writes
docs/mutations.md; a mutation in benchmarks/results/mutations.jsonl is not run again until its file changes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "mutations.jsonl"
PAGE = ROOT / "docs" / "mutations.md"
COPIED = ("reparamkit", "tests", "examples", "benchmarks", "pyproject.toml")
SUITE = ("tests/algebra", "tests/test_structures.py")
LIMIT = 3600
"""Seconds for one part of the suite; it takes a minute or two."""
SURVIVED = "none"


@dataclass(frozen=True)
class Mutation:
    """name: what is wrong. file: below reparamkit. text: what is there; instead: what is put in its place."""

    name: str
    file: str
    text: str
    instead: str

    @property
    def path(self) -> Path:
        """Of the file, in the repository."""
        return Path("reparamkit") / self.file

    @property
    def suite(self) -> tuple[str, ...]:
        """The tests, the nearest first."""
        return SUITE if self.file.startswith("algebra/") else SUITE[::-1]

    def apply(self, root: Path) -> None:
        """Change the copy at `root`."""
        source = (root / self.path).read_text()
        found = source.count(self.text)
        assert found == 1, f"'{self.name}': its text is {found} times in {self.path}, it should be there once"
        (root / self.path).write_text(source.replace(self.text, self.instead))

    def key(self, root: Path) -> str:
        """Changes when the mutation or its file does."""
        whole = f"{self}{(root / self.path).read_text()}"
        return hashlib.sha256(whole.encode()).hexdigest()[:16]


COMPOSE, ADD = "algebra/compose.py", "algebra/add.py"
BORDER, BUILD = "algebra/border.py", "algebra/build.py"
FORM, WEIGHT = "algebra/form.py", "algebra/weight.py"
NORM, CONV, ELEMENTWISE, CONVOLUTIONS = (
    "layers/norm.py",
    "layers/conv.py",
    "layers/elementwise.py",
    "layers/convolutions.py",
)

MUTATIONS = (
    # A row of layers.
    Mutation(
        "strides of a chain swapped",
        COMPOSE,
        "g.up * a + f.stride * b for a",
        "f.stride * a + g.up * b for a",
    ),
    Mutation(
        "size of a chain off by one",
        COMPOSE,
        "c = f.c + f.stride * (1 + g.c) if",
        "c = f.c + f.stride * g.c if",
    ),
    Mutation(
        "taps of two kernels paired the wrong way",
        COMPOSE,
        "return [g.up * a + f.stride * b for a in f.taps for b in g.taps]",
        "return [g.up * a + f.stride * b for b in g.taps for a in f.taps]",
    ),
    Mutation(
        "low border refused one tap too early",
        COMPOSE,
        "f.taps[-1] + 1 <= f.stride",
        "f.taps[-1] + 2 <= f.stride",
    ),
    Mutation(
        "low border accepted one tap too far",
        COMPOSE,
        "f.taps[-1] + 1 <= f.stride",
        "f.taps[-1] <= f.stride",
    ),
    Mutation(
        "high border accepted one pixel too far",
        COMPOSE,
        "f.taps[0] + end + f.up >= 0",
        "f.taps[0] + end + f.up + 1 >= 0",
    ),
    Mutation(
        "high border not asked at all",
        COMPOSE,
        "return before and after and _acc",
        "return before and _acc",
    ),
    Mutation(
        "inputs accepted that the first layer rejects",
        COMPOSE,
        "return g.c <= -1 or f.c >= -1",
        "return True",
    ),
    Mutation(
        "low border of a bias one pixel short",
        BORDER,
        "low = max(0, -((first - f.low) // g.stride))",
        "low = max(0, -((first - f.low) // g.stride) - 1)",
    ),
    Mutation(
        "high border of a bias one pixel short",
        BORDER,
        "(beyond + last + f.high) // g.stride)",
        "(beyond + last + f.high - 1) // g.stride)",
    ),
    Mutation(
        "bias not carried through the next layer",
        FORM,
        "bias = reduced(_resampled(compose(layer(bias), bias, trusted)))",
        "bias = reduced(bias)",
    ),
    # Branches side by side.
    Mutation(
        "second branch subtracted",
        WEIGHT,
        "buffer.add_(self.tensor())",
        "buffer.sub_(self.tensor())",
    ),
    Mutation(
        "legs of two branches not brought in one order",
        ADD,
        "order = tuple(legs_of_f.index(i) for i in f.legs)",
        "order = tuple(range(len(f.legs)))",
    ),
    Mutation(
        "order of legs not inverted",
        WEIGHT,
        "return tuple(order.index(i) for i in range(len(order)))",
        "return tuple(order)",
    ),
    Mutation(
        "windows of different strides joined",
        ADD,
        "return (a.stride, a.up) == (b.stride, b.up)",
        "return True",
    ),
    Mutation(
        "skip joined with a window that changes the size",
        ADD,
        "return (a if a.role is S else b).shape_preserving",
        "return True",
    ),
    Mutation(
        "bias of the second branch lost",
        FORM,
        "return g if f is None else f\n",
        "return f\n",
    ),
    # Locality Injection.
    Mutation(
        "kernel on the wrong diagonal of a strided matrix",
        WEIGHT,
        "start : start + stride * length : stride, :]",
        "start : start + length, :]",
    ),
    Mutation(
        "first row of a diagonal off by one",
        WEIGHT,
        "first = max(0, -(tap // stride))",
        "first = max(0, 1 - (tap // stride))",
    ),
    Mutation(
        "last row of a diagonal left out",
        WEIGHT,
        "(n_in - 1 - tap) // stride) - first + 1)",
        "(n_in - 1 - tap) // stride) - first)",
    ),
    # Reading layers.
    Mutation(
        "padding at the wrong side",
        BUILD,
        "tuple(dilation * j - low for j",
        "tuple(dilation * j - high for j",
    ),
    Mutation(
        "padding off by one",
        BUILD,
        "c = low + high - dilation * (k - 1) - 1",
        "c = low + high - dilation * (k - 1)",
    ),
    Mutation(
        "dilation ignored",
        BUILD,
        "tuple(dilation * j - low for j",
        "tuple(j - low for j",
    ),
    Mutation(
        "groups after the channels",
        BUILD,
        "atom(IN, fixed(ins))\n        made.along(-1 - rank, group + source, group + value)",
        "atom(IN, fixed(ins))\n        made.along(-1 - rank, source + group, value + group)",
    ),
    Mutation(
        "matrix transposed",
        BUILD,
        "made.done(leaf(weight, [n for n in (rows, columns) if n != 1]))",
        "made.done(leaf(weight.t(), [n for n in (rows, columns) if n != 1]))",
    ),
    Mutation(
        "transposed kernel not flipped",
        BUILD,
        ".flip(tuple(range(3, 3 + rank)))",
        "",
    ),
    Mutation(
        "transposed convolution: padding counted once",
        BUILD,
        "c = -s - 2 * p + d",
        "c = -s - p + d",
    ),
    Mutation(
        "transposed convolution: output padding ignored",
        BUILD,
        "+ d * (k - 1) + extra",
        "+ d * (k - 1)",
    ),
    Mutation(
        "average divided by the wrong count",
        BUILD,
        "torch.full(shape, 1 / size,",
        "torch.full(shape, 1 / kernel[0],",
    ),
    Mutation(
        "odd pixel of padding='same' at the wrong side",
        CONV,
        "(total // 2, total - total // 2)",
        "(total - total // 2, total // 2)",
    ),
    Mutation(
        "norm without eps",
        NORM,
        "bare = (var.double() + eps).rsqrt()",
        "bare = var.double().rsqrt()",
    ),
    Mutation(
        "norm with its scale 1% off",
        NORM,
        "else bare * weight.double()",
        "else 1.01 * bare * weight.double()",
    ),
    Mutation(
        "norm with the wrong sign of the mean",
        NORM,
        "bare = -mean.double() * s()",
        "bare = mean.double() * s()",
    ),
    Mutation(
        "norm without its bias",
        NORM,
        "return bare if bias is None else bare + bias.double()",
        "return bare",
    ),
    Mutation(
        "difference read as a sum",
        ELEMENTWISE,
        "return total(other, _times(input, -alpha))",
        "return total(other, _times(input, alpha))",
    ),
    Mutation(
        "LeakyReLU read as the identity",
        ELEMENTWISE,
        "if negative_slope != 1:",
        "if negative_slope > 1:",
    ),
    # Writing layers.
    Mutation(
        "written groups after the channels",
        CONVOLUTIONS,
        "for i in (*lead, *outs, *ins, *(i for i in stencils",
        "for i in (*outs, *lead, *ins, *(i for i in stencils",
    ),
    Mutation(
        "written taps in the wrong places",
        CONVOLUTIONS,
        "[list(place.places)] =",
        "[list(place.places)[::-1]] =",
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only check that each text is where it should be")
    parser.add_argument("--trust", action="store_true", help="that the tests pass without a mutation")
    parser.add_argument("--seconds", type=float, default=LIMIT, help="limit for one part of the suite")
    options = parser.parse_args()
    if options.check:
        for mutation in MUTATIONS:
            with copied(mutation):
                pass
        return 0
    if not options.trust and (failed := caught(None, options.seconds)) != SURVIVED:
        raise SystemExit(f"{failed} fails without any mutation")
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    known = {row["key"]: row for row in map(json.loads, lines)}
    for mutation in MUTATIONS:
        key = mutation.key(ROOT)
        if key not in known:
            known[key] = {"key": key, "name": mutation.name, "caught": caught(mutation, options.seconds)}
            print(f"{mutation.name}: {known[key]['caught']}", flush=True)
            RESULTS.parent.mkdir(exist_ok=True)
            with RESULTS.open("a") as file:
                file.write(json.dumps(known[key]) + "\n")
    found = {mutation: known[mutation.key(ROOT)]["caught"] for mutation in MUTATIONS}
    PAGE.write_text(page(found))
    return sum(test == SURVIVED for test in found.values())


@contextmanager
def copied(mutation: Mutation | None) -> Iterator[Path]:
    """A copy of the repository with a mutation, while it is needed."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in COPIED:
            source = ROOT / name
            shutil.copytree(source, root / name) if source.is_dir() else shutil.copy(source, root / name)
        if mutation is not None:
            mutation.apply(root)
        yield root


def caught(mutation: Mutation | None, seconds: float) -> str:
    """The first test that fails."""
    with copied(mutation) as root:
        tests = SUITE if mutation is None else mutation.suite
        return next((failed for part in tests if (failed := first_failure(root, part, seconds)) != SURVIVED), SURVIVED)


def first_failure(root: Path, tests: str, seconds: float) -> str:
    """The first test that fails among some, in a copy of the repository."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "benchmarks.unverified", tests]
    ours = {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", "HYPOTHESIS_PROFILE": "mutations"}
    run = subprocess.run(command, cwd=root, env={**os.environ, **ours}, capture_output=True, text=True, timeout=seconds)
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", run.stdout, re.MULTILINE)
    if failed is None and run.returncode != 0:
        raise RuntimeError(f"pytest ended with {run.returncode}:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
    return SURVIVED if failed is None else failed[1].partition("[")[0]


def page(found: Mapping[Mutation, str]) -> str:
    """The table for the documentation."""
    noticed = sum(test != SURVIVED for test in found.values())
    head = f"""# Mutations

What would the tests say if a law were wrong? `python -m benchmarks.mutations` breaks the source in one place at a time
and runs `{" ".join(SUITE)}` with the built-in proofs of `fuse` switched off.
Of {len(found)} mistakes {noticed} are noticed.

| mistake | file | a test that fails |
|---|---|---|
"""
    rows = [f"| {each.name} | `{each.file}` | `{test.removeprefix('tests/')}` |" for each, test in found.items()]
    return head + "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.exit(main())
