"""The report: what it counts, what it prints, its JSON form and its page."""

from __future__ import annotations

import ast
import base64
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from structures import Model, Sum, build, conv_norm, seq
from structures.parameters import Standardised
from structures.pieces import Causal
from torch import nn

import reparamkit
from reparamkit import NotFusable
from reparamkit.reasons import Kind, Reason, joined
from reparamkit.reporting import Picture, Report
from reparamkit.show.advice import ADVICE
from reparamkit.testing import randomize

ROOT = Path(reparamkit.__file__).parent
RELU_TWICE = reparamkit.call(nn.ReLU, reparamkit.call(nn.ReLU, reparamkit.value("x")))


class Branches(nn.Module):
    """A block that merges."""

    def __init__(self, channels: int = 4):
        super().__init__()
        self.conv3 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return (self.norm3(self.conv3(x)) + self.conv1(x)).relu()


class PreNorm(nn.Module):
    """A pair that does not: the shift of the norm differs at the border."""

    def __init__(self, channels: int = 4):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return self.conv(self.norm(x)).relu()


class Local(nn.Module):
    """A full matrix over a map of 6 x 5 pixels, and a convolution beside it."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(30, 30)
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x):
        return self.fc(x.flatten(1)).reshape(-1, 1, 6, 5) + self.conv(x)


@pytest.fixture(scope="module")
def both() -> Report:
    """The report of a network of which a part merges."""
    model = randomize(nn.Sequential(Branches(), PreNorm(), PreNorm()))
    return reparamkit.explain(model, torch.randn(2, 4, 9, 9))


@pytest.fixture(scope="module")
def local() -> tuple[nn.Module, nn.Module]:
    """A network with a Locality Injection, and the fused one."""
    model = randomize(Local())
    return model, reparamkit.fuse(model, torch.randn(2, 1, 6, 5))


class Cropped(nn.Module):
    """A full matrix over 4 pixels, a convolution beside it, and a layer on a part of their sum."""

    def __init__(self):
        super().__init__()
        self.fc, self.conv, self.last = nn.Linear(4, 4), nn.Conv1d(1, 1, 5, padding=2), nn.Linear(3, 3)

    def forward(self, x):
        return self.last((self.fc(x) + self.conv(x))[..., :-1])


# --- refusals and advice ------------------------------------------------------------------------------


def test_refusals_are_grouped_by_kind(both: Report):
    (group,) = both.groups
    assert group.advice.kind == "border"
    assert sorted(group.refusals, key=str) == sorted(both.refusals, key=str)


class Twice(nn.Module):
    """One convolution at two places, a norm behind one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(x.relu())).relu() + self.conv(x).relu()


def test_a_norm_behind_a_layer_that_stays_is_told_why_that_stays():
    refusals = {each.path: each.reason for each in reparamkit.explain(randomize(Twice())).refusals}
    assert refusals["conv"].startswith("its module is called at 2 places")
    assert refusals["norm"] == f"'conv' beside it: {refusals['conv']}"


class Tied(Twice):
    """Another convolution has its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(4, 4, 1)
        self.other.weight = self.conv.weight

    def forward(self, x):
        return self.norm(self.conv(x.relu())).relu() + self.other(x).relu()


class Read(Twice):
    """What the convolution gives is written into by a view of it, which is read."""

    def forward(self, x):
        y = self.conv(x)
        row = y.as_strided((4,), (1,)).zero_()
        return self.norm(y).relu(), y.detach() + row.sum()


@pytest.mark.parametrize(("model", "why"), [(Tied, "its parameter 'weight' is tied"), (Read, "its value is in memory")])
def test_a_norm_behind_a_layer_that_may_not_merge_is_told_so(model: type[nn.Module], why: str):
    """It was said to have no linear neighbour."""
    refusals = {each.path: each.reason for each in reparamkit.explain(randomize(model())).refusals}
    assert refusals["conv"].startswith(why)
    assert refusals["norm"] == f"'conv' beside it: {refusals['conv']}"


def test_the_largest_group_comes_first(both: Report):
    refused = reparamkit.explain(randomize(nn.Sequential(PreNorm(), PreNorm())), skip="0")
    sizes = [len(group.refusals) for group in refused.groups]
    assert len(sizes) == 2
    assert sizes == sorted(sizes, reverse=True)


def test_print_tells_reasons_once_and_what_to_do(both: Report):
    text = str(both)
    assert text.count(both.refusals[0].reason) == 1
    assert both.groups[0].advice.advice in text
    assert all(f"{refusal.path} ({refusal.layer})" in text for refusal in both.refusals)
    assert text.startswith("1 merge, 4 refusals\n")


def told(names: Set[str]) -> Iterator[ast.Call]:
    """The calls in the package that make a refusal, or a reason for one, of words that are written there."""
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in names and is_text(node.args[0]):
                yield node


def is_text(node: ast.expr) -> bool:
    return isinstance(node, (ast.JoinedStr, ast.Constant, ast.BinOp))


def test_every_reason_is_of_some_kind():
    """One that is not would be said to be left "for another reason"."""
    found = [call for call in told({"NotFusable", "Reason"}) if "check_reader" not in ast.unparse(call)]
    assert len(found) > 200
    assert [ast.unparse(call) for call in found if len(call.args) < 2] == []


def test_what_several_places_say_is_one_reason():
    """Its words and its kind stand at one place."""
    found = Counter(ast.unparse(call.args[0]) for call in told({"NotFusable", "Reason"}))
    assert [words for words, count in found.items() if count > 1] == []


def test_every_kind_is_used_and_has_advice():
    named = {
        node.attr
        for path in sorted(ROOT.rglob("*.py"))
        if path.name != "advice.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "Kind"
    }
    assert named == {kind.name for kind in Kind}
    assert {*ADVICE} == {*Kind}
    assert all(each.title and each.advice for each in ADVICE.values())


@given(st.lists(st.builds(Reason, st.text(min_size=1), st.sampled_from(Kind)), min_size=1))
def test_several_reasons_are_of_the_kind_that_tells_most(reasons: list[Reason]):
    order = [*Kind]
    assert order.index(joined(reasons).kind) == min(order.index(each.kind) for each in reasons)
    assert all(each.text in joined(reasons).text for each in reasons)


def test_what_a_rule_of_the_users_says_is_of_another_kind_unless_it_tells_one():
    assert NotFusable("my own guard says no, at a border").reason.kind is Kind.OTHER
    assert NotFusable("my own guard says no", Kind.BORDER).reason.kind is Kind.BORDER


class Alike(nn.Module):
    """Expands and projects, wider and wider: merging these would cost more, by other factors."""

    def __init__(self):
        super().__init__()
        self.pairs = nn.ModuleList(nn.Sequential(nn.Linear(4 * n, 4), nn.Linear(4, 4 * n)) for n in (4, 8, 16))

    def forward(self, x):
        return [pair(x[..., : pair[0].in_features]).relu() for pair in self.pairs]


def test_reasons_that_differ_in_their_factors_are_one_line():
    """With the range of the factors."""
    found = reparamkit.explain(Alike().eval(), torch.randn(2, 64))
    texts = {refusal.reason for refusal in found.refusals}
    assert texts == {f"the merge would raise FLOPs {n}x" for n in ("2.0", "4.0", "8.0")}
    (line,) = [line for line in str(found).splitlines() if "would raise" in line]
    assert line.endswith("the merge would raise FLOPs 2.0x to 8.0x")
    assert all(f"pairs.{k}.{j} (Linear)" in line for k in range(3) for j in range(2))


def test_a_module_that_torch_computes_in_one_call_has_a_reason_and_is_not_counted():
    """Nobody looked into attention, so that its layers are neither merged nor left."""
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = randomize(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.ReLU(), block))
    found = reparamkit.explain(model, torch.randn(2, 5, 4))
    assert [(each.path, each.layer) for each in found.refusals if each.advice.kind == "closed"] == [
        ("3", "TransformerEncoderLayer")
    ]
    assert (found.coverage.merged, found.coverage.left) == (2, 0)


@pytest.mark.filterwarnings("ignore")  # that torch.jit is old
def test_a_scripted_module_has_a_reason():
    """What to do is another thing than for attention, which nobody compiled."""
    block = torch.jit.script(randomize(conv_norm(4, 4)).eval())
    found = reparamkit.explain(seq(block, nn.ReLU()).eval(), torch.randn(2, 4, 5, 5))
    assert [(each.path, each.advice.kind) for each in found.refusals] == [("0", "compiled")]


@pytest.mark.filterwarnings("ignore")  # that quantisation moves to another package
def test_quantised_layers_have_a_reason():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4)).eval()
    model[3] = torch.ao.quantization.quantize_dynamic(nn.Sequential(model[3]))[0]
    found = reparamkit.explain(model, torch.randn(2, 4))
    assert [(each.path, each.reason) for each in found.refusals] == [
        ("3", "its weights are quantised: fuse before quantising")
    ]
    assert found.refusals[0].advice.kind == "dtype"
    assert len(found.merges) == 1


@pytest.mark.filterwarnings("ignore")
def test_a_part_that_is_quantised_has_a_reason():
    """There are no fake quantised tensors: what follows from one is not known, and the rest is merged all the same."""
    inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    model = nn.Sequential(torch.ao.quantization.QuantWrapper(inner), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).eval()
    model[0].qconfig = torch.ao.quantization.get_default_qconfig("fbgemm")
    torch.ao.quantization.prepare(model, inplace=True)
    x = torch.randn(2, 3, 8, 8)
    model(x)
    torch.ao.quantization.convert(model, inplace=True)
    fused = reparamkit.fuse(model, x)
    found = reparamkit.report(fused)
    assert [merge.members for merge in found.merges] == [("1", "2")]
    assert [(each.path, each.advice.kind) for each in found.refusals] == [("0", "captured")]
    assert torch.allclose(fused(x), model(x), atol=1e-5)


def test_modules_of_torch_that_are_looked_into_have_no_such_reason():
    """A row with a hook is traced by itself; what has no layers inside is no block."""
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.LSTM(4, 4)).eval()
    model[0].register_forward_hook(lambda module, args, output: None)
    found = reparamkit.explain(model, torch.randn(2, 4))
    assert [each for each in found.refusals if each.advice.kind == "closed"] == []


# --- coverage -----------------------------------------------------------------------------------------


def test_coverage_counts_layers(both: Report):
    assert (both.coverage.merged, both.coverage.left) == (3, 4)
    assert both.coverage.share == pytest.approx(3 / 7)


def test_coverage_without_anything_to_merge_is_full():
    assert reparamkit.explain(nn.Sequential(nn.ReLU()).eval()).coverage.share == 1.0


def test_a_layer_that_is_also_read_elsewhere_is_not_covered():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            y = self.norm(x)
            return self.conv(y) + y.relu()

    found = reparamkit.explain(randomize(Shared()), torch.randn(1, 4, 5, 5))
    kept = {node.path for node in found.graph_after if node.kind == "BatchNorm2d"}
    assert kept == {"norm"}
    assert found.coverage.left >= 1


# --- the graphs ---------------------------------------------------------------------------------------


def test_graphs_are_closed_and_in_order(both: Report):
    for graph in (both.graph_before, both.graph_after):
        seen: set[str] = set()
        for node in graph:
            assert set(node.inputs) <= seen
            assert node.name not in seen
            seen.add(node.name)


def test_graphs_count_what_the_totals_count(both: Report):
    for graph, totals in ((both.graph_before, both.before), (both.graph_after, both.after)):
        assert sum(node.role == "compute" for node in graph) == totals.ops


def test_graphs_mark_the_sites(both: Report):
    for number, merge in enumerate(both.merges):
        before = {node.path if node.is_layer else node.kind for node in both.graph_before if number in node.sites}
        assert before == set(merge.members)
        after = [node.path for node in both.graph_after if number in node.sites]
        assert after == [merge.path]


def test_graphs_know_shapes(both: Report):
    named = {node.path: node for node in both.graph_before}
    assert named["0.conv3"].shape == (2, 4, 9, 9)
    assert named["0.conv3"].detail.startswith("4, 4, kernel_size=(3, 3)")
    symbolic = reparamkit.explain(randomize(PreNorm())).graph_before
    assert {node.path: node.shape for node in symbolic if node.is_layer}["norm"] == (-1, 4, -1, -1)


def test_parts_of_a_model_have_names_of_their_own():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = Branches(), Branches()

        def forward(self, x):
            return self.second(self.first(x)) if x.mean() > 0 else x

    found = reparamkit.explain(randomize(Branching()), torch.ones(1, 4, 5, 5))
    names = [node.name for node in found.graph_before]
    assert len(found.merges) == 2
    assert len(set(names)) == len(names)
    assert {site for node in found.graph_after for site in node.sites} == {0, 1}


def test_a_reason_of_many_layers_names_some_and_counts_the_rest():
    found = reparamkit.explain(randomize(nn.Sequential(*(PreNorm() for _ in range(20)))))
    (lines,) = [line for line in str(found).splitlines() if "zero padding" in line and "norm" in line]
    assert len(found.refusals) == 40
    assert lines.startswith("  0.norm (BatchNorm2d), 0.conv (Conv2d), ")
    assert " and 32 more: zero padding" in lines


def test_a_merged_layer_is_not_among_what_was_left():
    """The causal convolution is merged with its norm, and what its crop leaves would gain nothing."""
    found = reparamkit.explain(randomize(Causal(3, 1)), torch.randn(2, 4, 9))
    assert [merge.path for merge in found.merges] == ["conv"]
    assert not found.refusals


class Gate(nn.Module):
    """A scale and a shift by operators, read by an average before a layer, and by the product with what that gives."""

    def __init__(self, channels: int = 4):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.rand(1) + 0.5), nn.Parameter(torch.rand(1))
        self.pool, self.conv = nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        x = self.scale * x + self.shift
        return x * self.conv(self.pool(x)).sigmoid()


def test_a_reason_names_a_merged_layer_by_what_it_is_and_where():
    model = nn.Sequential(nn.ReLU(), Gate()).eval()
    for only in (None, ["1"]):
        found = reparamkit.report(reparamkit.fuse(model, torch.randn(2, 4, 6, 6), only=only))
        reasons = " ".join(refusal.reason for refusal in found.refusals)
        assert "the scale of the merged Scale in 1 is also read by" in reasons
        assert "_merged" not in reasons
        assert "only=" not in reasons


def test_a_graph_rule_prints_no_flops_of_what_has_no_price():
    with reparamkit.rules.restored():

        @reparamkit.rule(name="twice", equation="relu(relu(x)) = relu(x)", pattern=RELU_TWICE)
        def twice(match: reparamkit.Match) -> nn.Module:
            return nn.ReLU()

        found = reparamkit.explain(nn.Sequential(nn.ReLU(), nn.ReLU()).eval())
    assert [merge.before.flops for merge in found.merges] == [0]
    assert "0 -> 0" not in str(found).partition("merged into")[2]


# --- as text ----------------------------------------------------------------------------------------


class Named(nn.Module):
    """Layers with names that a terminal would obey, or that are long."""

    NAMES = ("\x1b[31mred\x1b]0;title\x07", "two\nlines", "\u202ebackwards", "[bold]name[/bold]", "long" * 100)

    def __init__(self):
        super().__init__()
        for name in self.NAMES:
            self.add_module(name, nn.Sequential(PreNorm(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))

    def forward(self, x):
        for part in self.children():
            x = part(x)
        return x


def shown(report: Report, width: int) -> str:
    """As rich prints it on a terminal of that width."""
    file = io.StringIO()
    pytest.importorskip("rich.console").Console(file=file, width=width).print(report)
    return file.getvalue()


@pytest.fixture(scope="module")
def named() -> Report:
    """A report of such names, with a warning."""
    model = randomize(Named())
    model.get_submodule(Named.NAMES[0])[2].running_var[1] = 1e-14
    model.get_submodule(Named.NAMES[0])[2].running_var[2] = 1e3
    found = reparamkit.explain(model, torch.randn(1, 4, 5, 5))
    assert found.warnings
    return found


@pytest.mark.parametrize("width", [0, 20, 80, 250])
def test_names_cannot_command_a_terminal(named: Report, width: int):
    """In plain text, and at any width with rich: what is not printable is written out."""
    text = shown(named, width) if width else str(named)
    assert all(line.isprintable() for line in text.splitlines())
    for part in ("\\x1b[31mred", "two\\nlines", "\\u202ebackwards", "[bold]name[/bold]"):
        assert part[:8] in text


def test_long_names_are_cut_at_the_front(named: Report):
    assert max(map(len, str(named).splitlines())) < 1000
    assert "...onglong" in str(named)


def test_rich_shows_what_plain_text_does():
    """Above all the error of the whole model, and the parts it was traced in."""

    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = Branches()

        def forward(self, x):
            return self.body(x) if x.sum() > 0 else x

    found = reparamkit.explain(randomize(nn.Sequential(Branches(), Branching())), torch.ones(1, 4, 5, 5))
    plain = [word for line in str(found).splitlines() for word in line.split() if set(word) != {"-"}]
    words = set(shown(found, 250).split())
    assert [word for word in plain if word not in words and word not in ("left", "as", "it", "is")] == []
    assert "relative error" in shown(found, 250)


@pytest.mark.parametrize("width", [10, 24, 60])
def test_a_narrow_terminal_cuts_nothing_off(both: Report, width: int):
    text = "".join(shown(both, width).split())
    assert "…" not in text
    for part in (f"{both.before.flops:,}", both.merges[0].path, *both.merges[0].rules, both.groups[0].advice.advice):
        assert "".join(part.split()) in text


# --- pictures -----------------------------------------------------------------------------------------


def pixels(picture: Picture) -> torch.Tensor:
    """The numbers of a picture, in its own precision."""
    signed = torch.frombuffer(bytearray(base64.b64decode(picture.pixels)), dtype=torch.int8)
    return signed.reshape(picture.rows, picture.columns) * picture.largest / 127


def test_pictures_show_the_kernels():
    model = randomize(Branches())
    fused = reparamkit.fuse(model, torch.randn(1, 4, 9, 9))
    (merge,) = reparamkit.report(fused).merges
    found = {(p.merged, p.tile): p for p in merge.pictures}
    for weight, picture in ((model.conv3.weight, found[False, (3, 3)]), (fused.conv3.weight, found[True, (3, 3)])):
        mosaic = weight.detach().permute(0, 2, 1, 3).reshape(12, 12)
        torch.testing.assert_close(pixels(picture), mosaic, rtol=0, atol=picture.largest / 200)


def test_pictures_of_locality_injection_are_rows_as_maps(local: tuple[nn.Module, nn.Module]):
    model, fused = local
    (merge,) = reparamkit.report(fused).merges
    assert "locality_injection" in merge.rules
    before, after = merge.pictures[-2:]
    assert (before.merged, after.merged) == (False, True)
    for layer, picture in ((model.fc, before), (fused.fc, after)):
        corner = layer.weight.detach()[0].reshape(6, 5)
        torch.testing.assert_close(pixels(picture)[:, :5], corner, rtol=0, atol=picture.largest / 200)


def test_pictures_are_small():
    model = randomize(nn.Sequential(nn.Conv2d(256, 256, 7, bias=False), nn.BatchNorm2d(256)))
    (merge,) = reparamkit.explain(model).merges
    assert all(p.rows <= 36 and p.columns <= 36 for p in merge.pictures)
    assert len(merge.pictures) == 2


# --- JSON -----------------------------------------------------------------------------------------------


def test_a_matrix_that_gives_a_part_of_a_map_is_shown_as_a_matrix():
    """Its rows are of no pixels of the map."""
    (merge,) = reparamkit.explain(randomize(Cropped()), torch.randn(2, 1, 4)).merges
    assert "locality_injection" in merge.rules
    assert [picture.title for picture in merge.pictures if picture.merged] == ["fc: 3 x 4 matrix"]


def test_a_report_comes_back_from_json(both: Report, local: tuple[nn.Module, nn.Module]):
    for each in (both, reparamkit.report(local[1])):
        assert Report.from_json(each.to_json()) == each


def test_json_has_no_infinity(both: Report):
    odd = replace(both, error=math.inf)
    json.loads(odd.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert Report.from_json(odd.to_json()) == odd


def test_json_without_newer_fields_is_read(both: Report):
    data = json.loads(both.to_json())
    for name in ("graph_before", "graph_after", "model", "error"):
        del data[name]
    assert Report.from_json(json.dumps(data)).merges == both.merges


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 1}, "version 1"),
        ({"schema": "something else"}, "schema 'something else'"),
        ({"merges": "none"}, "the report.merges should be an array"),
        ({"tier": 3}, "the report.tier should be a str"),
        ({"before": {"parameters": 1}}, "the report.before has no 'stored'"),
        ({"error": "much"}, "the report.error should be a number"),
    ],
)
def test_json_of_another_kind_is_refused(both: Report, change: dict[str, object], message: str):
    text = json.dumps({**json.loads(both.to_json()), **change})
    with pytest.raises(reparamkit.InvalidInputError, match=re.escape(message)):
        Report.from_json(text)


def test_text_that_is_no_json_is_refused():
    with pytest.raises(reparamkit.InvalidInputError, match="no JSON"):
        Report.from_json("1 merge, 0 refusals")


# --- the page -------------------------------------------------------------------------------------------


def embedded(page: str) -> dict[str, object]:
    """The data in a page."""
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)
    assert found is not None
    return dict(json.loads(found[1]))


def test_page_holds_the_report(both: Report, tmp_path: Path):
    page = both.to_html(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == page
    data = embedded(page)
    assert Report.from_json(json.dumps({k: v for k, v in data.items() if k not in ("groups", "coverage")})) == both


def test_page_needs_no_network(both: Report):
    page = both.to_html()
    links = set(re.findall(r"https?://[^\s\"'`)]+", page))
    assert links <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=[\"'](?!data:)", page)
    assert "default-src 'none'" in page


def test_page_cannot_be_broken_by_names(both: Report):
    evil = "</script><script>alert(1)</script><!--\u2028"
    page = replace(both, model=evil, merges=(replace(both.merges[0], path=evil),)).to_html()
    assert "alert(1)</script>" not in page
    assert embedded(page)["model"] == evil


# --- warnings ---------------------------------------------------------------------------------------


def test_a_norm_of_a_dead_channel_is_named():
    """A variance of nearly 0 in one channel is a warning with the path, printed and in the JSON; the merge is right."""
    model = build(lambda: seq(conv_norm(3, 4), nn.ReLU(), conv_norm(4, 4)))
    with torch.no_grad():
        model[2][1].running_var.copy_(torch.tensor([1.0, 1e-12, 2e3, 1.0]))
    made = reparamkit.explain(model)
    assert [each.path for each in made.warnings] == ["2.1"]
    assert "variance of channel 1 is 1e-12" in made.warnings[0].text
    assert f"warning: 2.1: {made.warnings[0].text}" in str(made)
    assert Report.from_json(made.to_json()) == made
    assert len(made.merges) == 2


def test_half_precision_that_loses_digits_is_named():
    """A channel that is subnormal in float16 after the merge is a warning; in float32 it is none."""
    for dtype, expected in ((torch.float32, 0), (torch.float16, 1)):
        model = build(lambda: seq(conv_norm(3, 4), nn.ReLU()))
        with torch.no_grad():
            model[0][1].weight[2] = 1e-5
        made = reparamkit.explain(model.to(dtype))
        assert len(made.warnings) == expected
    assert made.warnings[0].path == made.merges[0].path
    assert "channel 2 of the weight is too small for float16" in made.warnings[0].text


def test_a_usual_model_has_no_warnings(both: Report):
    assert both.warnings == ()


def test_flops_of_unknown_sizes_are_compared_with_what_was_merged():
    """A sum whose rank is open costs as much in the model as in the merge that takes it in."""
    model = build(
        lambda: seq(
            Sum([nn.Conv2d(4, 16, 1), conv_norm(4, 16, 1)]),
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(16, 5, 1),
            nn.Conv2d(5, 3, 1),
        )
    )
    made = reparamkit.explain(model)
    assert 0 < made.after.flops < made.before.flops
    assert sum(merge.before.flops for merge in made.merges) <= made.before.flops


def test_values_side_by_side_cost_in_the_model_what_they_cost_in_a_merge():
    """No layer says how many channels the input has; a merge that takes the sum in knows it by the norm."""

    def forward(m: Model, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = m.n(x * 2)
        return torch.stack([y, x]).sum(0), y

    model = build(lambda: Model(forward, n=nn.BatchNorm1d(6)))
    made = reparamkit.explain(model, torch.randn(2, 6, 8))
    assert len(made.merges) == 2
    assert made.after.flops < made.before.flops


def test_a_norm_beside_a_merged_layer_has_the_reason_of_that():
    """Both convolutions behind the norm became one, which cannot take it in: that is linear, and stands beside it."""
    model = build(lambda: seq(nn.BatchNorm2d(4), Sum([nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 1, 2)]), nn.ReLU()))
    made = reparamkit.explain(model, torch.randn(2, 4, 6, 6))
    assert len(made.merges) == 1
    assert [refusal.path for refusal in made.refusals] == ["0"]
    assert "zero padding" in made.refusals[0].reason


def test_a_norm_before_views_has_the_reason_of_what_reads_them():
    """Without inputs: the sizes behind the flatten are not known; what is behind is linear all the same."""
    made = reparamkit.explain(build(lambda: seq(nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 8))))
    assert [(refusal.path, refusal.kind) for refusal in made.refusals] == [("0", "sizes"), ("2", "sizes")]


class TwoRuns(nn.Module):
    """Calls one block at two places, whose own code computes the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = Standardised(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.conv(x).relu())


def test_a_merged_layer_counts_the_operations_that_run_inside_it():
    """Zeros at one end, a convolution, the border values of its bias joined, and their sum; then the ReLU."""
    model = seq(nn.Conv2d(4, 32, 1), nn.ZeroPad2d((1, 2, 0, 0)), nn.Conv2d(32, 16, (1, 4)), nn.ReLU())
    report = reparamkit.explain(randomize(model), torch.randn(2, 4, 6, 64))
    assert report.after.ops == 1 + 1 + 2 + 1
    assert not report.refusals


def test_a_part_that_runs_twice_is_counted_twice():
    """Before and after, whether it has code or is a layer of torch; its calls are not counted beside it."""
    x = torch.randn(2, 4, 5, 9)
    fused = reparamkit.fuse(build(TwoRuns), x)
    made = reparamkit.report(fused)
    assert len(made.merges) == 1
    assert made.before.flops == made.after.flops == 2 * (2 * 4 * 4 * 90)
    assert made.before.ops == made.after.ops == 3


def test_a_model_without_merges_costs_what_it_did():
    """Its code goes on computing what nothing reads."""

    def wasteful(m, x):
        m.other(x)
        return m.conv(x).relu()

    model = Model(wasteful, conv=nn.Conv2d(4, 4, 3), other=nn.Conv2d(4, 4, 3)).eval()
    report = reparamkit.explain(model, torch.randn(1, 4, 8, 8))
    assert not report.merges
    assert report.after == report.before
