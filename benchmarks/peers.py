"""Latency of engines alone and after reparamkit: ``python benchmarks/peers.py``, or ``--rows repvgg_a0``.

Within a row every engine is measured in turns, so that all see the same machine; a row shows the median time, and the
median of the paired ratios "alone / after reparamkit" with its 95% interval (order statistics of the pairs). A row in
benchmarks/results/peers.jsonl is not measured again. Engines that are not installed, or refuse a model, say so.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse as stock_fuse

import reparamkit
from reparamkit.timing import clock, in_turns, interval

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT / "examples" / "repmlpnet"), str(ROOT / "benchmarks")]
from zoo import randomize  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
Run = Callable[[Tensor], Any]
Engine = Callable[[nn.Module, Tensor], Run]


# --- rows ---------------------------------------------------------------------------------------------


def _repmlpnet() -> nn.Module:
    from model import create_model

    return create_model("repmlpnet_t224")  # type: ignore[no-any-return]


def _timm(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False)  # type: ignore[no-any-return]

    return make


ROWS: dict[str, Callable[[], nn.Module]] = {
    **{name: _timm(name) for name in ("repvgg_a0", "mobileone_s0", "resnet50")},
    "repmlpnet_t224": _repmlpnet,
}


# --- engines ------------------------------------------------------------------------------------------


def eager(model: nn.Module, x: Tensor) -> Run:
    return model


def channels_last(model: nn.Module, x: Tensor) -> Run:
    return copy.deepcopy(model).to(memory_format=torch.channels_last)


def stock_fx(model: nn.Module, x: Tensor) -> Run:
    return stock_fuse(model)  # type: ignore[no-any-return]


def timm_reparameterized(model: nn.Module, x: Tensor) -> Run:
    from timm.utils import reparameterize_model

    return reparameterize_model(model)  # type: ignore[no-any-return]


def compiled(model: nn.Module, x: Tensor) -> Run:
    return torch.compile(copy.deepcopy(model))  # type: ignore[return-value]


def compiled_frozen(model: nn.Module, x: Tensor) -> Run:
    import torch._inductor.config as inductor

    with inductor.patch(freezing=True):
        made = torch.compile(copy.deepcopy(model))
        made(x)
    return made  # type: ignore[return-value]


def onnx_runtime(model: nn.Module, x: Tensor) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    with tempfile.TemporaryDirectory() as folder:
        path = _exported(model, x, folder)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def openvino(model: nn.Module, x: Tensor) -> Run:
    import openvino

    core = openvino.Core()
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as folder:
        made = core.compile_model(_exported(model, x, folder), "CPU", config)
    return lambda x: torch.from_numpy(made(x.numpy())[0])


def _exported(model: nn.Module, x: Tensor, folder: str) -> str:
    path = f"{folder}/model.onnx"
    torch.onnx.export(model, (x,), path, dynamo=True, verbose=False)
    return path


ENGINES: dict[str, Engine] = {
    "eager": eager,
    "eager, channels last": channels_last,
    "stock fx fuse": stock_fx,
    "timm reparameterize": timm_reparameterized,
    "torch.compile": compiled,
    "torch.compile, freezing": compiled_frozen,
    "ONNX Runtime": onnx_runtime,
    "OpenVINO, f32": openvino,
}


# --- measuring ----------------------------------------------------------------------------------------


def measure(name: str, engines: list[str], batch: int, seconds: float) -> dict[str, Any]:
    """One row: per engine the times alone and after reparamkit, errors, and the ratio with its interval."""
    torch.manual_seed(0)
    model = randomize(ROWS[name]())
    x = torch.randn(batch, 3, 224, 224)
    fused = reparamkit.fuse(model, x)
    exact = copy.deepcopy(model).double()(x.double())
    runs: dict[tuple[str, str], Run] = {}
    found: dict[str, Any] = {"row": name, "batch": batch, "threads": torch.get_num_threads(), "engines": {}}
    for engine in engines:
        found["engines"][engine] = entry = {}
        for form, each in (("alone", model), ("after", fused)):
            try:
                made = ENGINES[engine](each, x)
                entry[f"{form}_error"] = float((made(x).double() - exact).abs().max() / exact.abs().max())
                runs[engine, form] = made
            except Exception as refused:
                entry[f"{form}_refused"] = type(refused).__name__
    times = in_turns([partial(made, x) for made in runs.values()], 6, seconds, clock=clock(x.device))
    for (engine, form), each in zip(runs, times, strict=True):
        found["engines"][engine][form] = each
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """The table of all rows."""
    machine = f"torch {torch.__version__.split('+')[0]}, {platform.machine()}, float32"
    head = f"{machine}; ratio: alone / after, the median of the pairs with its 95% interval\n\n"
    lines = ["| model | engine | alone | after reparamkit | ratio | error alone | error after |", "|---" * 7 + "|"]
    for row in rows:
        where = f"{row['row']}, batch {row['batch']}, {row['threads']} threads"
        lines += [f"| {where} | {engine} | {_cells(entry)} |" for engine, entry in row["engines"].items()]
    return head + "\n".join(lines) + "\n"


def _cells(entry: dict[str, Any]) -> str:
    forms = ("alone", "after")
    times = [f"{statistics.median(entry[f]):.1f} ms" if f in entry else entry[f"{f}_refused"] for f in forms]
    errors = [f"{entry[f'{f}_error']:.0e}" if f in entry else "" for f in forms]
    ratio = ""
    if all(form in entry for form in forms):
        found = interval([a / b for a, b in zip(entry["alone"], entry["after"], strict=True)])
        ratio = f"{found.median:.2f} [{found.low:.2f}, {found.high:.2f}]"
    return " | ".join([*times, ratio, *errors])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--engines", nargs="*", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=60, help="of measuring, for each row")
    parser.add_argument("--results", type=Path, default=RESULTS / "peers.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    lines = options.results.read_text().splitlines() if options.results.exists() else []
    rows = {(row["row"], row["batch"], row["threads"]): row for row in map(json.loads, lines)}
    for name in options.rows:
        key = name, options.batch, options.threads
        if key not in rows:
            with torch.no_grad():
                rows[key] = measure(name, options.engines, options.batch, options.seconds)
            with options.results.open("a") as file:
                file.write(json.dumps(rows[key]) + "\n")
    text = table(list(rows.values()))
    options.results.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
