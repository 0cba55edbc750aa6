"""The garbage collector is as it was after a model was fused, and finds what is left over."""

import gc
from contextlib import suppress

import pytest
import torch
from torch import nn

import reparamkit


@pytest.mark.parametrize("model", [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Module()])
def test_the_collector_is_left_as_it_was(model):
    before = gc.get_threshold(), gc.get_freeze_count(), gc.isenabled()
    with suppress(reparamkit.ReparamkitError):
        reparamkit.fuse(model.eval())
    assert (gc.get_threshold(), gc.get_freeze_count(), gc.isenabled()) == before


def test_objects_that_were_kept_from_the_collector_are_kept_from_it_still():
    gc.freeze()
    try:
        before = gc.get_freeze_count()
        reparamkit.fuse(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval(), torch.randn(1, 3, 8, 8))
        # Those that are freed meanwhile do not count.
        assert 0 < gc.get_freeze_count() <= before
    finally:
        gc.unfreeze()
