"""The claims of the RepMLPNet paper, small, on Fashion-MNIST: ``python benchmarks/evidence.py``.

Trains each arm with each seed on all training images and on 1,000 of them, fuses it, and adds a line to
benchmarks/results/evidence.csv. Another start goes on with the first run that is missing: only a run in progress can be
lost. ``--page`` writes docs/evidence.md and its pictures from the lines, and trains nothing.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

import reparamkit

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT / "examples" / name) for name in ("repmlpnet", "resmlp")]

from data import Data, load_data  # noqa: E402
from evaluate import Comparison, compare  # noqa: E402
from files import write_atomically  # noqa: E402
from model import create_model  # noqa: E402
from options import Options, parse  # noqa: E402
from progress import Steps  # noqa: E402
from resmlp import ResMLP  # noqa: E402
from training import Trainer  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
CLASSES, IMAGE_SIZE = 10, 32
RECIPE = ("--data", "fashion-mnist", "--weight-decay", "0.05", "--label-smoothing", "0.1")
RESMLP = {"image_size": IMAGE_SIZE, "patch_size": 4, "in_channels": 1, "dim": 32, "depth": 3}
REPMLPNET = {"channels": (16, 32, 64), "partitions": (8, 4, 2), "share_sets": (1, 4, 16), "units": (1, 2, 1)}


@dataclass(frozen=True)
class Budget:
    """What every arm may spend."""

    images: int
    epochs: int
    batch_size: int
    lr: float
    warmup_epochs: float

    def options(self) -> Options:
        """The recipe, as the RepMLPNet example takes it."""
        spent = {"--epochs": self.epochs, "--batch-size": self.batch_size}
        rates = {"--lr": self.lr, "--warmup-epochs": self.warmup_epochs}
        return parse([*RECIPE, "--device", "cpu", *(str(word) for pair in (spent | rates).items() for word in pair)])


BUDGETS = {
    "full": Budget(images=60_000, epochs=3, batch_size=64, lr=1e-2, warmup_epochs=0.3),
    "small": Budget(images=1_000, epochs=40, batch_size=32, lr=5e-3, warmup_epochs=4),
}


# --- the arms: those of one kind have the same first weights, as far as they have the same layers -------


def plain_resmlp() -> nn.Module:
    return ResMLP(CLASSES, **RESMLP)


def injected_resmlp() -> nn.Module:
    # A scale of 1 is what the paper starts from; 0 would suit a model that is trained already.
    return reparamkit.inject_locality(plain_resmlp(), layers="blocks.*.linear_tokens", kernels=(1, 3), init=1.0)


def repmlpnet(**without: Any) -> nn.Module:
    return create_model("repmlpnet_tiny32", CLASSES, in_channels=1, **REPMLPNET, **without)


def repmlpnet_without(**without: Any) -> nn.Module:
    """The net without a part, with the first weights of the whole net."""
    whole, ablated = repmlpnet().state_dict(), repmlpnet(**without)
    ablated.load_state_dict({name: whole[name] for name in ablated.state_dict()})
    return ablated


ARMS: dict[str, Callable[[], nn.Module]] = {
    "resmlp": plain_resmlp,
    "resmlp_injected": injected_resmlp,
    "repmlpnet": repmlpnet,
    "repmlpnet_no_local": lambda: repmlpnet_without(kernels=()),
    "repmlpnet_no_global": lambda: repmlpnet_without(gate_ratio=None),
}


# --- one run ---------------------------------------------------------------------------------------------


def run(data: Data, budget: str, arm: str, seed: int) -> dict[str, Any]:
    """Train, fuse, compare: one line of the results."""
    torch.manual_seed(seed)
    model = ARMS[arm]()
    # The same batches and shifts for all arms, whatever their first weights drew.
    torch.manual_seed(seed)
    start = time.process_time()
    loss = train(model, data, BUDGETS[budget].options())
    seconds = time.process_time() - start
    fused, result = fuse(model.eval(), data)
    accuracy, fused_accuracy = result.accuracy
    return {
        **{"budget": budget, "arm": arm, "seed": seed, "accuracy": accuracy, "fused_accuracy": fused_accuracy},
        **{"flipped": int(result.flipped.sum()), "tested": len(result.labels), "logit_error": result.relative_error},
        **{"loss": loss, "parameters": parameters(model), "fused_parameters": parameters(fused), "seconds": seconds},
    }


def train(model: nn.Module, data: Data, options: Options) -> float:
    """The mean loss of the last epoch."""
    trainer, loss = Trainer(model, data, options), float("nan")
    with Steps(options.epochs * trainer.steps) as steps:
        for _ in range(options.epochs):
            loss = trainer.train_epoch(steps)
    return loss


def fuse(model: nn.Module, data: Data) -> tuple[nn.Module, Comparison]:
    """The fused form, and its answers beside those of `model`; raises an error if rounding does not explain them."""
    images, _ = next(iter(data.test_batches(8)))
    fused = reparamkit.fuse(model, images)
    result = compare(model, fused, data.test_batches(500), torch.device("cpu"))
    result.check()
    return fused, result


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# --- all runs --------------------------------------------------------------------------------------------


def train_missing(results: Path, seeds: int, data: Data) -> None:
    """Add the lines that `results` lacks, seed by seed: whatever is there is there for all arms."""
    rows = read_rows(results)
    done = {(row["budget"], row["arm"], int(row["seed"])) for row in rows}
    parts = {name: data.limited(budget.images, None) for name, budget in BUDGETS.items()}
    for seed, budget, arm in product(range(seeds), BUDGETS, ARMS):
        if (budget, arm, seed) not in done:
            rows.append(run(parts[budget], budget, arm, seed))
            write_rows(rows, results)
            print(" ".join(f"{name}={value}" for name, value in rows[-1].items()), flush=True)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The lines of the results; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(rows: list[dict[str, Any]], path: Path) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(path, write)


def record_settings(path: Path, seeds: int) -> None:
    """Write what the results depend on beside them; exits if they were begun with something else."""
    settings = {**budgets_and_arms(), **versions()}
    if path.exists():
        found = {name: value for name, value in json.loads(path.read_text()).items() if name in settings}
        if changed := differing(found, settings):
            sys.exit(f"error: {path} was begun with other settings ({changed}): name another file with --results")
    text = json.dumps({"command": f"python benchmarks/evidence.py --seeds {seeds}", **settings}, indent=2)
    write_atomically(path, lambda temporary: temporary.write_text(text + "\n"))


def budgets_and_arms() -> dict[str, Any]:
    budgets = {name: asdict(budget) for name, budget in BUDGETS.items()}
    return {"recipe": " ".join(RECIPE), "budgets": budgets, "resmlp": RESMLP, "repmlpnet": listed(REPMLPNET)}


def listed(sizes: Mapping[str, Iterable[int]]) -> dict[str, list[int]]:
    """As JSON gives it back."""
    return {name: list(values) for name, values in sizes.items()}


def versions() -> dict[str, Any]:
    packages = {name: version(name).split("+")[0] for name in ("torch", "numpy")}
    return {
        **{"reparamkit": reparamkit.__version__, **packages, "python": platform.python_version()},
        **{"machine": platform.machine(), "threads": torch.get_num_threads()},
    }


def differing(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    return "; ".join(
        f"{name}: {found.get(name)}, now {wanted[name]}" for name in wanted if found.get(name) != wanted[name]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="runs per arm (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (%(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS / "evidence.csv", metavar="FILE", help="(%(default)s)")
    parser.add_argument("--page", action="store_true", help="write docs/evidence.md from the results, and stop")
    options = parser.parse_args()
    if options.page:
        # These need scipy and matplotlib, and training does not.
        import evidence_page
        import evidence_pictures

        evidence_page.write(options.results)
        evidence_pictures.draw(evidence_page.read(options.results))
        return
    torch.set_num_threads(options.threads)
    record_settings(options.results.with_suffix(".json"), options.seeds)
    # In so few epochs, random shifts cost more than they give.
    data = load_data("fashion-mnist", IMAGE_SIZE, shift=0)
    train_missing(options.results, options.seeds, data)


if __name__ == "__main__":
    main()
