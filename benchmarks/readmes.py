"""The figures and pictures in the READMEs of the examples: ``python benchmarks/readmes.py``.

Runs each example as its README says, on one CPU thread, ResMLP with three seeds; writes
benchmarks/results/examples.json, the tables between the marks of the READMEs, and the pictures. ``--tables`` writes the
tables from the results, and trains nothing.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

from pages import fill

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "examples.json"
SEEDS = {"repmlpnet": 1, "resmlp": 3, "segmentation": 1}
"""How many runs of each."""
MARK = "figures"
Run = dict[str, Any]
"""What a run wrote to figures.json, and its CPU time in seconds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true", help="only write the tables from the results")
    if not parser.parse_args().tables:
        with tempfile.TemporaryDirectory() as folder:
            found = {name: measured(name, seeds, Path(folder)) for name, seeds in SEEDS.items()}
        RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    for name, runs in json.loads(RESULTS.read_text()).items():
        fill(readme(name), MARK, TABLES[name](runs))


def measured(name: str, seeds: int, folder: Path) -> list[Run]:
    """Train with each seed; draw the pictures of the first run."""
    runs = [measured_run(name, seed, folder / f"{name}-{seed}") for seed in range(seeds)]
    subprocess.run([sys.executable, example(name, "pictures"), "--output", folder / f"{name}-0"], check=True)
    return runs


def measured_run(name: str, seed: int, folder: Path) -> Run:
    options = ["--output", folder, "--seed", str(seed), "--device", "cpu", "--threads", "1"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, example(name, "train"), *options], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found: Run = json.loads((folder / "figures.json").read_text())
    return {**found, "seconds": round(seconds)}


def example(name: str, script: str) -> Path:
    return ROOT / "examples" / name / f"{script}.py"


def readme(name: str) -> Path:
    return ROOT / "examples" / name / "README.md"


# --- tables ---------------------------------------------------------------------------------------------


def repmlpnet(runs: list[Run]) -> Iterator[str]:
    (run,) = runs
    yield f"One run, {where(run)}; {run['seconds']} seconds of CPU time:\n"
    yield from heads("trained", "fused")
    yield row(f"test accuracy, {run['tested']} images", run["accuracy"], percent)
    yield from rounding(run, "predictions")
    yield from sizes(run)
    yield from speeds(run)


def segmentation(runs: list[Run]) -> Iterator[str]:
    (run,) = runs
    yield f"One run, {where(run)}; {run['seconds']} seconds of CPU time:\n"
    yield from heads("trained", "fused")
    yield row("test mIoU, 11 classes", run["mIoU"], percent)
    yield row("pixel accuracy", run["pixel accuracy"], percent)
    yield from rounding(run, "pixels")
    yield from sizes(run)
    yield from speeds(run)


def resmlp(runs: list[Run]) -> Iterator[str]:
    first = runs[0]
    seconds = mean(run["seconds"] for run in runs)
    yield f"{where(first)[0].upper()}{where(first)[1:]}; {seconds:.0f} seconds of CPU time for both runs of a seed:\n"
    what = f"test accuracy after {first['epochs']} epochs, {first['tested']} images"
    yield from heads("without injection", "with injection", what)
    for run in runs:
        yield row(f"seed {run['seed']}", [run["arms"][arm] for arm in ("plain", "injected")], percent)
    yield f"\n{verdict(runs)}\n"
    yield from heads("with injection, trained", "fused", f"seed {first['seed']}")
    yield row("test accuracy", first["accuracy"], percent)
    yield from rounding(first, "predictions")
    yield row("parameters", first["parameters"], "{:,}".format)
    yield from speeds(first)


def verdict(runs: list[Run]) -> str:
    """What so few runs say, in words."""
    better, tested = sum(run["arms"]["injected"] > run["arms"]["plain"] for run in runs), runs[0]["tested"]
    share = mean(accuracy for run in runs for accuracy in run["arms"].values())
    error = (share * (1 - share) / tested) ** 0.5
    return (
        f"The injected model is better in {better} of these {len(runs)} runs, but they are few, and {tested} images\n"
        f"give a standard error of {100 * error:.1f} points each: this does not establish a difference."
    )


def where(run: Run) -> str:
    return f"one thread of a shared CPU, float32, torch {run['torch']}"


def heads(before: str, after: str, first: str = "") -> Iterator[str]:
    yield f"| {first} | {before} | {after} |".replace("|  |", "| |")
    yield "|---|---|---|"


def row(name: str, values: list[Any], shown: Callable[[Any], str]) -> str:
    return f"| {name} | {' | '.join(map(shown, values))} |"


def percent(share: float) -> str:
    return f"{share:.2%}"


def rounding(run: Run, what: str) -> Iterator[str]:
    yield f"| flipped {what} | | {run['flipped']:,} of {run['tested']:,} |"
    yield f"| largest logit error, of the largest logit | | {run['relative error']:.1e} |"


def sizes(run: Run) -> Iterator[str]:
    for name, field in {
        "parameters": "parameters",
        "operations": "operations",
        "FLOPs of the affine layers": "FLOPs",
    }.items():
        yield row(name, run[field], "{:,}".format)


def speeds(run: Run) -> Iterator[str]:
    for each in run["latency"]:
        yield f"| latency, batch {each['batch']} | | {each['x']:.2f} x as fast |"


TABLES = {"repmlpnet": repmlpnet, "resmlp": resmlp, "segmentation": segmentation}


if __name__ == "__main__":
    main()
