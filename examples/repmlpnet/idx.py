"""The idx format of MNIST and its relatives: two zero bytes, type, rank, big-endian sizes, bytes."""

from __future__ import annotations

import gzip
import io
import math
import struct
import zlib
from pathlib import Path

import torch
from errors import DataError
from torch import Tensor

UNSIGNED_BYTE = 8
LARGEST = 1 << 31


def read_idx(path: Path) -> Tensor:
    """The bytes in `path`, plain or .gz, as a uint8 tensor of the shape that the file states."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _parse(file)
    except (OSError, EOFError, zlib.error, struct.error, ValueError) as error:
        raise DataError(f"{path} is not a complete idx file ({error}); fetch it again") from error


def _parse(file: gzip.GzipFile | io.BufferedReader) -> Tensor:
    zero, kind, rank = struct.unpack(">HBB", file.read(4))
    if zero != 0 or kind != UNSIGNED_BYTE or not 1 <= rank <= 4:
        raise ValueError("its first four bytes are not those of an array of bytes")
    shape = struct.unpack(f">{rank}I", file.read(4 * rank))
    size = math.prod(shape)
    if size > LARGEST:
        raise ValueError(f"it claims {size} bytes")
    content = file.read(size + 1)
    if len(content) != size:
        found = "more" if len(content) > size else len(content)
        raise ValueError(f"its shape {shape} needs {size} bytes, there are {found}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(shape)
