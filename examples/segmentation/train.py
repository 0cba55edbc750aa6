"""Train RepMLPNet with a UPerNet-like head to segment images, fuse all of it at once, compare pixel by pixel."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent.parent
# The backbone, checkpoints and timing are those of the RepMLPNet example.
sys.path.append(str(EXAMPLES / "repmlpnet"))

import parallel  # noqa: E402
import torch  # noqa: E402
from arguments import Options, parse  # noqa: E402
from command import command  # noqa: E402
from data import Data  # noqa: E402
from figures import Figures, print_size, print_speed, write_figures  # noqa: E402
from folders import load_folders  # noqa: E402
from quality import compare, mean_iou  # noqa: E402
from scenes import CLASSES, load_scenes  # noqa: E402
from segmenter import Segmenter, new_segmenter  # noqa: E402
from torch import nn  # noqa: E402
from training import Trainer  # noqa: E402
from weights import save_weights  # noqa: E402

import reparamkit  # noqa: E402

TRAIN, TEST = 1600, 200
"""Canvases of digits per epoch and for testing, unless others are asked for."""


def run(options: Options) -> None:
    """Train, save, fuse, compare."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    print(f"computing on {options.device}, {torch.get_num_threads()} CPU threads")
    data = load(options)
    model = train(options, data)
    if parallel.rank() > 0:
        return
    fused = fuse(model, data, options)
    save_weights(fused, options.output / "fused.safetensors")
    print(f"\nwritten to {options.output}")


def load(options: Options) -> Data:
    """The data set; its labels (H, W) are classes, negative where a pixel does not count."""
    if options.data == "scenes":
        parts = load_scenes(options.limit_train or TRAIN, options.limit_test or TEST)
        return Data(*parts, num_classes=len(CLASSES), in_channels=1)
    train_part, test_part, classes = load_folders(options.data, options.data_root, options.image_size)
    workers = 4 if options.workers is None else options.workers
    data = Data(train_part, test_part, num_classes=classes, in_channels=3, workers=workers)
    return data.limited(options.limit_train, options.limit_test)


def new_model(options: Options, data: Data) -> Segmenter:
    """An untrained model for `data`."""
    torch.manual_seed(options.seed)
    model = new_segmenter(options.model, data.in_channels, data.num_classes, options.head_width)
    return model.to(options.device)


def train(options: Options, data: Data) -> nn.Module:
    """The trained model, in eval mode; weights and history lie in the output folder."""
    model = new_model(options, data)

    def measure(trained: nn.Module) -> float:
        return mean_iou(trained, data.test_batches(options.batch_size), data.num_classes, options.device)

    trained = Trainer(model, data, options, measure, "test mIoU").train().eval()
    if parallel.rank() == 0:
        save_weights(trained, options.output / "model.safetensors")
    return trained


def fuse(model: nn.Module, data: Data, options: Options) -> nn.Module:
    """The fused form of the whole model, after it was compared with `model` and figures were printed and kept."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    images = next(iter(data.test_batches(options.batch_size)))[0].to(options.device)
    fused: nn.Module = reparamkit.fuse(model, images[:2])
    report = reparamkit.report(fused)
    print(f"\n{report}\n")
    figures = print_answers(model, fused, data, options)
    write_figures({**figures, **print_size(report), **print_speed(model, fused, images)}, options.output)
    return fused


def print_answers(before: nn.Module, after: nn.Module, data: Data, options: Options) -> Figures:
    """Print how the answers of the two forms differ; raise an error if rounding cannot explain it."""
    batches = data.test_batches(options.batch_size)
    result = compare(before, after, batches, data.num_classes, options.device)
    print(f"test mIoU            {result.before.mean_iou:.2%} -> {result.after.mean_iou:.2%}")
    print(f"pixel accuracy       {result.before.accuracy:.2%} -> {result.after.accuracy:.2%}")
    print(f"flipped pixels       {result.flipped:,} of {result.pixels:,}")
    print(f"largest logit error  {result.largest_error:.2e} ({result.relative_error:.1e} of the largest logit)")
    result.check()
    return result.figures()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = parse(arguments)
    return command(lambda: run(options), options.device)


if __name__ == "__main__":
    sys.exit(main())
