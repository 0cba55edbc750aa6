"""Train RepMLPNet, fuse it with reparamkit, and compare the two: accuracy, logits, size and speed."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import parallel
import torch
from command import command
from data import Data, load_images
from evaluate import compare
from latency import compare_latency
from model import RepMLPNet, create_model
from options import Options, parse
from torch import nn
from training import Trainer
from weights import save_weights

import reparamkit


def run(options: Options) -> None:
    """Train, save, fuse, compare."""
    prepare_torch(options)
    data = load_images(options)
    model = Trainer(new_model(options, data), data, options).train()
    if parallel.rank() > 0:
        return
    save_weights(model.eval(), options.output / "model.safetensors")
    if options.fuse:
        fused = fuse(model, data, options)
        save_weights(fused, options.output / "fused.safetensors")
    print(f"\nwritten to {options.output}")


def prepare_torch(options: Options) -> None:
    """Set threads and seed, and say what the run computes on."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    print(f"computing on {describe(options.device)}")


def describe(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return f"{device}, {torch.cuda.get_device_name(device)}"
    return f"{device}, {torch.get_num_threads()} threads"


def new_model(options: Options, data: Data) -> RepMLPNet:
    """An untrained model for `data`."""
    model = create_model(options.model, data.num_classes, in_channels=data.in_channels)
    return model.to(options.device)


def fuse(model: nn.Module, data: Data, options: Options) -> nn.Module:
    """The fused form of `model`, after it was compared with `model` and the figures were printed."""
    # TensorFloat-32 would round each form differently and hide the error of the fusion itself.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    images = next(iter(data.test_batches(options.batch_size)))[0].to(options.device)
    fused: nn.Module = reparamkit.fuse(model, images)
    report = reparamkit.report(fused)
    print(f"\n{report}\n")
    print_answers(model, fused, data, options)
    print_size(report)
    print_speed(model, fused, images)
    return fused


def print_answers(model: nn.Module, fused: nn.Module, data: Data, options: Options) -> None:
    """Print how the answers of the two forms differ; raise an error if rounding cannot explain it."""
    result = compare(model, fused, data.test_batches(options.batch_size), options.device)
    before, after = result.accuracy
    print(f"test accuracy        {before:.2%} -> {after:.2%}")
    print(f"flipped predictions  {int(result.flipped.sum())} of {len(result.labels)}")
    print(f"largest logit error  {result.largest_error:.2e} ({result.relative_error:.1e} of the largest logit)")
    result.check()


def print_size(report: reparamkit.Report) -> None:
    """Print what the report counted."""
    before, after = report.before, report.after
    print(f"parameters           {before.parameters:,} -> {after.parameters:,}")
    print(f"FLOPs                {before.flops:,} -> {after.flops:,}")
    print(f"operations           {before.ops:,} -> {after.ops:,}")


def print_speed(model: nn.Module, fused: nn.Module, images: torch.Tensor) -> None:
    """Print the latency on one image and on the whole batch `images` (b, c, h, w)."""
    print(f"latency              on {describe(images.device)}, float32")
    for batch in (images[:1], images):
        print(f"  {compare_latency(model, fused, batch)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = parse(arguments)
    return command(lambda: run(options), options.device)


if __name__ == "__main__":
    sys.exit(main())
