"""The training loop: AdamW, warm-up and cosine, label smoothing, a checkpoint after every epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import checkpoint
import parallel
import torch
from checkpoint import Checkpoint
from data import Data
from errors import CheckpointError, TrainingError
from evaluate import accuracy
from files import check_folder
from flags import Shared
from history import board_writer, read_history, write_board, write_history
from mixing import mixing
from progress import Steps
from recompute import recomputed
from syncnorm import synchronized
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

Measure = Callable[[nn.Module], float]
"""The quality of a model on the test images; larger is better."""


class Trainer:
    """A model in training, with all that changes from step to step.

    measure: the quality after each epoch, by default accuracy; name: its name.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        options: Shared,
        measure: Measure | None = None,
        name: str = "test accuracy",
    ) -> None:
        self.data, self.options, self.measure, self.name = data, options, measure or self.accuracy, name
        self.model = model.to(memory_format=torch.channels_last) if options.channels_last else model
        self.network = parallel.shared(self.model, options.device)
        if options.compile:
            self.network = torch.compile(self.network, backend=options.compile)  # type: ignore[assignment]
        self.batches = data.train_batches(options.batch_size)
        self.steps = len(self.batches)
        self.mix = mixing(options.mixup, options.cutmix, data.num_classes)
        self.optimizer = torch.optim.AdamW(_decay_groups(model, options.weight_decay), lr=options.lr)
        warmup, total = options.warmup_epochs * self.steps, options.epochs * self.steps
        self.scheduler = LambdaLR(self.optimizer, lambda step: warmup_cosine(step, warmup, total))
        self.scaler = torch.amp.GradScaler(options.device.type, enabled=options.amp == "fp16")
        self.average = _average(model, options.ema) if options.ema else None
        self.epoch, self.history = 0, list[dict[str, float]]()
        if options.tensorboard:
            board_writer()  # it says now, and not after the first epoch, that it is not there

    @property
    def trained(self) -> nn.Module:
        """The model that answers: the average of the weights, if there is one."""
        return self.model if self.average is None else self.average.module

    def train(self) -> nn.Module:
        """Train until the last epoch, from where the run in the output folder stopped; returns `trained`."""
        self.resume()
        left = self.options.epochs - self.epoch
        silent = parallel.rank() > 0 or not left
        with Steps(left * self.steps, silent=silent) as steps:
            while self.epoch < self.options.epochs:
                loss = self.train_epoch(steps)
                if parallel.rank() == 0:
                    print(self.record(loss))
        return self.trained

    def train_epoch(self, steps: Steps) -> float:
        """One pass over the training images; returns the mean loss."""
        self.model.train()
        total = torch.zeros((), device=self.options.device)
        with self.ways_to_compute():
            for images, labels in self.batches:
                loss = self.step(self.placed(images), labels.to(self.options.device))
                total += loss
                steps.advance(self.epoch + 1, loss, self.scheduler.get_last_lr()[0], len(labels) * parallel.processes())
        self.epoch += 1
        loss = parallel.mean(total).item() / self.steps
        if not math.isfinite(loss):
            raise TrainingError(f"the loss of epoch {self.epoch} is {loss}; try a smaller --lr than {self.options.lr}")
        return loss

    @contextmanager
    def ways_to_compute(self) -> Iterator[None]:
        """What blocks and batch norms do differently while training, if it was asked for."""
        blocks = self.model.blocks if self.options.recompute else ()
        norms = self.model.modules() if self.options.sync_bn else ()
        with recomputed(blocks), synchronized(norms):  # type: ignore[arg-type]
            yield

    def placed(self, images: Tensor) -> Tensor:
        """Images (b, c, h, w) where and in the order of memory in which the model reads them."""
        images = images.to(self.options.device)
        return images.to(memory_format=torch.channels_last) if self.options.channels_last else images

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """One step on images (b, c, h, w) and labels (b,); returns the loss, a scalar."""
        images, targets = self.mix(images, labels)
        with mixed_precision(self.options.device, self.options.amp):
            loss = mean_loss(self.logits(images), targets, self.options.label_smoothing)
        self.optimizer.zero_grad()
        scale = self.scaler.get_scale()
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        # The scale falls after a step that was left out, because a gradient was too large for float16.
        if self.scaler.get_scale() >= scale:
            self.scheduler.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return loss.detach()

    def logits(self, images: Tensor) -> Tensor:
        """What the model answers in training mode."""
        try:
            logits: Tensor = self.network(images)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise TrainingError("one image is too few for a batch norm: give a larger --batch-size") from error
        return logits

    def accuracy(self, model: nn.Module) -> float:
        """The share of right answers on the test images."""
        return accuracy(model, self.data.test_batches(self.options.batch_size), self.options.device)

    def record(self, loss: float) -> str:
        """Measure and save what this epoch brought; returns it in words."""
        rate = self.scheduler.get_last_lr()[0]
        line = {"epoch": self.epoch, "loss": loss, "learning rate": rate, self.name: self.measure(self.trained)}
        self.history.append(line)
        # First, so that it is never shorter than the checkpoint says; what is too long is cut off by `resume`.
        write_history(self.history, self.options.output)
        if self.options.tensorboard:
            write_board(line, self.options.output)
        self.save()
        return f"epoch {self.epoch}/{self.options.epochs}: loss {loss:.3f}, {self.name} {line[self.name]:.2%}"

    def save(self) -> None:
        """Write the state after this epoch to the output folder."""
        state = Checkpoint(
            settings=self.options.settings(),
            epoch=self.epoch,
            model=self.model.state_dict(),
            average=None if self.average is None else self.average.state_dict(),
            optimizer=self.optimizer.state_dict(),
            scheduler=self.scheduler.state_dict(),
            scaler=self.scaler.state_dict(),
            random=checkpoint.random_state(),
        )
        checkpoint.save(state, self.options.output)

    def resume(self) -> None:
        """Continue the run in the output folder, if the options allow it."""
        found = None
        if parallel.rank() == 0:
            check_folder(self.options.output)
            found = checkpoint.find(self.options.output, self.options.settings(), self.options.resume)
        state = parallel.from_first(found)
        if state is None:
            return
        try:
            self.restore(state)
        # Nearly anything, if the content was changed.
        except Exception as error:
            path = self.options.output / checkpoint.NAME
            raise CheckpointError(f"{checkpoint.AGAIN}: {path} does not fit it ({error})") from error
        print(_resumed(state.epoch, self.options.epochs, self.options.output))

    def restore(self, state: Checkpoint) -> None:
        """Be as after the epoch of this checkpoint."""
        self.model.load_state_dict(state.model)
        if self.average is not None:
            self.average.load_state_dict(state.average or {})
        self.optimizer.load_state_dict(state.optimizer)
        self.scheduler.load_state_dict(state.scheduler)
        self.scaler.load_state_dict(state.scaler)
        checkpoint.restore_random_state(state.random)
        self.epoch = state.epoch
        self.history = read_history(self.options.output)[: self.epoch]


def mean_loss(logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    """The mean over all that counts: images, or pixels whose label is not negative."""
    # The mean of no pixel at all is no number, and neither are its gradients.
    if targets.ndim == 3 and not (targets >= 0).any():
        return 0 * logits.sum()
    return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)


def warmup_cosine(step: int, warmup: float, total: int) -> float:
    """The factor on the learning rate: up linearly for `warmup` steps, then down a cosine to 0 at `total`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, total - warmup)))


def mixed_precision(device: torch.device, amp: str) -> AbstractContextManager[object]:
    """Autocast to the format `amp`; "auto" is bfloat16 on a GPU that computes in it, and float32 elsewhere."""
    # bfloat16 has the range of float32, so there is no loss to scale.
    able = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    enabled = amp in ("bf16", "fp16") or (amp == "auto" and able)
    return torch.autocast(device.type, torch.float16 if amp == "fp16" else torch.bfloat16, enabled=enabled)


def _average(model: nn.Module, decay: float) -> AveragedModel:
    """A moving average of weights and statistics. The decay rises to `decay`: an average that holds on to the first,
    random weights would answer at random in a short run.
    """

    def moved(averages: Sequence[Tensor], values: Sequence[Tensor], number: Tensor) -> None:
        done = int(average.n_averaged)
        get_ema_multi_avg_fn(min(decay, (1 + done) / (10 + done)))(averages, values, number)

    average = AveragedModel(model, multi_avg_fn=moved, use_buffers=True)
    return average


def _decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _resumed(epoch: int, epochs: int, folder: Path) -> str:
    if epoch == epochs:
        return f"the run in {folder} is already trained (to train again: --resume never)"
    return f"continuing the run in {folder} after epoch {epoch} of {epochs}"
