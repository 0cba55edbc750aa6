"""The garbage collector is as it was after a model was fused, and finds what is left over."""

import gc
import inspect
import linecache
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


class Branches(nn.Module):
    """Two branches, whose sum is written as another forward."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        return self.a(x) + self.b(x)


def test_the_source_of_a_forward_that_was_written_goes_with_the_model():
    """A process that fuses one model after the other does not grow; while there is the model, there is its code."""
    before = set(linecache.cache)
    fused = reparamkit.fuse(Branches().eval(), torch.randn(1, 3, 8, 8))
    gc.collect()
    assert "self.b(x)" in inspect.getsource(type(fused).forward)
    del fused
    gc.collect()
    assert not [name for name in linecache.cache.keys() - before if name.startswith("<reparamkit")]
