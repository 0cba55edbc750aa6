"""The training loop: AdamW, warm-up and cosine, label smoothing, a checkpoint after every epoch."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from pathlib import Path

import checkpoint
import torch
from checkpoint import Checkpoint
from data import Data
from errors import TrainingError
from evaluate import accuracy
from options import Options
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm  # type: ignore[import-untyped]


class Trainer:
    """A model in training, with all that changes from step to step."""

    def __init__(self, model: nn.Module, data: Data, options: Options) -> None:
        self.model, self.data, self.options = model, data, options
        self.batches = data.train_batches(options.batch_size)
        self.steps = len(self.batches)
        self.optimizer = torch.optim.AdamW(_decay_groups(model, options.weight_decay), lr=options.lr)
        warmup, total = options.warmup_epochs * self.steps, options.epochs * self.steps
        self.scheduler = LambdaLR(self.optimizer, lambda step: warmup_cosine(step, warmup, total))
        self.epoch = 0

    def train(self) -> None:
        """Train until the last epoch, from where the run in the output folder stopped."""
        self.resume()
        left = self.options.epochs - self.epoch
        with tqdm(total=left * self.steps, unit="step", disable=None if left else True) as bar:
            while self.epoch < self.options.epochs:
                loss = self.train_epoch(bar)
                correct = accuracy(self.model, self.data.test_batches(self.options.batch_size), self.options.device)
                self.save()
                bar.write(f"epoch {self.epoch}/{self.options.epochs}: loss {loss:.3f}, test accuracy {correct:.2%}")

    def train_epoch(self, bar: tqdm[None]) -> float:
        """One pass over the training images; returns the mean loss."""
        self.model.train()
        total = torch.zeros((), device=self.options.device)
        for images, labels in self.batches:
            total += self.step(images.to(self.options.device), labels.to(self.options.device))
            bar.update()
        self.epoch += 1
        loss = total.item() / self.steps
        if not math.isfinite(loss):
            raise TrainingError(f"the loss of epoch {self.epoch} is {loss}; try a smaller --lr than {self.options.lr}")
        return loss

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """One step on images (b, c, h, w) and labels (b,); returns the loss, a scalar."""
        with mixed_precision(self.options.device):
            loss = F.cross_entropy(self.model(images), labels, label_smoothing=self.options.label_smoothing)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.scheduler.step()
        return loss.detach()

    def save(self) -> None:
        """Write the state after this epoch to the output folder."""
        state = Checkpoint(
            settings=self.options.settings(),
            epoch=self.epoch,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            scheduler=self.scheduler.state_dict(),
            random=checkpoint.random_state(),
        )
        checkpoint.save(state, self.options.output)

    def resume(self) -> None:
        """Continue the run in the output folder, if the options allow it."""
        state = checkpoint.find(self.options.output, self.options.settings(), self.options.resume)
        if state is None:
            return
        self.model.load_state_dict(state.model)
        self.optimizer.load_state_dict(state.optimizer)
        self.scheduler.load_state_dict(state.scheduler)
        checkpoint.restore_random_state(state.random)
        self.epoch = state.epoch
        print(_resumed(state.epoch, self.options.epochs, self.options.output))


def warmup_cosine(step: int, warmup: float, total: int) -> float:
    """The factor on the learning rate: up linearly for `warmup` steps, then down a cosine to 0 at `total`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, total - warmup)))


def mixed_precision(device: torch.device) -> AbstractContextManager[object]:
    """Autocast to bfloat16 on a GPU that computes in it; elsewhere everything stays float32."""
    # bfloat16 has the range of float32, so there is no loss to scale.
    able = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=able)


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
