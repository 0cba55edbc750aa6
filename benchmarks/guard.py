"""Ratios that must not get worse: ``python benchmarks/guard.py`` compares with benchmarks/results/guard.json.

Per network: operations that run, and stored numbers, after fusing / before; time of the fused network / time of the
network; time of `fuse` without its proofs, and with them, / time to trace the network into operators and copy it. All
are ratios within one run, so any machine can compare them. The exit code is 1 if one is worse than kept by more than
its margin; what is worse is measured a second time, and the better value counts. ``--write`` keeps what is measured.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT), str(ROOT.parent)]

from nets import dbb_resnet18, unireplknet_like  # noqa: E402
from processor import processor_seconds  # noqa: E402
from zoo import counted, randomize  # noqa: E402

import reparamkit  # noqa: E402
from examples.repmlpnet.model import create_model  # noqa: E402

KEPT = ROOT / "results" / "guard.json"
ROUNDS = 9
MARGINS = {"operations": 1.0, "stored": 1.0, "run": 1.5, "fuse": 2.0, "fuse and prove": 2.0}
"""How many times as large as kept each ratio may be."""
Ratios = dict[str, float]


class Case(NamedTuple):
    """A network, and the shape of an image batch."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]


CASES = {
    "DBB-ResNet-18": Case(dbb_resnet18, (1, 3, 96, 96)),
    "UniRepLKNet-like": Case(unireplknet_like, (1, 3, 96, 96)),
    "RepMLPNet": Case(partial(create_model, "repmlpnet_tiny32"), (1, 3, 64, 64)),
}


def seconds(call: Callable[[], object]) -> float:
    """The processor time of one call, the better of two."""
    return min(processor_seconds(call) for _ in range(2))


def measure(case: Case) -> Ratios:
    """The ratios of one network."""
    torch.manual_seed(0)
    model, x = randomize(case.make()).eval(), torch.randn(case.shape)
    fused = reparamkit.fuse(model, x)
    report = reparamkit.report(fused)
    capture = seconds(lambda: (make_fx(model)(x), copy.deepcopy(model)))
    return {
        "operations": _operations(fused, x) / _operations(model, x),
        "stored": report.after.stored / report.before.stored,
        "run": 1 / reparamkit.benchmark(model, fused, x, rounds=ROUNDS).speedup.median,
        "fuse": seconds(lambda: reparamkit.fuse(model, x, verify=False)) / capture,
        "fuse and prove": seconds(lambda: reparamkit.fuse(model, x)) / capture,
    }


def _operations(model: nn.Module, x: Tensor) -> int:
    return counted(model, ((x,), {}))["ops"]


def worse(found: Ratios, kept: Ratios) -> list[str]:
    """The ratios beyond their margin."""
    return [name for name, margin in MARGINS.items() if found[name] > kept[name] * margin]


def guarded(case: Case, kept: Ratios) -> Ratios:
    """The ratios; of two tries the better, if the first is worse than kept."""
    found = measure(case)
    if not worse(found, kept):
        return found
    again = measure(case)
    return {name: min(found[name], again[name]) for name in found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep what is measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept: dict[str, Ratios] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    result, bad = {}, False
    for name, case in CASES.items():
        found = result[name] = measure(case) if options.write else guarded(case, kept[name])
        for ratio, value in found.items():
            late = not options.write and ratio in worse(found, kept[name])
            was = f"  (kept: {kept[name][ratio]:.3g})" if name in kept else ""
            print(f"{name:18} {ratio:16} {value:7.3g}{was}{'  WORSE' * late}", flush=True)
            bad |= late
    if options.write:
        KEPT.write_text(json.dumps(result, indent=2) + "\n")
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
