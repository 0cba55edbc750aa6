"""Latency of engines alone and after reparamkit: ``python benchmarks/peers.py``, about 20 minutes on two idle cores.

Within a row everything is measured in turns, so that all see the same machine. A row has each engine on the model as it
is trained (*alone*), on the fused model (*after*), and for some rows on a network written by hand for inference
(*limit*). A row in benchmarks/results/peers.jsonl is not measured again: stop and start as you like. Engines that are
not installed, or refuse a model, say so. ``peers_table.py`` makes the page of the docs from the results.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import platform
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse as stock_fuse

import reparamkit
from reparamkit.timing import Clock, clock, in_turns

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT / "examples" / "repmlpnet"), str(ROOT / "benchmarks")]
from nets import dbb_resnet18, repvgg_a0_plain, unireplknet_like  # noqa: E402
from peers_table import RESULTS, page, results, summary  # noqa: E402
from zoo import randomize  # noqa: E402

ROUNDS = 6
PATIENCE = 90
"""Seconds that an engine may take to convert a model."""
REST = 0.05
"""Seconds between two engines: with 0.03 none depends on which ran before it."""
Run = Callable[[], Any]
Engine = Callable[[nn.Module, Tensor], Run]


# --- rows ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A model. make: as it is trained. merges: whether it is built to be re-parameterised. limit: the same for
    inference, written by hand. own: the merge that was published with the model.
    """

    make: Callable[[], nn.Module]
    merges: bool = True
    limit: Callable[[], nn.Module] | None = None
    own: Callable[[nn.Module], nn.Module] | None = None


def _timm(name: str) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=False)  # type: ignore[no-any-return]


def _repmlpnet() -> nn.Module:
    from model import create_model

    return create_model("repmlpnet_t224")  # type: ignore[no-any-return]


def _published(model: nn.Module) -> nn.Module:
    from repmlpnet import published_merge

    # A fused block has nothing left for the published merge.
    return published_merge(model) if any("repconv" in name for name, _ in model.named_modules()) else model


def _injected() -> nn.Module:
    return reparamkit.inject_locality(_timm("resmlp_12_224"), init=1.0)


ROWS = {
    "repvgg_a0": Row(partial(_timm, "repvgg_a0"), limit=repvgg_a0_plain),
    "mobileone_s0": Row(partial(_timm, "mobileone_s0")),
    "fastvit_t8": Row(partial(_timm, "fastvit_t8")),
    "repvit_m0_9": Row(partial(_timm, "repvit_m0_9")),
    "ghostnetv3_050": Row(partial(_timm, "ghostnetv3_050")),
    "repmlpnet_t224": Row(_repmlpnet, own=_published),
    "unireplknet_like": Row(unireplknet_like),
    "dbb_resnet18": Row(dbb_resnet18),
    "resmlp_12 + injection": Row(_injected),
    "resnet50": Row(partial(_timm, "resnet50"), merges=False),
    "convnext_atto": Row(partial(_timm, "convnext_atto"), merges=False),
}


# --- engines ------------------------------------------------------------------------------------------


def eager(model: nn.Module, x: Tensor) -> Run:
    return partial(model, x)


def channels_last(model: nn.Module, x: Tensor) -> Run:
    made = copy.deepcopy(model).to(memory_format=torch.channels_last)
    return partial(made, x.contiguous(memory_format=torch.channels_last))


def stock_fx(model: nn.Module, x: Tensor) -> Run:
    return partial(stock_fuse(model), x)


def timm_reparameterized(model: nn.Module, x: Tensor) -> Run:
    from timm.utils import reparameterize_model

    return partial(reparameterize_model(model), x)


def compiled(model: nn.Module, x: Tensor, **options: bool) -> Run:
    run = partial(torch.compile(copy.deepcopy(model), options=options or None), x)
    run()
    return run


def compiled_frozen(model: nn.Module, x: Tensor) -> Run:
    import torch._inductor.config as inductor

    # The option makes a backend of its own: without it dynamo would take the code of a model of the same structure that
    # was compiled before. The patch makes it guard the parameters, which the frozen code contains.
    with inductor.patch(freezing=True):
        return compiled(model, x, freezing=True)


def onnx_runtime(model: nn.Module, x: Tensor) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    with _exported(model, x) as path:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name, array = session.get_inputs()[0].name, x.numpy()
    return lambda: torch.from_numpy(session.run(None, {name: array})[0])


def openvino(model: nn.Module, x: Tensor) -> Run:
    import openvino

    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    with _exported(model, x) as path:
        made = openvino.Core().compile_model(path, "CPU", config)
    array = x.numpy()
    # The result is a view of the engine's own memory, which the next call writes again.
    return lambda: torch.from_numpy(made(array)[0])


@contextmanager
def _exported(model: nn.Module, x: Tensor) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.onnx"
        with _silent():
            torch.onnx.export(model, (x,), path, dynamo=True, verbose=False)
        yield path


@contextmanager
def _silent() -> Iterator[None]:
    """Without what the exporter prints from C++."""
    kept, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(null)


ENGINES: dict[str, Engine] = {
    "eager": eager,
    "eager, channels last": channels_last,
    "stock fx fuse": stock_fx,
    "timm reparameterize": timm_reparameterized,
    "torch.compile, freezing": compiled_frozen,
    "ONNX Runtime": onnx_runtime,
    "OpenVINO, f32": openvino,
    "torch.compile": compiled,
}
DEFAULT = [name for name in ENGINES if name != "torch.compile"]
"""Freezing is the same engine with more to work on; compiling takes most of the time, so one of the two by default."""


def engines(row: Row, names: list[str]) -> dict[str, Engine]:
    """The engines of a row, by name; with the published merge if it has one."""
    found = {name: ENGINES[name] for name in names}
    if row.own is not None:
        own = row.own
        found["published merge"] = lambda model, x: partial(own(model), x)
    return found


# --- measuring ----------------------------------------------------------------------------------------


def measure(name: str, names: list[str], batch: int, seconds: float) -> dict[str, Any]:
    """One row: per engine and form the times, the error against float64, and how long it took to convert."""
    torch.manual_seed(0)
    row = ROWS[name]
    model = randomize(row.make())
    x = torch.randn(batch, 3, 224, 224)
    start = time.perf_counter()
    fused = reparamkit.fuse(model, x)
    fusing = round(time.perf_counter() - start, 1)
    forms = {"alone": model, "after": fused} | ({"limit": row.limit().eval()} if row.limit else {})
    exact = copy.deepcopy(model).double()(x.double())
    found = {**surroundings(), "row": name, "merges": row.merges, "batch": batch, "fuse_s": fusing, "engines": {}}
    runs: dict[tuple[str, str], Run] = {}
    for engine, build in engines(row, names).items():
        found["engines"][engine] = entry = {}
        for form, each in forms.items():
            made = started(entry, form, lambda build=build, each=each: build(each, x), exact)
            runs |= {(engine, form): made} if made else {}
    times = in_turns(list(runs.values()), ROUNDS, seconds, clock=settled(clock(x.device)))
    for (engine, form), each in zip(runs, times, strict=True):
        found["engines"][engine][form] = [float(f"{t:.4g}") for t in each]
    return found


def settled(clock: Clock) -> Clock:
    """Times the second of two calls, after a rest: the threads of the engine that ran before go on spinning for a
    while, and take the processor from the next.
    """

    def rested(run: Run) -> float:
        time.sleep(REST)
        run()
        return clock(run)

    return rested


def started(entry: dict[str, Any], form: str, build: Callable[[], Run], exact: Tensor) -> Run | None:
    """A run of an engine that has run once; None if the engine refused the model. entry: what the row keeps of it."""
    start = time.perf_counter()
    try:
        with patience():
            run = build()
            out = run()
    except Exception as refused:
        entry[f"{form}_refused"] = type(refused).__name__
        return None
    entry[f"{form}_s"] = round(time.perf_counter() - start, 1)
    if form != "limit":  # it has weights of its own
        entry[f"{form}_error"] = float((out.double() - exact).abs().max() / exact.abs().max())
    return run


@contextmanager
def patience() -> Iterator[None]:
    """Raises `TimeoutError` in what takes too long."""

    def stop(signum: int, frame: Any) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)


def surroundings() -> dict[str, Any]:
    """What a time depends on besides the row."""
    versions = {"torch": torch.__version__.split("+")[0]}
    for package in ("timm", "onnxruntime", "openvino"):
        try:
            versions[package] = __import__(package).__version__.split("-")[0]
        except ImportError:
            continue
    return {"versions": versions, "machine": platform.machine(), "threads": torch.get_num_threads()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--engines", nargs="*", default=DEFAULT, choices=list(ENGINES))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=30, help="of measuring, for each row")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the page of the docs, measure nothing")
    options = parser.parse_args()
    rows = {(row["row"], row["batch"], row["threads"]): row for row in results(options.results)}
    if not options.table:
        fill(rows, options)
    print("\n".join(page(list(rows.values()))))


def fill(rows: dict[tuple[str, int, int], dict[str, Any]], options: argparse.Namespace) -> None:
    """Measure the rows that are missing, and append each to the file as soon as it is there."""
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    for name in options.rows:
        key = name, options.batch, options.threads
        if key in rows:
            continue
        start = time.perf_counter()
        with torch.no_grad():
            rows[key] = measure(name, options.engines, options.batch, options.seconds)
        with options.results.open("a") as file:
            file.write(json.dumps(rows[key]) + "\n")
        print(f"{time.perf_counter() - start:4.0f} s  {summary(rows[key])}", file=sys.stderr, flush=True)
        # Compiled models of one row would slow the next.
        torch._dynamo.reset()
        gc.collect()


if __name__ == "__main__":
    main()
