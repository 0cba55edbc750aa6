"""Norms before linear layers: their scale and shift go into all that reads them, and into the user's own modules."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from structures import (
    Attention,
    GatedMLP,
    HandRMSNorm,
    Model,
    PreNorm,
    build,
    error,
    operations,
    randomize,
    run,
    sample,
    seq,
    wide,
)
from torch import Tensor, nn

import reparamkit
from reparamkit import GuardError

X = sample((2, 5, 8), torch.float32)
RULE = "norm_into_linear"


def block() -> PreNorm:
    """A pre-norm attention block, randomised."""
    return build(lambda: PreNorm(nn.LayerNorm(8), Attention(8)))  # type: ignore[return-value]


# --- what is written ----------------------------------------------------------------------------------


def test_every_layer_keeps_its_class_and_its_place():
    """The norm stays a norm of its class, without parameters; what reads it stays a linear layer of its shape."""
    model = block()
    fused = reparamkit.fuse(model, X)
    assert [(name, type(module)) for name, module in fused.named_modules()] == [
        (name, type(module)) for name, module in model.named_modules()
    ]
    assert list(fused.norm.parameters()) == []
    assert fused.norm.elementwise_affine is False
    assert fused.inner.q.weight.shape == model.inner.q.weight.shape
    assert torch.allclose(fused.inner.q.weight, model.inner.q.weight * model.norm.weight)


def test_a_shift_that_borders_need_is_no_saving_of_a_norm():
    """The norm does its shift as it normalises; behind a padded convolution it would be operations of its own."""
    model = build(lambda: seq(nn.GroupNorm(2, 16), nn.Conv2d(16, 1, 3, padding=1)))
    x = sample((2, 16, 32, 32), torch.float32)
    fused = reparamkit.fuse(model, x)
    assert operations(fused, x) == operations(model, x)
    assert any("would raise operations" in refusal.reason for refusal in reparamkit.report(fused).refusals)


@pytest.mark.parametrize("shift", [False, True])
def test_a_layer_gets_a_bias_only_for_a_shift(shift: bool):
    """W beta is added to a layer without bias if there is a beta, zeros count as none."""
    model = block()
    if not shift:
        nn.init.zeros_(model.norm.bias)
    fused = reparamkit.fuse(model, X)
    assert (fused.inner.k.bias is not None) is shift
    assert error(run(fused, X), run(wide(model), X.double())) < 1e-6


def heads(norm: nn.Module, *biases: bool) -> nn.Module:
    """A norm, and layers that read it, some with a bias."""
    layers = nn.ModuleList(nn.Linear(8, 8, bias=bias) for bias in biases)

    def body(m: Any, x: Tensor) -> Tensor:
        y = m.norm(x)
        return torch.stack([head(y).relu() for head in m.heads])

    return build(lambda: Model(body, norm=copy.deepcopy(norm), heads=layers))


@pytest.mark.parametrize(
    ("norm", "biases", "objective", "whole"),
    [
        (nn.LayerNorm(8), (False, False, False), "default", True),
        (nn.LayerNorm(8), (False, False, False), "flops", False),
        (nn.LayerNorm(8), (False, False), "default", False),
        (nn.LayerNorm(8), (True, True, False), "default", False),
        (nn.LayerNorm(8, bias=False), (False, False, False), "default", False),
    ],
)
def test_biases_for_the_shift_of_a_norm_are_stored_numbers(
    norm: nn.Module, biases: tuple[bool, ...], objective: str, whole: bool
):
    """The norm adds its shift as it normalises; as biases of several layers it is more numbers, and passes."""
    model = heads(norm, *biases)
    fused = reparamkit.fuse(model, X, objective=objective)
    assert any(p.numel() for p in fused.norm.parameters()) == whole
    assert error(run(fused, X), run(wide(model), X.double())) <= 1e-6
    totals = reparamkit.report(fused)
    assert totals.after.stored <= totals.before.stored or objective == "flops"
    if whole:
        assert any("without a bias would get one" in refusal.reason for refusal in totals.refusals)


def test_a_norm_that_is_called_for_each_reader_stays_whole():
    """Its calls are of one value, and no merge has all of them: each would take the scale of all."""
    layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
    model = build(lambda: Model(lambda m, x: sum(h(m.n(x)).relu() for h in m.heads), n=nn.LayerNorm(8), heads=layers))
    for example in (X, None):
        fused = reparamkit.fuse(model, example)
        assert error(run(fused, X), run(model, X)) <= 1e-6
        assert torch.equal(fused.n.weight, model.n.weight)


def test_the_report_names_rule_and_members():
    """One merge per layer, and what the norm stored is gone once."""
    model = block()
    report = reparamkit.report(reparamkit.fuse(model, X))
    assert {merge.path: set(merge.members) for merge in report.merges} == {
        f"inner.{name}": {f"inner.{name}", "norm"} for name in "qkv"
    }
    assert all(RULE in merge.rules for merge in report.merges)
    assert report.before.parameters - report.after.parameters == 2 * 8 - 8
    assert report.after.ops == report.before.ops
    assert report.after.flops < report.before.flops


def test_the_rule_can_be_switched_off():
    """Without its permission a norm is left whole."""
    model = block()
    fused = reparamkit.fuse(model, X, without=[RULE])
    assert reparamkit.report(fused).merges == ()
    assert torch.equal(run(fused, X), run(model, X))


@pytest.mark.parametrize("make", [lambda: nn.LayerNorm(8), lambda: HandRMSNorm(8)], ids=["module", "code"])
@pytest.mark.parametrize("path", ["norm", "inner", "inner.v"])
def test_left_out_paths_leave_the_whole_norm(make: Callable[[], nn.Module], path: str):
    """If the norm or one of its readers is left out, nothing is merged."""
    model = build(lambda: PreNorm(make(), Attention(8)))
    fused = reparamkit.fuse(model, X, skip=path)
    assert reparamkit.report(fused).merges == ()
    assert torch.equal(run(fused, X), run(model, X))


@pytest.mark.parametrize("make", [lambda: nn.LayerNorm(8), lambda: HandRMSNorm(8)], ids=["module", "code"])
def test_a_fused_norm_is_saved_copied_and_printed(make: Callable[[], nn.Module]):
    """torch.save, deepcopy, repr and the weights of one fused model in another."""
    model = build(lambda: PreNorm(make(), Attention(8)))
    fused = reparamkit.fuse(model, X)
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    for twin in (torch.load(file, weights_only=False), copy.deepcopy(fused)):
        assert torch.equal(run(twin, X), run(fused, X))
    assert type(model.norm).__name__ in repr(fused)
    again = reparamkit.fuse(build(lambda: PreNorm(make(), Attention(8))), X)
    again.load_state_dict(fused.state_dict())


@pytest.mark.parametrize("options", [{"as_graph": True}, {"inplace": True}], ids=str)
def test_other_ways_to_write(options: dict[str, Any]):
    """As a flat graph, and into the model itself."""
    model = block()
    wanted = run(wide(model), X.double())
    fused = reparamkit.fuse(model, X, **options)
    assert len(reparamkit.report(fused).merges) == 3
    assert error(run(fused, X), wanted) < 1e-6


@pytest.mark.parametrize("options", [{}, {"as_graph": True}], ids=["module", "graph"])
def test_a_norm_that_stays_reads_what_was_merged_before_it(options: dict[str, Any]):
    """A norm whose scale nothing absorbs is whole again, and reads the merged layer."""
    model = build(lambda: seq(nn.Linear(8, 8), nn.Linear(8, 8), nn.LayerNorm(8)))
    fused = reparamkit.fuse(model, X, **options)
    assert operations(fused, X) == "linear native_layer_norm"
    assert error(run(fused, X), run(wide(model), X.double())) < 1e-6


def test_a_repr_that_names_a_merged_weight():
    """What a class says of itself is left out where it can no longer be said."""

    class Told(HandRMSNorm):
        def extra_repr(self) -> str:
            return f"{tuple(self.weight.shape)}"

    fused = reparamkit.fuse(build(lambda: PreNorm(Told(8), GatedMLP(8))), X)
    assert fused.norm.weight is None
    assert "Told()" in repr(fused)


# --- all or none --------------------------------------------------------------------------------------


def test_all_or_none_if_one_merge_cannot_be_written():
    """A weight that overflows float16 in one reader leaves the others as they are."""
    model = block().half()
    nn.init.constant_(model.inner.k.weight, 60_000.0)
    nn.init.constant_(model.norm.weight, 2.0)
    fused = reparamkit.fuse(model)
    reasons = [refusal.reason for refusal in reparamkit.report(fused).refusals]
    assert reparamkit.report(fused).merges == ()
    assert any("overflows" in reason for reason in reasons)
    assert any("the scale of norm is also read by what cannot absorb it: inner.k" in reason for reason in reasons)
    assert fused.state_dict().keys() == model.state_dict().keys()


READERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(6, 4),
    "linear without bias": lambda: nn.Linear(6, 4, bias=False),
    "dropout, linear": lambda: nn.Sequential(nn.Dropout(0.2), nn.Linear(6, 4)),
    "transposed, conv": lambda: Model(lambda m, x: m.conv(x.transpose(1, 2)).transpose(1, 2), conv=nn.Conv1d(6, 4, 1)),
    "relu": lambda: Model(lambda m, x: x.relu()[..., :4]),
    "sum": lambda: Model(lambda m, x: x[..., :4] + 1),
}
NORMS: dict[str, Callable[[], nn.Module]] = {
    "layer": lambda: nn.LayerNorm(6),
    "layer without bias": lambda: nn.LayerNorm(6, bias=False),
    "RMS": lambda: nn.RMSNorm(6),
    "RMS by hand": lambda: HandRMSNorm(6),
}


class Fan(nn.Module):
    """A norm and several readers."""

    def __init__(self, norm: nn.Module, readers: list[nn.Module]) -> None:
        super().__init__()
        self.norm, self.readers = norm, nn.ModuleList(readers)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.norm(x)
        return tuple(reader(y).tanh() for reader in self.readers)


@given(
    st.sampled_from(list(NORMS)), st.lists(st.sampled_from(list(READERS)), min_size=1, max_size=4), st.integers(0, 99)
)
@settings(deadline=None, max_examples=40)
def test_all_readers_absorb_a_norm_or_none(norm: str, readers: list[str], seed: int):
    """Outputs are equal in float64 whatever reads a norm; it loses its parameters exactly if all readers are linear."""
    torch.manual_seed(seed)
    model = randomize(Fan(NORMS[norm](), [READERS[name]() for name in readers]), seed).double()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    fused = reparamkit.fuse(model, x)
    with torch.no_grad():
        for found, wanted in zip(fused(x), model(x), strict=True):
            assert error(found, wanted) < 1e-12
    absorbed = [p for p in fused.norm.parameters() if p is not None] == []
    assert absorbed is {"relu", "sum"}.isdisjoint(readers)


# --- parameters in other formats ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_casts_of_parameters_round_as_the_model_does(dtype: torch.dtype):
    """``1 + weight.float()`` is folded to what the model computes, up to one rounding of its own dtype."""
    model = build(lambda: PreNorm(HandRMSNorm(8, plus=True), GatedMLP(8)), dtype)
    x = X.to(dtype)
    fused = reparamkit.fuse(model, x)
    assert error(run(fused, x), run(wide(model), x.double())) < 16 * torch.finfo(dtype).eps


# --- code that is written again -------------------------------------------------------------------------


class Masked(nn.Module):
    """A method that takes another branch if an argument is None."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.fc1(x)
        y = y + self.fc2(x)
        return torch.nn.functional.scaled_dot_product_attention(y, y, y, mask, is_causal=mask is None)


def test_an_argument_that_was_a_tensor_must_be_one():
    """The branch for None is not in the code that is written: the fused model says so, and gives no other numbers."""
    model = build(Masked)
    mask = torch.zeros(5, 5)
    fused = reparamkit.fuse(model, (X, mask))
    assert error(fused(X, mask), model(X, mask)) < 1e-6
    with pytest.raises(GuardError, match="where there is None"):
        fused(X)


# --- language and vision models -------------------------------------------------------------------------

SMALL: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
DECODER = {**SMALL, "vocab_size": 50, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 50}
CONFIGS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("llama", "qwen2", "mistral", "gemma"), DECODER),
    "t5": T5,
    "bert": {**SMALL, "vocab_size": 50, "max_position_embeddings": 64},
    "vit": {**SMALL, "image_size": 16, "patch_size": 4},
}
ABSORBED = {**dict.fromkeys(("llama", "qwen2", "mistral", "gemma"), 10), "t5": 16, "bert": 0, "vit": 8}
"""Linear layers that absorb the scale of a norm; norms of bert are read by residuals too, and the code of attention in
t5 gives the value for the queries to keys as well where there is no other.
"""


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.filterwarnings("ignore")  # other people's models warn
def test_transformers(name: str):
    """A small random model of each family: equal to float64, and the layers that read a norm absorb it."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(name, **CONFIGS[name])
    model = randomize(transformers.AutoModel.from_config(config))
    kwargs = _inputs(name)
    fused = reparamkit.fuse(model, example_kwargs=kwargs)
    for found, wanted in ((fused, model), (copy.deepcopy(fused), model)):
        assert error(found(**kwargs)[0], wanted(**kwargs)[0]) < 1e-5
    merges = reparamkit.report(fused).merges
    assert sum(merge.layer == "Linear" for merge in merges) == ABSORBED[name]
    assert type(fused) is type(model)


def _inputs(name: str) -> dict[str, Any]:
    tokens = torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(0))
    if name == "vit":
        return {"pixel_values": sample((2, 3, 16, 16), torch.float32)}
    more: dict[str, Any] = {"decoder_input_ids": tokens[:, :5]} if name == "t5" else {}
    return {"input_ids": tokens, **more, **({} if name == "bert" else {"use_cache": False})}


@pytest.mark.parametrize(
    ("kind", "options"),
    [("Lora", {"r": 2}), ("Lora", {"r": 2, "use_rslora": True}), ("Lora", {"r": 2, "use_dora": True}), ("IA3", {})],
)
@pytest.mark.filterwarnings("ignore")
def test_adapters(kind: str, options: dict[str, Any]):
    """LoRA, rsLoRA, DoRA and IA3 of peft disappear: there are as many layers as before they were added."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.Flatten(2), nn.Linear(9, 4)).eval()
    targets = ["0", "2", "4"]
    more = {"feedforward_modules": ["2"]} if kind == "IA3" else {}
    config = getattr(peft, f"{kind}Config")(target_modules=targets, **options, **more)
    model = peft.get_peft_model(copy.deepcopy(plain), config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name or "ia3" in name:
                parameter.copy_(torch.rand(parameter.shape) + 0.5)
    x = sample((2, 3, 9, 9), torch.float32)
    fused = reparamkit.fuse(model, x)
    report = reparamkit.report(fused)
    assert report.before.ops > report.after.ops == reparamkit.explain(plain, x).before.ops
    assert error(run(fused, x), run(wide(model), x.double())) < 1e-6


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_adapters_of_a_language_model(dora: bool):
    """They disappear, and the layers that they are beside absorb the norms before them, in a moment."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model("llama", **DECODER)
    plain = randomize(transformers.AutoModelForCausalLM.from_config(config))
    options = peft.LoraConfig(target_modules=["q_proj", "v_proj", "down_proj"], r=2, use_dora=dora)
    model = peft.get_peft_model(plain, options).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape) / 10)
    kwargs = {"input_ids": torch.randint(0, 50, (2, 7)), "use_cache": False}
    fused = reparamkit.fuse(model, example_kwargs=kwargs)
    assert error(fused(**kwargs).logits, model(**kwargs).logits) < 1e-5
    assert not any(".lora_A." in name for name, _ in fused.named_parameters())
    assert len(reparamkit.report(fused).merges) == 18


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.RMSNorm(8)], ids=lambda n: type(n).__name__)
@pytest.mark.parametrize("options", [{}, {"inplace": True}, {"as_graph": True}], ids=str)
@pytest.mark.parametrize("example", [None, X])
def test_a_norm_of_several_places_keeps_its_scale(norm: nn.Module, options: Any, example: torch.Tensor | None):
    """Also where each of them is behind one layer, and one of them before another that could absorb it."""

    def body(m: Any, x: Tensor) -> Tensor:
        return m.b(m.norm(m.a(x))) + torch.relu(m.norm(m.a(torch.relu(x))))  # type: ignore[no-any-return]

    model = build(lambda: Model(body, a=nn.Linear(8, 8), b=nn.Linear(8, 8), norm=copy.deepcopy(norm)))
    fused = reparamkit.fuse(copy.deepcopy(model), example, verify=False, **options)
    assert error(run(fused, X), run(model, X)) <= 1e-6


# --- norms of parameters --------------------------------------------------------------------------------


@pytest.mark.parametrize("example", [None, X])
@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.RMSNorm(8), nn.GroupNorm(5, 5)], ids=lambda n: type(n).__name__)
def test_a_norm_of_a_learned_token_is_a_constant(norm: nn.Module, example: torch.Tensor | None):
    """Nothing that depends on the input goes through it."""

    def body(m: Any, x: Tensor) -> Tensor:
        return m.a(x) + m.b(m.norm(m.token))  # type: ignore[no-any-return]

    def make() -> nn.Module:
        model = Model(body, a=nn.Linear(8, 8), b=nn.Linear(8, 8), norm=copy.deepcopy(norm))
        model.token = nn.Parameter(torch.randn(1, 5, 8))
        return model

    model = wide(build(make))
    example = None if example is None else example.double()
    assert error(run(reparamkit.fuse(model, example), X.double()), run(model, X.double())) <= 1e-12


def test_a_table_in_single_precision_rounds_no_sum_of_doubles():
    """A position table that the model keeps as a plain tensor stays what it is when the model is converted."""
    table = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))

    def body(m: Any, x: Tensor) -> Tensor:
        y = m.norm(x)
        y += table
        return m.a(y.relu())  # type: ignore[no-any-return]

    model = wide(build(lambda: Model(body, a=nn.Linear(8, 8), norm=nn.LayerNorm(8))))
    fused = reparamkit.fuse(model, X.double(), objective="flops")
    assert reparamkit.report(fused).merges
    assert error(run(fused, X.double()), run(model, X.double())) <= 1e-14


class Weighing(nn.Module):
    """Scales a part of what a norm gives."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 8, 3), nn.GroupNorm(1, 8)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.norm(self.conv(x)).split([4, 4], 1)
        return torch.cat([a, 2 * b], 1)


@pytest.mark.parametrize("verify", [False, True])
def test_a_norm_whose_scale_a_merge_takes_scales_no_more(verify: bool):
    """The merged layer stands behind it, and not in its place."""
    model, x = build(Weighing), sample((2, 1, 5, 6), torch.float32)
    fused = reparamkit.fuse(model, x, verify=verify)
    assert error(fused(x), model(x)) <= 1e-6
    assert error(fused(x[:1]), model(x[:1])) <= 1e-6


def gated(m: Any, x: Tensor) -> Tensor:
    """As MambaOut does: a part of what a layer gives is convolved, a gate is another."""
    g, i, c = torch.split(m.fc1(m.norm(x)), [85, 53, 32], -1)
    c = m.conv(c.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return m.fc2(g.sigmoid() * torch.cat((i, c), -1)) + x  # type: ignore[no-any-return]


def test_a_layer_whose_result_is_split_absorbs_a_norm():
    """Its rows for one part cost less than a share of the layer, and more than a part of what is there anyway."""
    conv = nn.Conv2d(32, 32, 7, padding=3, groups=32)
    layers = {"norm": nn.LayerNorm(32), "fc1": nn.Linear(32, 170), "conv": conv, "fc2": nn.Linear(85, 32)}
    model, x = build(lambda: Model(gated, **layers)), sample((1, 8, 8, 32), torch.float32)
    fused = reparamkit.fuse(model, x)
    assert list(fused.norm.parameters()) == []
    assert operations(fused, x) == operations(model, x)
    assert error(run(fused, x), run(model, x)) <= 1e-6


class Crossed(nn.Module):
    """Attends to another value if there is one, in models that have the layer for it (GPT-2)."""

    def __init__(self, crosses: bool) -> None:
        super().__init__()
        self.own = nn.Linear(8, 8)
        if crosses:
            self.crossing = nn.Linear(8, 8)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        return self.own(x) if other is None else self.crossing(x) * other  # type: ignore[no-any-return]


class Crossing(nn.Module):
    """Hands the other value on."""

    def __init__(self, crosses: bool) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(8), Crossed(crosses)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        return self.inner(self.norm(x), other)  # type: ignore[no-any-return]


@pytest.mark.parametrize("crosses", [True, False])
def test_a_way_that_calls_a_layer_that_is_not_there_is_none(crosses: bool):
    model = build(lambda: Crossing(crosses))
    fused = reparamkit.fuse(model, X)
    assert bool(reparamkit.report(fused).merges) is not crosses
    assert error(run(fused, X), run(model, X)) <= 1e-6


@pytest.mark.parametrize("example", [sample((2, 2, 4), torch.float32), None], ids=["with inputs", "without inputs"])
def test_the_channels_of_a_group_norm_are_counted_from_the_first_dimension(example: Tensor | None):
    """It takes any rank; what is added behind it is aligned with the last dimensions, which are others then."""
    parts = {"c": nn.Conv1d(2, 2, 3, padding=1), "n": nn.GroupNorm(1, 2), "shift": nn.Parameter(torch.rand(1, 2, 1))}
    model = build(lambda: Model(lambda m, x: m.n(m.c(x)) + m.shift, **parts))
    plain = build(lambda: Model(lambda m, x: m.n(x) + m.shift, n=parts["n"], shift=parts["shift"]))
    for each, ranks in ((model, [3]), (plain, [3, 4])):
        fused = reparamkit.fuse(each, example)
        for x in (sample((2, 2, *[2] * (rank - 3), 4), torch.float32) for rank in ranks):
            try:
                found = run(fused, x)
            except GuardError:
                assert x.dim() == 4
                continue
            assert error(found, run(each, x)) <= 1e-6


class Converting(nn.Module):
    """What is normalised gets the dtype of the weights that read it."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.proj = norm, nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.norm(torch.tanh(x)).to(self.proj.weight.dtype))


@pytest.mark.parametrize("norm", [nn.RMSNorm, nn.LayerNorm])
def test_a_dtype_that_code_takes_of_weights_is_not_read_of_a_norm_that_has_none_any_more(norm: type[nn.Module]):
    """The code follows the model when that is converted."""
    model = build(lambda: Converting(norm(8)))
    x = torch.randn(2, 5, 8)
    fused = reparamkit.fuse(model, x)
    assert len(reparamkit.report(fused).merges) == 1
    with torch.no_grad():
        assert error(fused(x), model(x)) <= 1e-6
        assert error(fused.double()(x.double()), model.double()(x.double())) <= 1e-6


class Transposed(nn.Module):
    """A linear layer whose weight is stored as (inputs, outputs), on rows (GPT-2)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(inputs, outputs)), nn.Parameter(torch.rand(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return y.view((*x.size()[:-1], self.weight.shape[1]))


class CrossingOrNot(nn.Module):
    """Calls one layer on two ways, of which one needs another layer as well (GPT-2)."""

    def __init__(self, crosses: bool, asks: bool) -> None:
        super().__init__()
        self.keys, self.asks = Transposed(8, 8), asks
        if crosses:
            self.queries = Transposed(8, 8)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        if other is not None:
            if self.asks and not hasattr(self, "queries"):
                raise ValueError
            query = self.queries(x)
            return self.keys(other) * query
        return torch.tanh(self.keys(x))


@pytest.mark.parametrize("asks", [True, False])
@pytest.mark.parametrize("crosses", [True, False])
def test_a_layer_on_two_ways_of_which_one_fails_absorbs_a_norm(crosses: bool, asks: bool):
    model = build(lambda: Model(lambda m, x: x + m.fc(m.norm(x)), norm=nn.LayerNorm(8), fc=Transposed(8, 8)))
    assert len(reparamkit.explain(model, X).merges) == 1

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.inner = nn.LayerNorm(8), CrossingOrNot(crosses, asks)

        def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
            return self.inner(self.norm(x), other)  # type: ignore[no-any-return]

    block = build(Block)
    fused = reparamkit.fuse(block, X)
    assert bool(reparamkit.report(fused).merges) is not crosses
    assert error(run(fused, X), run(block, X)) <= 1e-6
    if crosses:
        with torch.no_grad():
            assert error(fused(X, X), block(X, X)) <= 1e-6
