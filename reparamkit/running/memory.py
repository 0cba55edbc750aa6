"""Which tensors share memory."""

from __future__ import annotations

import torch
from torch import Tensor


def memory(tensor: Tensor) -> int:
    """What two tensors of one memory have in common, fake ones too. (Sparse ones have no memory of their own kind.)"""
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else id(tensor)
