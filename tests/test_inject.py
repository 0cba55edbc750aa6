"""`inject_locality`: convolutions beside the token-mixing layers of a model that exists, and back."""

from __future__ import annotations

import copy
import math
import pickle
from types import SimpleNamespace

import pytest
import torch
import torch.nn.utils.prune
from torch import Tensor, nn
from torch.nn import functional as F

import reparamkit
from reparamkit import InvalidInputError, NotFusable, fuse, inject_locality, report
from reparamkit.rulebook.injected import InjectedLinear, toeplitz
from reparamkit.testing import check_reader, randomize


class Affine(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.alpha, self.beta = nn.Parameter(torch.ones(c)), nn.Parameter(torch.zeros(c))

    def forward(self, x: Tensor) -> Tensor:
        return self.alpha * x + self.beta


class ResMLPBlock(nn.Module):
    """ResMLP's layer: tokens mixed through a transposed view, then channels."""

    def __init__(self, c: int, tokens: int) -> None:
        super().__init__()
        self.norm, self.mix, self.scale = Affine(c), nn.Linear(tokens, tokens), nn.Parameter(torch.ones(c))
        self.square, self.act = nn.Linear(c, c), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale * self.mix(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.act(self.square(x))


class Net(nn.Module):
    """Patches to tokens on an h x w grid, blocks, mean, head."""

    def __init__(self, h: int = 3, w: int = 4, c: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, c, 2, 2)
        self.blocks = nn.Sequential(*(ResMLPBlock(c, h * w) for _ in range(2)))
        self.head = nn.Linear(c, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(images).flatten(2).transpose(1, 2)).mean(1))


def images(n: int = 2, h: int = 3, w: int = 4) -> Tensor:
    return torch.randn(n, 1, 2 * h, 2 * w, generator=torch.Generator().manual_seed(n))


def resmlp() -> nn.Module:
    mixer = pytest.importorskip("timm.models.mlp_mixer", reason="timm is not installed")
    sizes = {"img_size": 16, "patch_size": 4, "in_chans": 1, "num_blocks": 2, "embed_dim": 12, "mlp_ratio": 2}
    return mixer.MlpMixer(5, **sizes, block_layer=mixer.ResBlock, norm_layer=mixer.Affine)


def gmlp() -> nn.Module:
    mixer = pytest.importorskip("timm.models.mlp_mixer", reason="timm is not installed")
    sizes = {"img_size": 16, "patch_size": 4, "in_chans": 1, "num_blocks": 2, "embed_dim": 12, "mlp_ratio": 2}
    return mixer.MlpMixer(5, **sizes, block_layer=mixer.SpatialGatingBlock, mlp_layer=mixer.GatedMlp)


MODELS = {
    "own": (Net, images(), {"layers": "*.mix", "grid": (3, 4)}),
    "timm resmlp": (resmlp, torch.randn(2, 1, 16, 16), {}),
    "timm gmlp": (gmlp, torch.randn(2, 1, 16, 16), {}),
}
every_model = pytest.mark.parametrize("name", MODELS)


def injected(name: str, **options) -> tuple[nn.Module, nn.Module, Tensor]:
    make, x, default = MODELS[name]
    torch.manual_seed(0)
    model = make()
    return model, inject_locality(model, **{**default, **options}), x


def layers_of(model: nn.Module) -> dict[str, InjectedLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, InjectedLinear)}


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def kinds(model: nn.Module) -> list[tuple[str, str]]:
    return [(name, type(module).__qualname__) for name, module in model.named_modules()]


def trained(model: nn.Module, x: Tensor, steps: int = 3) -> nn.Module:
    """After a few steps of training from random numbers, in eval mode."""
    randomize(model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(steps):
        optimizer.zero_grad()
        batch = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(step))
        model(batch).square().mean().backward()
        optimizer.step()
    return model.eval()


def relative(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()


# Into the training form


@every_model
@pytest.mark.parametrize("training", [True, False])
def test_injection_leaves_the_function_as_it_is(name, training):
    make, x, options = MODELS[name]
    model = randomize(make()).train(training)
    changed = inject_locality(model, **options)
    assert len(layers_of(changed)) == 2
    assert all(module.training == training for module in changed.modules())
    assert torch.equal(changed(x), model(x))


def test_a_small_start_is_a_small_change():
    model, _, x = injected("own")
    changed = inject_locality(model, layers="*.mix", grid=(3, 4), init=0.1)
    scales = [
        layer.get_submodule(f"repconv{k}.bn").weight.item() for layer in layers_of(changed).values() for k in (1, 3)
    ]
    assert scales == pytest.approx([0.1] * 4)
    assert 0 < relative(changed(x), model(x)) < 0.5


def test_the_model_is_left_as_it_is_unless_inplace():
    model, changed, _ = injected("own")
    before = kinds(model)
    storages = {p.data_ptr() for p in model.parameters()}
    assert not storages & {p.data_ptr() for p in changed.parameters()}
    assert kinds(model) == before
    mix = model.blocks[0].mix
    assert inject_locality(model, layers="*.mix", grid=(3, 4), inplace=True) is model
    assert model.blocks[0].mix.fc is mix


def test_branches_have_one_kernel_for_all_channels():
    _, changed, _ = injected("own", kernels=(1, 3, 5))
    layer = layers_of(changed)["blocks.1.mix"]
    assert {n: tuple(p.shape) for n, p in layer.named_parameters() if "conv.w" in n} == {
        f"repconv{k}.conv.weight": (1, 1, k, k) for k in (1, 3, 5)
    }
    assert "grid=(3, 4), kernels=(1, 3, 5), compute='matmul'" in repr(layer)


def test_branches_learn_from_the_first_step():
    """The scales start at zero and have a gradient; after one step the kernels have one, too."""
    _, changed, x = injected("own")
    optimizer = torch.optim.SGD(changed.train().parameters(), lr=0.1)
    for part in ("bn.weight", "conv.weight"):
        optimizer.zero_grad()
        changed(x).square().mean().backward()
        gradients = [p.grad.abs().max() for n, p in changed.named_parameters() if n.endswith(f"repconv3.{part}")]
        assert min(gradients) > 0
        optimizer.step()


def test_dtype_and_device_are_those_of_the_layer():
    model, _, _ = injected("own")
    changed = inject_locality(model.double().to("meta"), layers="*.mix", grid=(3, 4))
    found = {(p.dtype, p.device.type) for p in changed.parameters()}
    assert found == {(torch.float64, "meta")}


def test_copies_of_an_injected_model_compute_what_it_does():
    _, changed, x = injected("own")
    randomize(changed)
    for other in (copy.deepcopy(changed), pickle.loads(pickle.dumps(changed))):
        assert torch.equal(other(x), changed(x))


# Which layers


def test_layers_are_found_by_a_run_if_they_read_a_transposed_tensor():
    model = Net()
    model.train()
    changed = inject_locality(model, images(), grid=(3, 4))
    # `square` also keeps its number of features, but mixes channels.
    assert list(layers_of(changed)) == ["blocks.0.mix", "blocks.1.mix"]
    assert model.training
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in (*model.modules(), *changed.modules()))


def test_timm_models_need_no_names():
    assert list(layers_of(injected("timm resmlp")[1])) == ["blocks.0.linear_tokens", "blocks.1.linear_tokens"]
    assert list(layers_of(injected("timm gmlp")[1])) == [f"blocks.{i}.mlp_channels.gate.proj" for i in (0, 1)]


def test_a_square_grid_is_inferred():
    changed = inject_locality(Net(4, 4), layers=["blocks.0.mix"])
    assert {name: layer.grid for name, layer in layers_of(changed).items()} == {"blocks.0.mix": (4, 4)}


def test_a_layer_with_two_names_stays_one():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(12, 12)
            self.b = self.a

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu())

    changed = inject_locality(Twice(), layers=["a"], grid=(3, 4))
    assert isinstance(changed.a, InjectedLinear)
    assert changed.b is changed.a


def test_sizes_may_be_numbers_of_torch():
    layer = layers_of(inject_locality(Net(), layers="*.mix", grid=torch.tensor([3, 4]), kernels=torch.tensor([1, 3])))
    assert (layer["blocks.0.mix"].grid, layer["blocks.0.mix"].kernels) == ((3, 4), (1, 3))


@pytest.mark.parametrize(("h", "w"), [(3, 4), (2, 8), (8, 2)])
def test_a_run_shows_the_grid(h, w):
    """16 tokens need not be 4 x 4: the view that makes one axis of two says what they are."""
    changed = inject_locality(Net(h, w), images(2, h, w), layers="*.mix")
    assert {layer.grid for layer in layers_of(changed).values()} == {(h, w)}


def test_timms_patch_embedding_states_the_grid():
    mixer = pytest.importorskip("timm.models.mlp_mixer", reason="timm is not installed")
    sizes = {"img_size": (8, 32), "patch_size": 4, "in_chans": 1, "num_blocks": 1, "embed_dim": 12, "mlp_ratio": 2}
    model = mixer.MlpMixer(5, **sizes, block_layer=mixer.ResBlock, norm_layer=mixer.Affine)
    assert {layer.grid for layer in layers_of(inject_locality(model)).values()} == {(2, 8)}


def test_two_grids_of_as_many_tokens_are_not_guessed_between():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(16, 16)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.mix(a.flatten(2)) + self.mix(b.flatten(2))

    x = (torch.randn(1, 3, 2, 8), torch.randn(1, 3, 4, 4))
    with pytest.raises(InvalidInputError, match=r"16 tokens, which are \(2, 8\) or \(4, 4\) in this model: pass grid"):
        inject_locality(Two(), x, layers="mix")
    assert layers_of(inject_locality(Two(), x, layers="mix", grid=(8, 2)))["mix"].grid == (8, 2)


def test_a_layer_in_a_list_is_replaced_there_too():
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(12, 12)
            self.steps = [self.mix, nn.ReLU()]

        def forward(self, x: Tensor) -> Tensor:
            return self.steps[1](self.steps[0](x))

    model = Listed()
    changed = inject_locality(model, layers="mix", grid=(3, 4))
    assert isinstance(changed.mix, InjectedLinear)
    assert changed.steps[0] is changed.mix
    assert model.steps[0] is model.mix


def test_a_layer_that_an_object_holds_is_refused():
    """Code may call it by that object, where the convolutions would be missing."""
    model = Net()
    model.kept = SimpleNamespace(layer=model.blocks[1].mix)
    with pytest.raises(InvalidInputError, match=r"'blocks\.1\.mix' cannot be replaced: 'kept' holds it"):
        inject_locality(model, layers="*.mix", grid=(3, 4))
    assert len(layers_of(inject_locality(model, layers="blocks.0.mix", grid=(3, 4)))) == 1


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (nn.DataParallel, r"inject into its \.module"),
        (lambda model: torch.compile(model, backend="eager"), "inject into the model you compiled"),
        (torch.jit.script, "inject into the nn.Module before scripting"),
    ],
)
def test_a_wrapped_model_is_refused(wrap, words):
    """DistributedDataParallel would not average the gradients of parameters that it has never seen."""
    with pytest.raises(InvalidInputError, match=words):
        inject_locality(wrap(nn.Sequential(nn.Linear(12, 12))), layers="*", grid=(3, 4))


def test_a_pruned_model_is_injected():
    model = Net()
    nn.utils.prune.l1_unstructured(model.head, "weight", 0.5)
    model(images())
    changed = inject_locality(model, layers="*.mix", grid=(3, 4))
    assert torch.equal(changed(images()), model(images()))


def test_a_message_names_some_of_many_layers():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(20)))
    with pytest.raises(InvalidInputError, match=r"features: 0, 1, 2, 3, 4, 5, 6, 7 and 12 more$"):
        inject_locality(model)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, r"example_inputs, or name them .* blocks\.0\.mix, blocks\.0\.square"),
        ({"layers": "nothing.*"}, r"layers='nothing\.\*' names no nn\.Linear"),
        ({"layers": "stem"}, "layers='stem' names no"),
        (
            {"layers": ["blocks.?.mix", "head"], "grid": (3, 4)},
            r"'head' is a linear layer from 6 to 5 features",
        ),
        ({"layers": "*.mix"}, r"'blocks\.0\.mix' mixes 12 tokens, which are no square: pass grid"),
        ({"layers": "*.mix", "grid": (3, 5)}, r"grid=\(3, 5\) does not have the 12 tokens"),
        ({"layers": "*.mix", "grid": (3, 4), "kernels": (2,)}, r"kernels=\(2,\): give distinct odd sizes"),
        ({"layers": "*.mix", "grid": (3, 4), "kernels": ()}, "distinct odd sizes"),
        ({"layers": "*.mix", "grid": (3, 4), "kernels": (3, 3)}, "distinct odd sizes"),
        ({"layers": "*.mix", "grid": (3, 4), "compute": "fft"}, "choose one of conv, matmul"),
        ({"layers": "*.mix", "grid": (-3, -4)}, "two sizes"),
        ({"layers": "*.mix", "grid": (12,)}, "two sizes"),
        ({"layers": "*.mix", "grid": (3.0, 4.0)}, "two sizes"),
        ({"layers": "*.mix", "grid": 12}, "two sizes"),
        ({"layers": "*.mix", "grid": (3, 4), "kernels": 3}, "in a list"),
        ({"layers": "*.mix", "grid": (3, 4), "kernels": (3.0,)}, "distinct odd sizes"),
        ({"layers": "*.mix", "grid": (3, 4), "init": math.nan}, "a finite number"),
        ({"layers": "*.mix", "grid": (3, 4), "init": "1"}, "a finite number"),
        ({"layers": []}, "names no layer"),
        ({"layers": [0]}, "as a string"),
        ({"layers": nn.Linear}, "in a list"),
        ({"example_inputs": torch.randn(2, 3, 6, 8)}, "the model rejects the example inputs"),
    ],
)
def test_what_cannot_be_injected_is_refused_before_anything_changes(options, words):
    model = Net()
    before = kinds(model)
    with pytest.raises(InvalidInputError, match=words):
        inject_locality(model, inplace=True, **options)
    assert kinds(model) == before


def test_token_mixing_through_a_hidden_size_is_told_from_none():
    """MLP-Mixer's tokens pass a layer to a hidden size and one back: neither ends on the grid it began with."""

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.fc1, self.fc2 = nn.Conv2d(1, 6, 2, 2), nn.Linear(12, 20), nn.Linear(20, 12)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.stem(x).flatten(2).transpose(1, 2)
            return tokens + self.fc2(self.fc1(tokens.transpose(1, 2)).relu()).transpose(1, 2)

    with pytest.raises(InvalidInputError, match=r"'fc1' is a linear layer from 12 to 20 features, .*of the same size"):
        inject_locality(Mixer(), images())


class ReadsWeight(nn.Module):
    """Uses the tensors of its layer, beside a call or instead of one."""

    def __init__(self, calls: bool = False) -> None:
        super().__init__()
        self.mix, self.calls = nn.Linear(12, 12), calls
        nn.init.normal_(self.mix.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x) if self.calls else self.product(x)

    def product(self, x: Tensor) -> Tensor:
        return F.linear(x, self.mix.weight)


@pytest.mark.parametrize("outer", [nn.Identity(), None])
def test_a_layer_whose_weight_is_read_by_itself_is_refused(outer):
    """The convolutions would be missing there. (Who initialises the weight reads it, too.)"""
    model = ReadsWeight() if outer is None else nn.Sequential(ReadsWeight(), outer)
    with pytest.raises(InvalidInputError, match=r"the forward of ReadsWeight reads 'mix\.weight' itself"):
        inject_locality(model, layers="*mix", grid=(3, 4))


def test_an_injected_layer_says_where_its_weight_is():
    layer = InjectedLinear(nn.Linear(12, 12), (3, 4))
    assert (layer.in_features, layer.out_features) == (12, 12)
    assert not hasattr(layer, "weight")
    with pytest.raises(AttributeError, match=r"reparamkit\.fuse makes one linear layer"):
        F.linear(torch.zeros(12), layer.weight)


def test_what_is_injected_is_not_injected_again():
    _, changed, _ = injected("own")
    with pytest.raises(InvalidInputError, match="or an injected one"):
        inject_locality(changed, layers="*.mix*", grid=(3, 4))
    with pytest.raises(InvalidInputError, match="no token-mixing linear layer was found"):
        inject_locality(changed)


# The two ways to compute


@pytest.mark.parametrize("kernel", [1, 3, 5, 9])
@pytest.mark.parametrize("grid", [(3, 4), (1, 6), (5, 1)])
def test_the_matrix_of_a_kernel_is_its_convolution(kernel, grid):
    generator = torch.Generator().manual_seed(kernel)
    weight = torch.randn(kernel, kernel, generator=generator, dtype=torch.float64, requires_grad=True)
    maps = torch.randn(7, 1, *grid, generator=generator, dtype=torch.float64)
    by_matrix = F.linear(maps.flatten(1), toeplitz(weight, grid)).reshape(maps.shape)
    by_conv = F.conv2d(maps, weight[None, None], padding=kernel // 2)
    torch.testing.assert_close(by_matrix, by_conv)
    cotangent = torch.randn(by_conv.shape, generator=generator, dtype=torch.float64)
    gradients = [torch.autograd.grad(out, weight, cotangent)[0] for out in (by_matrix, by_conv)]
    torch.testing.assert_close(*gradients)


def test_both_ways_have_equal_values_gradients_and_statistics(monkeypatch):
    runs, convolved = {}, []
    whole_forward = nn.Conv2d.forward

    def counted(self, x):
        convolved.append(self)
        return whole_forward(self, x)

    monkeypatch.setattr(nn.Conv2d, "forward", counted)
    for compute in ("conv", "matmul"):
        convolved.clear()
        model = randomize(inject_locality(Net(), layers="*.mix", grid=(3, 4), compute=compute).double()).train()
        out = model(images(4).double())
        out.square().sum().backward()
        # The stem, and two branches in each of two layers.
        assert len(convolved) == (5 if compute == "conv" else 1)
        running = [b for n, b in model.named_buffers() if "running" in n]
        runs[compute] = [out.detach(), *(p.grad for p in model.parameters()), *running]
    assert len(runs["conv"]) > 20
    for a, b in zip(runs["conv"], runs["matmul"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_an_injected_layer_takes_inputs_of_any_rank_and_only_of_the_right_size():
    layer = randomize(InjectedLinear(nn.Linear(12, 12), (3, 4)))
    x = torch.randn(2, 3, 5, 12)
    rows = layer(x.reshape(-1, 12))
    assert layer(x).shape == x.shape
    torch.testing.assert_close(layer(x).reshape(-1, 12), rows)
    torch.testing.assert_close(layer(x[0, 0, 0]), rows[0])
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        layer(torch.randn(3, 4))


# Back to the original form


@every_model
@pytest.mark.parametrize("compute", ["conv", "matmul"])
def test_fusing_brings_the_original_architecture_back(name, compute):
    model, changed, x = injected(name, compute=compute)
    trained(changed, x)
    moved = [layer.repconv3.bn.weight.abs().item() for layer in layers_of(changed).values()]
    assert min(moved) > 0.01
    fused = fuse(changed, x, rules=["locality_injection"])
    assert shapes(fused) == shapes(model)
    assert kinds(fused) == kinds(model)
    # Nobody's code was written again.
    assert [type(m) for m in fused.modules()] == [type(m) for m in model.modules()]
    model.load_state_dict(fused.state_dict())
    other = torch.randn(3, *x.shape[1:])
    with torch.no_grad():
        assert relative(model.eval()(other), changed(other)) < 1e-5
    assert [merge.path for merge in report(fused).merges] == list(layers_of(changed))
    assert all(merge.rules == ("locality_injection",) for merge in report(fused).merges)


@every_model
def test_the_default_fuse_has_the_structure_of_the_fused_original(name):
    model, changed, x = injected(name)
    trained(changed, x)
    fused, other = fuse(changed, x), fuse(randomize(model), x)
    assert shapes(fused) == shapes(other)
    with torch.no_grad():
        assert relative(fused(x), changed(x)) < 1e-5


def test_the_linear_layer_is_the_sum_of_the_matrices():
    """Written out once more, without the package's own Toeplitz matrices."""
    layer = randomize(InjectedLinear(nn.Linear(12, 12), (3, 4), (1, 3, 5)).double())
    identity = torch.eye(12, dtype=torch.float64)
    weight, bias = layer.fc.weight.clone(), layer.fc.bias.clone()
    for k in (1, 3, 5):
        branch = layer.get_submodule(f"repconv{k}")
        zero = branch(torch.zeros(1, 1, 3, 4, dtype=torch.float64)).flatten()
        weight += (branch(identity.reshape(12, 1, 3, 4)).flatten(1) - zero).T
        bias += zero
    merged = layer.merged()
    torch.testing.assert_close(merged.weight, weight)
    torch.testing.assert_close(merged.bias, bias)


def test_a_layer_without_bias_gets_one():
    model = nn.Sequential(nn.Linear(12, 12, bias=False), nn.ReLU())
    changed = randomize(inject_locality(model, layers="0", grid=(3, 4)))
    x = torch.randn(5, 12)
    fused = fuse(changed, x)
    assert shapes(fused) == {"0.weight": (12, 12), "0.bias": (12,)}
    torch.testing.assert_close(fused(x), changed(x))


def test_example_inputs_are_not_needed():
    changed = randomize(inject_locality(nn.Sequential(nn.Linear(12, 12), nn.ReLU()), layers="0", grid=(3, 4)))
    fused = fuse(changed)
    assert kinds(fused) == [("", "Sequential"), ("0", "Linear"), ("1", "ReLU")]
    for shape in ((12,), (5, 12), (2, 5, 12)):
        x = torch.randn(shape)
        torch.testing.assert_close(fused(x), changed(x))


ROWS = {
    "alone": lambda: nn.Sequential(nn.Linear(12, 12), nn.ReLU()),
    "before a layer": lambda: nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 7), nn.ReLU()),
    "two in a row": lambda: nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12), nn.ReLU()),
    "behind a layer": lambda: nn.Sequential(nn.Linear(12, 40), nn.Linear(40, 12), nn.Linear(12, 12), nn.ReLU()),
}


@pytest.mark.parametrize("row", ROWS)
def test_what_was_injected_merges_on_with_its_neighbours(row):
    """And leaves nothing behind: no module that the original, fused, does not have."""
    model = ROWS[row]()
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and m.in_features == m.out_features]
    changed = randomize(inject_locality(model, layers=names, grid=(3, 4)))
    x = torch.randn(2, 5, 12)
    fused, other = fuse(changed, x), fuse(randomize(model), x)
    assert shapes(fused) == shapes(other)
    assert kinds(fused) == kinds(other)
    torch.testing.assert_close(fused(x), changed(x))


def test_a_weight_that_is_computed_from_others_merges():
    """It is computed in float64, as the proof does it."""
    _, changed, x = injected("own")
    nn.utils.parametrizations.weight_norm(changed.blocks[0].mix.fc)
    nn.utils.parametrizations.spectral_norm(changed.blocks[1].mix.repconv3.conv)
    randomize(changed)
    fused = fuse(changed, x, rules=["locality_injection"])
    assert not layers_of(fused)
    with torch.no_grad():
        assert relative(fused(x), changed(x)) < 1e-5


def test_half_precision_is_rounded_once():
    _, changed, x = injected("own")
    randomize(changed).to(torch.bfloat16)
    fused = fuse(changed, x.to(torch.bfloat16), rules=["locality_injection"])
    layer, merged = layers_of(changed)["blocks.0.mix"], fused.blocks[0].mix
    assert torch.equal(merged.weight, layer.merged().weight.to(torch.bfloat16))


# What must not merge


def test_training_mode_is_refused():
    _, changed, x = injected("own")
    randomize(changed)
    changed.blocks[0].mix.repconv3.bn.train()
    fused = fuse(changed, x)
    assert list(layers_of(fused)) == ["blocks.0.mix"]
    (refusal,) = [r for r in report(fused).refusals if r.path == "blocks.0.mix"]
    assert "training mode: call model.eval()" in refusal.reason


def test_a_hook_on_a_part_is_refused():
    _, changed, x = injected("own")
    randomize(changed)
    changed.blocks[0].mix.fc.register_forward_hook(lambda layer, args, output: 2 * output)
    fused = fuse(changed, x)
    assert list(layers_of(fused)) == ["blocks.0.mix"]
    assert relative(fused(x), changed(x)) < 1e-5
    (refusal,) = [r for r in report(fused).refusals if r.path == "blocks.0.mix"]
    assert refusal.reason.count("its 'fc' has hooks") == 1
    assert refusal.reason.startswith("rule 'locality_injection': ")


def test_a_part_that_became_another_layer_is_refused():
    """As adapters do it: they have the weight of the layer that they wrap, and compute something else."""

    class Adapted(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base, self.in_features, self.out_features = base, 12, 12

        def forward(self, x):
            return 2 * self.base(x)

        weight = property(lambda self: self.base.weight)
        bias = property(lambda self: self.base.bias)

    _, changed, x = injected("own")
    changed.blocks[0].mix.fc = Adapted(changed.blocks[0].mix.fc)
    changed.blocks[1].mix = nn.SyncBatchNorm.convert_sync_batchnorm(changed.blocks[1].mix)
    randomize(changed)
    fused = fuse(changed, x)
    assert list(layers_of(fused)) == ["blocks.0.mix"]
    assert relative(fused(x), changed(x)) < 1e-5
    (refusal,) = [r for r in report(fused).refusals if r.path == "blocks.0.mix"]
    assert "its 'fc' is now of class Adapted" in refusal.reason


def test_the_rule_can_be_switched_off():
    _, changed, x = injected("own")
    randomize(changed)
    fused = fuse(changed, x, without=["locality_injection"])
    assert list(layers_of(fused)) == ["blocks.0.mix", "blocks.1.mix"]
    assert torch.equal(fused(x), changed(x)) or relative(fused(x), changed(x)) < 1e-5


def test_a_kernel_written_wrongly_would_not_be_returned(monkeypatch):
    """The proof compares with the layer's own forward, by convolution."""
    _, changed, x = injected("own")
    randomize(changed)
    whole = InjectedLinear.merged

    def off(self):
        made = whole(self)
        made.weight.data *= 1.01
        return made

    monkeypatch.setattr(InjectedLinear, "merged", off)
    with pytest.raises(reparamkit.EquivalenceError, match=r"blocks\.0\.mix"):
        fuse(changed, x, rules=["locality_injection"])


def test_the_reader_says_what_the_layer_computes():
    check_reader(lambda: InjectedLinear(nn.Linear(12, 12), (3, 4)), shape=((1, 4), (1, 5), 12))
    with pytest.raises(NotFusable, match="training mode"):
        reparamkit.rules["locality_injection"].guard(_Match(InjectedLinear(nn.Linear(12, 12), (3, 4))))


class _Match:
    """A match of the rule, with nothing but the layer."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def module(self, name: str) -> nn.Module:
        assert name == "layer"
        return self.layer
