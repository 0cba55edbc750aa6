"""The data sets: scikit-learn's digits, Fashion-MNIST, CIFAR, and any folder of images."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagefolder
import parallel
import torch
from errors import DataError
from idx import read_idx
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, Subset

FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its files."""

NAMES = ("digits", "fashion-mnist", "cifar10", "cifar100", "imagefolder")


@dataclass(frozen=True)
class Data:
    """A data set in two parts; both give images (in_channels, size, size) and class numbers."""

    train: Dataset[Any]
    test: Dataset[Any]
    num_classes: int
    in_channels: int
    workers: int = 0
    collate: Callable[[Any], tuple[Tensor, Tensor]] | None = None

    def train_batches(self, batch_size: int) -> DataLoader[Any]:
        """Batches in random order; a last, smaller batch is left out, unless it is the only one.

        With several processes, this one's part of each batch.
        """
        enough = _length(self.train) >= batch_size
        if not enough and parallel.processes() > 1:
            raise DataError(f"{_length(self.train)} training images are less than one batch: give a --batch-size")
        batches = BatchSampler(RandomSampler(self.train), batch_size, drop_last=enough)  # type: ignore[arg-type]
        return DataLoader(
            self.train, batch_sampler=parallel.Parts(batches), num_workers=self.workers, collate_fn=self.collate
        )

    def test_batches(self, batch_size: int) -> DataLoader[Any]:
        """Batches in the order of the data set."""
        return DataLoader(self.test, batch_size, num_workers=self.workers, collate_fn=self.collate)

    def limited(self, train: int | None, test: int | None) -> Data:
        """The same data set with at most so many images in each part."""
        parts = {"train": _take(self.train, train), "test": _take(self.test, test)}
        return Data(**{**vars(self), **parts})


def load_data(
    name: str,
    image_size: int,
    root: Path | None = None,
    workers: int | None = None,
    *,
    shift: int | None = None,
    randaugment: int = 0,
) -> Data:
    """The data set called `name`, as images of `image_size` pixels a side.

    In training, small images are shifted by up to `shift` pixels (default: size / 16), and all pass RandAugment of
    this magnitude, if it is not 0.
    """
    if name not in NAMES:
        raise DataError(f"no data set is called {name!r}; there are: {', '.join(NAMES)}")
    if name == "imagefolder":
        return _image_folder(image_size, root, workers, randaugment)
    readers = {"digits": _digits, "fashion-mnist": _fashion_mnist}
    train, test = readers[name](root) if name in readers else _cifar(name, root)
    moves = image_size // 16 if shift is None else shift
    classes, channels = 100 if name == "cifar100" else 10, train[0].shape[1]
    training = InMemory(*train, image_size, moves, flip=name.startswith("cifar"), randaugment=randaugment)
    return Data(training, InMemory(*test, image_size), classes, channels, collate=_already_a_batch)


def load_images(options: Any) -> Data:
    """The data set that was asked for on the command line."""
    data = load_data(
        options.data,
        options.image_size,
        options.data_root,
        options.workers,
        shift=options.shift,
        randaugment=options.randaugment,
    )
    return data.limited(options.limit_train, options.limit_test)


class InMemory(Dataset[tuple[Tensor, Tensor]]):
    """Images (n, c, h, w) of bytes and labels (n,), scaled to `image_size` a batch at a time."""

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        image_size: int,
        shift: int = 0,
        *,
        flip: bool = False,
        randaugment: int = 0,
    ) -> None:
        self.images, self.labels, self.image_size, self.shift, self.flip = images, labels, image_size, shift, flip
        self.augment = imagefolder.rand_augment(randaugment) if randaugment else None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Images (b, c, size, size) in [-1, 1], each moved by up to `shift` pixels, and labels (b,)."""
        found = self.images[indices]
        if self.augment is not None:
            found = torch.stack([self.augment(image) for image in found])
        images = found.float() / 127.5 - 1
        if self.image_size != images.shape[-1]:
            images = F.interpolate(images, size=(self.image_size, self.image_size), mode="bilinear")
        if self.flip:
            images = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(-1), images)
        return random_shift(images, self.shift), self.labels[indices]


def random_shift(images: Tensor, pixels: int) -> Tensor:
    """Move each image (n, c, size, size) by up to `pixels` in both directions; the border repeats."""
    if pixels == 0:
        return images
    n, size = images.shape[0], images.shape[-1]
    moves = torch.randint(0, 2 * pixels + 1, (2, n, 1))
    rows, columns = torch.arange(size) + moves
    padded = F.pad(images, [pixels] * 4, mode="replicate")
    picked = padded[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)


Part = tuple[Tensor, Tensor]
"""Images (n, c, h, w) of bytes and labels (n,)."""


def _digits(root: Path | None) -> tuple[Part, Part]:
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    except ImportError:
        raise DataError("the digits come with scikit-learn: pip install scikit-learn") from None
    digits = load_digits()
    images = torch.from_numpy(digits.images).mul(255 / 16).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(digits.target)
    # Every fifth image, not the last fifth: neighbours are often by one writer, who then is in both parts.
    is_test = torch.arange(len(labels)) % 5 == 0
    return (images[~is_test], labels[~is_test]), (images[is_test], labels[is_test])


def _fashion_mnist(root: Path | None) -> tuple[Part, Part]:
    folder = _fashion_folder(root)
    return _fashion_part(folder, "train"), _fashion_part(folder, "t10k")


def _fashion_folder(root: Path | None) -> Path:
    folders = [FASHION_FOLDER] if root is None else [root, root / "FashionMNIST" / "raw", root / "raw"]
    for folder in folders:
        if _idx_file(folder, "train-images-idx3-ubyte") is not None:
            return folder
    raise DataError(
        f"no Fashion-MNIST in {' or '.join(map(str, folders))}: apt-get install dataset-fashion-mnist, "
        "or name the folder of its idx files (or torchvision's root) with --data-root"
    )


def _fashion_part(folder: Path, part: str) -> Part:
    images = _read_fashion(folder, f"{part}-images-idx3-ubyte")
    labels = _read_fashion(folder, f"{part}-labels-idx1-ubyte")
    if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1] or len(labels) == 0:
        raise DataError(f"{folder}: {part} images {tuple(images.shape)} and labels {tuple(labels.shape)} do not fit")
    if labels.max() > 9:
        raise DataError(f"{folder}: {part} has a label {int(labels.max())}; Fashion-MNIST has classes 0 to 9")
    return F.pad(images, [2] * 4)[:, None], labels.long()


def _read_fashion(folder: Path, name: str) -> Tensor:
    path = _idx_file(folder, name)
    if path is None:
        raise DataError(f"{folder} has no {name}, neither plain nor .gz")
    return read_idx(path)


def _idx_file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _cifar(name: str, root: Path | None) -> tuple[Part, Part]:
    datasets = imagefolder.torchvision().datasets
    kind = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    try:
        train, test = (kind(root or ".", train=train) for train in (True, False))
    # torchvision raises this one for a file that is missing or whose checksum is wrong.
    except RuntimeError:
        fetch = f"torchvision.datasets.{kind.__name__}({str(root or '.')!r}, download=True)"
        what = f"no whole {name} in {root or '.'} (a file is missing or damaged)"
        raise DataError(f"{what}: name its folder with --data-root, or have it fetched by {fetch}") from None
    return _cifar_part(train), _cifar_part(test)


def _cifar_part(part: Any) -> Part:
    return torch.from_numpy(part.data).permute(0, 3, 1, 2), torch.tensor(part.targets)


def _image_folder(image_size: int, root: Path | None, workers: int | None, randaugment: int) -> Data:
    if root is None:
        raise DataError("imagefolder needs --data-root: a folder with train/CLASS/*.jpg and val/CLASS/*.jpg")
    train, test, classes = imagefolder.load(root, image_size, randaugment)
    workers = min(8, os.cpu_count() or 1) if workers is None else workers
    return Data(train, test, num_classes=classes, in_channels=3, workers=workers)


def _take(part: Dataset[Any], count: int | None) -> Dataset[Any]:
    if count is None or count >= _length(part):
        return part
    # Class folders come one after another: the first images of all would be of one class.
    order = torch.randperm(_length(part), generator=torch.Generator().manual_seed(0))
    return Subset(part, order[:count].tolist())


def _length(part: Dataset[Any]) -> int:
    return len(part)  # type: ignore[arg-type]


def _already_a_batch(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch
