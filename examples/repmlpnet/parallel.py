"""Training in several processes, on one machine or many, as torchrun starts them: one per GPU.

A batch is cut into as many parts as there are processes, so a run computes what it would in one process, but for batch
norms: their statistics are those of a part, unless syncnorm.py makes them those of the batch.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Sampler


def processes() -> int:
    """How many there are."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """The number of this process; the first one, 0, prints, evaluates and writes."""
    return int(os.environ.get("RANK", 0))


@contextmanager
def group(device: torch.device) -> Iterator[None]:
    """Join the other processes while the block runs; all but the first are silent."""
    if processes() == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere if rank() else sys.stdout):
            yield
        # What holds the group goes first, and all leave together: its threads do not outlive a process that ends.
        gc.collect()
        distributed.barrier()
    finally:
        distributed.destroy_process_group()


def shared(model: nn.Module, device: torch.device) -> nn.Module:
    """`model`, with gradients averaged over all processes."""
    if processes() == 1:
        return model
    return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)


def mean(value: Tensor) -> Tensor:
    """The mean of `value` over all processes."""
    if processes() > 1:
        distributed.all_reduce(value)
    return value / processes()


def from_first(value: Any) -> Any:
    """The value that the first process has."""
    values = [value]
    if processes() > 1:
        distributed.broadcast_object_list(values)
    return values[0]


class Parts(Sampler[list[int]]):
    """The part of this process of each of `batches`, which are drawn alike in all processes."""

    def __init__(self, batches: Sampler[list[int]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[list[int]]:
        """In an order of the first process's choice."""
        torch.set_rng_state(from_first(torch.get_rng_state()))
        order = list(self.batches)
        # From here on each process draws numbers of its own, or all would shift their images alike.
        if rank():
            torch.manual_seed(torch.initial_seed() + rank())
        yield from (batch[rank() :: processes()] for batch in order)
