"""What a command writes: each file is complete, or not there."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..compare import compare
from ..recipes.files import atomic
from .failures import Code, Failure
from .spec import optional, redrawn


def check_target(option: str, path: Path | None, suffixes: Sequence[str]) -> None:
    """Say before long work that a file could not be written. Raises `Failure`."""
    if path is None:
        return
    if path.suffix not in suffixes:
        raise Failure(Code.USAGE, f"{option} {path}: the name must end in {' or '.join(suffixes)}", "rename it")
    if not path.parent.is_dir():
        raise Failure(Code.USAGE, f"{option} {path}: there is no folder '{path.parent}'", f"mkdir -p {path.parent}")
    if path.is_dir():
        raise Failure(Code.USAGE, f"{option} {path} is a folder", "name a file")
    if not os.access(path.parent, os.W_OK):
        raise Failure(Code.USAGE, f"{option} {path}: no right to write to '{path.parent}'", "name another folder")


def check_distinct(named: Mapping[str, Path | None]) -> None:
    """Say before long work that one file would be written over another. named: by option. Raises `Failure`."""
    options: dict[Path, str] = {}
    for option, path in named.items():
        if path is not None and (other := options.setdefault(path.resolve(), option)) != option:
            raise Failure(Code.USAGE, f"{other} and {option} name one file, {path}", "give it another name")


def write_text(path: Path, text: str) -> None:
    """A text file."""
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")


def write_weights(path: Path, model: nn.Module) -> None:
    """The state dict of a model as safetensors; tied tensors are written once."""
    save = optional("safetensors.torch", "cli").save_model
    with atomic(path) as part:
        save(model, str(part))


def write_exported(path: Path, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """The model as torch.export saves it."""
    with atomic(path) as part:
        _tried("torch.export", lambda: torch.export.save(torch.export.export(model, inputs), part))


@dataclass(frozen=True)
class OnnxCheck:
    """ONNX Runtime against torch on inputs that the export did not see.

    error: the largest relative error over the outputs. tolerance: what rounding can explain.
    """

    error: float
    tolerance: float
    runtime: str

    @property
    def passed(self) -> bool:
        """Whether the outputs agree up to rounding."""
        return self.error <= self.tolerance


def write_onnx(path: Path, model: nn.Module, inputs: tuple[Tensor, ...]) -> OnnxCheck:
    """The model as ONNX, kept only if ONNX Runtime gives what torch gives. Raises `Failure`."""
    for package in ("onnx", "onnxscript"):
        optional(package, "onnx")
    runtime = optional("onnxruntime", "onnx")
    with atomic(path) as part:
        made = _tried("torch.onnx.export", lambda: torch.onnx.export(model, inputs, dynamo=True, verbose=False))
        made.save(str(part), external_data=False)
        check = _checked(runtime, part, model, redrawn(inputs, 1))
        if not check.passed:
            what = f"relative error {check.error:.1e}, rounding allows {check.tolerance:.1e}"
            next_step = f"{path} was not written; report the model"
            raise Failure(Code.CHECK, f"ONNX Runtime differs from torch: {what}", next_step)
    return check


def _checked(runtime: Any, path: Path, model: nn.Module, inputs: tuple[Tensor, ...]) -> OnnxCheck:
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    found = session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
    with torch.no_grad():
        result = compare([torch.from_numpy(each) for each in found], model(*inputs), model.parameters())
    return OnnxCheck(result.error, result.tolerance, runtime.__version__)


def _tried(what: str, work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Exception as error:
        raise Failure(
            Code.MODEL, f"{what} failed: {type(error).__name__}: {error}", "try it on the model without fusing; --debug"
        ) from error
