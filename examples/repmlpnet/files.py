"""Reading tensors without trust, and writing files so that a reader never sees half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from errors import FileError
from safetensors.torch import load_file


def check_folder(folder: Path) -> None:
    """Make the folder, and see that files can be written to it. Raises `FileError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise FileError(f"cannot write to {folder} ({error.strerror}): name a folder with --output") from error


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file next to `path`, then move it there in one step.

    Whoever is killed meanwhile leaves a temporary file, which the next one to write `path` uses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    try:
        write(temporary)
        os.replace(temporary, path)
    # What torch.save makes of a full disk.
    except RuntimeError as error:
        raise FileError(f"cannot write {path}: is the disk full? ({error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_tensors(path: Path) -> Any:
    """What a safetensors or torch file holds, on the CPU; only tensors and plain values are ever loaded."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileError(f"there is no file {path}") from None
    except IsADirectoryError:
        raise FileError(f"{path} is a folder") from None
    # The unpickler raises nearly anything on damaged bytes, a KeyError for instance; and what torch says of a file that
    # would run code is how to let it.
    except Exception as error:
        what = "is damaged, or holds more than tensors and plain values, which is never loaded"
        raise FileError(f"{path} {what} ({type(error).__name__})") from error
