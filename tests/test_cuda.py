"""All the same on a GPU: structures, formats, proofs under TensorFloat-32, times, graphs."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from structures import (
    FAMILIES,
    NEAR_MISSES,
    Family,
    NearMiss,
    Structure,
    build,
    error,
    operations,
    repvgg,
    run,
    sample,
    seq,
    wide,
)
from torch import Tensor, nn

import reparamkit
from reparamkit.layers.wide import wide_call
from reparamkit.running import precision

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
GPU = torch.device("cuda")
BLOCKS = 16
"""Layers of the net before its head: a merged one and an activation by turns."""
families = pytest.mark.parametrize("family", [pytest.param(each, id=each.title) for each in FAMILIES])


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Blocks of the kind that is merged, deep enough for roundings to add up."""
    width = 32
    blocks = [each for _ in range(BLOCKS // 2) for each in (repvgg(width), nn.ReLU())]
    return build(lambda: seq(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)), dtype).to(GPU)


def image(dtype: torch.dtype = torch.float32) -> Tensor:
    return sample((4, 32, 24, 20), dtype).to(GPU)


def on(model: nn.Module) -> set[str]:
    return {tensor.device.type for tensor in (*model.parameters(), *model.buffers())}


@pytest.fixture
def tf32() -> Iterator[None]:
    """TensorFloat-32 for products and convolutions, as people train."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


# --- structures -------------------------------------------------------------------------------------


def both(case: Structure | NearMiss) -> tuple[nn.Module, nn.Module, nn.Module, Tensor] | None:
    """A model on the GPU, what is fused there, what was fused on the CPU, and an input. None if the model does not run
    on a GPU: some make constants on the CPU.
    """
    model, x = build(case.make), sample(case.shapes[0], torch.float32)
    there = reparamkit.fuse(model, x, objective=case.objective).to(GPU)
    model, x = model.to(GPU), x.to(GPU)
    try:
        run(model, x)
    except RuntimeError:
        return None
    return model, reparamkit.fuse(model, x, objective=case.objective), there, x


@needs_cuda
@families
def test_structures_merge_on_a_gpu_as_on_a_cpu(family: Family):
    """The same operations are left, on the device of the model, and the outputs are equal to float64 at every size."""
    for case in family.structures:
        if (found := both(case)) is not None:
            model, fused, there, x = found
            assert on(fused) <= {GPU.type}, case.name
            assert operations(fused, x) == operations(there, x), case.name
            for shape in case.shapes:
                x = sample(shape).to(GPU)
                assert error(run(wide(fused), x), run(wide(model), x)) <= 1e-6, case.name


@needs_cuda
def test_near_misses_are_left_on_a_gpu():
    for case in NEAR_MISSES:
        if (found := both(case)) is not None:
            _, fused, there, x = found
            assert operations(fused, x) == operations(there, x), case.name


@pytest.mark.parametrize(
    ("target", "args", "options"),
    [
        (torch.zeros, (3,), {"device": torch.device("cuda", 0), "dtype": torch.float16}),
        (torch.zeros, (3,), {"device": "cuda"}),
        ("new_zeros", (torch.ones(3), 3), {"device": torch.device("cuda")}),
        ("to", (torch.ones(3), "cuda:0"), {}),
        ("to", (torch.ones(3), torch.device("cuda")), {}),
        ("cuda", (torch.ones(3),), {}),
    ],
)
def test_what_names_its_device_is_proved_on_the_cpu_too(target: object, args: tuple[object, ...], options: dict):
    assert wide_call(target, args, options).device.type == "cpu"


# --- formats ----------------------------------------------------------------------------------------


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_half_precision_comes_no_further_from_float64(dtype: torch.dtype, layout: torch.memory_format):
    model, x = net(dtype)[:BLOCKS].eval().to(memory_format=layout), image(dtype).contiguous(memory_format=layout)
    fused = reparamkit.fuse(model, x)
    wanted = run(wide(model), x.double())
    assert len(reparamkit.report(fused).merges) == BLOCKS // 2
    assert {p.dtype for p in fused.parameters()} == {dtype}
    assert torch.dist(run(fused, x).double(), wanted) <= torch.dist(run(model, x).double(), wanted)


@needs_cuda
@pytest.mark.usefixtures("tf32")
def test_tensor_float_32_is_no_difference_between_models():
    """It rounds to 11 bits, so two orders of one sum differ; what is compared is the models."""
    model, x = net(), image()
    fused = reparamkit.fuse(model, x)
    found = reparamkit.verify(fused, model, x)
    assert found.passed
    assert found.error < 1e-5
    assert torch.get_float32_matmul_precision() == "high"
    assert torch.backends.cudnn.allow_tf32
    assert error(run(fused, x), run(model, x)) < 1e-2


@needs_cuda
def test_autocast_takes_both_forms():
    model, x = net(), image()
    fused = reparamkit.fuse(model, x)
    with torch.autocast("cuda", torch.bfloat16):
        found, wanted = run(fused, x), run(model, x)
    assert found.dtype == wanted.dtype == torch.bfloat16
    assert error(found, wanted) < 0.05


def test_full_precision_is_for_the_time_of_a_run(monkeypatch: pytest.MonkeyPatch):
    """Inside of one of several, settings old and new say it; afterwards they say what they said."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)

    def said() -> list[object]:
        return [setting.now() for setting in precision._settings()]

    before = said()
    with precision.full_precision():
        with precision.full_precision():
            pass
        assert said() == [setting.exact for setting in precision._settings()]
    assert said() == before


# --- what people do with models -----------------------------------------------------------------------


@needs_cuda
def test_a_model_is_fused_in_place_and_another_checkpoint_converted():
    model, other, x = net(), net(), image()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    fused = reparamkit.fuse(model, x)
    converted = reparamkit.convert_state_dict(fused, other.state_dict())
    fused.load_state_dict(converted)
    in_place = reparamkit.fuse(copy.deepcopy(other), x, inplace=True)
    with precision.full_precision():
        wanted = run(other, x)
        assert error(run(fused, x), wanted) < 1e-5
        assert error(run(in_place, x), wanted) < 1e-5


@needs_cuda
def test_a_fused_model_is_captured_as_a_graph():
    fused, x = reparamkit.fuse(net(), image()), image()
    wanted = run(fused, x)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        output = fused(x)
    graph.replay()
    torch.testing.assert_close(output, wanted)


@needs_cuda
def test_times_are_those_of_the_gpu():
    model, x = net(), image()
    fused = reparamkit.fuse(model, x, objective="measured")
    merges = reparamkit.report(fused).merges
    assert merges
    assert all(0 < each.after.milliseconds < each.before.milliseconds for each in merges)
    found = reparamkit.benchmark(model, fused, x)
    assert found.device == torch.cuda.get_device_name(0)
    assert found.model.median > 0


@needs_cuda
def test_an_input_on_another_device_is_refused():
    with pytest.raises(reparamkit.InvalidInputError, match="is on cpu, the model on cuda"):
        reparamkit.fuse(net(), image().cpu())


@needs_cuda
def test_injection_on_a_gpu_comes_back():
    model = build(lambda: seq(nn.Linear(16, 16))).to(GPU)
    x = sample((2, 3, 16), torch.float32).to(GPU)
    injected = reparamkit.inject_locality(model, layers=["0"], init=1.0).eval()
    assert on(injected) == {"cuda"}
    fused = reparamkit.fuse(injected, x)
    with precision.full_precision():
        assert error(run(fused, x), run(injected, x)) < 1e-6
