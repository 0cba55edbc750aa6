"""The RepMLPNet example: the net of the paper, its data, its training run."""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from example_modules import import_example
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

import reparamkit

example = import_example(
    ("repmlpnet",),
    *(
        "checkpoint",
        "convert",
        "data",
        "errors",
        "evaluate",
        "flags",
        "idx",
        "model",
        "options",
        "train",
        "training",
        "weights",
    ),
)
model_py: ModuleType = example.model

PARAMETERS = {
    "repmlpnet_t224": 38_293_608,
    "repmlpnet_b224": 68_242_712,
    "repmlpnet_t256": 58_687_848,
    "repmlpnet_b256": 96_447_512,
    "repmlpnet_d256": 86_887_648,
    "repmlpnet_l256": 117_641_560,
}


SMALL = {"channels": (8, 16, 32), "units": (1, 1, 1)}


def random_net(seed: int = 0, **overrides) -> nn.Module:
    torch.manual_seed(seed)
    model = model_py.create_model("repmlpnet_tiny32", 10, **overrides).eval()
    model_py.randomize_batch_norm(model, seed)
    return model


def random_block(channels: int, h: int, w: int, **options) -> nn.Module:
    torch.manual_seed(0)
    block = model_py.RepMLPBlock(channels, h, w, **options).eval()
    model_py.randomize_batch_norm(block)
    return block


# The net


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_nets_have_the_published_number_of_parameters(name):
    with torch.device("meta"):
        model = model_py.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert model.config.image_size == int(name[-3:])


def test_parameters_have_the_names_of_the_released_checkpoints():
    unit = ["prebn1", "prebn2", "ffn_block.ffn_fc1.conv", "ffn_block.ffn_fc1.bn", "ffn_block.ffn_fc2.conv"]
    unit += ["ffn_block.ffn_fc2.bn", "repmlp_block.gp.fc1", "repmlp_block.gp.fc2", "repmlp_block.fc3"]
    unit += ["repmlp_block.fc3_bn", "repmlp_block.repconv1.conv", "repmlp_block.repconv1.bn"]
    unit += ["repmlp_block.repconv3.conv", "repmlp_block.repconv3.bn"]
    expected = {"conv_embedding.conv", "conv_embedding.bn", "head_norm", "head"}
    expected |= {f"embeds.{i}.{part}" for i in range(3) for part in ("conv", "bn")}
    expected |= {
        f"stages.{i}.{j}.{part}" for i, units in enumerate((2, 2, 6, 2)) for j in range(units) for part in unit
    }
    with torch.device("meta"):
        state = model_py.create_model("repmlpnet_t224").state_dict()
    assert {key.rsplit(".", 1)[0] for key in state} == expected
    assert "stages.0.0.repmlp_block.fc3.bias" not in state
    assert "stages.0.0.repmlp_block.gp.fc1.bias" in state


def test_an_unknown_model_or_option_is_named():
    with pytest.raises(ValueError, match="repmlpnet_t224"):
        model_py.create_model("repmlpnet_x")
    with pytest.raises(ValueError, match="chanels"):
        model_py.create_model("repmlpnet_t224", chanels=(1,))


@pytest.mark.parametrize(
    "overrides", [{"units": (2,)}, {"share_sets": (3, 8, 32)}, {"kernels": (1, 2)}, {"kernels": (3, 3)}]
)
def test_an_impossible_configuration_is_refused(overrides):
    with pytest.raises(ValueError, match=r"stage|multiples|odd"):
        model_py.create_model("repmlpnet_tiny32", **overrides)


@pytest.mark.parametrize("size", [32, 64])
def test_features_are_the_maps_at_growing_strides(size):
    model = random_net()
    x = torch.randn(2, 3, size, size)
    features = model.forward_features(x)
    assert [tuple(f.shape) for f in features] == [
        (2, c, size // s, size // s) for c, s in ((32, 4), (64, 8), (128, 16))
    ]
    assert torch.equal(model.head(F.adaptive_avg_pool2d(model.head_norm(features[-1]), 1).flatten(1)), model(x))


def test_a_published_net_has_features_at_strides_4_8_16_and_32():
    with torch.device("meta"):
        model, x = model_py.create_model("repmlpnet_t224").eval(), torch.randn(1, 3, 224, 224)
        shapes = [tuple(f.shape[1:]) for f in model.forward_features(x)]
    assert shapes == [(64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)]


def test_any_odd_kernels_build_and_train():
    block = random_block(8, 4, 6, share_sets=2, kernels=(1, 3, 5, 7)).train()
    block(torch.randn(3, 8, 8, 12)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())
    assert {f"repconv{k}" for k in (1, 3, 5, 7)} <= {name for name, _ in block.named_children()}


# The block


def published_forward(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What the published code computes with the weights of `block`: (n, c, H, W) -> (n, c, H, W)."""
    s, h, w = block.share_sets, block.h, block.w
    rows, columns = x.shape[2] // h, x.shape[3] // w
    parts = x.reshape(-1, block.channels, rows, h, columns, w).permute(0, 2, 4, 1, 3, 5)
    maps = parts.reshape(-1, s, h, w)
    out = block.fc3_bn(block.fc3(parts.reshape(-1, s * h * w, 1, 1)).reshape(-1, s, h, w))
    out = out + sum(getattr(block, f"repconv{k}")(maps) for k in block.kernels)
    out = out.reshape(-1, rows, columns, s, h, w).permute(0, 3, 1, 4, 2, 5)
    return out.reshape(x.shape) * block.gp(x)


def dense_forward(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The block by its definition, a partition and a channel at a time: channel k has share-set k mod s."""
    out, (h, w) = torch.empty_like(x), (block.h, block.w)
    weight = block.fc3.weight.reshape(block.share_sets, h * w, h * w)
    for k in range(block.channels):
        s = k % block.share_sets
        for top in range(0, x.shape[2], h):
            for left in range(0, x.shape[3], w):
                part = x[:, k, top : top + h, left : left + w]
                full = normed(block.fc3_bn, s, (part.flatten(1) @ weight[s].T).reshape(-1, h, w))
                for size in block.kernels:
                    conv, bn = getattr(block, f"repconv{size}")
                    full = full + normed(bn, s, F.conv2d(part[:, None], conv.weight[s][None], padding=size // 2)[:, 0])
                out[:, k, top : top + h, left : left + w] = full
    return out * block.gp(x)


def normed(bn: nn.BatchNorm2d, s: int, x: torch.Tensor) -> torch.Tensor:
    return (x - bn.running_mean[s]) / (bn.running_var[s] + bn.eps).sqrt() * bn.weight[s] + bn.bias[s]


@torch.no_grad()
def test_a_block_without_a_perceptron_has_the_rest_of_the_block():
    whole, x = random_block(8, 4, 4, share_sets=2), torch.randn(2, 8, 8, 8)
    ungated, fc_only = (
        model_py.RepMLPBlock(8, 4, 4, share_sets=2, gate_ratio=None, kernels=k).eval() for k in ((1, 3), ())
    )
    for block in (ungated, fc_only):
        block.load_state_dict({name: t for name, t in whole.state_dict().items() if name in block.state_dict()})
    torch.testing.assert_close(ungated(x) * whole.gp(x), whole(x))
    assert not torch.allclose(fc_only(x), ungated(x))
    assert not any("repconv" in name or "gp" in name for name in fc_only.state_dict())


def identity_block(channels: int, side: int, share_sets: int) -> nn.Module:
    """A block whose FC3 is the identity and whose convolutions are zero: only its gate is left."""
    block = model_py.RepMLPBlock(channels, side, side, share_sets=share_sets).eval()
    with torch.no_grad():
        block.fc3.weight.copy_(torch.eye(side * side).repeat(share_sets, 1)[:, :, None, None])
        block.repconv1.conv.weight.zero_()
        block.repconv3.conv.weight.zero_()
        # Without this a fresh batch norm divides by sqrt(1 + eps).
        block.fc3_bn.running_var.fill_(1 - block.fc3_bn.eps)
    return block


@pytest.mark.parametrize(("channels", "share_sets"), [(8, 1), (8, 2), (8, 8)])
@torch.no_grad()
def test_the_block_equals_the_published_code_at_one_partition(channels, share_sets):
    block = random_block(channels, 4, 6, share_sets=share_sets)
    x = torch.randn(3, channels, 4, 6)
    assert torch.equal(block(x), published_forward(block, x))


@pytest.mark.parametrize("kernels", [(1, 3), (1, 3, 5, 7), ()])
@torch.no_grad()
def test_the_block_equals_its_definition_at_many_partitions(kernels):
    block = random_block(8, 4, 3, share_sets=2, kernels=kernels).double()
    x = torch.randn(2, 8, 12, 6, dtype=torch.float64)
    torch.testing.assert_close(block(x), dense_forward(block, x), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_the_block_keeps_the_order_of_the_partitions_where_the_published_code_does_not():
    block, x = identity_block(8, 4, 2), torch.randn(2, 8, 8, 8)
    gated = x * block.gp(x)
    torch.testing.assert_close(block(x), gated)
    assert (published_forward(block, x) - gated).abs().max() > 0.5


def test_a_map_that_does_not_cut_into_partitions_is_refused_at_every_batch_size():
    block = random_block(8, 8, 8)
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        block(torch.randn(64, 8, 9, 9))


def test_randomized_batch_norms_differ_and_repeat_with_the_seed():
    first, second, other = random_net(1), random_net(1), random_net(2)
    norms = [m for m in first.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all((bn.running_var > 0).all() and bn.running_mean.abs().sum() > 0 for bn in norms)
    assert any((bn.weight < 0).any() for bn in norms)
    assert torch.equal(first.head_norm.weight, second.head_norm.weight)
    assert not torch.equal(first.head_norm.weight, other.head_norm.weight)


# Weights


def prefixed(state):
    return {f"module.{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [dict, prefixed, lambda s: {"model": s}, lambda s: {"model": prefixed(s), "epoch": 3}],
    ids=["bare", "prefixed", "wrapped", "both"],
)
def test_released_weights_load_bare_wrapped_and_prefixed(tmp_path, wrap):
    source, target = random_net(1), random_net(2)
    torch.save(wrap(source.state_dict()), tmp_path / "weights.pth")
    for given in (tmp_path / "weights.pth", wrap(source.state_dict())):
        target.load_state_dict(random_net(2).state_dict())
        example.weights.load_published(target, given)
        assert all(
            torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True)
        )


def test_saved_weights_load_from_safetensors(tmp_path):
    source, target = random_net(1), random_net(2)
    example.weights.save_weights(source, tmp_path / "model.safetensors")
    example.weights.load_published(target, tmp_path / "model.safetensors")
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(source(x), target(x))


def test_weights_that_do_not_fit_name_each_problem_and_change_nothing():
    model = random_net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = random_net(1).state_dict()
    state["head.weight"] = torch.zeros(7, 128)
    state["prebn"] = torch.tensor(float("nan"))
    state["extra"] = state.pop("head.bias")
    with pytest.raises(example.errors.WeightsError) as caught:
        example.weights.load_published(model, state)
    message = str(caught.value)
    assert "missing: head.bias" in message
    assert "unknown: prebn, extra" in message
    assert "not finite: prebn" in message
    assert "head.weight is (7, 128), the model has (10, 128)" in message
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Payload:
    """A pickle that would run code."""

    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    "content", [Payload(), [1, 2], {"model": {"head.weight": "text"}}], ids=["code", "list", "text"]
)
def test_a_weights_file_that_is_no_state_dict_is_refused(tmp_path, content, capsys):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(example.errors.ExampleError, match=r"more than tensors|not a state dict") as caught:
        example.weights.load_published(random_net(), tmp_path / "weights.pth")
    assert "executed" not in capsys.readouterr().out
    # torch's own words tell how to run it.
    assert "weights_only=False" not in str(caught.value)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_damaged_or_missing_weights_file_is_refused(tmp_path, name):
    with pytest.raises(example.errors.FileError, match="there is no file"):
        example.weights.load_published(random_net(), tmp_path / name)
    (tmp_path / name).write_bytes(b"\x00" * 100)
    with pytest.raises(example.errors.FileError, match=rf"{re.escape(name)} is damaged"):
        example.weights.load_published(random_net(), tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(example.errors.FileError, match=rf"{re.escape(name)} is (a folder|damaged)"):
        example.weights.load_published(random_net(), tmp_path / name)


def test_weights_of_another_net_are_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(example.errors.WeightsError, match=r"and \d+ more"):
        example.weights.load_published(random_net(), tmp_path / "other.safetensors")


# Data


def idx_bytes(array: torch.Tensor) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + bytes(array.flatten().tolist())


def write_fashion(folder: Path, *, packed: bool = True) -> dict[str, torch.Tensor]:
    """Twelve training and five test images of random bytes; returns what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for part, count in (("train", 12), ("t10k", 5)):
        arrays[f"{part}-images-idx3-ubyte"] = torch.randint(0, 256, (count, 28, 28), dtype=torch.uint8)
        arrays[f"{part}-labels-idx1-ubyte"] = torch.arange(count, dtype=torch.uint8) % 10
    for name, array in arrays.items():
        content = idx_bytes(array)
        path = folder / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(content) if packed else content)
    return arrays


def test_digits_are_split_the_same_way_each_time():
    first, second = (example.data.load_data("digits", 32) for _ in range(2))
    assert (len(first.train), len(first.test)) == (1437, 360)
    assert torch.equal(first.test.images, second.test.images)
    images, labels = next(iter(first.test_batches(16)))
    assert images.shape == (16, 1, 32, 32)
    assert labels.dtype == torch.int64
    assert -1 <= images.min() < images.max() <= 1


@pytest.mark.parametrize(("folder", "packed"), [("", True), ("", False), ("FashionMNIST/raw", False)])
def test_fashion_mnist_reads_idx_files_packed_or_plain(tmp_path, folder, packed):
    arrays = write_fashion(tmp_path / folder, packed=packed)
    data = example.data.load_data("fashion-mnist", 32, tmp_path)
    images, labels = next(iter(data.test_batches(5)))
    written = arrays["t10k-images-idx3-ubyte"].float() / 127.5 - 1
    torch.testing.assert_close(images[:, 0, 2:30, 2:30], written)
    assert (images[:, 0, :2] == -1).all()
    assert labels.tolist() == [0, 1, 2, 3, 4]
    assert len(data.train) == 12


def test_missing_fashion_mnist_names_the_package(tmp_path, monkeypatch):
    with pytest.raises(example.errors.DataError, match="apt-get install dataset-fashion-mnist"):
        example.data.load_data("fashion-mnist", 32, tmp_path)
    monkeypatch.setattr(example.data, "FASHION_FOLDER", tmp_path)
    with pytest.raises(example.errors.DataError, match="apt-get install dataset-fashion-mnist"):
        example.data.load_data("fashion-mnist", 32)


HEADER = bytes([0, 0, 8, 1, 0, 0, 0, 3])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0",
        HEADER,
        HEADER + b"ab",
        HEADER + b"abcd",
        b"text" + HEADER,
        bytes([0, 0, 13, 1, 0, 0, 0, 1]) + b"\0" * 4,
        bytes([0, 0, 8, 4]) + b"\xff" * 16,
    ],
    ids=["empty", "half header", "no data", "short", "long", "no idx", "floats", "huge"],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_damaged_idx_file_is_refused(tmp_path, content, packed):
    path = tmp_path / ("x.gz" if packed else "x")
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(example.errors.DataError, match="is not a complete idx file"):
        example.idx.read_idx(path)


def test_a_truncated_gz_file_is_refused(tmp_path):
    write_fashion(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(example.errors.DataError, match="train-images"):
        example.data.load_data("fashion-mnist", 32, tmp_path)


def test_labels_that_do_not_fit_the_images_are_refused(tmp_path):
    write_fashion(tmp_path)
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    for labels, reason in ((torch.zeros(4), "do not fit"), (torch.full((5,), 99), "label 99")):
        path.write_bytes(gzip.compress(idx_bytes(labels.to(torch.uint8))))
        with pytest.raises(example.errors.DataError, match=reason):
            example.data.load_data("fashion-mnist", 32, tmp_path)


def test_a_random_shift_moves_each_image_as_a_whole():
    images = torch.zeros(50, 2, 8, 8)
    images[:, :, 4, 4] = 1
    torch.manual_seed(0)
    moved = example.data.random_shift(images, 2)
    assert moved.shape == images.shape
    positions = moved[:, 0].flatten(1).argmax(1)
    assert (moved.flatten(2).sum(2) == 1).all()
    assert torch.equal(moved[:, 0], moved[:, 1])
    assert {(int(p) // 8, int(p) % 8) for p in positions} <= {(y, x) for y in range(2, 7) for x in range(2, 7)}
    assert len(positions.unique()) > 10


def test_image_folders_give_both_parts_and_refuse_what_is_no_image(tmp_path):
    pytest.importorskip("torchvision")
    from PIL import Image

    for part in ("train", "val"):
        for name, color in (("cat", "red"), ("dog", "blue")):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (40, 50), color).save(tmp_path / part / name / "a.png")
    data = example.data.load_data("imagefolder", 32, tmp_path, workers=0)
    images, labels = next(iter(data.train_batches(2)))
    assert images.shape == (2, 3, 32, 32)
    assert (data.num_classes, sorted(labels.tolist())) == (2, [0, 1])
    (tmp_path / "val" / "cat" / "a.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(example.errors.DataError, match=r"a\.png"):
        next(iter(data.test_batches(2)))
    (tmp_path / "val" / "cat").rename(tmp_path / "val" / "cow")
    with pytest.raises(example.errors.DataError, match="different classes: cat, cow"):
        example.data.load_data("imagefolder", 32, tmp_path)


@pytest.mark.parametrize("root", [None, Path("nowhere")])
def test_an_image_folder_that_is_not_there_is_refused(root):
    pytest.importorskip("torchvision")
    with pytest.raises(example.errors.DataError, match=r"data-root|nowhere"):
        example.data.load_data("imagefolder", 32, root)


# Training


def tiny_options(output: Path, *more: str):
    arguments = [
        "--epochs",
        "2",
        "--limit-train",
        "48",
        "--limit-test",
        "16",
        "--batch-size",
        "16",
        "--device",
        "cpu",
    ]
    return example.options.parse([*arguments, "--output", str(output), *more])


def tiny_trainer(options):
    torch.manual_seed(options.seed)
    data = example.data.load_data("digits", 32).limited(options.limit_train, options.limit_test)
    model = model_py.create_model(options.model, 10, in_channels=1, channels=(8, 16, 32), units=(1, 1, 1))
    return example.training.Trainer(model, data, options)


def trained(options) -> dict[str, torch.Tensor]:
    trainer = tiny_trainer(options)
    trainer.train()
    return trainer.model.state_dict()


def interrupt(trainer, after_steps: int) -> None:
    """Train, and be killed after so many steps."""
    whole_step, done = trainer.step, []

    def step(images, labels):
        if len(done) == after_steps:
            raise KeyboardInterrupt
        done.append(1)
        return whole_step(images, labels)

    trainer.step = step
    with pytest.raises(KeyboardInterrupt):
        trainer.train()


def test_a_run_killed_in_its_second_epoch_resumes_to_the_same_weights(tmp_path):
    whole = trained(tiny_options(tmp_path / "whole"))
    interrupt(tiny_trainer(tiny_options(tmp_path / "killed")), after_steps=4)
    assert example.checkpoint.load(tmp_path / "killed").epoch == 1
    torch.manual_seed(99)
    resumed = trained(tiny_options(tmp_path / "killed", "--resume", "always"))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_a_trained_run_is_not_trained_again(tmp_path, capsys):
    first = trained(tiny_options(tmp_path))
    capsys.readouterr()
    again = trained(tiny_options(tmp_path))
    assert "already trained" in capsys.readouterr().out
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_other_options_start_afresh_and_keep_the_older_checkpoint(tmp_path, capsys):
    trained(tiny_options(tmp_path))
    with pytest.raises(example.errors.CheckpointError, match=r"lr 0\.002, not 0\.1"):
        trained(tiny_options(tmp_path, "--lr", "0.1", "--resume", "always"))
    trained(tiny_options(tmp_path, "--lr", "0.1"))
    assert "starting afresh: the run there has lr" in capsys.readouterr().out
    assert (tmp_path / "previous-checkpoint.pt").exists()
    assert example.checkpoint.load(tmp_path).settings["lr"] == 0.1


def test_a_damaged_checkpoint_is_refused_with_the_next_step(tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"half")
    with pytest.raises(example.errors.CheckpointError, match="--resume never"):
        trained(tiny_options(tmp_path))
    trained(tiny_options(tmp_path, "--resume", "never", "--epochs", "1"))


def test_the_checkpoint_is_whole_or_the_old_one(tmp_path, monkeypatch):
    trainer = tiny_trainer(tiny_options(tmp_path))
    trainer.save()
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def half(_, path):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        trainer.save()
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_diverging_run_stops(tmp_path):
    with pytest.raises(example.errors.TrainingError, match="smaller --lr"):
        trained(tiny_options(tmp_path, "--lr", "1e9", "--warmup-epochs", "0"))
    assert not (tmp_path / "checkpoint.pt").exists()


def test_the_learning_rate_rises_then_falls_to_zero():
    rates = [example.training.warmup_cosine(step, 5, 50) for step in range(51)]
    assert rates[:6] == sorted(rates[:6])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[5] == 1
    assert rates[50] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    "arguments",
    [["--epochs", "0"], ["--lr", "nan"], ["--seed", "x"], ["--device", "abacus"], ["--data", "mnist"]],
)
def test_options_that_make_no_sense_are_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        example.options.parse(arguments)
    assert arguments[0] in capsys.readouterr().err


# Comparison


def comparison(before, after):
    return example.evaluate.Comparison(torch.tensor(before), torch.tensor(after), torch.tensor([0] * len(before)))


def test_a_comparison_counts_what_changed():
    result = comparison([[2.0, 1.0], [1.0, 1.00001]], [[2.0, 1.0], [1.0, 0.99999]])
    assert result.accuracy == (0.5, 1.0)
    assert result.flipped.tolist() == [False, True]
    assert result.largest_error == pytest.approx(2e-5, rel=0.01)
    result.check()


@pytest.mark.parametrize(
    "after", [[[2.0, 1.01]], [[1.0, 2.0]], [[2.0, float("nan")]]], ids=["1% off", "other answer", "nan"]
)
def test_a_fused_model_that_differs_is_refused(after):
    with pytest.raises(example.errors.FusionError):
        comparison([[2.0, 1.0]], after).check()


# The command


def test_the_command_trains_fuses_compares_and_saves(tmp_path, capsys):
    small = ["--epochs", "1", "--limit-train", "64", "--limit-test", "32", "--batch-size", "32", "--device", "cpu"]
    assert example.train.main([*small, "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    for words in ("computing on cpu", "test accuracy", "flipped predictions", "FLOPs", "latency"):
        assert words in said
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["flipped"], figures["tested"], figures["parameters"]) == (0, 32, [423_354, 418_970])
    assert [each["batch"] for each in figures["latency"]] == [1, 32]
    model = model_py.create_model("repmlpnet_tiny32", 10, in_channels=1)
    example.weights.load_published(model, tmp_path / "model.safetensors")
    assert load_file(tmp_path / "fused.safetensors")
    pytest.importorskip("matplotlib", reason="the pictures of the run need matplotlib")
    import_example(("repmlpnet",), "pictures").pictures.main(["--output", str(tmp_path), "--images", str(tmp_path)])
    assert {path.name for path in tmp_path.glob("*.png")} == {"repmlpnet-curve.png", "repmlpnet-kernel.png"}


def test_without_a_run_no_picture_is_drawn(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="the pictures of the run need matplotlib")
    pictures = import_example(("repmlpnet",), "pictures").pictures
    (tmp_path / "images").mkdir()
    assert pictures.main(["--output", str(tmp_path), "--images", str(tmp_path / "images")]) == 1
    assert "there is no file" in capsys.readouterr().err
    assert not list((tmp_path / "images").iterdir())


def test_the_command_explains_a_mistake_in_one_line(tmp_path, capsys):
    mistake = ["--data", "fashion-mnist", "--data-root", str(tmp_path), "--output", str(tmp_path)]
    assert example.train.main(mistake) == 1
    assert capsys.readouterr().err.startswith("error: no Fashion-MNIST in")


# Other weights


def test_a_recipe_fuses_the_weights_of_another_run():
    """Weights of another training run become those of the merged net without the net."""
    x = torch.randn(2, 3, 32, 32)
    model, other = random_net(0, **SMALL), random_net(1, **SMALL)
    fused = reparamkit.fuse(model, x)
    fused.load_state_dict(reparamkit.convert_state_dict(fused, other.state_dict()), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), other(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(fused(x), reparamkit.fuse(other, x)(x), rtol=1e-5, atol=1e-6)


# The converter


def test_published_weights_become_those_of_the_fused_net(tmp_path, capsys, monkeypatch):
    small = replace(model_py.CONFIGS["repmlpnet_tiny32"], **SMALL)
    monkeypatch.setitem(model_py.CONFIGS, "repmlpnet_tiny32", small)
    model = random_net(4, in_channels=3)
    torch.save({"model": prefixed(model.state_dict())}, tmp_path / "published.pth")
    paths = [str(tmp_path / name) for name in ("published.pth", "fused.safetensors")]
    assert example.convert.main(["repmlpnet_tiny32", *paths, "--classes", "10"]) == 0
    assert "largest logit error" in capsys.readouterr().out
    x = torch.randn(2, 3, 32, 32)
    fused = reparamkit.fuse(random_net(5, in_channels=3), x)
    fused.load_state_dict(load_file(paths[1]), strict=True)
    torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-5)


def test_the_converter_explains_a_mistake_in_one_line(tmp_path, capsys):
    save_file(random_net().state_dict(), tmp_path / "published.safetensors")
    paths = [str(tmp_path / name) for name in ("published.safetensors", "fused.safetensors")]
    assert example.convert.main(["repmlpnet_tiny32", *paths, "--classes", "7"]) == 1
    assert "head.weight is (10, 128), the model has (7, 128)" in capsys.readouterr().err
    assert not Path(paths[1]).exists()
