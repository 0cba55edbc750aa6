"""Draw the pictures of the README from a run: ``python examples/segmentation/pictures.py --output runs/segmentation``.

curve.png: test mIoU per epoch. masks.png: test canvases, their labels, and what the trained and the fused model say.
For a run with the default data; needs matplotlib.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent.parent
sys.path.append(str(EXAMPLES / "repmlpnet"))

import checkpoint  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402
import torch  # noqa: E402
from arguments import parse  # noqa: E402
from command import command  # noqa: E402
from drawing import curves, save  # noqa: E402
from errors import DataError  # noqa: E402
from history import read_history  # noqa: E402
from matplotlib.colors import ListedColormap  # noqa: E402
from matplotlib.patches import Patch  # noqa: E402
from scenes import CLASSES, load_scenes  # noqa: E402
from segmenter import new_segmenter  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from weights import load_published  # noqa: E402

import reparamkit  # noqa: E402

SHOWN = 6
COLOURS = ListedColormap(["#f2f2f2", *plt.colormaps["tab10"].colors])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/segmentation"), help="the folder of the run")
    parser.add_argument("--images", type=Path, default=Path(__file__).parent / "img", help="where to draw to")
    options = parser.parse_args(arguments)
    return command(lambda: draw(options.output, options.images), torch.device("cpu"))


def draw(run: Path, images: Path) -> None:
    """Both pictures; the first is that of the weights, which fails if there is no run."""
    masks(run, images / "masks.png")
    curves({"": read_history(run)}, "test mIoU", images / "curve.png")


@torch.no_grad()
def masks(run: Path, path: Path) -> None:
    """Some test canvases and their masks."""
    model = trained(run)
    test = load_scenes(1, SHOWN)[1]
    fused = reparamkit.fuse(model, test.images[:2])
    rows: list[tuple[str, Tensor]] = [("canvas", test.images[:, 0]), ("labels", test.labels)]
    rows += [(title, m(test.images).argmax(1)) for title, m in (("trained", model), ("fused", fused))]
    figure, table = plt.subplots(len(rows), SHOWN, figsize=(1.3 * SHOWN, 6), layout="constrained")
    for line, (title, maps) in zip(table, rows, strict=True):
        line[0].set_ylabel(title)
        for axes, picture in zip(line, maps, strict=True):
            axes.set(xticks=[], yticks=[])
            if title == "canvas":
                axes.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=1)
            else:
                axes.imshow(picture.numpy(), cmap=COLOURS, vmin=0, vmax=len(CLASSES) - 1, interpolation="nearest")
    handles = [Patch(color=COLOURS(i), label=name) for i, name in enumerate(CLASSES)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(CLASSES), frameon=False, fontsize=7)
    save(figure, path)


def trained(run: Path) -> nn.Module:
    """The model of a run, in eval mode."""
    kept = checkpoint.load(run)
    settings = vars(parse([])) if kept is None else kept.settings
    if settings["data"] != "scenes":
        raise DataError(f"{run} was trained on {settings['data']}: the pictures are of a run with --data scenes")
    model = new_segmenter(settings["model"], 1, len(CLASSES), settings["head_width"])
    load_published(model, run / "model.safetensors")
    return model.eval()


if __name__ == "__main__":
    sys.exit(main())
