"""How a command ends: what a user can cause and repair is one line on stderr, and an exit status."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

import parallel
import torch
from errors import ExampleError

from reparamkit.errors import ReparamkitError


def command(run: Callable[[], None], device: torch.device) -> int:
    """Do `run`, among other processes if torchrun started some; returns the exit status."""
    try:
        with parallel.group(device):
            run()
    except (ExampleError, ReparamkitError, OSError) as error:
        return failed(sentence(error))
    except (RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
        return failed(f"out of memory ({sentence(error)}); try a smaller --batch-size or --image-size, or --recompute")
    except KeyboardInterrupt:
        print("\nstopped; the same command continues after the last whole epoch", file=sys.stderr)
        return 130
    return 0


def failed(why: str) -> int:
    """Say why in one line; returns the exit status."""
    print(f"error: {why}", file=sys.stderr)
    return 1


def sentence(error: BaseException, longest: int = 400) -> str:
    """The message of an error in one line."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines() or [type(error).__name__]
    # From a process that reads images the whole trace comes; it ends with the error.
    text = lines[-1].partition(": ")[2] if lines[0].startswith("Caught ") else " ".join(" ".join(lines).split())
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def _out_of_memory(error: BaseException) -> bool:
    # On a CPU it is a plain RuntimeError.
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)
