"""Methods beside forward: they go on working, and compute what they did."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from structures import build, conv_norm, error, operations, sample
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.utils._pytree import tree_leaves

import reparamkit

X = sample((2, 4, 9, 9), torch.float32)


class SameConv(nn.Conv2d):
    """Pads as much as its input needs."""

    def forward(self, x: Tensor) -> Tensor:
        size, (stride, _), (kernel, _) = x.shape[-1], self.stride, self.kernel_size
        pad = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        x = F.pad(x, (pad // 2, pad - pad // 2, pad // 2, pad - pad // 2))
        return F.conv2d(x, self.weight, self.bias, self.stride)


class StandardConv(nn.Conv2d):
    """Standardises its weight."""

    def forward(self, x: Tensor) -> Tensor:
        mean, std = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / (std + 1e-5), self.bias, self.stride, self.padding)


class NormAct(nn.BatchNorm2d):
    """A norm and an activation, as one layer."""

    def __init__(self, channels: int, act: type[nn.Module] = nn.SiLU) -> None:
        super().__init__(channels)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        return self.act(F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.1, self.eps))


class Affine(nn.Module):
    """A scale and a shift per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale, self.shift = (nn.Parameter(torch.rand(channels, 1, 1) + 0.5) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


CONVS: dict[str, Callable[[], nn.Module]] = {
    "padded as needed": lambda: SameConv(4, 8, 3, 2, bias=False),
    "standardised": lambda: StandardConv(4, 8, 3, 2, 1),
    "plain": lambda: nn.Conv2d(4, 8, 3, 2, 1),
}
NORMS: dict[str, Callable[[], nn.Module]] = {
    "norm with activation": lambda: NormAct(8),
    "norm with an idle activation": lambda: NormAct(8, nn.Identity),
    "norm": lambda: nn.BatchNorm2d(8),
    "affine": lambda: Affine(8),
}


class Net(nn.Module):
    """Features and a head, each a method."""

    def __init__(self, conv: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.stem, self.norm, self.body, self.fc = conv, norm, conv_norm(8, 8), nn.Linear(8, 3)

    def forward_features(self, x: Tensor) -> Tensor:
        """Maps. shape (B, 8, H, W)."""
        return self.body(self.norm(self.stem(x)).relu())

    def forward_head(self, x: Tensor) -> Tensor:
        """Scores. shape (B, 3)."""
        return self.fc(x.mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


@pytest.mark.parametrize("inplace", [False, True], ids=["copy", "in place"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("conv", CONVS)
def test_code_around_the_calls_that_a_row_is_spread_over_stays(conv: str, norm: str, inplace: bool):
    """What a method calls is merged inside of what it calls: the method and the forward around it are the user's."""
    model = build(lambda: Net(CONVS[conv](), NORMS[norm]()))
    reference, fused = copy.deepcopy(model), reparamkit.fuse(model, X, inplace=inplace)
    assert type(fused).forward is Net.forward
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert {"norm", "scale"}.isdisjoint(operations(fused, X).split())
    for each in (fused, copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        for x in (X, X[:1], sample((3, 4, 9, 9), torch.float32), sample((2, 4, 13, 13), torch.float32)):
            assert error(each(x), reference(x)) <= 1e-6
            assert error(each.forward_features(x), reference.forward_features(x)) <= 1e-6


@pytest.mark.parametrize("norm", NORMS)
def test_what_is_not_four_dimensional_is_refused_by_a_spread_row(norm: str):
    """The rank was known when the numbers of the row were merged."""
    fused = reparamkit.fuse(build(lambda: Net(CONVS["standardised"](), NORMS[norm]())), X)
    with pytest.raises((reparamkit.ReparamkitError, RuntimeError, ValueError, IndexError)):
        fused(X[0, :, :, 0])


class Peeking(Net):
    """Shows what the first convolution gives."""

    def first(self, x: Tensor) -> Tensor:
        """Before the norm."""
        return self.stem(x)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("conv", CONVS)
def test_a_method_that_calls_a_part_of_a_row_gives_what_it_gave(conv: str, norm: str):
    """It would see the norm merged into what it calls."""
    model = build(lambda: Peeking(CONVS[conv](), NORMS[norm]()))
    fused = reparamkit.fuse(model, X)
    assert error(fused.first(X), model.first(X)) <= 1e-6
    assert error(fused(X), model(X)) <= 1e-6


class Optional(Net):
    """Norms if it is told to, in a method that forward hands the choice on to."""

    def forward_features(self, x: Tensor, norm: bool = True) -> Tensor:
        """Maps. shape (B, 8, H, W)."""
        x = self.stem(x)
        if norm:
            x = self.norm(x)
        return self.body(x.relu())

    def forward(self, x: Tensor, norm: bool = True) -> Tensor:
        return self.forward_head(self.forward_features(x, norm))


class OptionalInside(Optional):
    """The same, and forward does not say."""

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


class Early(Optional):
    """Leaves before the norm."""

    def forward_features(self, x: Tensor, norm: bool = True) -> Tensor:
        """Maps. shape (B, 8, H, W)."""
        y = self.stem(x)
        if not norm:
            return self.body(y.relu())
        y = self.norm(y)
        return self.body(y.relu())


def agrees(fused: nn.Module, model: nn.Module, call: Callable[[nn.Module], Tensor]) -> bool:
    """Whether both compute the same, or the fused model says that it does not take this."""
    try:
        found = call(fused)
    except (reparamkit.ReparamkitError, AttributeError):
        return True
    return error(found, call(model)) <= 1e-6


@pytest.mark.parametrize("kind", [Optional, OptionalInside, Early])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("conv", CONVS)
def test_a_method_that_may_call_a_part_of_a_merge_never_gives_another_result(conv: str, norm: str, kind: type[Net]):
    """One way through it was traced; the others are taken by an argument."""
    model = build(lambda: kind(CONVS[conv](), NORMS[norm]()))
    fused = reparamkit.fuse(model, X)
    assert error(fused(X), model(X)) <= 1e-6
    for flag in (True, False):
        assert agrees(fused, model, lambda m, flag=flag: m.forward_features(X, norm=flag))
        if kind is not OptionalInside:
            assert agrees(fused, model, lambda m, flag=flag: m(X, norm=flag))


class Embedding(nn.Module):
    """A norm and a head; the values between are to be had."""

    def __init__(self) -> None:
        super().__init__()
        self.fc_norm, self.drop, self.head = nn.LayerNorm(8), nn.Dropout(0.1), nn.Linear(8, 3)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Scores, or what they are computed from."""
        x = self.drop(self.fc_norm(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(x.relu())


def test_values_that_a_method_returns_on_request_stay():
    model, x = build(Embedding), sample((2, 8), torch.float32)
    fused = reparamkit.fuse(model, x)
    assert error(fused.forward_head(x, pre_logits=True), model.forward_head(x, pre_logits=True)) <= 1e-6


class Together(Net):
    """Does without the whole of a row, or has all of it."""

    def forward_features(self, x: Tensor, plain: bool = False) -> Tensor:
        """Maps. shape (B, 8, H, W)."""
        if not plain:
            x = self.stem(x)
            x = self.norm(x)
        return x


def test_what_a_branch_has_as_a_whole_is_merged():
    model = build(lambda: Together(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)))
    model.fc = nn.Linear(8, 3)
    fused = reparamkit.fuse(model, X)
    assert isinstance(fused.norm, nn.Identity)
    assert torch.equal(fused.forward_features(X, plain=True), X)
    assert error(fused.forward_features(X), model.forward_features(X)) <= 1e-6


class Tapping(Net):
    """Returns what is between, if it is asked to, in a method that nothing here runs."""

    def forward_intermediates(self, x: Tensor, first: bool = False) -> list[Tensor]:
        """Maps. shape (B, 8, H, W)."""
        found = []
        x = self.stem(x)
        if first:
            found.append(x)
        return [*found, self.norm(x)]


def test_a_method_that_may_return_what_is_between_is_gone_and_the_merge_is_made():
    """It would return other values; the error says how to keep it."""
    model = build(lambda: Tapping(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)))
    fused = reparamkit.fuse(model, X)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert not hasattr(fused, "forward_intermediates")
    with pytest.raises(AttributeError, match="skip="):
        _ = fused.forward_intermediates
    assert error(fused(X), model(X)) <= 1e-6


def recording(forward: Callable[..., Tensor]) -> Callable[..., object]:
    """Gives with the output, if it is asked to, what the block inside returns."""

    @functools.wraps(forward)
    def wrapper(self: nn.Module, x: Tensor, record: bool = False) -> object:
        seen: list[Tensor] = []
        if record and not self.block._forward_hooks:
            self.block.register_forward_hook(lambda module, args, output: seen.append(output))
        found = forward(self, x)
        return (found, *seen) if record else found

    return wrapper


class Bottleneck(nn.Module):
    """Ends without an activation."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(4, 4, 1), last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.conv(x)))


class Scaled(Bottleneck):
    """Ends with a scale of its own."""

    def __init__(self) -> None:
        super().__init__(nn.Identity())
        self.gamma = nn.Parameter(torch.rand(4, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.gamma


class ByName(Scaled):
    """Gives its result by name."""

    def forward(self, x: Any) -> dict[str, Tensor]:
        return {"x": super().forward(x["x"] if isinstance(x, dict) else x)}


BLOCKS = {
    "a norm": lambda: Bottleneck(nn.BatchNorm2d(4)),
    "a norm with code of its own": lambda: Bottleneck(NormAct(4, nn.Identity)),
    "a scale with code of its own": lambda: Bottleneck(Affine(4)),
    "a row": lambda: Bottleneck(nn.Sequential(nn.Identity(), NormAct(4, nn.Identity))),
    "a scale": Scaled,
    "a scale by name": ByName,
}


class Stages(nn.Module):
    """A head behind a row of blocks, whose results can be asked for."""

    def __init__(self, block: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList([block(), block()]), Head()

    def features(self, x: Tensor) -> Tensor:
        """What the head gives."""
        for block in self.blocks:
            x = block(x)
        return self.head(x)

    def endpoints(self, x: Tensor) -> list[Tensor]:
        """What all blocks give."""
        found = []
        for block in self.blocks:
            x = block(x)
            found.append(x)
        return [*found, self.head(x)]

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.head(self.blocks[1](self.blocks[0](x))))


class Head(nn.Conv2d):
    """A layer that takes what a block gives."""

    def __init__(self) -> None:
        super().__init__(4, 4, 1)

    def forward(self, x: Any) -> Tensor:
        return super().forward(x["x"] if isinstance(x, dict) else x)


@pytest.mark.parametrize("block", BLOCKS)
def test_what_the_last_of_a_row_gives_is_not_merged_unseen_if_a_loop_hands_on_each(block: str):
    """A method that gives all results is gone, or gives what it gave; one that goes on as forward does works."""
    model = build(lambda: Stages(BLOCKS[block]))
    x = sample((2, 4, 6, 6), torch.float32)
    fused = reparamkit.fuse(model, x)
    with torch.no_grad():
        assert error(fused(x), model(x)) <= 1e-5
        assert error(fused.features(x), model.features(x)) <= 1e-5
        if hasattr(fused, "endpoints"):
            pairs = zip(tree_leaves(fused.endpoints(x)), tree_leaves(model.endpoints(x)), strict=True)
            assert all(error(one, two) <= 1e-5 for one, two in pairs)


class Inverted(nn.Module):
    """A block of two pointwise layers without biases, each with a norm: the last norm could go into the next block."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.wide, self.wide_norm = nn.Conv2d(4, 16, 1, bias=False), norm(16)
        self.narrow, self.narrow_norm = nn.Conv2d(16, 4, 1, bias=False), norm(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow_norm(self.narrow(torch.relu(self.wide_norm(self.wide(x)))))


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, functools.partial(NormAct, act=nn.Identity)], ids=["torch's", "own"])
def test_of_two_merges_that_save_as_many_operations_the_one_is_made_that_leaves_the_methods(
    norm: Callable[[int], nn.Module],
):
    """The next block has its bias anyway: a norm less is stored there, but then no method could ask for the blocks."""

    def stages() -> nn.Module:
        made = Stages(lambda: Inverted(norm))
        made.head = nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 1))
        return made

    model, x = build(stages), sample((2, 4, 6, 6), torch.float32)
    fused = reparamkit.fuse(model, x)
    assert operations(fused, x) == "conv relu conv conv relu conv relu conv relu"
    with torch.no_grad():
        pairs = zip(fused.endpoints(x), model.endpoints(x), strict=True)
        assert all(error(one, two) <= 1e-5 for one, two in pairs)


class Recorded(nn.Module):
    """A block, and a layer on what it returns."""

    def __init__(self, block: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.block, self.head = block, head

    @recording
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x)).relu()


class Block(nn.Module):
    """A user's module around one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.relu())


@pytest.mark.parametrize(
    "pair", [lambda: (nn.LayerNorm(9), nn.Linear(9, 4)), lambda: (nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))]
)
def test_what_a_model_records_by_hooks_of_its_own_stays(pair: Callable[[], tuple[nn.Module, nn.Module]]):
    """The outputs that transformers gives for output_hidden_states=True: hooks that are set when they are asked for."""

    def make() -> nn.Module:
        layer, head = pair()
        return Recorded(Block(layer), head)

    model = build(make)
    fused = reparamkit.fuse(model, X)
    assert {each.advice.kind for each in reparamkit.report(fused).refusals} == {"recorded"}
    for found, wanted in zip(fused(X, record=True), model(X, record=True), strict=True):
        assert error(found, wanted) <= 1e-5


class Encoding(nn.Module):
    """Decodes the first half of what its other method, which also has the second half, encodes (autoencoders)."""

    def __init__(self, normed: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.moments, self.decoder = normed(nn.Conv2d(4, 8, 1)), nn.Conv2d(4, 4, 1)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.moments(x.relu()).chunk(2, 1)
        return mean, logvar.exp()

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encode(x)[0].tanh())


@pytest.mark.parametrize("normed", [nn.Identity(), weight_norm], ids=["plain", "merged before"])
def test_a_method_that_makes_more_than_forward_needs(normed: Callable[[nn.Module], nn.Module]):
    """What forward throws away is no less of what the method gives to others."""
    model = build(lambda: Encoding(normed))
    fused = reparamkit.fuse(model, X)
    for found, wanted in zip(fused.encode(X), model.encode(X), strict=True):
        assert error(found, wanted) <= 1e-6
    assert error(fused(X), model(X)) <= 1e-6


class Asking(nn.Module):
    """Calls itself, or a part, with a dictionary of arguments, as `generate` of a language model does."""

    def __init__(self, part: nn.Module | None = None) -> None:
        super().__init__()
        self.part, self.a, self.b = part, conv_norm(4, 4), conv_norm(4, 4, 1)

    def prepared(self, x: Tensor) -> dict[str, Tensor]:
        return {"x": x, "mask": (x[:, :1] > 0).to(x.dtype)}

    def ask(self, x: Tensor) -> Tensor:
        inputs = self.prepared(x)
        return self(**inputs) if self.part is None else self.part.forward(**inputs)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.part is not None:
            return self.part(x)
        x = self.a(x) + self.b(x)
        return x if mask is None else x * mask


class Passing(Asking):
    """Hands its own keyword arguments on."""

    def ask(self, x: Tensor, **kwargs: Tensor) -> Tensor:
        return self(x, **kwargs)


@pytest.mark.parametrize("make", [Asking, lambda: Asking(Asking())], ids=["itself", "a part"])
def test_methods_may_call_a_forward_with_other_arguments(make: Callable[[], nn.Module]):
    """What the example does not give, a method gives that no trace has seen."""
    model = build(make)
    fused = reparamkit.fuse(model, X)
    assert error(fused(X), model(X)) <= 1e-6
    assert error(fused.ask(X), model.ask(X)) <= 1e-6
    assert any("with other arguments" in refusal.reason for refusal in reparamkit.report(fused).refusals)


def test_a_method_that_hands_on_its_own_arguments_keeps_no_merge_away():
    """Called as the forward is, it gives what that does."""
    model = build(Passing)
    fused = reparamkit.fuse(model, X)
    assert operations(fused, X) == "conv"
    assert error(fused.ask(X), model(X)) <= 1e-6


class Layers(nn.Module):
    """Blocks in a row, whose values a method gives as well."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks[1](self.blocks[0](x).relu())

    def values(self, x: Tensor) -> list[Tensor]:
        first = self.blocks[0](x)
        return [first, self.blocks[1](first.relu())]


class Asked(nn.Module):
    """Has the values of its encoder by a method that no forward runs (extract_features of torchaudio)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = nn.ModuleDict({"layers": Layers()}), nn.Linear(4, 3)

    def extract(self, x: Tensor) -> list[Tensor]:
        return self.encoder.layers.values(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder.layers(x))


def test_a_method_of_the_model_that_calls_one_of_a_part_goes_on_working():
    """The part would lose its method to a merge, and the model's would raise."""
    model = build(Asked)
    fused = reparamkit.fuse(model, X[..., :4])
    for found, wanted in zip(fused.extract(X[..., :4]), model.extract(X[..., :4]), strict=True):
        assert error(found, wanted) <= 1e-6
    assert any("'extract' of the model" in refusal.reason for refusal in reparamkit.report(fused).refusals)


class Helped(nn.Module):
    """Its forward has a helper for one branch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_norm(4, 4), conv_norm(4, 4, 1)

    def _branch(self, x: Tensor) -> Tensor:
        return self.b(x) * 0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self._branch(x)


def test_a_private_method_of_the_model_goes_where_a_merge_takes_its_layers():
    """It is the model's own business; a public one may be called by others, and keeps them."""
    model = build(Helped)
    fused = reparamkit.fuse(model, X)
    assert operations(fused, X) == "conv"
    assert error(fused(X), model(X)) <= 1e-6
    assert not hasattr(fused, "_branch")


class Stepping(nn.Module):
    """Forward calls a method that computes with a layer all by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def step(self, x: Tensor) -> Tensor:
        return x + 2 * self.b(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.step(F.relu(self.a(x)))


def test_a_method_does_not_compute_again_what_the_merged_layer_has_in_it():
    """The layer keeps its name and its class, so that nothing that the method reads is gone."""
    model = build(Stepping)
    fused = reparamkit.fuse(model, X)
    assert operations(fused, X) == "conv relu conv"
    assert not hasattr(fused, "step") or error(fused.step(X), model.step(X)) <= 1e-6


class Selected(nn.Module):
    """Which way it goes is chosen when it is made, and kept under another name."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.step = self._with_skip

    def _with_skip(self, x: Tensor) -> Tensor:
        return x + self.b(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.step(F.relu(self.a(x)))


def test_a_method_that_an_attribute_keeps_goes_with_the_method():
    """It would compute something else with the layers that are left, and keep the model from being loaded."""
    model = build(Selected)
    for inplace in (False, True):
        fused = reparamkit.fuse(copy.deepcopy(model) if inplace else model, X, inplace=inplace)
        assert operations(fused, X) == "conv relu conv"
        assert not hasattr(fused, "step")
        for other in (pickle.loads(pickle.dumps(fused)), copy.deepcopy(fused)):
            assert error(other(X), model(X)) <= 1e-6
    assert error(model.step(X), X + model.b(X)) <= 1e-6


class Alike(nn.Module):
    """What forward computes itself beside its layers is in no layer that another method calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 8, 1)
        self.scale = nn.Parameter(torch.randn(4, 1, 1))


class Doubled(Alike):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * 2

    def again(self, x: Tensor) -> Tensor:
        return self.conv(x) * 2


class ScaledBefore(Alike):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x * self.scale)

    def again(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Skipping(Alike):
    def forward(self, x: Tensor) -> Tensor:
        return (self.conv(x) + x).relu()

    def again(self, x: Tensor) -> Tensor:
        return (self.conv(x) + x).tanh()


class Halved(Alike):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.other(x)[:, :4].tanh())

    def again(self, x: Tensor) -> Tensor:
        return self.other(x)


class Flipped(Alike):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.flip(1))

    def again(self, x: Tensor) -> Tensor:
        return self.conv(x)


@pytest.mark.parametrize("make", [Doubled, ScaledBefore, Skipping, Halved, Flipped])
@pytest.mark.parametrize("with_inputs", [True, False])
def test_what_forward_computes_beside_its_layers_is_in_no_other_method(
    make: Callable[[], nn.Module], with_inputs: bool
):
    """A merge is left, or the method is not there any more; it never gives something else."""
    model = build(make)
    fused = reparamkit.fuse(model, X if with_inputs else None)
    assert error(fused(X), model(X)) <= 1e-6
    assert not hasattr(fused, "again") or error(fused.again(X), model.again(X)) <= 1e-6


class Levels(nn.Module):
    """A head whose convolutions are shared by levels, each with a scale of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([conv_norm(4, 4), conv_norm(4, 4)])
        self.out = nn.Conv2d(4, 4, 1)
        self.scales = nn.ModuleList([Affine(4), Affine(4)])

    def single(self, x: Tensor, *rest: nn.Module) -> Tensor:
        for block in self.blocks:
            x = block(x).relu()
        return self.out(x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor, y: Tensor) -> list[Tensor]:
        return [*map(self.single, (x, y), self.scales)]


class ScaledLevels(Levels):
    """Scales what the method that it overrides gives, as the heads of OpenMMLab."""

    def single(self, x: Tensor, *rest: nn.Module) -> Tensor:
        return rest[0](super().single(x)).exp()  # type: ignore[no-any-return]


@pytest.mark.parametrize("with_inputs", [True, False], ids=["with inputs", "without inputs"])
def test_a_method_of_which_no_merge_was_made_in_the_end_is_not_hidden(with_inputs: bool):
    """It was to be written again for a merge that there is not: each level would need another layer."""
    model = build(ScaledLevels)
    given = X, X[..., ::2, ::2]
    fused = reparamkit.fuse(model, given if with_inputs else None)
    assert "'scales.0' beside it" in str(reparamkit.report(fused))
    with torch.no_grad():
        for found, wanted in zip(fused(*given), model(*given), strict=True):
            assert error(found, wanted) <= 1e-6


class Turned(nn.Module):
    """Turns its input round, in a method."""

    def turned(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.turned(x)


class TurnsBehindANorm(nn.Module):
    """Calls a module that it makes itself, as code does with the layers of einops."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.q, self.k = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = Turned()(self.norm(x)).transpose(1, 2)
        return self.q(y).relu() * self.k(y)  # type: ignore[no-any-return]


def test_the_methods_of_a_module_that_code_makes_are_none_of_the_models():
    """Nobody else can call them."""
    model, x = build(TurnsBehindANorm), sample((2, 5, 8), torch.float32)
    fused = reparamkit.fuse(model, x)
    assert fused.norm.weight is None
    with torch.no_grad():
        assert error(fused(x), model(x)) <= 1e-6


class Selfish(nn.Module):
    """A layer with the name of the module itself, as in the attention of BERT."""

    def __init__(self) -> None:
        super().__init__()
        self.self, self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.self(x).relu()
        return self.a(y) + self.b(y)  # type: ignore[no-any-return]


@pytest.mark.parametrize("as_graph", [False, True], ids=["model", "graph"])
def test_what_a_layer_called_self_gives_is_not_the_module(as_graph: bool):
    model, x = build(Selfish), sample((2, 4), torch.float32)
    fused = reparamkit.fuse(model, x, as_graph=as_graph)
    assert len(reparamkit.report(fused).merges) == 1
    with torch.no_grad():
        assert error(fused(x), model(x)) <= 1e-6


class Named(nn.Module):
    """A row, and methods that go by the names of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))  # type: ignore[no-any-return]

    def dropped(self) -> None:
        for name in tuple(self._modules):
            if name.startswith("aux_"):
                setattr(self, name, None)

    def has_all(self) -> bool:
        return "conv" in self._modules and len(self._modules) == 2

    def taken(self, x: Tensor) -> Tensor:
        for name in self._modules:
            x = getattr(self, name)(x).relu()
        return x

    def handed(self, x: Tensor) -> Tensor:
        for name in sorted(self._modules):
            x = self.one(name, x)
        return x

    def one(self, name: str, x: Tensor) -> Tensor:
        return getattr(self, name)(x).relu()  # type: ignore[no-any-return]

    def valued(self, x: Tensor) -> Tensor:
        for layer in self._modules.values():
            x = layer(x).relu()
        return x


def test_a_method_that_looks_at_the_names_of_layers_stays_and_one_that_takes_them_goes():
    model = build(Named)
    fused = reparamkit.fuse(model, X)
    assert operations(fused, X) < operations(model, X)
    assert error(fused(X), model(X)) <= 1e-6
    assert [hasattr(fused, name) for name in ("dropped", "has_all")] == [True, True]
    assert not any(hasattr(fused, name) for name in ("taken", "handed", "valued"))
    assert fused.has_all() == model.has_all()
