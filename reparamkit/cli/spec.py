"""From words on the command line to a model, its weights and its inputs."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import chdir
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn

from .exported import INPUTS, load_exported
from .failures import Code, Failure, missing

FORMS = "write package.module:callable, file.py:callable, timm:name, torchvision:name, hf:config, or the path of a .pt2"


# --- models -------------------------------------------------------------------------------------------


def load_model(spec: str) -> nn.Module:
    """The model that a spec names, in eval mode.

    spec: ``package.module:callable``, ``file.py:callable``, ``timm:name``, ``torchvision:name``, ``hf:config`` or
    ``file.pt2``; the callable is a model, or is called without arguments and returns one. Raises `Failure`.
    """
    if spec.endswith(".pt2"):
        return load_exported(Path(spec))
    home, _, name = spec.partition(":") if spec.startswith("hf:") else spec.rpartition(":")
    if not home or not name:
        raise Failure(Code.USAGE, f"'{spec}' names no model", FORMS)
    # Paths on the command line are meant from where it was given, wherever the code of the model goes.
    with chdir(Path.cwd()):
        model = ZOOS[home](name) if home in ZOOS else _called(_module(home), name, spec)
    if not isinstance(model, nn.Module):
        raise Failure(Code.MODEL, f"{spec} gives a {type(model).__name__}", "it must return a torch.nn.Module")
    # Classes override `train` and forget to return the model.
    model.eval()
    return model


def is_from_zoo(spec: str) -> bool:
    """Whether a model comes without trained weights."""
    return spec.partition(":")[0] in ZOOS


def optional(package: str, extra: str) -> ModuleType:
    """A package that is not a dependency. Raises `Failure` if it is not installed."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise missing(error.name or package, extra) from error


def _timm(name: str) -> Any:
    home = optional("timm", "zoo")
    _check_known("timm", name, home.list_models())
    return home.create_model(name)


def _torchvision(name: str) -> Any:
    home = optional("torchvision.models", "zoo")
    _check_known("torchvision", name, home.list_models())
    return home.get_model(name, weights=None)


def _check_known(zoo: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        near = ", ".join(difflib.get_close_matches(name, known, 3))
        raise Failure(Code.USAGE, f"{zoo} has no model '{name}'", f"did you mean {near}?" if near else "check the name")


def _transformers(name: str) -> Any:
    """The model of a configuration: a file or folder, a kind of model with its defaults, or a name on the hub."""
    home = optional("transformers", "hf")
    try:
        config = _config(home, name)
        kinds = [getattr(home, kind) for kind in config.architectures or () if hasattr(home, kind)]
        return kinds[0](config) if kinds else home.AutoModel.from_config(config)
    except Exception as error:
        next_step = "give a config.json, its folder, or a kind of model such as hf:resnet"
        raise Failure(Code.USAGE, f"hf:{name}: {type(error).__name__}: {error}", next_step) from error


def _config(home: Any, name: str) -> Any:
    if name in home.CONFIG_MAPPING and not Path(name).exists():
        return home.AutoConfig.for_model(name)
    return home.AutoConfig.from_pretrained(name)


ZOOS: dict[str, Callable[[str], Any]] = {"timm": _timm, "torchvision": _torchvision, "hf": _transformers}
"""Libraries of models, which come with random weights."""


def _module(home: str) -> ModuleType:
    path = Path(home)
    if path.suffix == ".py" and not path.is_file():
        raise Failure(Code.USAGE, f"there is no file '{home}'", "check the path before the colon")
    sys.path.insert(0, str(path.resolve().parent if path.suffix == ".py" else Path.cwd()))
    try:
        return _from_file(path) if path.suffix == ".py" else importlib.import_module(home)
    # A script without a guard for its main part ends the process, or reads the arguments of this one.
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{home}.".startswith(f"{error.name}."):
            raise Failure(Code.USAGE, f"there is no module '{home}'", FORMS) from error
        next_step = _MAIN if isinstance(error, SystemExit) else _DEBUG
        raise Failure(Code.MODEL, f"importing {home} raised {type(error).__name__}: {error}", next_step) from error


_DEBUG = "run with --debug for the trace"
_MAIN = "what a script does belongs under: if __name__ == '__main__'"


def _from_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Classes are found by their module's name when a model is copied or exported.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _called(module: ModuleType, name: str, spec: str) -> Any:
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            near = ", ".join(difflib.get_close_matches(part, dir(found), 3))
            hint = f"did you mean {near}?" if near else "check the name after the colon"
            raise Failure(Code.USAGE, f"{spec}: there is no '{part}'", hint)
        found = getattr(found, part)
    if isinstance(found, nn.Module) or not callable(found):
        return found
    try:
        return found()
    except (Exception, SystemExit) as error:
        raise Failure(Code.MODEL, f"{spec} raised {type(error).__name__}: {error}", _DEBUG) from error


# --- weights ------------------------------------------------------------------------------------------


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict into a model, in place.

    path: a .safetensors file, or one of torch.save, which is read with weights_only=True. Raises `Failure`.
    """
    state = _with_tied(model, read_state(path))
    _check_numbers(path, state, model)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        what = f"{path} does not fit the model: {_misfit(model, state)}"
        raise Failure(Code.MODEL, what, _wrapped(model, state) or "check --weights") from error


def read_state(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a file by name; those inside 'state_dict' or 'model' if the file has such an entry."""
    if not path.is_file():
        raise Failure(Code.USAGE, f"there is no file '{path}'", "check the path of the weights")
    try:
        if path.suffix == ".safetensors":
            found: Any = optional("safetensors.torch", "cli").load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Failure:
        raise
    except UnpicklingError as error:
        what = f"{path} cannot be read: it is damaged, or holds more than tensors, which could run code"
        raise Failure(Code.MODEL, what, "save a state_dict as .safetensors") from error
    except Exception as error:
        raise Failure(
            Code.MODEL, f"{path} cannot be read ({type(error).__name__}: {error})", "save a state_dict as .safetensors"
        ) from error
    for entry in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(entry), Mapping):
            found = found[entry]
    if not isinstance(found, Mapping) or not all(_is_entry(*item) for item in found.items()):
        raise Failure(Code.MODEL, f"{path} holds no state_dict", "save model.state_dict()")
    return found


def _with_tied(model: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The state with all names of tensors of which it has one: safetensors files have tied tensors once."""
    own = model.state_dict(keep_vars=True)
    held = {id(tensor): state[name] for name, tensor in own.items() if name in state}
    return {**{name: held[id(tensor)] for name, tensor in own.items() if id(tensor) in held}, **state}


def _check_numbers(path: Path, state: Mapping[str, Tensor], model: nn.Module) -> None:
    """What load_state_dict would take without a word: kinds of numbers that are not the model's, and no numbers."""
    own = model.state_dict()
    known = {name: tensor for name, tensor in state.items() if name in own and own[name].shape == tensor.shape}
    for what, names in (
        ("of another kind", [n for n, t in known.items() if _kind(t) != _kind(own[n])]),
        ("not a number", [n for n, t in known.items() if _has_nan(t)]),
    ):
        if names:
            shown = f"{len(names)} {what} ({', '.join(names[:2])}{', ...' * (len(names) > 2)})"
            raise Failure(Code.MODEL, f"{path} does not fit the model: {shown}", "is the file damaged?")


def _is_entry(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor)


def _kind(tensor: Tensor) -> tuple[bool, bool, bool, torch.layout]:
    return tensor.is_floating_point(), tensor.is_complex(), tensor.is_meta, tensor.layout


def _has_nan(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and not tensor.is_meta and bool(tensor.isnan().any())


def _misfit(model: nn.Module, state: Mapping[str, Tensor]) -> str:
    own = model.state_dict()
    shapes = [name for name in own if name in state and own[name].shape != state[name].shape]
    parts = (
        ("missing", sorted(own.keys() - state)),
        ("unexpected", sorted(state.keys() - own)),
        ("of another shape", shapes),
    )
    return "; ".join(
        f"{len(names)} {what} ({', '.join(names[:2])}{', ...' * (len(names) > 2)})" for what, names in parts if names
    )


def _wrapped(model: nn.Module, state: Mapping[str, Tensor]) -> str:
    """What to do about names that only have a prefix too much; empty if that is not it."""
    own = model.state_dict().keys()
    for prefix in ("module.", "_orig_mod."):
        if {name.removeprefix(prefix) for name in state} == own:
            return f"it was saved from a wrapper: take '{prefix}' off its names"
    return ""


# --- inputs -------------------------------------------------------------------------------------------


def example_inputs(texts: Sequence[str], spec: str, model: nn.Module) -> tuple[Tensor, ...] | None:
    """Random inputs as --input describes them; without any, of the size a timm model was made for, or a .pt2 exported.

    texts: such as "1,3,224,224" or "1,16:int64". Returns None if nothing is known.
    """
    config = getattr(model, "pretrained_cfg", None)
    if not texts and spec.startswith("timm:") and isinstance(config, Mapping) and "input_size" in config:
        texts = [",".join(map(str, (1, *config["input_size"])))]
    if not texts and isinstance(model, fx.GraphModule) and INPUTS in model.meta:
        return redrawn(model.meta[INPUTS], 0)
    return drawn(texts, 0) if texts else None


def drawn(texts: Iterable[str], seed: int) -> tuple[Tensor, ...]:
    """Random tensors: normal numbers, or 0 and 1 for types that are not floating. Raises `Failure`."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(_drawn(text, generator) for text in texts)


def _drawn(text: str, generator: torch.Generator) -> Tensor:
    sizes, _, name = text.partition(":")
    dtype = getattr(torch, name or "float32", None)
    if not isinstance(dtype, torch.dtype):
        raise Failure(Code.USAGE, f"--input {text}: '{name}' is no dtype", "for example 1,16:int64")
    try:
        shape = [int(size) for size in sizes.split(",")] if sizes else []
        if any(size < 0 for size in shape):
            raise ValueError
    except ValueError:
        raise Failure(Code.USAGE, f"--input {text}: not a list of sizes", "for example 1,3,224,224") from None
    try:
        if dtype.is_floating_point or dtype.is_complex:
            return torch.randn(shape, generator=generator).to(dtype)
        return torch.randint(0, 2, shape, generator=generator).to(dtype)
    # Sizes beyond any memory, and dtypes that torch has no numbers of.
    except (RuntimeError, TypeError) as error:
        what = f"--input {text}: torch cannot make it ({str(error).splitlines()[0]})"
        raise Failure(Code.USAGE, what, "for example 1,3,224,224") from error


def redrawn(inputs: Sequence[Tensor], seed: int) -> tuple[Tensor, ...]:
    """Other random numbers of the same shapes and dtypes."""
    texts = [f"{','.join(map(str, x.shape))}:{str(x.dtype).removeprefix('torch.')}" for x in inputs]
    return drawn(texts, seed)
