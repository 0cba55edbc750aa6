"""benchmarks/evidence.py: runs that go on where they stopped, and the page that is made from their lines."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from example_modules import ROOT, import_example
from torch import nn

from reparamkit.testing import randomize

RESULTS = ROOT / "benchmarks" / "results" / "evidence.csv"


@pytest.fixture(scope="module")
def modules():
    """`evidence` and `evidence_page`."""
    found = import_example(("../benchmarks", "repmlpnet", "resmlp"), "evidence", "evidence_page")
    return found.evidence, found.evidence_page


@pytest.fixture
def evidence(modules, monkeypatch):
    """The benchmark with one tiny budget and two arms."""
    evidence = modules[0]
    monkeypatch.setattr(evidence, "BUDGETS", {"tiny": evidence.Budget(32, 1, 16, 1e-3, 0)})
    monkeypatch.setattr(evidence, "RESMLP", {**evidence.RESMLP, "depth": 1})
    monkeypatch.setattr(evidence, "ARMS", {arm: evidence.ARMS[arm] for arm in ("resmlp", "resmlp_injected")})
    return evidence


def digits(evidence):
    return evidence.load_data("digits", evidence.IMAGE_SIZE).limited(None, 16)


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# The arms


def first_weights(evidence, arm: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return {name.replace(".fc.", "."): t for name, t in evidence.ARMS[arm]().state_dict().items()}


@pytest.mark.parametrize(
    ("arm", "base", "lacks"),
    [
        ("resmlp", "resmlp_injected", "linear_tokens.repconv"),
        ("repmlpnet_no_local", "repmlpnet", "repmlp_block.repconv"),
        ("repmlpnet_no_global", "repmlpnet", "repmlp_block.gp"),
    ],
)
def test_an_arm_without_a_part_has_the_first_weights_of_the_whole(modules, arm, base, lacks):
    part, whole = first_weights(modules[0], arm), first_weights(modules[0], base)
    assert all(torch.equal(part[name], whole[name]) for name in part)
    assert {name for name in whole if lacks in name} == whole.keys() - part.keys() != set()


def test_all_arms_of_a_seed_see_the_same_batches(evidence, monkeypatch):
    seen: dict[str, list[torch.Tensor]] = {}

    def train(model, data, options):
        seen[type(model.blocks[0].linear_tokens).__name__] = [x for x, _ in data.train_batches(options.batch_size)]
        return 0.0

    monkeypatch.setattr(evidence, "train", train)
    data = digits(evidence).limited(32, 16)
    for arm in evidence.ARMS:
        evidence.run(data, "tiny", arm, seed=5)
    plain, injected = seen["Linear"], seen["InjectedLinear"]
    assert len(plain) == 2
    assert all(torch.equal(a, b) for a, b in zip(plain, injected, strict=True))


# The runs


def test_a_killed_command_loses_only_the_run_in_progress(evidence, monkeypatch, tmp_path):
    results, train = tmp_path / "evidence.csv", evidence.train

    def killed(model, data, options):
        if results.exists():
            raise KeyboardInterrupt
        return train(model, data, options)

    with monkeypatch.context() as patch:
        patch.setattr(evidence, "train", killed)
        with pytest.raises(KeyboardInterrupt):
            evidence.train_missing(results, 1, digits(evidence))
    before = results.read_text()
    assert [row["arm"] for row in lines(results)] == ["resmlp"]
    evidence.train_missing(results, 1, digits(evidence))
    assert results.read_text().startswith(before)
    evidence.train_missing(tmp_path / "whole.csv", 1, digits(evidence))
    assert untimed(results) == untimed(tmp_path / "whole.csv")
    assert [row["arm"] for row in lines(results)] == ["resmlp", "resmlp_injected"]


def untimed(path: Path) -> list[dict[str, str]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in lines(path)]


def test_a_line_has_what_the_two_forms_answered(evidence):
    data = digits(evidence).limited(32, 16)
    row = evidence.run(data, "tiny", "resmlp_injected", seed=0)
    assert row["accuracy"] == row["fused_accuracy"]
    assert (row["flipped"], row["tested"]) == (0, 16)
    assert 0 < row["logit_error"] < 1e-5
    assert row["parameters"] > row["fused_parameters"]


def test_a_wrong_fusion_ends_the_benchmark(evidence, monkeypatch):
    def wrong(model, images):
        return nn.Sequential(model, nn.Softmax(1))

    monkeypatch.setattr(evidence.reparamkit, "fuse", wrong)
    with pytest.raises(Exception, match="a logit is off by"):
        evidence.run(digits(evidence).limited(32, 16), "tiny", "resmlp", seed=0)


def test_results_of_other_settings_are_not_mixed(evidence, monkeypatch, tmp_path):
    evidence.record_settings(tmp_path / "evidence.json", 5)
    evidence.record_settings(tmp_path / "evidence.json", 6)
    assert json.loads((tmp_path / "evidence.json").read_text())["command"].endswith("--seeds 6")
    monkeypatch.setattr(evidence, "BUDGETS", {"tiny": evidence.Budget(33, 1, 16, 1e-3, 0)})
    with pytest.raises(SystemExit, match=r"budgets: .*--results"):
        evidence.record_settings(tmp_path / "evidence.json", 5)


# The page


def test_the_committed_page_is_that_of_the_committed_lines(modules):
    _, page = modules
    assert page.PAGE.read_text() == page.page(page.read(RESULTS))


def test_the_committed_lines_have_at_least_five_seeds_of_every_arm(modules):
    evidence, page = modules
    results = page.read(RESULTS)
    for budget in evidence.BUDGETS:
        counts = {arm: len(results.of(budget, arm)) for arm in evidence.ARMS}
        assert min(counts.values()) == max(counts.values()) >= 5, counts
    assert page.ARMS.keys() == evidence.ARMS.keys()


def test_the_committed_lines_are_of_the_settings_in_the_script(modules):
    evidence, page = modules
    settings = page.read(RESULTS).settings
    assert {name: settings[name] for name in evidence.budgets_and_arms()} == evidence.budgets_and_arms()


def test_the_committed_lines_have_the_sizes_of_today(modules):
    """The fused size does not depend on the training: a page that has another is older than what fuse can do."""
    evidence, page = modules
    results = page.read(RESULTS)
    for arm, make in evidence.ARMS.items():
        model = randomize(make()).eval()
        fused = evidence.reparamkit.fuse(model, torch.randn(2, 1, evidence.IMAGE_SIZE, evidence.IMAGE_SIZE))
        today = tuple(str(evidence.parameters(each)) for each in (model, fused))
        rows = [row for budget in evidence.BUDGETS for row in results.of(budget, arm)]
        assert {(row["parameters"], row["fused_parameters"]) for row in rows} == {today}, arm


def test_an_interval_is_students(modules):
    """By hand: mean 2, standard deviation 1, 3 values, t(2, 0.975) = 4.3027."""
    estimate = modules[1].Estimate((1.0, 2.0, 3.0))
    half = 4.3026527 / 3**0.5
    assert estimate.mean == 2
    assert estimate.interval == pytest.approx((2 - half, 2 + half))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((1.0, 1.1, 0.9, 1.0, 1.05), "**better** with it"),
        ((-1.0, -1.1, -0.9, -1.0, -1.05), "**worse** with it"),
        ((1.0, -1.1, 0.9, -1.0, 1.05), "**not established**"),
        # p is 0.02: enough for one question, not for six.
        ((1.0, 0.2, 1.5, 0.6, 0.4), "**not established**"),
    ],
)
def test_a_difference_is_called_established_only_if_it_is(modules, values, words):
    assert words in modules[1].verdict(modules[1].Estimate(values))
