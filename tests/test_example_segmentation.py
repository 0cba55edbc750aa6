"""The segmentation example: its data, the pyramid head, mean IoU, and one fusion of the whole model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from example_modules import import_example
from safetensors.torch import load_file
from torch import nn

import reparamkit
from reparamkit.testing import randomize

TINY = ["--head-width", "4", "--epochs", "2", "--limit-train", "32", "--limit-test", "8", "--batch-size", "8"]
TINY += ["--device", "cpu", "--threads", "1"]


example = import_example(
    ("segmentation", "repmlpnet"),
    "arguments",
    "data",
    "errors",
    "folders",
    "model",
    "quality",
    "scenes",
    "segmenter",
    "train",
    "training",
)


def options(output: Path, *more: str):
    return example.arguments.parse([*TINY, "--output", str(output), *more])


# Scenes


def test_scenes_label_the_ink_of_each_digit():
    ink = torch.zeros(2, 8, 8)
    ink[:, 2:6, 2:6] = 1
    scenes = example.scenes.compose((ink, torch.tensor([3, 7])), 6, seed=0)
    assert scenes.images.shape == (6, 1, 32, 32)
    assert scenes.labels.shape == (6, 32, 32)
    assert 0 <= scenes.images.min() < scenes.images.max() <= 1
    assert set(scenes.labels.unique().tolist()) == {0, 4, 8}
    digit, ground = scenes.labels > 0, scenes.labels == 0
    assert scenes.images[:, 0][digit].mean() > 2 * scenes.images[:, 0][ground].mean()
    assert 0.05 < digit.float().mean() < 0.6
    image, label = scenes[4]
    assert torch.equal(image, scenes.images[4])
    assert torch.equal(label, scenes.labels[4])


def test_test_scenes_stay_training_scenes_change_and_no_digit_is_in_both():
    (fresh, first), (_, again) = example.scenes.load_scenes(3, 4), example.scenes.load_scenes(3, 4)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    torch.manual_seed(0)
    epochs = [torch.stack([fresh[i][0] for i in range(len(fresh))]) for _ in range(2)]
    torch.manual_seed(0)
    assert torch.equal(fresh[0][0], epochs[0][0])
    assert not torch.equal(*epochs)
    data = example.data.load_data("digits", 8)
    train, test = (example.scenes._part(part)[0] for part in (data.train, data.test))
    assert train.shape[1:] == (8, 8)
    assert not {digit.numpy().tobytes() for digit in train} & {digit.numpy().tobytes() for digit in test}


# The model


def small(classes: int = 11, in_channels: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return randomize(example.segmenter.new_segmenter("small", in_channels, classes, 4))


def test_the_backbone_has_four_scales_and_the_answer_is_as_large_as_the_image():
    model, x = small(), torch.randn(2, 1, 32, 32)
    assert [tuple(m.shape[1:]) for m in model.backbone.forward_features(x)] == [
        (16, 16, 16),
        (32, 8, 8),
        (64, 4, 4),
        (128, 2, 2),
    ]
    assert model(x).shape == (2, 11, 32, 32)
    assert model(torch.randn(1, 1, 64, 32)).shape == (1, 11, 64, 32)


def test_every_parameter_is_trained():
    model = small().train()
    model(torch.randn(2, 1, 32, 32)).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_published_backbones_fit_the_head():
    with torch.device("meta"):
        model = example.segmenter.new_segmenter("repmlpnet_d256", 3, 19, 256)
    assert model.head.fuse[0].in_channels == 4 * 256
    assert model.head.pooling.fuse[0].in_channels == 640 + 2 * 256


def test_the_whole_model_is_fused_in_one_call():
    model = small()
    x = torch.randn(2, 1, 32, 32)
    fused = reparamkit.fuse(model, x)
    assert type(fused).__name__ == "Segmenter"
    left = {name for name, m in fused.named_modules() if isinstance(m, nn.BatchNorm2d)}
    # What design allows: a batch norm before a layer that shares its weights among channels.
    assert all(name.endswith("prebn1") for name in left)
    assert not [name for name, m in fused.named_modules() if "repconv" in name]
    assert not [name for name in left if name.startswith("head")]
    assert [m.path for m in reparamkit.report(fused).merges if "locality_injection" in m.rules] == [
        f"backbone.stages.{i}.{j}.repmlp_block.fc3" for i, j in ((0, 0), (1, 0), (2, 0), (2, 1), (3, 0))
    ]
    for size in ((2, 1, 32, 32), (1, 1, 64, 96)):
        x = torch.randn(size)
        torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-5)


# Quality


def test_mean_iou_by_hand():
    confusion = example.quality.Confusion(4)
    labels = torch.tensor([[[0, 0, 1, 1], [2, 2, 2, -100]]])
    answers = torch.tensor([[[0, 1, 1, 1], [2, 2, 0, 3]]])
    confusion.add(answers, labels)
    # Class 0: 1 of 3. Class 1: 2 of 3. Class 2: 2 of 3. Class 3 occurs nowhere that counts.
    assert confusion.mean_iou == pytest.approx((1 / 3 + 2 / 3 + 2 / 3) / 3)
    assert confusion.accuracy == pytest.approx(5 / 7)


def comparison(before, after):
    result = example.quality.PixelComparison(example.quality.Confusion(2), example.quality.Confusion(2))
    logits = [torch.tensor(values).T.reshape(1, 2, 1, -1) for values in (before, after)]
    result.add(*logits, torch.zeros(1, 1, len(before), dtype=torch.long))
    return result


def test_a_comparison_counts_flipped_pixels():
    result = comparison([[2.0, 1.0], [1.0, 0.99999]], [[2.0, 1.0], [1.0, 1.00001]])
    assert (result.flipped, result.pixels, result.unexplained) == (1, 2, 0)
    assert (result.before.accuracy, result.after.accuracy) == (1, 0.5)
    result.check()


@pytest.mark.parametrize("after", [[[2.0, 1.01]], [[1.0, 2.0]]], ids=["1% off", "other answer"])
def test_a_fused_model_that_differs_is_refused(after):
    with pytest.raises(example.errors.FusionError):
        comparison([[2.0, 1.0]], after).check()


def test_a_logit_that_is_no_number_is_refused():
    with pytest.raises(example.errors.FusionError, match="not a finite number"):
        comparison([[2.0, 1.0]], [[2.0, float("nan")]])


# Cityscapes and ADE20K


def write_images(paths: list[Path], mode: str, values: list[int], size=(12, 10)) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    for path, value in zip(paths, values, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        image.new(mode, size, value if mode == "L" else (value,) * 3).save(path)


def write_cityscapes(root: Path) -> None:
    for part, city in (("train", "ulm"), ("val", "bonn")):
        stems = [f"{city}_00000{i}_000019" for i in range(2)]
        write_images([root / f"leftImg8bit/{part}/{city}/{s}_leftImg8bit.png" for s in stems], "RGB", [0, 255])
        # 7 is road (class 0), 33 bicycle (class 18); 4 is "static", which does not count.
        write_images([root / f"gtFine/{part}/{city}/{s}_gtFine_labelIds.png" for s in stems], "L", [7, 4])


def write_ade20k(root: Path) -> None:
    for part in ("training", "validation"):
        stems = [f"ADE_{part}_{i}" for i in range(2)]
        write_images([root / f"images/{part}/{s}.jpg" for s in stems], "RGB", [0, 255])
        write_images([root / f"annotations/{part}/{s}.png" for s in stems], "L", [150, 0])


def test_cityscapes_is_read_as_it_lies_on_disk(tmp_path):
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    write_cityscapes(tmp_path)
    train, test, classes = example.folders.load_folders("cityscapes", tmp_path, 8)
    assert (len(train), len(test), classes) == (2, 2, 19)
    (black, road), (white, static) = test[0], test[1]
    assert black.shape == (3, 8, 8)
    assert road.shape == (8, 8)
    assert (black.min(), black.max(), white.min()) == (-1, -1, 1)
    assert (road.unique().tolist(), static.unique().tolist()) == ([0], [example.folders.IGNORED])
    assert train[0][0].shape == (3, 8, 8)
    assert example.folders._cityscapes_table()[33] == 18


def test_ade20k_is_read_as_it_lies_on_disk(tmp_path):
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    write_ade20k(tmp_path)
    _, test, classes = example.folders.load_folders("ade20k", tmp_path, 8)
    assert classes == 150
    assert test[0][1].unique().tolist() == [149]
    assert test[1][1].unique().tolist() == [example.folders.IGNORED]


def test_data_that_is_missing_or_damaged_is_named(tmp_path):
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    load = example.folders.load_folders
    with pytest.raises(example.errors.DataError, match="--data-root"):
        load("cityscapes", None, 8)
    with pytest.raises(example.errors.DataError, match=r"no images in .*leftImg8bit.train"):
        load("cityscapes", tmp_path, 8)
    write_ade20k(tmp_path)
    (tmp_path / "images/validation/ADE_validation_0.jpg").write_bytes(b"half")
    with pytest.raises(example.errors.DataError, match=r"ADE_validation_0\.jpg is no image"):
        load("ade20k", tmp_path, 8)[1][0]
    write_images([tmp_path / "annotations/validation/ADE_validation_1.png"], "L", [0], size=(5, 5))
    with pytest.raises(example.errors.DataError, match=r"is \(12, 10\), its labels are \(5, 5\)"):
        load("ade20k", tmp_path, 8)[1][1]
    write_images([tmp_path / "annotations/training/ADE_training_0.png"], "RGB", [0])
    with pytest.raises(example.errors.DataError, match=r"ADE_training_0\.png is an image of mode RGB"):
        load("ade20k", tmp_path, 8)[0][0]
    (tmp_path / "annotations/training/ADE_training_1.png").unlink()
    with pytest.raises(example.errors.DataError, match=r"1 label files are missing.*ADE_training_1\.png"):
        load("ade20k", tmp_path, 8)


def test_a_batch_without_a_pixel_that_counts_changes_nothing(tmp_path):
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = example.training.mean_loss(logits, torch.full((2, 4, 4), example.folders.IGNORED), 0.1)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_one_image_is_too_few_for_the_pyramid(tmp_path, capsys):
    more = ["--limit-train", "1", "--batch-size", "1", "--output", str(tmp_path)]
    assert example.train.main([*TINY, *more]) == 1
    assert "--batch-size" in capsys.readouterr().err


# The command


@pytest.mark.parametrize(
    "arguments",
    [["--image-size", "40"], ["--image-size", "64"], ["--model", "repmlpnet_tiny32"], ["--epochs", "0"]],
)
def test_options_that_make_no_sense_are_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        example.arguments.parse(arguments)
    assert arguments[0] in capsys.readouterr().err


def test_a_run_killed_in_its_second_epoch_resumes_to_the_same_weights(tmp_path, monkeypatch):
    chosen = options(tmp_path / "whole")
    data = example.train.load(chosen)
    whole = example.train.train(chosen, data).state_dict()
    step, done = example.training.Trainer.step, []

    def interrupted(self, images, labels):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(1)
        return step(self, images, labels)

    with monkeypatch.context() as patch:
        patch.setattr(example.training.Trainer, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            example.train.train(options(tmp_path / "killed"), data)
    resumed = example.train.train(options(tmp_path / "killed", "--resume", "always"), data).state_dict()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_the_command_trains_fuses_compares_and_saves(tmp_path, capsys):
    assert example.train.main([*TINY, "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for words in ("test mIoU", "flipped pixels", "of 8,192", "FLOPs", "latency", "locality_injection"):
        assert words in printed
    assert len(json.loads((tmp_path / "history.json").read_text())) == 2
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["flipped"], figures["tested"]) == (0, 8192)
    assert figures["mIoU"][0] == figures["mIoU"][1]
    model = example.segmenter.new_segmenter("small", 1, 11, 4)
    model.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert load_file(tmp_path / "fused.safetensors")
    pytest.importorskip("matplotlib", reason="the pictures of the run need matplotlib")
    # The net is that of the run, and not the default one.
    pictures = import_example(("segmentation", "repmlpnet"), "pictures").pictures
    assert pictures.main(["--output", str(tmp_path), "--images", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.glob("*.png")} == {"curve.png", "masks.png"}


def test_the_command_trains_on_image_files(tmp_path, capsys):
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    write_cityscapes(tmp_path / "data")
    more = ["--data", "cityscapes", "--data-root", str(tmp_path / "data"), "--workers", "0", "--batch-size", "2"]
    assert example.train.main([*TINY, *more, "--output", str(tmp_path / "run"), "--epochs", "1"]) == 0
    assert "test mIoU" in capsys.readouterr().out


def test_labels_of_another_kind_are_named(tmp_path, capsys):
    """All pixels of class 4, which does not count: there is no mIoU to report."""
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    write_cityscapes(tmp_path / "data")
    labels = list((tmp_path / "data/gtFine/val").rglob("*.png"))
    write_images(labels, "L", [4] * len(labels))
    more = ["--data", "cityscapes", "--data-root", str(tmp_path / "data"), "--workers", "0", "--batch-size", "2"]
    assert example.train.main([*TINY, *more, "--output", str(tmp_path / "run"), "--epochs", "1"]) == 1
    assert "no pixel of the test images has a class" in capsys.readouterr().err


def test_the_command_explains_a_mistake_in_one_line(tmp_path, capsys):
    arguments = ["--data", "ade20k", "--data-root", str(tmp_path), "--output", str(tmp_path)]
    assert example.train.main(arguments) == 1
    assert capsys.readouterr().err.startswith("error: no images in")
