"""Latency on a GPU alone and after reparamkit: ``python benchmarks/gpu_engines.py --page``, about ten minutes.

Each net runs op by op (eager), as one CUDA graph, where launching kernels takes no time, and compiled; and op by op
after ``fuse`` with ``objective="measured"`` for that batch. What is trained and what is fused run in turns, in half
precision with weights in channels_last, as people deploy. Weights and norm statistics are random. ``--page`` writes the
table into docs/benchmarks.md; ``--warm-up`` only compiles, in as many processes as there are nets, so that measuring
finds the code in the cache of the compiler.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import reparamkit
from reparamkit.timing import clock, in_turns, interval, timing

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "benchmarks"))
from gpu import PAGE, place, publish  # noqa: E402

Run = Callable[[], Any]
RESULTS = ROOT / "benchmarks" / "results" / "gpu_engines.jsonl"
DTYPE = torch.float16
NETS = (
    "repvgg_a0",
    "mobileone_s0",
    "fastvit_t8",
    "repvit_m0_9",
    "repmlpnet_t224",
    "unireplknet_like",
    "dbb_resnet18",
    "resmlp_12 + injection",
    "resnet50",
    "convnext_atto",
)
"""Rows of ``peers.py``."""


# --- engines ------------------------------------------------------------------------------------------


def eager(model: nn.Module, x: Tensor) -> Run:
    return partial(model, x)


def graph(model: nn.Module, x: Tensor) -> Run:
    """The kernels of one call, launched together."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            model(x)
    torch.cuda.current_stream().wait_stream(side)
    made = torch.cuda.CUDAGraph()
    with torch.cuda.graph(made):
        model(x)
    return made.replay


def compiled(model: nn.Module, x: Tensor) -> Run:
    """The code of inductor, replayed as a graph too."""
    return graph(torch.compile(model, dynamic=False), x)  # type: ignore[arg-type]


MEASURED = "eager, measured"
ENGINES = {"eager": eager, MEASURED: eager, "CUDA graph": graph, "torch.compile": compiled}


# --- measuring ----------------------------------------------------------------------------------------


def forms(name: str, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """A net as it is trained, and fused: both in half precision."""
    # They need what a table does not: extras, and code of torch that warns.
    from peers import ROWS
    from zoo import randomize

    torch.manual_seed(0)
    model = randomize(ROWS[name].make()).to(device)
    fused = reparamkit.fuse(model, torch.randn(1, 3, 224, 224, device=device))
    trained, fused = (copy.deepcopy(each).to(DTYPE, memory_format=torch.channels_last) for each in (model, fused))
    return trained, fused


@torch.no_grad()
def measure(row: dict[str, Any], options: argparse.Namespace) -> None:
    """Add to a row what it has not: per engine and batch the milliseconds of both forms, taken in turns."""
    columns = {f"{engine}, {batch}": (engine, batch) for engine in options.engines for batch in options.batches}
    if columns.keys() <= row["times"].keys():
        return
    trained, fused = forms(row["row"], options.device)
    for column, (engine, batch) in columns.items():
        if column not in row["times"]:
            x = torch.randn(batch, 3, 224, 224, device=options.device, dtype=DTYPE)
            x = x.contiguous(memory_format=torch.channels_last)
            torch._dynamo.reset()
            made = reparamkit.fuse(trained, x, objective="measured") if engine == MEASURED else fused
            runs = [ENGINES[engine](each, x) for each in (trained, made)]
            row["times"][column] = in_turns(runs, options.rounds, clock=clock(options.device))


def blank(name: str, device: torch.device) -> dict[str, Any]:
    return {"row": name, "device": place(device), "torch": torch.__version__, "times": {}}


def warm_up(name: str, options: argparse.Namespace) -> None:
    """Compile a net, for the cache."""
    options.rounds = 1
    measure(blank(name, options.device), options)


# --- table --------------------------------------------------------------------------------------------


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Markdown."""
    columns = list(dict.fromkeys(column for row in rows for column in row["times"]))
    version = rows[0]["torch"].partition("+")[0]
    yield f"{rows[0]['device']}, torch {version}, float16, channels_last, 224 x 224; milliseconds trained, fused:\n"
    yield "| | " + " | ".join(", batch ".join(each.rsplit(", ", 1)) for each in columns) + " |"
    yield "|---" * (1 + len(columns)) + "|"
    for row in rows:
        cells = (cell(*row["times"][each]) if each in row["times"] else "" for each in columns)
        yield f"| {row['row']} | {' | '.join(cells)} |"


def cell(before: Sequence[float], after: Sequence[float]) -> str:
    """The medians, and the ratio with its 95% interval."""
    ratio = interval([a / b for a, b in zip(before, after, strict=True)])
    times = f"{timing(before).median:.3g}, {timing(after).median:.3g}"
    return f"{times}: {ratio.median:.2f} x [{ratio.low:.2f}, {ratio.high:.2f}]"


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", default=NETS, choices=NETS, metavar="NET")
    parser.add_argument("--engines", nargs="*", default=list(ENGINES), choices=list(ENGINES), metavar="ENGINE")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 128], metavar="N", help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=30, metavar="N", help="of each measurement (%(default)s)")
    parser.add_argument("--device", type=torch.device, default="cuda", help="(%(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="a line of JSON per row")
    parser.add_argument("--warm-up", action="store_true", help="compile all nets at once, measure nothing")
    words = "write the table between the marks of this file (docs/benchmarks.md)"
    parser.add_argument("--page", type=Path, nargs="?", const=PAGE, metavar="FILE", help=words)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    warnings.simplefilter("ignore")
    if options.warm_up:
        with multiprocessing.get_context("spawn").Pool(len(options.rows)) as pool:
            pool.map(partial(warm_up, options=options), options.rows)
        return
    lines = options.results.read_text().splitlines() if options.results.exists() else []
    rows = {row["row"]: row for row in map(json.loads, lines)}
    for name in options.rows:
        measure(rows.setdefault(name, blank(name, options.device)), options)
        options.results.write_text("".join(f"{json.dumps(row)}\n" for row in rows.values()))
    publish("gpu-engines", table(list(rows.values())), options.page)


if __name__ == "__main__":
    main()
