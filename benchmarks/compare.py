"""What other tools make of small structures; ``python benchmarks/compare.py --write`` puts it into docs/compare.md.

Each tool gets each structure with random norm statistics, in eval mode. A cell says which layers are left and the error
against the model; a tool that refuses says so. Needs timm, onnx, onnxscript, onnxruntime and openvino.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import onnxscript.optimizer
import onnxscript.rewriter
import openvino
import timm
import torch
import torch._inductor.config as inductor
from timm.utils import reparameterize_model
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse as stock_fuse

import reparamkit

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT / "benchmarks"), str(ROOT / "tests")]
from pages import fill  # noqa: E402
from structures import FlatMap, conv, conv_norm, norm, repvgg, seq  # noqa: E402
from structures.measure import Operations  # noqa: E402
from zoo import randomize  # noqa: E402

WRONG = 1e-3
"""Beyond this an error is no rounding."""
Found = tuple[str, Tensor]
"""The layers that are left, and an output."""


# --- structures ---------------------------------------------------------------------------------------


class Reused(nn.Module):
    """One convolution at two places, with a norm behind one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(8, 8), norm(8)

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, 8, h, w)."""
        out: Tensor = self.norm(self.conv(x)) + self.conv(x.relu())
        return out


def hooked() -> nn.Module:
    """A hook that doubles what the norm gives."""
    model = conv_norm(8, 8)
    model[1].register_forward_hook(lambda module, args, output: output * 2)
    return model


def transposed() -> nn.Module:
    return seq(nn.ConvTranspose2d(8, 8, 4, 2, 1), norm(8))


STRUCTURES: dict[str, Callable[[], nn.Module]] = {
    "conv, norm": lambda: conv_norm(8, 8),
    "RepVGG block": lambda: repvgg(8),
    "1x1, then unpadded 3x3": lambda: seq(conv(8, 8, 1), conv(8, 8, p=0)),
    "norm, then unpadded 3x3": lambda: seq(nn.ReLU(), norm(8), conv(8, 8, p=0)),
    "transposed conv, norm": transposed,
    "two linear layers": lambda: seq(nn.Flatten(2), nn.Linear(144, 64), nn.Linear(64, 8)),
    "linear over a map + conv": lambda: FlatMap(8, 12, 12),
    "a conv at two places, one with norm": Reused,
    "conv, norm with a hook": hooked,
}


# --- tools --------------------------------------------------------------------------------------------

KINDS = {
    **dict.fromkeys(("convolution", "conv", "fusedconv", "convtranspose", "deconvolution"), "conv"),
    **dict.fromkeys(("norm", "batchnormalization"), "norm"),
    **dict.fromkeys(("linear", "gemm", "fusedgemm", "matmul", "fullyconnected", "bmm"), "linear"),
    **dict.fromkeys(("add", "mul", "sum", "sub", "eltwise", "subgraph"), "sum"),
}
"""Operators of all tools in common words."""


def layers(names: Iterable[str]) -> str:
    """Operators counted by kind; those that compute nothing linear are left out."""
    counted = Counter(KINDS[name.lower()] for name in names if name.lower() in KINDS)
    return ", ".join(f"{counted[kind]} {kind}" for kind in dict.fromkeys(KINDS.values()) if counted[kind])


def eager(model: nn.Module, x: Tensor) -> Found:
    with Operations() as seen:
        out = model(x)
    return layers(seen.names), out


def compiled(model: nn.Module, x: Tensor) -> Found:
    torch._dynamo.reset()
    with inductor.patch(freezing=True):
        return "", torch.compile(copy.deepcopy(model))(x)


def exported(model: nn.Module, x: Tensor, folder: Path) -> Path:
    torch.onnx.export(model, (x,), folder / "model.onnx", dynamo=True, verbose=False, external_data=False)
    return folder / "model.onnx"


def session(path: Path, options: Any = None) -> Any:
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def onnx_found(path: Path, made: Any, x: Tensor) -> Found:
    out = made.run(None, {made.get_inputs()[0].name: x.numpy()})[0]
    return layers(node.op_type for node in onnx.load(path).graph.node), torch.from_numpy(out)


def onnx_runtime(model: nn.Module, x: Tensor) -> Found:
    with tempfile.TemporaryDirectory() as name:
        options, path = onnxruntime.SessionOptions(), Path(name) / "optimised.onnx"
        options.optimized_model_filepath, options.log_severity_level = str(path), 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        return onnx_found(path, session(exported(model, x, Path(name)), options), x)


def onnx_script(model: nn.Module, x: Tensor) -> Found:
    with tempfile.TemporaryDirectory() as name:
        path = exported(model, x, Path(name))
        onnx.save(onnxscript.rewriter.rewrite(onnxscript.optimizer.optimize(onnx.load(path))), path)
        return onnx_found(path, session(path), x)


def open_vino(model: nn.Module, x: Tensor) -> Found:
    with tempfile.TemporaryDirectory() as name:
        made = openvino.Core().compile_model(exported(model, x, Path(name)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    kinds = [op.get_rt_info()["layerType"].astype(str) for op in made.get_runtime_model().get_ops()]
    return layers(kinds), torch.from_numpy(made(x.numpy())[0].copy())


TOOLS: dict[str, Callable[[nn.Module, Tensor], Found]] = {
    "as it is": eager,
    "reparamkit": lambda model, x: eager(reparamkit.fuse(model, x), x),
    "torch.fx fuse": lambda model, x: eager(stock_fuse(model), x),
    "timm": lambda model, x: eager(reparameterize_model(model), x),
    "torch.compile, freezing": compiled,
    "ONNX Runtime": onnx_runtime,
    "onnxscript": onnx_script,
    "OpenVINO": open_vino,
}


# --- the table ----------------------------------------------------------------------------------------


def cell(tool: Callable[[nn.Module, Tensor], Found], make: Callable[[], nn.Module]) -> str:
    """What a tool leaves of a structure."""
    torch.manual_seed(0)
    model, x = randomize(make()), torch.randn(2, 8, 12, 12)
    wanted = model(x)
    try:
        left, out = tool(model, x)
    except Exception as refused:
        return f"refuses: {type(refused).__name__}"
    error = float((out - wanted).abs().max() / wanted.abs().max())
    return f"**wrong: error {error:.1f}**" if error > WRONG else left or "equal"


def table() -> Iterator[str]:
    """The table, line by line."""
    versions = {
        "torch": torch.__version__.split("+")[0],
        "timm": timm.__version__,
        "onnxruntime": onnxruntime.__version__,
        "onnxscript": onnxscript.__version__,
        "openvino": openvino.__version__.split("-")[0],
    }
    yield f"{datetime.date.today():%B %Y}; {', '.join(f'{name} {version}' for name, version in versions.items())}.\n"
    yield f"| structure | {' | '.join(TOOLS)} |"
    yield "|---" * (len(TOOLS) + 1) + "|"
    for name, make in STRUCTURES.items():
        yield f"| {name} | {' | '.join(cell(tool, make) for tool in TOOLS.values())} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into docs/compare.md")
    warnings.simplefilter("ignore")
    write = parser.parse_args().write
    with torch.no_grad():
        lines = list(table())
    print(*lines, sep="\n")
    if write:
        fill(ROOT / "docs" / "compare.md", "table", lines)


if __name__ == "__main__":
    main()
