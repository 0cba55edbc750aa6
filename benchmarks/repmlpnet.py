"""The figures of the main job, each a ratio within one run: ``python benchmarks/repmlpnet.py``.

Writes benchmarks/results/repmlpnet.md, and with ``--readme`` the table in README.md. BN statistics are random.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import reparamkit
from reparamkit.algebra.operator import Link, Operator, Role
from reparamkit.algebra.relink import densify
from reparamkit.algebra.size import fixed
from reparamkit.algebra.weight import leaf
from reparamkit.timing import clock, in_turns

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples" / "repmlpnet"))
from model import RepMLPBlock, create_model, randomize_batch_norm  # noqa: E402
from pages import fill  # noqa: E402

BATCH_NORM = nn.modules.batchnorm._BatchNorm


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = create_model(options.model)
    randomize_batch_norm(model)
    model.eval()
    size = 256 if "256" in options.model else 224
    x = torch.randn(1, 3, size, size)
    rows = [*_fusing(model, x), *_structure(model, x), *_writing(model, options.repeats)]
    rows += _latency(model, size, options.repeats)
    _write(options, rows)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="repmlpnet_t224")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--readme", action="store_true", help="write the table into README.md too")
    return parser.parse_args()


# --- fusing -----------------------------------------------------------------------------------------


def _fusing(model: nn.Module, x: Tensor) -> Iterator[tuple[str, str]]:
    """Time and memory of one whole fuse."""
    reparamkit.fuse(nn.Sequential(nn.Linear(2, 2)).eval(), torch.zeros(1, 2))  # imports of torch, once
    own = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
    with peak_memory() as peak:
        start = time.perf_counter()
        fused = reparamkit.fuse(model, x)
        seconds = time.perf_counter() - start
    returned = sum(p.numel() * p.element_size() for p in fused.parameters()) / 2**20
    extra = peak[0] - returned
    yield "fuse, whole model, proofs included", f"{seconds:.1f} s"
    yield "memory beyond the returned model", f"{extra:.0f} MiB = {extra / own:.2f} x the model ({own:.0f} MiB)"


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Growth of the resident memory while the block runs, in MiB, sampled every millisecond."""
    found, done = [0.0], threading.Event()
    start = _resident()

    def sample() -> None:
        while not done.is_set():
            found[0] = max(found[0], _resident() - start)
            time.sleep(0.001)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


# --- what is left -----------------------------------------------------------------------------------


def _structure(model: nn.Module, x: Tensor) -> Iterator[tuple[str, str]]:
    fused, published = reparamkit.fuse(model, x), published_merge(model)
    counts = [_count(m, BATCH_NORM) for m in (model, published, fused)]
    yield "batch norms: trained, published merge, fused", " / ".join(map(str, counts))
    local = [
        sum(".repconv" in name and isinstance(m, nn.Conv2d) for name, m in f.named_modules()) for f in (model, fused)
    ]
    yield "convolutions of the local perceptron: trained, fused", " / ".join(map(str, local))
    report = reparamkit.report(fused)
    yield "operations", f"{report.before.ops} -> {report.after.ops}"
    yield "stored numbers", f"{report.before.stored:,} -> {report.after.stored:,}"
    yield "FLOPs of the affine layers", f"{report.before.flops:,} -> {report.after.flops:,}"
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
        errors = [_error(m(x), exact) for m in (model, published, fused)]
    yield "relative error against float64: trained, published, fused", " / ".join(f"{e:.1e}" for e in errors)


def _count(model: nn.Module, kind: type) -> int:
    return sum(isinstance(m, kind) for m in model.modules())


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).abs().max() / exact.abs().max())


def published_merge(model: nn.Module) -> nn.Module:
    """The procedure of the paper: Locality Injection and the batch norm of FC3, block by block."""
    merged = copy.deepcopy(model)
    for block in merged.modules():
        if isinstance(block, RepMLPBlock):
            _inject_by_identity(block)
    return merged


@torch.no_grad()
def _inject_by_identity(block: RepMLPBlock) -> None:
    kernel, bias = _local_kernel(block)
    weight, shift = _fold(block.fc3.weight, block.fc3_bn, repeat=block.h * block.w)
    dense = toeplitz_by_identity(kernel, block.h, block.w)
    fc3 = nn.Conv2d(block.fc3.in_channels, block.fc3.out_channels, 1, groups=block.fc3.groups)
    fc3.weight.copy_(weight + dense.reshape(weight.shape))
    fc3.bias.copy_(shift + bias.repeat_interleave(block.h * block.w))
    block.fc3, block.fc3_bn, block.kernels = fc3, nn.Identity(), ()
    for name in [n for n, _ in block.named_children() if n.startswith("repconv")]:
        delattr(block, name)


def _fold(weight: Tensor, bn: nn.BatchNorm2d, repeat: int) -> tuple[Tensor, Tensor]:
    scale = bn.weight / (bn.running_var + bn.eps).sqrt()
    shift = bn.bias - bn.running_mean * scale
    return weight * scale.repeat_interleave(repeat).reshape(-1, 1, 1, 1), shift.repeat_interleave(repeat)


def _local_kernel(block: RepMLPBlock) -> tuple[Tensor, Tensor]:
    """All local convs as one kernel (s, 1, k, k) and one bias (s,)."""
    pairs = [m for n, m in block.named_children() if n.startswith("repconv")]
    largest = max(p.conv.kernel_size[0] for p in pairs)
    kernel, bias = 0, 0
    for pair in pairs:
        folded, shift = _fold(pair.conv.weight, pair.bn, repeat=1)
        pad = (largest - folded.shape[-1]) // 2
        kernel = kernel + nn.functional.pad(folded, [pad] * 4)
        bias = bias + shift
    return kernel, bias


def toeplitz_by_identity(kernel: Tensor, h: int, w: int) -> Tensor:
    """The matrix (s, out, in) of a depthwise conv: the conv of an identity batch (paper, equation 8)."""
    sets = kernel.shape[0]
    eye = torch.eye(h * w).repeat(1, sets).reshape(h * w, sets, h, w)
    found = nn.functional.conv2d(eye, kernel, padding=kernel.shape[-1] // 2, groups=sets)
    return found.reshape(h * w, sets, h * w).permute(1, 2, 0)


# --- writing kernels into matrices --------------------------------------------------------------------


def _writing(model: nn.Module, repeats: int) -> Iterator[tuple[str, str]]:
    blocks = [m for m in model.modules() if isinstance(m, RepMLPBlock)]
    kernels = [(_local_kernel(b)[0].detach(), b.h, b.w) for b in blocks]
    buffers = [torch.zeros(k.shape[0], h, h, w, w, dtype=torch.float64) for k, h, w in kernels]
    stencils = [depthwise(k, h, w) for k, h, w in kernels]
    for (kernel, h, w), stencil in zip(kernels, stencils, strict=True):
        _check_equal(kernel, h, w, stencil)

    def by_identity() -> None:
        for kernel, h, w in kernels:
            toeplitz_by_identity(kernel, h, w)

    def on_diagonals() -> None:
        for stencil, buffer in zip(stencils, buffers, strict=True):
            stencil.weight.add_to(buffer)

    slow, fast = medians((by_identity, on_diagonals), repeats)
    yield (
        "writing the convs of all blocks: identity batch, diagonals",
        f"{slow:.1f} ms / {fast:.2f} ms = {slow / fast:.0f} x",
    )


def depthwise(kernel: Tensor, h: int, w: int) -> Operator:
    """The depthwise conv as an operator whose two axes are full matrices."""
    k = kernel.shape[-1]
    taps = tuple(range(-(k // 2), k // 2 + 1))
    links = (
        Link(Role.DIAGONAL, fixed(kernel.shape[0])),
        Link(Role.STENCIL, fixed(h), taps),
        Link(Role.STENCIL, fixed(w), taps),
    )
    dims = ((0,), (1,), (2,))
    op = Operator(links, dims, dims, leaf(kernel, (kernel.shape[0], k, k)))
    return densify(densify(op, 2), 1)


def _check_equal(kernel: Tensor, h: int, w: int, stencil: Operator) -> None:
    """Bit for bit, on small integers."""
    whole = torch.randint_like(kernel, -8, 9)
    dense = depthwise(whole, h, w).weight.tensor().float()
    sets = kernel.shape[0]
    found = dense.reshape(sets, h, h, w, w).permute(0, 2, 4, 1, 3).reshape(sets, h * w, h * w)
    assert torch.equal(found, toeplitz_by_identity(whole, h, w))


# --- latency ----------------------------------------------------------------------------------------


def _latency(model: nn.Module, size: int, repeats: int) -> Iterator[tuple[str, str]]:
    published, fused = published_merge(model), reparamkit.fuse(model, torch.randn(1, 3, size, size))
    for batch in (1, 16):
        x = torch.randn(batch, 3, size, size)
        with torch.inference_mode():
            runs = tuple(partial(m, x) for m in (model, published, fused))
            times = medians(runs, max(5, repeats // (1 if batch == 1 else 3)))
        shown = " / ".join(f"{t:.0f} ms" for t in times)
        ratios = f"fused is {times[0] / times[2]:.2f} x as fast as trained, {times[1] / times[2]:.2f} x as published"
        yield f"latency, batch {batch}: trained, published merge, fused", f"{shown}; {ratios}"


def medians(runs: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median milliseconds of each function, measured in turns after a warm-up."""
    return [statistics.median(t) for t in in_turns(runs, repeats, clock=clock(torch.device("cpu")))]


# --- output -----------------------------------------------------------------------------------------


def _write(options: argparse.Namespace, rows: list[tuple[str, str]]) -> None:
    version, threads = torch.__version__.split("+")[0], options.threads
    machine = f"{options.model}, torch {version}, {threads} CPU threads, {platform.machine()}, eager, float32"
    lines = [f"| {machine} | |", "|---|---|", *(f"| {what} | {figure} |" for what, figure in rows)]
    table = "\n".join(lines)
    print(table)
    results = ROOT / "benchmarks" / "results"
    results.mkdir(exist_ok=True)
    (results / "repmlpnet.md").write_text(table + "\n")
    if options.readme:
        fill(ROOT / "README.md", "benchmark", lines)


if __name__ == "__main__":
    main()
