"""Check what the user gives before anything is done with it."""

from __future__ import annotations

import itertools
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from types import NoneType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as torch_module
from torch.nn.modules.module import _global_forward_hooks_with_kwargs, register_module_forward_hook

from .capture.arguments import Inputs
from .compare import compare, outputs
from .errors import InvalidInputError
from .running.trees import map_leaves
from .running.undone import undone

WRAPPERS = {
    "OptimizedModule": "a torch.compile'd model: {do} the model you compiled (compiled._orig_mod), then compile again",
    "DistributedDataParallel": "a DistributedDataParallel wrapper: {do} its .module",
    "DataParallel": "a DataParallel wrapper: {do} its .module",
    "FullyShardedDataParallel": "an FSDP wrapper: gather the weights and {do} its .module",
}

GLOBAL_HOOKS = (
    *("_global_forward_pre_hooks", "_global_forward_hooks"),
    *("_global_backward_pre_hooks", "_global_backward_hooks"),
)
"""Tables of torch for hooks that are called for every module."""


def checked_model(model: Any) -> nn.Module:
    """The model, if it can be fused. Raises `InvalidInputError` otherwise."""
    if not isinstance(model, nn.Module):
        raise InvalidInputError(f"expected a torch.nn.Module, found {type(model).__name__}")
    check_unwrapped(model, "fuse")
    if isinstance(model, fx.GraphModule) and "eval" in vars(model):
        # torch.export sets one that fails.
        raise InvalidInputError(
            "the model is the module of an exported program: fuse the program (torch.export.export)"
        )
    if model.training:
        raise InvalidInputError(
            "the model is in training mode, where batch norm uses the statistics of the batch: call model.eval()"
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise InvalidInputError(f"'{name}' is not initialised: run the lazy model once before fusing")
        if type(tensor).__module__.startswith("torch.distributed"):
            raise InvalidInputError(f"'{name}' is sharded (a {type(tensor).__name__}): fuse before you shard the model")
        if tensor.is_meta:
            raise InvalidInputError(f"'{name}' is on the meta device: load the weights before fusing")
    return model


def check_no_global_hooks() -> None:
    """Raises `InvalidInputError` if hooks of all modules of the process are set: they would see other modules."""
    if any(vars(torch_module)[name] for name in GLOBAL_HOOKS):
        raise InvalidInputError(
            "hooks for all modules are set (torch.nn.modules.module.register_module_...), and would be called for"
            " other modules after a merge: remove them before fuse"
        )


def check_unwrapped(model: nn.Module, do: str) -> None:
    """Raises `InvalidInputError` if the model is in a wrapper, or compiled. do: what to do without, in words."""
    if isinstance(model, torch.jit.ScriptModule):
        raise InvalidInputError(
            f"the model is a ScriptModule, whose code is fixed: {do} the nn.Module before scripting"
        )
    for cls in type(model).__mro__:
        if cls.__name__ in WRAPPERS and cls.__module__.startswith("torch."):
            raise InvalidInputError(f"the model is {WRAPPERS[cls.__name__].format(do=do)}")


@dataclass(frozen=True)
class Example:
    """A call of the model that was tried.

    output: the tensors that it gave, in all runs. runs: 2 in a row if one changes the model. calls: how often each
    module was called in the first, by its path. absent: positions and names of arguments that were None in one of its
    calls. written: the parameters that were written into, by name.
    """

    inputs: Inputs
    output: Sequence[Tensor]
    runs: int
    calls: Mapping[str, int]
    absent: Mapping[str, Set[int | str]]
    written: Set[str]

    @property
    def varies(self) -> bool:
        """Whether the model gave another output in the second run."""
        of_each = len(self.output) // self.runs
        return self.runs > 1 and not compare(self.output[of_each:], self.output[:of_each]).passed


def checked_inputs(model: nn.Module, example_inputs: Any, example_kwargs: Mapping[str, Any] | None) -> Example | None:
    """The example inputs of a call, if there are any and the model takes them.

    Raises `InvalidInputError`: wrong dtype or device, or the model rejects them.
    """
    if example_inputs is None and not example_kwargs:
        return None
    if not isinstance(example_kwargs, (Mapping, NoneType)):
        raise InvalidInputError(f"example_kwargs must be a dict of keyword arguments, found {example_kwargs!r}")
    args = () if example_inputs is None else example_inputs
    inputs = Inputs(args if isinstance(args, tuple) else (args,), dict(example_kwargs or {}))
    with undone(model) as changes:
        with _noted(model) as (calls, absent):
            output = tried(model, inputs)
        again = tried(model, inputs) if (changed := bool(changes)) else []
        written = {name for name, parameter in model.named_parameters() if changed and changes.wrote(parameter)}
    return Example(inputs, [*output, *again], 2 if changed else 1, calls, absent, written)


def depends_on_calls(model: nn.Module, example: Example) -> bool:
    """Whether what a model that changes gives for other inputs is another after the call of the example."""
    if example.runs == 1:
        return False
    other = Inputs(*map_leaves(_halved, (example.inputs.args, dict(example.inputs.kwargs))))
    try:
        with undone(model):
            first = outputs(model, other)
        with undone(model):
            outputs(model, example.inputs)
            return not compare(outputs(model, other), first).passed
    except Exception:
        # It takes no such inputs.
        return False


def _halved(leaf: Any) -> Any:
    return leaf / 2 if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def tried(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """The output tensors of a run. Raises `InvalidInputError` if the model does not take the inputs."""
    try:
        return outputs(model, inputs)
    except Exception as error:
        _check_kind(model, inputs)
        raise InvalidInputError(
            f"the model rejects the example inputs ({type(error).__name__}: {error}); pass a tensor, or the tuple of"
            " positional arguments, that model(...) takes"
        ) from error


@contextmanager
def _noted(model: nn.Module) -> Iterator[tuple[Counter[str], dict[str, set[int | str]]]]:
    """Counts the calls of each module, by its path, and notes which of their arguments are None."""
    paths = {id(module): path for path, module in reversed(list(model.named_modules()))}
    calls, absent = Counter[str](), dict[str, set[int | str]]()
    thread = threading.get_ident()

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        # The hook is that of the process: another thread may run the model, too.
        if threading.get_ident() == thread:
            path = paths.get(id(module), "")
            calls.update([path])
            given = itertools.chain(enumerate(args), kwargs.items())
            absent.setdefault(path, set()).update(key for key, value in given if value is None)

    hook = register_module_forward_hook(note, with_kwargs=True)
    try:
        with warnings.catch_warnings():
            # It is our hook, and gone in a moment.
            warnings.filterwarnings("ignore", r"Using `torch.compile\(module\)` when there are global hooks")
            yield calls, absent
    finally:
        hook.remove()
        # torch forgets to: what is left there makes torch.compile warn of hooks.
        _global_forward_hooks_with_kwargs.pop(hook.id, None)


def _check_kind(model: nn.Module, inputs: Inputs) -> None:
    """Raises `InvalidInputError` if inputs that the model does not take are of another dtype, or elsewhere."""
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    if parameter is None:
        return
    for tensor in inputs.tensors:
        if tensor.device != parameter.device:
            raise InvalidInputError(
                f"an example input is on {tensor.device}, the model on {parameter.device}: move one"
            )
        if tensor.is_floating_point() and tensor.dtype != parameter.dtype and not _mixed(model):
            raise InvalidInputError(f"an example input has {tensor.dtype}, the model {parameter.dtype}: cast one")


def _mixed(model: nn.Module) -> bool:
    return len({p.dtype for p in model.parameters() if p.is_floating_point()}) > 1
