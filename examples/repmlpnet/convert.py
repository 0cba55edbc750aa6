"""Fuse published RepMLPNet weights: ``python convert.py repmlpnet_b224 RepMLPNet-B224.pth fused.safetensors``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from command import failed, sentence
from errors import ExampleError
from evaluate import compare
from model import CONFIGS, create_model
from weights import load_published, save_weights

import reparamkit


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":")[0])
    parser.add_argument("model", choices=tuple(CONFIGS))
    parser.add_argument("source", type=Path, help="the weights as published: .pth or .safetensors")
    parser.add_argument("target", type=Path, help="where to write those of the fused net, as .safetensors")
    parser.add_argument("--classes", type=int, default=1000, metavar="N", help="(%(default)s)")
    options = parser.parse_args(arguments)
    try:
        convert(options.model, options.source, options.target, options.classes)
    except (ExampleError, OSError) as error:
        return failed(sentence(error))
    return 0


def convert(name: str, source: Path, target: Path, classes: int) -> None:
    """Load, fuse, compare the two forms on noise, write."""
    model = create_model(name, classes)
    load_published(model, source)
    images = torch.randn(2, model.config.in_channels, *[model.config.image_size] * 2)
    fused = reparamkit.fuse(model.eval(), images)
    print(f"{reparamkit.report(fused)}\n")
    answers = compare(model, fused, [(images, torch.zeros(len(images)))], torch.device("cpu"))
    answers.check()
    print(f"largest logit error  {answers.relative_error:.1e} of the largest logit")
    save_weights(fused, target)
    print(f"written to {target}; they fit reparamkit.fuse(create_model({name!r}, {classes}).eval(), images)")


if __name__ == "__main__":
    sys.exit(main())
