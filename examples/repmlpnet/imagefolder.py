"""A folder of images with one subfolder per class, read by torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from errors import DataError
from torch.utils.data import Dataset

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, as the released weights expect."""


def load(root: Path, image_size: int, randaugment: int = 0) -> tuple[Dataset[Any], Dataset[Any], int]:
    """`root`/train with random crops, flips and RandAugment, `root`/val with centre crops, the number of classes."""
    transforms = torchvision().transforms
    random = [transforms.RandomResizedCrop(image_size), transforms.RandomHorizontalFlip()]
    random += [rand_augment(randaugment)] if randaugment else []
    centred = [transforms.Resize(image_size * 8 // 7), transforms.CenterCrop(image_size)]
    train, test = _part(root / "train", random), _part(root / "val", centred)
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise DataError(f"{root}/train and {root}/val have different classes: {', '.join(odd[:5])}")
    if len(train.classes) < 2:
        raise DataError(f"{root}/train has one class only: {train.classes[0]}")
    return train, test, len(train.classes)


def _part(folder: Path, crops: list[Any]) -> Any:
    transforms = torchvision().transforms
    steps = [*crops, transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    try:
        return torchvision().datasets.ImageFolder(folder, transform=transforms.Compose(steps), loader=_open_image)
    # FileNotFoundError is also that of a folder in which nothing is an image.
    except OSError as error:
        raise DataError(f"cannot use {folder}: {error}") from None


def _open_image(path: str) -> Any:
    try:
        return torchvision().datasets.folder.pil_loader(path)
    # Pillow raises nearly anything on damaged bytes, and an error of its own for an image that is too large.
    except Exception as error:
        raise DataError(f"cannot read the image {path}: {error}") from error


def rand_augment(magnitude: int) -> Any:
    """Random changes of colour and shape, two per image; the magnitude is one of 0 to 30."""
    return torchvision().transforms.v2.RandAugment(magnitude=magnitude)


def torchvision() -> Any:
    """The package, with what is used of it."""
    try:
        import torchvision
        import torchvision.transforms.v2  # type: ignore[import-untyped]
    except ImportError:
        raise DataError("images are read and changed by torchvision: pip install torchvision") from None
    return torchvision
