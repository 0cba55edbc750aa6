"""The ResMLP example: the net, its two training runs, and the way back to one architecture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from example_modules import import_example
from safetensors.torch import load_file
from torch import nn

import reparamkit
from reparamkit.rulebook.injected import InjectedLinear
from reparamkit.testing import randomize

TINY = ["--dim", "8", "--depth", "2", "--patch-size", "8", "--batch-size", "16", "--device", "cpu", "--threads", "1"]
TINY += ["--epochs", "2", "--limit-train", "48", "--limit-test", "16"]


example = import_example(
    ("resmlp", "repmlpnet"), "arguments", "data", "errors", "history", "resmlp", "train", "training"
)


def options(output: Path, *more: str):
    return example.arguments.parse([*TINY, "--output", str(output), *more])


def digits(chosen):
    data = example.data.load_data("digits", chosen.image_size)
    return data.limited(chosen.limit_train, chosen.limit_test)


def trained(chosen) -> nn.Module:
    return example.train.train(chosen, digits(chosen))


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


# The net


def test_the_net_computes_what_timms_computes():
    mixer = pytest.importorskip("timm.models.mlp_mixer", reason="timm is not installed")
    sizes = {"patch_size": 8, "in_chans": 1, "num_blocks": 2, "embed_dim": 8, "mlp_ratio": 4}
    theirs = mixer.MlpMixer(10, img_size=32, **sizes, block_layer=mixer.ResBlock, norm_layer=mixer.Affine)
    ours = example.resmlp.ResMLP(10, image_size=32, patch_size=8, in_channels=1, dim=8, depth=2)
    randomize(theirs)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(ours.eval()(x), theirs(x))


def test_s12_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = example.resmlp.ResMLP()
    # 15.4M are published; 15,350,872 is timm's count of resmlp_12_224.
    assert sum(p.numel() for p in model.parameters()) == 15_350_872


def test_images_that_do_not_divide_into_patches_are_refused():
    with pytest.raises(ValueError, match="30 pixels do not divide into patches of 16"):
        example.resmlp.ResMLP(image_size=30)


# The two runs


def test_both_arms_start_from_the_same_weights(tmp_path):
    chosen = options(tmp_path)
    data = digits(chosen)
    plain, injected = (example.train.new_model(chosen.of_arm(arm), data) for arm in ("plain", "injected"))
    assert [type(b.linear_tokens) for b in injected.blocks] == [InjectedLinear] * 2
    assert len({p.data_ptr() for p in injected.parameters()}) == len(list(injected.parameters()))
    kept = {name.replace(".fc.", "."): t for name, t in injected.state_dict().items() if "repconv" not in name}
    assert kept.keys() == plain.state_dict().keys()
    assert all(torch.equal(kept[name], t) for name, t in plain.state_dict().items())


def test_with_scales_of_zero_both_arms_start_from_the_same_function(tmp_path):
    chosen = options(tmp_path, "--init", "0")
    data = digits(chosen)
    x = next(iter(data.test_batches(8)))[0]
    plain, injected = (example.train.new_model(chosen.of_arm(arm), data).eval() for arm in ("plain", "injected"))
    assert torch.equal(plain(x), injected(x))


def test_a_run_killed_in_its_second_epoch_resumes_to_the_same_weights(tmp_path, monkeypatch):
    whole = trained(options(tmp_path / "whole").of_arm("injected")).state_dict()
    killed = options(tmp_path / "killed").of_arm("injected")
    step, done = example.training.Trainer.step, []

    def interrupted(self, images, labels):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(1)
        return step(self, images, labels)

    with monkeypatch.context() as patch:
        patch.setattr(example.training.Trainer, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trained(killed)
    assert [line["epoch"] for line in example.history.read_history(killed.output)] == [1]
    resumed = trained(options(tmp_path / "killed", "--resume", "always").of_arm("injected")).state_dict()
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    histories = [example.history.read_history(tmp_path / run / "injected") for run in ("whole", "killed")]
    assert histories[0] == histories[1]
    assert [line["epoch"] for line in histories[0]] == [1, 2]


def test_a_history_longer_than_the_checkpoint_is_cut(tmp_path):
    chosen = options(tmp_path).of_arm("plain")
    trained(chosen)
    history = example.history.read_history(chosen.output)
    example.history.write_history([*history, {"epoch": 3}], chosen.output)
    model = example.train.new_model(chosen, digits(chosen))
    run = example.training.Trainer(model, digits(chosen), chosen, lambda _: 0.0)
    run.train()
    assert run.history == history


def test_a_damaged_history_is_no_history(tmp_path):
    (tmp_path / "history.json").write_text("[{")
    assert example.history.read_history(tmp_path) == []


@pytest.mark.parametrize("compute", ["conv", "matmul"])
def test_the_way_to_compute_does_not_change_the_run(tmp_path, compute):
    """Up to rounding, and an interrupted run may go on in the other way."""
    chosen = options(tmp_path, "--compute", compute)
    assert "compute" not in chosen.settings()
    model = trained(chosen.of_arm("injected"))
    assert model.blocks[0].linear_tokens.compute == compute
    other = trained(options(tmp_path / "other", "--compute", "conv").of_arm("injected"))
    for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


# Back to one architecture


def test_the_fused_model_has_the_form_of_the_plain_one_and_its_answers(tmp_path, capsys):
    chosen = options(tmp_path)
    data = digits(chosen)
    plain, injected = (example.train.new_model(chosen.of_arm(arm), data) for arm in ("plain", "injected"))
    randomize(injected)
    fused, figures = example.train.fuse(injected, plain, data, chosen)
    assert shapes(fused) == shapes(plain)
    assert (figures["flipped"], figures["tested"]) == (0, 16)
    plain.load_state_dict(fused.state_dict())
    x = next(iter(data.test_batches(8)))[0]
    torch.testing.assert_close(plain.eval()(x), injected(x))
    printed = capsys.readouterr().out
    for words in ("locality_injection", "that of the model without injection", "flipped predictions  0", "latency"):
        assert words in printed


def test_a_fused_model_of_another_form_is_refused(tmp_path):
    chosen = options(tmp_path)
    data = digits(chosen)
    plain, injected = (example.train.new_model(chosen.of_arm(arm), data) for arm in ("plain", "injected"))
    with pytest.raises(example.errors.FusionError, match=r"blocks\.0\.linear_tokens\.fc\.bias"):
        example.train.check_structure(injected, plain)


# The command


@pytest.mark.parametrize(
    "arguments",
    [["--epochs", "0"], ["--lr", "nan"], ["--kernels", "2"], ["--patch-size", "5"], ["--device", "abacus"]],
)
def test_options_that_make_no_sense_are_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        example.arguments.parse(arguments)
    assert arguments[0] in capsys.readouterr().err


def test_the_command_trains_both_fuses_compares_and_saves(tmp_path, capsys):
    assert example.train.main([*TINY, "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    for words in ("plain: computing", "injected: computing", "flipped predictions", "without injection"):
        assert words in said
    plain, fused = (load_file(tmp_path / name) for name in ("plain/model.safetensors", "fused.safetensors"))
    assert {name: t.shape for name, t in plain.items()} == {name: t.shape for name, t in fused.items()}
    histories = {arm: json.loads((tmp_path / arm / "history.json").read_text()) for arm in ("plain", "injected")}
    assert [line["epoch"] for line in histories["injected"]] == [1, 2]
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["arms"] == {arm: history[-1]["test accuracy"] for arm, history in histories.items()}
    assert figures["accuracy"] == [figures["arms"]["injected"]] * 2
    model = example.resmlp.ResMLP(10, image_size=32, patch_size=8, in_channels=1, dim=8, depth=2)
    model.load_state_dict(fused)
    assert reparamkit.explain(model.eval(), torch.randn(1, 1, 32, 32)).after.parameters > 0


def test_the_command_explains_a_mistake_in_one_line(tmp_path, capsys):
    mistake = ["--data", "fashion-mnist", "--data-root", str(tmp_path), "--output", str(tmp_path)]
    assert example.train.main(mistake) == 1
    assert capsys.readouterr().err.startswith("error: no Fashion-MNIST in")
