"""Training speed, and latency before and after `fuse`, on a GPU: ``python benchmarks/gpu.py --page``.

Prints a table of whole training steps (forward, backward, AdamW) and of the trained and the fused form of RepMLPNet, in
float32 without and with TensorFloat-32, in bfloat16 and in float16. ``--page`` writes it into docs/benchmarks.md.
BN statistics are random.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import reparamkit

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "examples" / "repmlpnet"))
from model import CONFIGS, create_model, randomize_batch_norm  # noqa: E402
from pages import fill  # noqa: E402

PAGE = ROOT / "docs" / "benchmarks.md"
CLASSES = 1000
WARM_UP = 3


@dataclass(frozen=True)
class Format:
    """A way to compute. dtype: that of autocast while training, and of the weights of the models that are timed."""

    name: str
    dtype: torch.dtype = torch.float32
    tf32: bool = False

    @contextmanager
    def chosen(self) -> Iterator[None]:
        """Let products and convolutions in float32 use TensorFloat-32, or not."""
        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.tf32
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


FORMATS = (
    Format("float32, TF32 off"),
    Format("float32, TF32 on", tf32=True),
    Format("bfloat16", torch.bfloat16),
    Format("float16", torch.float16),
)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    torch.manual_seed(0)
    model = create_model(options.model, CLASSES).to(options.device)
    randomize_batch_norm(model)
    formats = [each for each in FORMATS if options.device.type == "cuda" or not each.tf32]
    publish("gpu", table(model, formats, options), options.page)


def publish(mark: str, lines: Iterable[str], page: Path | None) -> None:
    """Print a table, and write it between the marks of a page."""
    shown = []
    for line in lines:
        print(line, flush=True)
        shown.append(line)
    if page is not None:
        fill(page, mark, shown)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(CONFIGS), default="repmlpnet_t224", help="(%(default)s)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 128], metavar="N", help="(%(default)s)")
    parser.add_argument("--training-batch", type=int, default=128, metavar="N", help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=30, metavar="N", help="of each measurement (%(default)s)")
    parser.add_argument("--device", type=torch.device, default="cuda", help="(%(default)s)")
    words = "write the table between the marks of this file (docs/benchmarks.md)"
    parser.add_argument("--page", type=Path, nargs="?", const=PAGE, metavar="FILE", help=words)
    options = parser.parse_args(arguments)
    if options.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here")
    return options


def table(model: nn.Module, formats: Sequence[Format], options: argparse.Namespace) -> Iterator[str]:
    heads = [f"batch {n}: trained, fused" for n in options.batches]
    version = torch.__version__.partition("+")[0]
    yield f"{options.model} on {place(options.device)}, torch {version}, eager, contiguous:\n"
    yield f"| | training, batch {options.training_batch} | {' | '.join(heads)} |"
    yield "|---" * (2 + len(heads)) + "|"
    trained = copy.deepcopy(model).eval()
    start = time.perf_counter()
    pair = trained, reparamkit.fuse(trained, images(model, 1, options.device))
    print(f"fused in {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    for each in formats:
        with each.chosen():
            speed = options.training_batch / training_step(model, each, options)
            cells = [latency(pair, images(model, n, options.device), each, options.rounds) for n in options.batches]
        yield f"| {each.name} | {speed:,.0f} images/s | {' | '.join(cells)} |"


def place(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return f"{device}, {torch.get_num_threads()} threads"


def images(model: nn.Module, batch: int, device: torch.device) -> Tensor:
    size = model.config.image_size
    return torch.randn(batch, model.config.in_channels, size, size, device=device)  # type: ignore[arg-type]


def training_step(model: nn.Module, form: Format, options: argparse.Namespace) -> float:
    """The median seconds of a step of a copy of the model."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    scaler = torch.amp.GradScaler(options.device.type, enabled=form.dtype == torch.float16)
    x = images(model, options.training_batch, options.device)
    labels = torch.arange(len(x), device=options.device) % CLASSES
    times = []
    for _ in range(WARM_UP + options.rounds):
        wait(options.device)
        start = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast(options.device.type, form.dtype, enabled=form.dtype != torch.float32):
            loss = F.cross_entropy(model(x), labels)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
        wait(options.device)
        times.append(time.perf_counter() - start)
    return median(times[WARM_UP:])


def latency(pair: tuple[nn.Module, nn.Module], x: Tensor, form: Format, rounds: int) -> str:
    """Both forms on one batch, in weights of the format; they were fused in float32."""
    trained, fused = (copy.deepcopy(each).to(form.dtype) for each in pair)
    found = reparamkit.benchmark(trained, fused, x.to(form.dtype), rounds=rounds)
    low, high = found.speedup.low, found.speedup.high
    times = f"{found.model.median:.2f}, {found.fused.median:.2f} ms"
    return f"{times}, {found.speedup.median:.2f} x [{low:.2f}, {high:.2f}]"


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
