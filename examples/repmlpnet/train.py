"""Train RepMLPNet, fuse it with reparamkit, and compare the two: accuracy, logits, size and speed."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import parallel
import torch
from command import command
from data import Data, load_images
from evaluate import compare
from figures import describe, print_answers, print_size, print_speed, write_figures
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


def new_model(options: Options, data: Data) -> RepMLPNet:
    """An untrained model for `data`."""
    model = create_model(options.model, data.num_classes, in_channels=data.in_channels)
    return model.to(options.device)


def fuse(model: nn.Module, data: Data, options: Options) -> nn.Module:
    """The fused form of `model`, after it was compared with `model` and the figures were printed and kept."""
    # TensorFloat-32 would round each form differently and hide the error of the fusion itself.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    images = next(iter(data.test_batches(options.batch_size)))[0].to(options.device)
    fused: nn.Module = reparamkit.fuse(model, images)
    report = reparamkit.report(fused)
    print(f"\n{report}\n")
    figures = print_answers(compare(model, fused, data.test_batches(options.batch_size), options.device))
    write_figures({**figures, **print_size(report), **print_speed(model, fused, images)}, options.output)
    return fused


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = parse(arguments)
    return command(lambda: run(options), options.device)


if __name__ == "__main__":
    sys.exit(main())
