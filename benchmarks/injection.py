"""What injected convolutions cost while training, each way to compute them: ``python benchmarks/injection.py``.

Times whole training steps of ResMLPs (forward, backward, SGD) in turns and reports medians as ratios to the model
without injection. Writes benchmarks/results/injection.md, on a GPU injection_cuda.md.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

import reparamkit

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples" / "resmlp"))
from resmlp import ResMLP  # noqa: E402

SIZES = {
    "8 x 8 tokens, 48 channels, 4 layers, batch 64": ({"image_size": 32, "patch_size": 4, "dim": 48, "depth": 4}, 64),
    "14 x 14 tokens, 192 channels, 2 layers, batch 16": (
        {"image_size": 224, "patch_size": 16, "dim": 192, "depth": 2},
        16,
    ),
    "28 x 28 tokens, 96 channels, 1 layer, batch 4": (
        {"image_size": 224, "patch_size": 8, "dim": 96, "depth": 1},
        4,
    ),
}


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    rows = [(name, _ratios(sizes, batch, device, options.rounds)) for name, (sizes, batch) in SIZES.items()]
    text = "\n".join(_table(rows, options)) + "\n"
    name = "injection.md" if device.type == "cpu" else f"injection_{device.type}.md"
    (ROOT / "benchmarks" / "results" / name).write_text(text)
    print(text)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=11)
    return parser.parse_args()


def _ratios(sizes: dict[str, int], batch: int, device: torch.device, rounds: int) -> dict[str, float]:
    """Median seconds of a step per model, measured in turns; "plain" is the one without injection."""
    torch.manual_seed(0)
    plain = ResMLP(10, in_channels=1, **sizes).to(device)
    models = {"plain": plain}
    for compute in ("conv", "matmul"):
        models[compute] = reparamkit.inject_locality(plain, kernels=(1, 3), init=1.0, compute=compute)
    optimizers = {name: torch.optim.SGD(model.parameters(), lr=1e-3) for name, model in models.items()}
    images = torch.randn(batch, 1, sizes["image_size"], sizes["image_size"], device=device)
    times: dict[str, list[float]] = {name: [] for name in models}
    for number in range(rounds + 2):
        for name, model in models.items():
            seconds = _step(model.train(), optimizers[name], images)
            if number >= 2:
                times[name].append(seconds)
    return {name: median(found) for name, found in times.items()}


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor) -> float:
    _wait(images.device)
    start = time.perf_counter()
    optimizer.zero_grad()
    model(images).square().mean().backward()
    optimizer.step()
    _wait(images.device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _table(rows: list[tuple[str, dict[str, float]]], options: argparse.Namespace) -> list[str]:
    where = f"{options.threads} CPU threads, {platform.machine()}" if options.device == "cpu" else options.device
    if options.device.startswith("cuda"):
        where = torch.cuda.get_device_name(options.device)
    head = f"| training step, torch {torch.__version__.split('+')[0]}, {where}, float32 "
    lines = [f"{head}| without injection | `conv` | `matmul` |", "|---|---|---|---|"]
    for name, times in rows:
        cells = " | ".join(f"{times[way] / times['plain']:.2f} x" for way in ("conv", "matmul"))
        lines.append(f"| {name} | {1e3 * times['plain']:.3g} ms | {cells} |")
    return lines


if __name__ == "__main__":
    main()
