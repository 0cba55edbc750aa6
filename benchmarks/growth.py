"""How the time to fuse grows with a model: ``python benchmarks/growth.py`` writes benchmarks/results/growth.md.

Chains of equal blocks, with random batch-norm statistics. Fusing a block must cost the same in a long chain as in a
short one.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from processor import processor_seconds
from torch import Tensor, fx, nn

import reparamkit

RESULTS = Path(__file__).resolve().parent / "results" / "growth.md"
SIZES = (10, 30, 100, 300, 1000, 2000)
CHANNELS = 4


def row() -> nn.Module:
    """A convolution, its norm, an activation: modules are swapped."""
    return nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.BatchNorm2d(CHANNELS), nn.ReLU())


class Branches(nn.Module):
    """A block of RepVGG: its forward is written again."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        self.point = nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(CHANNELS) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W); returns the same shape."""
        return torch.relu(self.norms[0](self.dense(x)) + self.norms[1](self.point(x)) + self.norms[2](x))


class Residual(nn.Module):
    """A block of a transformer, without its attention: every sum is affine in those before it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(CHANNELS)
        self.up, self.down = nn.Linear(CHANNELS, 2 * CHANNELS), nn.Linear(2 * CHANNELS, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, T, C); returns the same shape."""
        return x + self.down(torch.relu(self.up(self.norm(x))))


BLOCKS: dict[str, Callable[[], nn.Module]] = {"row": row, "branches": Branches, "residual": Residual}


def chain(block: Callable[[], nn.Module], length: int) -> nn.Module:
    """So many blocks one after the other, in eval mode."""
    torch.manual_seed(0)
    model = nn.Sequential(*(block() for _ in range(length)))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_()
    return model.eval()


def line(kind: str, length: int) -> str:
    """One line of the table."""
    model = chain(BLOCKS[kind], length)
    base = processor_seconds(lambda: (fx.symbolic_trace(model), copy.deepcopy(model)))
    plain = processor_seconds(lambda: reparamkit.fuse(model, verify=False))
    proved = processor_seconds(lambda: reparamkit.fuse(model))
    cells = (1e3 * base / length, 1e3 * plain / length, 1e3 * proved / length)
    return f"| {kind} | {length} | {' | '.join(f'{ms:.1f}' for ms in cells)} | {plain / base:.1f} |\n"


HEAD = """# Time to fuse a chain, per block

`python benchmarks/growth.py`; milliseconds of processor time per block, one thread.
`capture`: torch.fx.symbolic_trace and copy.deepcopy.

| block | blocks | capture | fuse, verify=False | fuse | fuse / capture |
|---|---|---|---|---|---|
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sys.setrecursionlimit(10_000)
    rows = []
    for kind in BLOCKS:
        line(kind, 2)  # what the first call of each kind loads and looks up is no time of a block
    for length in options.sizes:
        for kind in BLOCKS:
            rows.append(line(kind, length))
            print(rows[-1], end="", flush=True)
            options.results.write_text(HEAD + "".join(rows))


if __name__ == "__main__":
    main()
