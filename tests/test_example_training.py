"""What the examples can do while they train: formats of numbers, averages, mixed images, several processes."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from example_modules import import_example, run_example
from rich.console import Console
from safetensors.torch import load_file
from torch import nn
from torch._utils import ExceptionWrapper

import reparamkit
from reparamkit.running.precision import full_precision

example = import_example(
    ("repmlpnet",),
    *("checkpoint", "command", "data", "errors", "evaluate", "files", "flags", "history", "imagefolder", "mixing"),
    *("model", "options", "parallel", "progress", "recompute", "training"),
)
TINY = ["--epochs", "2", "--limit-train", "48", "--limit-test", "16", "--batch-size", "16", "--device", "cpu"]
needs_torchvision = pytest.mark.skipif(find_spec("torchvision") is None, reason="needs torchvision")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def trainer(output: Path, *more: str):
    options = example.options.parse([*TINY, "--output", str(output), *more])
    torch.manual_seed(options.seed)
    data = example.data.load_images(options)
    model = example.model.create_model(options.model, 10, in_channels=1, channels=(8, 16, 32), units=(1, 1, 1))
    return example.training.Trainer(model.to(options.device), data, options)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# Options


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seed", str(2**70)), "not below"),
        (("--threads", "100000"), "more than 1024"),
        (("--device", "meta"), "cannot compute on it"),
        (("--compile", "fastest"), "inductor"),
        (("--warmup-epochs", "5"), "more than --epochs 2"),
        (("--data-root", "/data"), "not read from a folder"),
    ],
)
def test_options_that_do_not_fit_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        example.options.parse([*TINY, *arguments])
    assert f"{arguments[0]}" in (said := capsys.readouterr().err)
    assert message in said


def test_a_short_try_has_a_short_warm_up():
    """The recipe is one for more epochs; what was asked for is not changed."""
    assert example.options.parse(["--epochs", "1"]).warmup_epochs == 0.5
    assert example.options.parse(["--epochs", "3"]).warmup_epochs == 2
    assert example.options.parse(["--epochs", "3", "--warmup-epochs", "3"]).warmup_epochs == 3


def test_large_data_sets_have_the_recipe_of_the_paper():
    options = example.options.parse(["--data", "imagefolder", "--data-root", "x"])
    paper = {"epochs": 100, "lr": 1e-3, "weight_decay": 0.1, "warmup_epochs": 10, "label_smoothing": 0.1}
    paper |= {"randaugment": 15, "mixup": 0.4, "cutmix": 1.0}
    assert {name: getattr(options, name) for name in paper} == paper
    assert example.options.parse(["--data", "imagefolder", "--mixup", "0"]).mixup == 0
    assert example.options.parse([]).mixup == 0


@pytest.mark.parametrize(
    ("model", "size"), [("repmlpnet_tiny32", 32), ("repmlpnet_t224", 224), ("repmlpnet_l256", 256)]
)
def test_an_image_size_that_does_not_cut_into_partitions_is_refused(model, size, capsys):
    assert example.options.parse(["--model", model, "--image-size", str(2 * size)]).image_size == 2 * size
    assert example.options.parse(["--model", model]).image_size == size
    with pytest.raises(SystemExit):
        example.options.parse(["--model", model, "--image-size", str(size + 16)])
    assert f"--image-size {size + 16}: {model} takes multiples of {size}" in capsys.readouterr().err


def test_options_that_do_not_fit_each_other_are_refused(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "3")
    for arguments, words in (
        (["--batch-size", "16"], "for all 3 processes"),
        (["--randaugment", "31"], "more than 30"),
    ):
        with pytest.raises(SystemExit):
            example.options.parse(arguments)
        assert words in capsys.readouterr().err
    with pytest.raises(SystemExit):
        example.options.parse(["--compile", "--recompute", "--batch-size", "15"])
    assert "leave out --recompute" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        example.options.parse(["--compile", "--sync-bn", "--batch-size", "15"])
    assert "leave out --sync-bn" in capsys.readouterr().err


# Augmentation


@needs_torchvision
def test_mixed_labels_are_shares_and_images_are_mixed_alike():
    torch.manual_seed(0)
    labels = torch.arange(4)
    images = labels.float()[:, None, None, None].expand(4, 1, 8, 8).clone()
    for mixup, cutmix in ((1.0, 0.0), (0.0, 1.0)):
        mixed, shares = example.mixing.mixing(mixup, cutmix, 4)(images, labels)
        torch.testing.assert_close(shares.sum(1), torch.ones(4))
        # An image of one number k mixes to the mean of the numbers of its labels.
        torch.testing.assert_close(mixed.mean((1, 2, 3)), shares @ labels.float())
        assert not torch.equal(mixed, images)
    assert example.mixing.mixing(0.0, 0.0, 4)(images, labels)[1] is labels


@needs_torchvision
def test_mixed_labels_are_trained_on(tmp_path):
    """A step with the shares of a mixed batch is not that of its labels."""
    plain, mixed = (trainer(tmp_path / a, "--mixup", a, "--epochs", "1").train() for a in ("0", "0.4"))
    assert not same(weights(plain), weights(mixed))


@needs_torchvision
def test_augmentation_changes_training_images_only():
    load = example.data.load_data
    plain, shifted, strong = (
        load("digits", 32, shift=0),
        load("digits", 32),
        load("digits", 32, shift=0, randaugment=30),
    )
    torch.manual_seed(0)
    first, *others = (data.train.__getitems__([0, 1, 2, 3])[0] for data in (plain, plain, shifted, strong))
    assert torch.equal(first, others[0])
    assert not torch.equal(first, others[1])
    assert not torch.equal(first, others[2])
    assert first.shape == others[2].shape
    assert -1 <= others[2].min() <= others[2].max() <= 1
    assert torch.equal(plain.test[5][0], strong.test[5][0])


class FakeCifar:
    """What torchvision gives for CIFAR."""

    def __init__(self, root, train: bool) -> None:
        if root == Path("nowhere"):
            raise RuntimeError("Dataset not found or corrupted.")
        self.data = torch.arange(6 * 32 * 32 * 3).remainder(251).to(torch.uint8).reshape(6, 32, 32, 3).numpy()
        self.targets = [0, 1, 2, 3, 98, 99]


def test_cifar_is_read_by_torchvision_and_flipped_in_training(monkeypatch, tmp_path):
    datasets = pytest.importorskip("torchvision").datasets
    monkeypatch.setattr(datasets, "CIFAR100", FakeCifar)
    data = example.data.load_data("cifar100", 32, tmp_path, shift=0)
    assert (data.num_classes, data.in_channels, len(data.train)) == (100, 3, 6)
    image, label = data.test[4]
    assert label == 98
    expected = torch.from_numpy(FakeCifar(None, True).data)[4].permute(2, 0, 1).float() / 127.5 - 1
    assert torch.equal(image, expected)
    torch.manual_seed(0)
    seen = [torch.equal(data.train[4][0], expected) for _ in range(20)]
    flipped = [torch.equal(data.train[4][0], expected.flip(-1)) for _ in range(20)]
    assert 0 < sum(seen) < 20
    assert 0 < sum(flipped) < 20
    with pytest.raises(example.errors.DataError, match=r"no whole cifar100 in nowhere .*--data-root"):
        example.data.load_data("cifar100", 32, Path("nowhere"))


# Ways to compute


def test_the_average_of_the_weights_is_what_answers(tmp_path):
    """Its decay rises from 2 / 11 to the given one."""
    run, seen = trainer(tmp_path, "--ema", "0.25", "--epochs", "1"), []
    whole_step = run.step

    def step(images, labels):
        loss = whole_step(images, labels)
        seen.append(weights(run.model))
        return loss

    run.step = step
    trained = run.train()
    assert trained is not run.model
    for name, tensor in trained.state_dict().items():
        expected = seen[0][name]
        for done, state in enumerate(seen[1:], 1):
            expected = expected + (1 - min(0.25, (1 + done) / (10 + done))) * (state[name] - expected)
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, expected)
    assert not torch.equal(trained.head.weight, run.model.head.weight)


def test_recomputing_changes_nothing_but_the_number_of_passes(tmp_path):
    kept = trainer(tmp_path / "kept").train()
    passes = []
    run = trainer(tmp_path / "again", "--recompute")
    run.model.stages[0][0].ffn_block.register_forward_pre_hook(lambda *_: passes.append(1))
    again = run.train()
    assert same(weights(kept), weights(again))
    # 2 epochs of 3 batches, each twice, and after each epoch one batch of the test.
    assert len(passes) == 2 * 3 * 2 + 2
    assert "forward" not in vars(again.stages[0][0])


def test_every_example_has_blocks_to_recompute():
    resmlp = import_example(("resmlp", "repmlpnet"), "resmlp").resmlp.ResMLP(image_size=32)
    segmenter = import_example(("segmentation", "repmlpnet"), "segmenter").segmenter.new_segmenter("small", 1, 11, 4)
    for model, count in ((resmlp, 12), (segmenter, 5), (example.model.create_model("repmlpnet_tiny32"), 6)):
        assert len(list(model.blocks)) == count
        assert all(isinstance(block, nn.Module) for block in model.blocks)


def test_channels_last_is_the_order_of_images_and_weights(tmp_path):
    run = trainer(tmp_path / "last", "--channels-last", "--epochs", "1")
    seen = []
    run.model.stages[0][0].register_forward_hook(lambda _, x, __: seen.append(x[0]))
    last, plain = run.train(), trainer(tmp_path / "plain", "--epochs", "1")
    plain.train()
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert last.embeds[0].conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert not plain.model.embeds[0].conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert run.history[0]["loss"] == pytest.approx(plain.history[0]["loss"], rel=1e-5)


@pytest.mark.parametrize(("amp", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("auto", torch.float32)])
def test_training_computes_in_the_format_that_was_asked_for(tmp_path, amp, dtype):
    run = trainer(tmp_path, "--amp", amp, "--epochs", "1")
    seen = set()
    run.model.head.register_forward_hook(lambda module, _, y: seen.add(y.dtype) if module.training else None)
    model = run.train()
    assert seen == {dtype}
    assert run.scaler.is_enabled() == (amp == "fp16")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_compiled_run_is_the_run(tmp_path, monkeypatch):
    plain, compiled = trainer(tmp_path / "plain").train(), []
    real = torch.compile

    def spy(model, backend):
        compiled.append(backend)
        return real(model, backend=backend)

    monkeypatch.setattr(torch, "compile", spy)
    model = trainer(tmp_path / "compiled", "--compile", "eager").train()
    assert compiled == ["eager"]
    assert not hasattr(model, "_orig_mod")
    for a, b in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@needs_torchvision
def test_a_killed_run_with_everything_resumes_to_the_same_weights(tmp_path):
    everything = ["--ema", "0.9", "--amp", "fp16", "--mixup", "0.4", "--cutmix", "1", "--randaugment", "9"]
    whole = weights(trainer(tmp_path / "whole", *everything).train())
    killed = trainer(tmp_path / "killed", *everything)
    step, done = killed.step, []

    def interrupted(images, labels):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(1)
        return step(images, labels)

    killed.step = interrupted
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = trainer(tmp_path / "killed", *everything, "--resume", "always")
    assert same(weights(resumed.train()), whole)
    assert [line["epoch"] for line in resumed.history] == [1, 2]


# Curves


def test_tensorboard_has_the_record_of_each_epoch(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard")
    run = trainer(tmp_path, "--tensorboard")
    run.train()
    board = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    losses = board.Scalars("loss")
    assert [event.step for event in losses] == [1, 2]
    assert [event.value for event in losses] == pytest.approx([line["loss"] for line in run.history])
    assert set(board.Tags()["scalars"]) == {"loss", "learning rate", "test accuracy"}


def test_curves_of_a_run_that_was_given_up_are_not_shown(tmp_path):
    """Nor is an epoch shown twice that was written, and whose checkpoint was not."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard")
    trainer(tmp_path, "--tensorboard").train()
    run = trainer(tmp_path, "--tensorboard", "--resume", "never", "--epochs", "1")
    run.train()
    losses = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in losses] == [(1, pytest.approx(run.history[0]["loss"]))]


def test_a_terminal_shows_where_a_run_is(monkeypatch):
    """Loss, learning rate and speed; a file gets nothing of it."""
    monkeypatch.setattr(example.progress, "SECONDS", 0)
    shown = {}
    for terminal in (True, False):
        console = Console(file=StringIO(), force_terminal=terminal, width=150)
        with example.progress.Steps(4, console=console) as steps:
            for _ in range(3):
                steps.advance(2, torch.tensor(1.25), 1e-3, 16)
        shown[terminal] = console.file.getvalue()
    assert shown[False] == ""
    for words in ("epoch 2", "3/4", "loss 1.250", "lr 0.001", "images/s"):
        assert words in shown[True]


def test_missing_tensorboard_is_named_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(example.errors.ExampleError, match="pip install tensorboard"):
        trainer(tmp_path, "--tensorboard")


# What goes wrong


def ended(error: BaseException, capsys) -> str:
    """What the command says of an error, which is one line."""

    def run() -> None:
        raise error

    assert example.command.command(run, torch.device("cpu")) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


def test_errors_that_a_user_can_repair_are_one_line(capsys):
    assert "No space left" in ended(OSError(28, "No space left on device"), capsys)
    assert "--batch-size" in ended(torch.OutOfMemoryError("CUDA out of memory.\nTried a lot."), capsys)
    assert "--batch-size" in ended(RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: 9"), capsys)
    assert "two lines" in ended(example.errors.DataError("\x1b[1mtwo\x1b[0m\nlines"), capsys)
    assert len(ended(example.errors.DataError("long " * 999), capsys)) < 500
    with pytest.raises(RuntimeError, match="a bug"):
        ended(RuntimeError("a bug"), capsys)


def test_an_error_in_a_process_that_reads_images_is_one_line(capsys):
    """torch passes on its trace, as text."""
    try:
        try:
            raise OSError("cut off")
        except OSError as error:
            raise example.errors.DataError("cannot read the image a/b: cut off") from error
    except example.errors.DataError:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(example.errors.DataError, match="Traceback") as found:
        wrapped.reraise()
    assert ended(found.value, capsys) == "error: cannot read the image a/b: cut off\n"


@needs_torchvision
def test_a_file_in_the_place_of_a_folder_of_images_is_named(tmp_path):
    (tmp_path / "train").write_text("no folder")
    with pytest.raises(example.errors.DataError, match="train"):
        example.data.load_data("imagefolder", 32, tmp_path)


def test_an_output_that_cannot_be_written_is_named_before_anything_is_trained(tmp_path):
    (tmp_path / "file").write_text("kept")
    run = trainer(tmp_path / "file")
    run.step = None
    with pytest.raises(example.errors.FileError, match="--output"):
        run.train()


@pytest.mark.parametrize(
    "change",
    [
        {"model": {}},
        {"optimizer": {}},
        {"random": {}},
        {"random": {"cpu": torch.zeros(3)}},
        {"settings": 3},
        {"epoch": "2"},
        {"epoch": 10**9},
        {"epoch": -1},
        {"more": 1},
    ],
    ids=str,
)
def test_a_checkpoint_that_was_changed_is_refused_with_the_next_step(tmp_path, change):
    run = trainer(tmp_path)
    run.save()
    path = tmp_path / "checkpoint.pt"
    torch.save({**torch.load(path, weights_only=True), **change}, path)
    with pytest.raises(example.errors.CheckpointError, match=r"--resume never.*checkpoint\.pt"):
        trainer(tmp_path).train()


def test_what_torch_makes_of_a_full_disk_names_the_file(tmp_path):
    def full(path):
        path.write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 198912 vs 198808")

    with pytest.raises(example.errors.FileError, match=r"kept\.pt: is the disk full"):
        example.files.write_atomically(tmp_path / "kept.pt", full)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_writer_leaves_is_used_by_the_next_one(tmp_path):
    """A kill can come at any moment; a folder does not fill with halves of files for it."""
    path = tmp_path / "kept.pt"
    killed = f"""
import os, sys
from pathlib import Path
sys.path.insert(0, {str(Path(example.files.__file__).parent)!r})
from files import write_atomically
write_atomically(Path({str(path)!r}), lambda temporary: (temporary.write_bytes(b"half"), os._exit(9)))
"""
    assert [subprocess.run([sys.executable, "-c", killed], check=False).returncode for _ in range(2)] == [9, 9]
    assert len(list(tmp_path.iterdir())) == 1
    assert not path.exists()
    example.files.write_atomically(path, lambda temporary: temporary.write_bytes(b"whole"))
    assert {each: each.read_bytes() for each in tmp_path.iterdir()} == {path: b"whole"}


# Several processes


def test_the_parts_of_all_processes_make_the_batches_of_one(monkeypatch):
    data = example.data.load_data("digits", 32, shift=0).limited(40, 8)

    def batches(rank: int, processes: int) -> list[torch.Tensor]:
        monkeypatch.setattr(example.parallel, "rank", lambda: rank)
        monkeypatch.setattr(example.parallel, "processes", lambda: processes)
        # Every process asks the first one for its state.
        monkeypatch.setattr(example.parallel, "from_first", lambda value: value)
        torch.manual_seed(7)
        return [images for images, _ in data.train_batches(16)]

    whole, *parts = (batches(*each) for each in ((0, 1), (0, 2), (1, 2)))
    assert [len(batch) for batch in whole] == [16, 16]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert torch.equal(batch[0::2], first)
        assert torch.equal(batch[1::2], second)
    with pytest.raises(example.errors.DataError, match="less than one batch"):
        data.train_batches(64)


def test_two_processes_continue_the_run_of_one_to_the_same_weights(tmp_path):
    """ResMLP has no batch norm, so the parts of a batch know nothing of each other; its injected arm has."""
    resmlp = import_example(("resmlp", "repmlpnet"), "arguments", "data", "train")
    tiny = [*TINY, "--dim", "8", "--depth", "1", "--patch-size", "8", "--shift", "0", "--threads", "1"]
    options = resmlp.arguments.parse([*tiny, "--output", str(tmp_path / "one")]).of_arm("plain")
    whole = resmlp.train.train(options, resmlp.data.load_images(options))
    killed = resmlp.arguments.parse([*tiny, "--output", str(tmp_path / "two")]).of_arm("plain")
    kill_after(killed, resmlp)
    two = run_example("resmlp/train.py", *tiny, "--output", str(tmp_path / "two"), processes=2)
    assert two.returncode == 0, two.stderr
    found = load_file(tmp_path / "two" / "plain" / "model.safetensors")
    for name, expected in whole.state_dict().items():
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-5)
    # One process speaks, and writes.
    assert two.stdout.count("after epoch 1 of 2") == 1
    assert [two.stdout.count(f"epoch {n}/2: ") for n in (1, 2)] == [1, 2]
    assert (tmp_path / "two" / "fused.safetensors").exists()


def test_two_processes_with_batch_norms_of_whole_batches_compute_what_one_does(tmp_path):
    """RepMLPNet's would else see a half each, and the loss differ by percents; also where blocks are computed twice."""
    tiny = [*TINY, "--shift", "0", "--threads", "1", "--sync-bn", "--recompute", "--no-fuse"]
    assert import_example(("repmlpnet",), "train").train.main([*tiny, "--output", str(tmp_path / "one")]) == 0
    run = run_example("repmlpnet/train.py", *tiny, "--output", str(tmp_path / "two"), processes=2)
    assert run.returncode == 0, run.stderr
    # Weights that the next batch norm makes up for have no gradient but rounding, of which Adam makes steps.
    one, two = ([line["loss"] for line in example.history.read_history(tmp_path / n)] for n in ("one", "two"))
    assert len(one) == 2
    assert two == pytest.approx(one, rel=1e-5)


def kill_after(options, resmlp) -> None:
    """A run of one process that ends after its first epoch of three batches."""
    data = resmlp.data.load_images(options)
    model = resmlp.train.new_model(options, data)
    torch.manual_seed(options.seed)
    run, done = resmlp.train.Trainer(model, data, options), []
    whole_step = run.step

    def step(images, labels):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(1)
        return whole_step(images, labels)

    run.step = step
    with pytest.raises(KeyboardInterrupt):
        run.train()


# GPU


@needs_cuda
@pytest.mark.parametrize("amp", ["bf16", "fp16", "off"])
def test_a_gpu_trains_and_the_fused_net_answers_alike(tmp_path, amp):
    run = trainer(tmp_path, "--device", "cuda", "--amp", amp, "--channels-last")
    model = run.train().eval()
    images, _ = next(iter(run.data.test_batches(16)))
    fused = reparamkit.fuse(model, images.cuda())
    with full_precision():
        result = example.evaluate.compare(model, fused, run.data.test_batches(16), torch.device("cuda"))
    result.check()
    assert {p.device.type for p in fused.parameters()} == {"cuda"}


def test_a_process_takes_the_gpu_of_its_number(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert example.flags.device("cuda") == torch.device("cuda", 3)
    assert example.flags.device("cuda:1") == torch.device("cuda", 1)
    assert example.flags.device("cpu") == torch.device("cpu")


def test_cuda_without_a_gpu_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(example.flags, "torch", SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: False)))
    with pytest.raises(SystemExit):
        example.flags._check_device(SimpleNamespace(error=sys.exit), torch.device("cuda"))
