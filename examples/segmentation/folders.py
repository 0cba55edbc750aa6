"""Cityscapes and ADE20K as they lie on disk after unpacking."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from errors import DataError
from torch import Tensor
from torch.utils.data import Dataset

IGNORED = -100
"""The label of pixels that do not count, as in torch's cross entropy."""
ADE20K_CLASSES = 150


def load_folders(name: str, root: Path | None, size: int) -> tuple[Pictures, Pictures, int]:
    """Training and test part, and the number of classes. Raises `DataError` if something is not there."""
    if root is None:
        raise DataError(f"--data {name} needs --data-root: the folder of the unpacked data set")
    find = {"cityscapes": _cityscapes, "ade20k": _ade20k}[name]
    (train, table), (test, _) = (find(root, train=part) for part in (True, False))
    return Pictures(train, table, size, crop=True), Pictures(test, table, size, crop=False), _classes(table)


def _classes(table: Tensor) -> int:
    return int(table.max()) + 1


class Pictures(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of an image and a label file, the shorter side scaled to `size`, cut to a square.

    table: (256,), the class of each value of a label file. crop: cut at random, and mirror half of them.
    """

    def __init__(self, pairs: list[tuple[Path, Path]], table: Tensor, size: int, crop: bool) -> None:
        self.pairs, self.table = pairs, table
        self.change = _transforms(size, crop)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """An image (3, size, size) in [-1, 1] and classes (size, size)."""
        image, label = (_opened(path) for path in self.pairs[index])
        if image.size != label.size:
            raise DataError(f"{self.pairs[index][0]} is {image.size}, its labels are {label.size} pixels")
        if label.mode not in ("L", "P"):
            raise DataError(f"{self.pairs[index][1]} is an image of mode {label.mode}; labels are one byte per pixel")
        image, label = self.change(image.convert("RGB"), _tv_tensors().Mask(_values(label)))
        return image, self.table[label[0].long()]


def _transforms(size: int, crop: bool) -> Any:
    try:
        from torchvision.transforms import v2
    except ImportError:
        raise DataError("image files are read with torchvision: pip install torchvision") from None
    cut = [v2.RandomCrop(size, pad_if_needed=True), v2.RandomHorizontalFlip()] if crop else [v2.CenterCrop(size)]
    scale = [v2.ToImage(), v2.ToDtype({_tv_tensors().Image: torch.float32, "others": None}, scale=True)]
    return v2.Compose([v2.Resize(size), *cut, *scale, v2.Normalize([0.5] * 3, [0.5] * 3)])


def _tv_tensors() -> Any:
    from torchvision import tv_tensors

    return tv_tensors


def _opened(path: Path) -> Any:
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
            return image
    # Pillow raises nearly anything on damaged bytes, and an error of its own for an image that is too large.
    except Exception as error:
        raise DataError(f"{path} is no image that can be read: {error}; fetch it again") from error


def _values(label: Any) -> Tensor:
    """The values (1, h, w) of a label file, as bytes."""
    return torch.frombuffer(bytearray(label.tobytes()), dtype=torch.uint8).reshape(1, label.height, label.width)


def _cityscapes(root: Path, train: bool) -> tuple[list[tuple[Path, Path]], Tensor]:
    """leftImg8bit/PART/CITY/*_leftImg8bit.png and gtFine/PART/CITY/*_gtFine_labelIds.png."""
    part = "train" if train else "val"
    images = sorted((root / "leftImg8bit" / part).glob("*/*_leftImg8bit.png"))
    folder = root / "gtFine" / part
    labels = [folder / i.parent.name / i.name.replace("_leftImg8bit", "_gtFine_labelIds") for i in images]
    return _pairs(images, labels, root / "leftImg8bit" / part), _cityscapes_table()


def _cityscapes_table() -> Tensor:
    from torchvision.datasets import Cityscapes

    table = torch.full((256,), IGNORED)
    for each in Cityscapes.classes:
        if not each.ignore_in_eval:
            table[each.id] = each.train_id
    return table


def _ade20k(root: Path, train: bool) -> tuple[list[tuple[Path, Path]], Tensor]:
    """images/PART/*.jpg and annotations/PART/*.png, where 0 means none of the 150 classes."""
    part = "training" if train else "validation"
    images = sorted((root / "images" / part).glob("*.jpg"))
    labels = [root / "annotations" / part / f"{i.stem}.png" for i in images]
    table = torch.full((256,), IGNORED)
    table[1 : ADE20K_CLASSES + 1] = torch.arange(ADE20K_CLASSES)
    return _pairs(images, labels, root / "images" / part), table


def _pairs(images: list[Path], labels: list[Path], folder: Path) -> list[tuple[Path, Path]]:
    if not images:
        raise DataError(f"no images in {folder}: is --data-root the folder of the unpacked data set?")
    missing = [path for path in labels if not path.is_file()]
    if missing:
        raise DataError(f"{len(missing)} label files are missing, the first is {missing[0]}")
    return list(zip(images, labels, strict=True))
