"""Checkpoints: where tensors are read one by one, and where they are written one by one. Nothing is unpickled."""

from __future__ import annotations

import importlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ..errors import RecipeError
from .recipe import Fused, dtype_of, raw

CODES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
"""dtypes as safetensors names them."""
INDEX = ".json"
"""How the name of the index of a checkpoint of several files ends."""


# --- reading ----------------------------------------------------------------------------------------


class Source(Protocol):
    """A checkpoint."""

    def names(self) -> frozenset[str]:
        """What it holds."""

    def tensor(self, name: str) -> Tensor:
        """One tensor."""

    def part(self, name: str) -> str:
        """The file that the tensor is in."""


@dataclass(frozen=True)
class InMemory:
    """A dictionary of tensors; what else is in it is no part of the checkpoint."""

    tensors: Mapping[str, Any]

    def names(self) -> frozenset[str]:
        return frozenset(name for name, value in self.tensors.items() if isinstance(value, Tensor))

    def tensor(self, name: str) -> Tensor:
        found: Tensor = self.tensors[name]
        return found.detach()

    def part(self, name: str) -> str:
        return ""


@dataclass
class InFiles:
    """One safetensors file or several. files: by name of a tensor, the file it is in."""

    files: Mapping[str, Path]
    _open: dict[Path, Any] = field(default_factory=dict)

    def names(self) -> frozenset[str]:
        return frozenset(self.files)

    def tensor(self, name: str) -> Tensor:
        path = self.files[name]
        if path not in self._open:
            self._open = {path: opened(path)}
        try:
            found: Tensor = self._open[path].get_tensor(name)
        except Exception as error:
            raise RecipeError(f"'{name}' cannot be read from {path} ({error})") from error
        return found

    def part(self, name: str) -> str:
        return self.files[name].name


def source(given: Mapping[str, Any] | str | Path) -> Source:
    """A checkpoint: a dictionary of tensors, a .safetensors file, or the .json index of several.

    Raises `RecipeError` if it is none of these.
    """
    if isinstance(given, Mapping):
        return InMemory(given)
    if not isinstance(given, (str, Path)):
        raise RecipeError(f"a checkpoint is a dict of tensors or a path, found {type(given).__name__}")
    path = Path(given)
    if not path.is_file():
        raise RecipeError(f"there is no file '{path}'")
    if path.suffix == ".safetensors":
        return InFiles(dict.fromkeys(opened(path).keys(), path))
    if path.suffix == INDEX:
        return InFiles(_indexed(path))
    raise RecipeError(
        f"'{path}' is no .safetensors file and no {INDEX} index of some: other formats run code when they are read;"
        " load it yourself and pass the dict"
    )


def opened(path: Path) -> Any:
    """A safetensors file. Raises `RecipeError` if it cannot be read."""
    try:
        return importlib.import_module("safetensors").safe_open(path, framework="pt")
    except ModuleNotFoundError as error:
        raise RecipeError("reading files needs the package safetensors: pip install safetensors") from error
    except Exception as error:
        raise RecipeError(f"'{path}' is no safetensors file ({error})") from error


def _indexed(path: Path) -> dict[str, Path]:
    """Per tensor its file, which must lie beside the index and hold it."""
    try:
        listed = dict(json.loads(path.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RecipeError(f"'{path}' is no index of a checkpoint (no weight_map: {error!r})") from error
    files = {name: _beside(path, file) for name, file in listed.items()}
    held = {file: frozenset(opened(file).keys()) for file in set(files.values())}
    for name, file in files.items():
        if name not in held[file]:
            raise RecipeError(f"'{path}' says that '{name}' is in {file.name}, which does not hold it")
    return files


def _beside(index: Path, file: Any) -> Path:
    if not isinstance(file, str) or Path(file).name != file or "\\" in file or not file.endswith(".safetensors"):
        raise RecipeError(f"'{index}' names the file {file!r:.100}, which is no .safetensors file beside it")
    if not (index.parent / file).is_file():
        raise RecipeError(f"'{index}' names the file '{file}', which is not there")
    return index.parent / file


# --- writing ----------------------------------------------------------------------------------------


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A path to write to, beside `path`; it becomes `path` if all goes well, and goes away if not."""
    part = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    part.touch()
    mode = part.stat().st_mode
    try:
        yield part
        # safetensors makes files that only their owner can read.
        part.chmod(mode)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


Compute = Callable[[str], Tensor]
"""Gives a tensor of the fused model by its name."""


def write(target: Path, outputs: Mapping[str, Fused], part: Callable[[str], str], compute: Compute) -> None:
    """Write tensors to a .safetensors file, or, if `target` ends in .json, to one file for each `part` and an index.

    Raises `RecipeError` if the name of the target ends in something else, or there is no such folder.
    """
    if target.suffix not in (".safetensors", INDEX):
        raise RecipeError(f"'{target}': the name must end in .safetensors, or in {INDEX} for several files")
    if not target.parent.is_dir() or target.is_dir():
        raise RecipeError(f"'{target}': " + ("that is a folder" if target.is_dir() else "there is no such folder"))
    with ExitStack() as files:
        unfinished = files.enter_context(atomic(target))
        if target.suffix == ".safetensors":
            _write_file(unfinished, outputs, compute)
        else:
            _write_files(target, unfinished, files, outputs, part, compute)


def _write_files(
    target: Path,
    index: Path,
    files: ExitStack,
    outputs: Mapping[str, Fused],
    part: Callable[[str], str],
    compute: Compute,
) -> None:
    """Write one file for each part beside `target`, and the index to `index`. None is in its place before all are
    written, as they may take the place of the files that are read.
    """
    names = sorted({part(name) for name in outputs})
    stem = target.name.removesuffix(INDEX).removesuffix(".index").removesuffix(".safetensors")
    called = {p: f"{stem}-{k:05}-of-{len(names):05}.safetensors" for k, p in enumerate(names, start=1)}
    for name in names:
        unfinished = files.enter_context(atomic(target.parent / called[name]))
        _write_file(unfinished, {n: o for n, o in outputs.items() if part(n) == name}, compute)
    total = sum(_size(output) for output in outputs.values())
    listed = {"metadata": {"total_size": total}, "weight_map": {name: called[part(name)] for name in outputs}}
    index.write_text(json.dumps(listed, indent=2), encoding="utf-8")


def _write_file(path: Path, outputs: Mapping[str, Fused], compute: Compute) -> None:
    """The format is a length, a JSON header that tells where each tensor lies, and then the numbers."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    # Large numbers first, as safetensors does it: then every number lies at a multiple of its size.
    ordered = sorted(outputs.items(), key=lambda item: (-dtype_of(item[1].dtype).itemsize, item[0]))
    for name, output in ordered:
        if output.dtype not in CODES:
            raise RecipeError(f"safetensors has no {output.dtype}, which '{name}' is")
        begin, end = end, end + _size(output)
        header[name] = {"dtype": CODES[output.dtype], "shape": list(output.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, _ in ordered:
            tensor = compute(name).contiguous()
            file.write(raw(tensor))


def _size(output: Fused) -> int:
    """In bytes."""
    return math.prod(output.shape) * dtype_of(output.dtype).itemsize
