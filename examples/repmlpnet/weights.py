"""Weights in and out: the released checkpoints and safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from errors import WeightsError
from files import read_tensors, write_atomically
from safetensors.torch import save
from torch import Tensor, nn


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the state dict of `model` as safetensors."""
    # A copy each: safetensors refuses tensors that share memory, and a fused model may share some.
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in model.state_dict().items()}
    write_atomically(path, lambda temporary: temporary.write_bytes(save(tensors)))


def load_published(model: nn.Module, source: str | Path | Mapping[str, Any]) -> None:
    """Load weights with the names of the released RepMLPNet checkpoints into `model`, all of them or none.

    `source` is a state dict or a file: safetensors, or a torch file with only tensors and plain values. It
    may be wrapped as `{"model": ...}`, and its names may start with `module.`.
    """
    tensors = _unwrap(source if isinstance(source, Mapping) else _read(Path(source)))
    _check_fits(model.state_dict(), tensors)
    model.load_state_dict(dict(tensors))


def _read(path: Path) -> Mapping[str, Any]:
    content = read_tensors(path)
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a state dict")
    return content


def _unwrap(content: Mapping[str, Any]) -> Mapping[str, Tensor]:
    for key in ("model", "state_dict"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
    if wrong := [name for name, value in content.items() if not isinstance(value, Tensor)]:
        raise WeightsError(f"not a state dict: no tensor at {_some(wrong)}")
    return {name.removeprefix("module."): value for name, value in content.items()}


def _check_fits(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    wrong_shape = [
        f"{name} is {tuple(given[name].shape)}, the model has {tuple(expected[name].shape)}"
        for name in expected
        if name in given and given[name].shape != expected[name].shape
    ]
    missing = [name for name in expected if name not in given]
    unknown = [name for name in given if name not in expected]
    broken = [name for name, value in given.items() if value.is_floating_point() and not value.isfinite().all()]
    problems = {"missing": missing, "unknown": unknown, "wrong shape": wrong_shape, "not finite": broken}
    if text := "; ".join(f"{what}: {_some(names)}" for what, names in problems.items() if names):
        raise WeightsError(f"the weights do not fit this model ({text}); nothing was loaded")


def _some(names: list[str], shown: int = 3) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(map(str, names[:shown])) + more
