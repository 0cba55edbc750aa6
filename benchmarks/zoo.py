"""Fuse real models and check them: ``python benchmarks/zoo.py``, in parts ``--shard 0/4``, written with ``--table``.

One model of every timm module, torchvision's families, small random configurations of every architecture of
transformers, and every adapter of peft, with random batch-norm statistics and layer scales. Each runs in a process of
its own, with a time limit, and leaves one line of JSON in benchmarks/results/zoo.jsonl; a second start goes on with
what is missing. ``--table`` writes docs/zoo.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import multiprocessing
import time
import traceback
import warnings
from collections import Counter as Counts
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from processor import processor_seconds
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse as stock_fuse
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from zoo_models import TOO_LARGE, Entry, NotRun, Sample, entries

import reparamkit
from reparamkit import GuardError
from reparamkit.reasons import Kind

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "zoo.jsonl"
TABLE = ROOT / "docs" / "zoo.md"

# --- random numbers -----------------------------------------------------------------------------------


@torch.no_grad()
def randomize(model: nn.Module) -> nn.Module:
    """Random batch-norm statistics and scales, and random values for what is still as constructed (ones, zeros,
    1e-6 of layer scales); the other weights keep their initialisation. Returns the model, in eval mode.
    """
    draw = torch.Generator().manual_seed(0)
    norms = {id(p) for m in model.modules() if _is_norm(m) for p in m.parameters(recurse=False)}
    for module in model.modules():
        if _is_norm(module):
            _randomize_norm(module, draw)
    for name, parameter in model.named_parameters():
        if id(parameter) not in norms and parameter.numel() and (parameter == parameter.flatten()[0]).all():
            span = torch.rand(parameter.shape, generator=draw)
            scale = any(word in name.lower() for word in ("gamma", "scale", "ls", "weight", "alpha"))
            parameter.copy_(span + 0.5 if scale and parameter.dim() <= 4 else (span - 0.5) * 0.2)
    return model.eval()


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) or isinstance(getattr(module, "running_var", None), Tensor)


def _randomize_norm(norm: Any, draw: torch.Generator) -> None:
    uniform = torch.rand(4, norm.running_var.numel(), generator=draw) if norm.running_var is not None else None
    if uniform is None:
        return
    norm.running_mean.copy_(uniform[0] * 0.2 - 0.1)
    norm.running_var.copy_(uniform[1] + 0.5)
    if getattr(norm, "weight", None) is not None:
        signs = (uniform[3] > 0.3).float() * 2 - 1
        norm.weight.copy_((uniform[2] + 0.5) * signs)
        norm.bias.copy_(uniform[3] * 0.2 - 0.1)


# --- counting -----------------------------------------------------------------------------------------

FREE = frozenset(
    str.split("""
    view _unsafe_view _reshape_alias t permute transpose expand unsqueeze squeeze alias detach slice select as_strided
    split split_with_sizes lift_fresh empty empty_like unbind clone copy_ _to_copy unfold diagonal new_empty
    unsafe_split unsafe_chunk chunk narrow
    """)
)
NORMS = frozenset(
    ["native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "_batch_norm_no_update"]
)
LINEAR = frozenset(str.split("convolution mm addmm bmm baddbmm"))


Value = tuple[int, int]


class Counter(TorchDispatchMode):
    """What runs: operations that compute something, batch norms, and batch norms that could be folded.

    A norm could be folded into the layer before it if a convolution or product made its input and nothing else reads
    that; or into the one after it if only an unpadded convolution, or a product, reads its output.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.norms = 0
        self.made: dict[Value, tuple[str, Value | None]] = {}
        self.reads: dict[Value, list[bool]] = {}
        self.versions: dict[int, int] = {}
        self.held: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        output = func(*args, **(kwargs or {}))
        self.operations += name not in FREE
        self.norms += name in NORMS
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        through = args[1 if "add" in name else 0] if name in LINEAR else None
        unpadded = name in LINEAR and (name != "convolution" or (not any(args[4]) and not args[6]))
        for leaf in leaves:
            self.reads.setdefault(self._value(leaf), []).append(unpadded and leaf is through)
        source = self._value(leaves[0]) if leaves else None
        first = output[0] if isinstance(output, (tuple, list)) and output else output
        if isinstance(first, Tensor):
            if any(first is leaf for leaf in leaves):
                self.versions[id(first)] = self.versions.get(id(first), 0) + 1
            self.made[self._value(first)] = name, source
        self.held.append((args, kwargs, output))
        return output

    def _value(self, tensor: Tensor) -> Value:
        """A tensor between two writes into it (all are kept alive, so that an id is not used again)."""
        return id(tensor), self.versions.get(id(tensor), 0)

    @property
    def foldable(self) -> int:
        """Norms that a neighbour could take."""
        found = 0
        for value, (name, source) in self.made.items():
            if name in NORMS:
                before = source in self.made and self.made[source][0] in LINEAR and len(self.reads[source]) == 1
                after = self.reads.get(value, [])
                found += before or (len(after) == 1 and after[0])
        return found


def counted(model: nn.Module, call: Any) -> dict[str, int]:
    """The counts of a run that is not the first: what a model computes once and keeps is there."""
    run(model, call)
    with torch.no_grad(), Counter() as counter:
        run(model, call)
    return {"ops": counter.operations, "bn": counter.norms, "foldable": counter.foldable}


# --- checking one model ---------------------------------------------------------------------------------


def run(model: nn.Module, call: Any) -> list[Tensor]:
    """All output tensors, computed from copies of the inputs."""
    args, kwargs = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, call)
    with torch.no_grad():
        output = model(*args, **kwargs)
    output = dict(output) if isinstance(output, Mapping) else output
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def wide(call: Any) -> Any:
    """The inputs in float64."""
    return tree_map(lambda leaf: leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf, call)


def error(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest relative error of any output tensor."""
    if [t.shape for t in found] != [t.shape for t in wanted]:
        return float("inf")
    pairs = ((a.double(), b.double()) for a, b in zip(found, wanted, strict=True) if b.numel())
    return max((float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in pairs), default=0.0)


def _capture_seconds(model: nn.Module) -> float | None:
    """What `torch.fx.symbolic_trace` and a copy take; None if the model cannot be traced like that."""
    try:
        with warnings.catch_warnings(action="ignore"):
            # Of the copy: models with caches keep what a trace leaves there.
            return processor_seconds(lambda: fx.symbolic_trace(copy.deepcopy(model)))
    except Exception:
        return None


def examine(entry: Entry, peers: bool = True) -> dict[str, Any]:
    """Everything about one model, as one line of the results."""
    torch.manual_seed(0)
    sample = entry.make()
    model, call = randomize(sample.model), sample.inputs(2, None)
    found: dict[str, Any] = {"name": entry.name, "parameters": sum(p.numel() for p in model.parameters())}
    if any(leaf.isnan().any() for leaf in run(model, call)):
        raise NotRun("gives NaN with random weights")
    found["before"] = counted(model, call)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    example = call[0] or None
    # What torch loads when it is first used is not the model's.
    reparamkit.fuse(nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)).eval(), torch.ones(1, 1, 1, 1))
    found["capture_seconds"] = _capture_seconds(model)
    found["plain_seconds"] = processor_seconds(
        lambda: reparamkit.fuse(model, example, example_kwargs=call[1], verify=False)
    )
    start = time.process_time()
    fused = reparamkit.fuse(model, example, example_kwargs=call[1])
    found["seconds"] = time.process_time() - start
    found["changed"] = not _same_state(state, model.state_dict())
    found["class_kept"] = isinstance(fused, type(model)) and type(fused).__name__ == type(model).__name__
    report = reparamkit.report(fused)
    found |= {"tier": report.tier, "merges": len(report.merges), "after": counted(fused, call)}
    found["opaque"] = [r.path for r in report.refusals if r.kind == Kind.CAPTURED.value]
    found["unfolded"] = _unfolded(report) if found["after"]["foldable"] else []
    found |= _compared(sample, model, fused, call)
    if peers:
        found |= {"stock": _peer(model, call, _stock), "timm": _peer(model, call, _reparameterized)}
    if peers and sample.merge is not None:
        found["peft"] = _peer(model, call, sample.merge)
    return found


def _unfolded(report: reparamkit.Report) -> list[str]:
    """What was said about norms that stay."""
    return [f"{r.path}: {r.reason}"[:300] for r in report.refusals if "Norm" in r.layer or r.layer == "batch_norm"][:3]


def _same_state(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) or not a[n].isfinite().all() for n in a)


CHAOTIC = 1e-4
"""Error of a model in float32 beyond which it is also fused in float64, to see anything at all."""


def _compared(sample: Sample, model: nn.Module, fused: nn.Module, call: Any) -> Iterator[tuple[str, Any]]:
    """Errors on the example inputs, another batch and another size; `own`: of the model itself against float64."""
    exact = copy.deepcopy(model).double()
    found: dict[str, Any] = {}
    size = _image_size(call)
    calls = {"": call, "batch_": sample.inputs(3, None)}
    if size is not None:
        calls["size_"] = sample.inputs(2, size + 32)
    for name, each in calls.items():
        try:
            wanted = _reference(model, exact, each)
        except Exception as refused:
            found[f"{name}error"] = f"model: {type(refused).__name__}"
            continue
        found[f"{name}own"] = error(run(model, each), wanted)
        try:
            found[f"{name}error"] = error(run(fused, each), wanted)
        except GuardError as guard:
            found[f"{name}error"] = f"guard: {guard}"[:200]
    if found.get("own", 0.0) > CHAOTIC:
        example = wide(call)
        twin = reparamkit.fuse(exact, example[0] or None, example_kwargs=example[1])
        found["wide_error"] = error(run(twin, example), run(exact, example))
    return iter(found.items())


def _reference(model: nn.Module, exact: nn.Module, call: Any) -> list[Tensor]:
    """The output in float64; in float32 where a model insists on it."""
    try:
        return run(exact, wide(call))
    except RuntimeError:
        return run(model, call)


def _image_size(call: Any) -> int | None:
    images = [leaf for leaf in tree_leaves(call) if isinstance(leaf, Tensor) and leaf.dim() >= 3]
    return images[0].shape[-1] if images else None


def _peer(model: nn.Module, call: Any, convert: Callable[[nn.Module], nn.Module]) -> dict[str, Any]:
    """What another tool leaves, its error against the model, or its exception."""
    try:
        other = convert(copy.deepcopy(model))
        found: dict[str, Any] = counted(other, call)
        found["error"] = error(run(other, call), run(model, call))
    except Exception as refused:
        return {"exception": type(refused).__name__}
    return found


def _stock(model: nn.Module) -> nn.Module:
    return stock_fuse(model)  # type: ignore[no-any-return]


def _reparameterized(model: nn.Module) -> nn.Module:
    from timm.utils import reparameterize_model

    return reparameterize_model(model)  # type: ignore[no-any-return]


PEERS = ("stock", "timm", "peft")
"""Other tools, of which the last takes adapters only."""


def _best(line: dict[str, Any]) -> int:
    """The operations that the best of the other tools leaves; those of the model, if none takes it."""
    return min([line["before"]["ops"], *(line[peer]["ops"] for peer in PEERS if "ops" in line.get(peer, {}))])


def verdict(line: dict[str, Any]) -> str:
    """What is wrong with a model, in words; empty if nothing."""
    if "exception" in line:
        return str(line["exception"])
    if "not_run" in line:
        return ""
    said = []
    for name in ("", "batch_", "size_"):
        found, own = line.get(f"{name}error"), line.get(f"{name}own", 0.0)
        if isinstance(found, float) and not found <= max(1e-5, 8 * own):
            said.append(f"{name}error {found:.1e} (own {own:.1e})")
        elif name != "size_" and isinstance(found, str):
            said.append(f"{name}{found}")
    said += [f"error {line['wide_error']:.1e} in float64"] if line.get("wide_error", 0.0) > 1e-6 else []
    said += ["original changed"] if line["changed"] else []
    said += [] if line["class_kept"] else ["another class"]
    said += [f"{line['after']['foldable']} norms could be folded"] if line["after"]["foldable"] else []
    if _best(line) < line["after"]["ops"]:
        said.append(f"a peer leaves {_best(line)} operations, we {line['after']['ops']}")
    return "; ".join(said)


# --- processes ------------------------------------------------------------------------------------------


def main() -> None:
    options = _options()
    if options.table:
        TABLE.write_text(table(_done(options.results)))
        return
    index, shards = (int(n) for n in options.shard.split("/"))
    done = {line["name"] for line in _done(options.results)}
    chosen = [e for e in entries()[index::shards] if options.only in e.name and (options.again or e.name not in done)]
    begin = time.monotonic()
    for entry in chosen:
        if time.monotonic() - begin > options.seconds:
            break
        line = _apart(entry, options.limit)
        with options.results.open("a") as file:
            file.write(json.dumps(line) + "\n")
        said = f"not run: {line['not_run']}" if "not_run" in line else verdict(line) or "ok"
        print(f"{entry.name}: {said} ({line.get('seconds', 0):.1f} s)", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th model from the i-th on")
    parser.add_argument("--only", default="", help="models whose name contains this")
    parser.add_argument("--again", action="store_true", help="also those that are in the results")
    parser.add_argument("--limit", type=float, default=150, help="seconds for one model")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no further model after this time")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="write docs/zoo.md from the results and stop")
    return parser.parse_args()


def _done(path: Path) -> list[dict[str, Any]]:
    """The last line of each model."""
    lines = path.read_text().splitlines() if path.exists() else []
    found = {line["name"]: line for line in map(json.loads, lines)}
    return list(found.values())


def _apart(entry: Entry, limit: float) -> dict[str, Any]:
    """Examine a model in a process of its own, for a limited time."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(entry, theirs))
    process.start()
    theirs.close()
    line: dict[str, Any] = {"name": entry.name, "exception": f"more than {limit:.0f} s"}
    if ours.poll(limit):
        try:
            line = ours.recv()
        except EOFError:
            line["exception"] = "the process died"
    process.kill()
    process.join()
    return line


def _child(entry: Entry, pipe: Any) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    try:
        pipe.send(examine(entry))
    except NotRun as why:
        pipe.send({"name": entry.name, "not_run": str(why)})
    except BaseException as failure:
        lines = traceback.format_exception(failure)
        pipe.send({"name": entry.name, "exception": f"{type(failure).__name__}: {failure}"[:300], "trace": lines[-3:]})


# --- the page -------------------------------------------------------------------------------------------

HEAD = """# The zoo

`python benchmarks/zoo.py` fuses one model of every timm module, torchvision's families, a small random configuration of
each architecture of transformers, and each adapter of peft on two models of these, with random batch-norm statistics
and layer scales, and compares each with itself in float64; then `--table` writes this page.
Operations are counted while the model runs, by a dispatch mode (views aside), not from our own graph. `own` is the
error of the unfused model in float32 against float64: random numbers make some models amplify rounding, and no two ways
to compute these agree better than that; they are fused in float64 as well. `batch` and `size` are the errors at another
batch size and, where the model takes it, another image size or number of tokens. `stock` is
`torch.fx.experimental.optimization.fuse`, the next column `timm.utils.reparameterize_model`, or for an adapter its
`merge_and_unload`: operations left, and in brackets the batch norms left, or the exception.

Rows are of several versions: a model is run again when something that concerns it changes. A detector with random
weights gives many boxes the same score, and their order is then a matter of rounding: that is the difference of
ssdlite320. `s` is the seconds of `fuse`, proofs included: of a clock in older rows, of one processor in newer ones.

"""


def table(lines: list[dict[str, Any]]) -> str:
    """The page of the documentation."""
    good = [line for line in lines if line.keys().isdisjoint(("exception", "not_run"))]
    head = "| model | tier | ops | BN | error | own | batch | size | stock | timm, peft | s |\n" + "|---" * 11 + "|\n"
    rows = "".join(_row(line) for line in lines if "not_run" not in line)
    missing = [e.name for e in entries() if e.name not in {line["name"] for line in lines}]
    return HEAD + _summary(lines, good) + "\n" + head + rows + _not_run(missing, lines)


def _summary(lines: list[dict[str, Any]], good: list[dict[str, Any]]) -> str:
    def total(*path: str) -> int:
        return sum(line[path[0]][path[1]] for line in good)

    ran = [line for line in lines if "not_run" not in line]
    fewer = [line["name"] for line in good if _best(line) < line["after"]["ops"]]
    seconds = [line["seconds"] for line in good]
    ratios = [line["plain_seconds"] / line["capture_seconds"] for line in good if line.get("capture_seconds")]
    sentences = [
        f"{len(ran)} models: {len(ran) - len(good)} raise or time out,"
        f" {sum('error' in verdict(line) for line in good)} differ by more than rounding,"
        f" {sum(not line['class_kept'] for line in good)} lose their class,"
        f" {sum(line['changed'] for line in good)} originals changed.",
        f"Operations {total('before', 'ops'):,} -> {total('after', 'ops'):,};"
        f" the best of the other tools, model by model, leaves {sum(map(_best, good)):,}.",
        f"On {len(fewer)} models another tool leaves fewer operations" + (f": {', '.join(fewer)}." if fewer else "."),
        f"Batch norms {total('before', 'bn'):,} -> {total('after', 'bn'):,},"
        f" of which {total('after', 'foldable'):,} could be folded into a neighbour.",
        f"Median time to fuse: {median(seconds):.1f} s, proofs included, one thread. Without proofs, `fuse` takes"
        f" {median(ratios):.1f} times the processor time of a deep copy and a `torch.fx.symbolic_trace` (median of the"
        f" {len(ratios)} models that the latter can trace).",
    ]
    return "\n".join(sentences) + "\n"


def _row(line: dict[str, Any]) -> str:
    if "exception" in line:
        return f"| {line['name']} | {line['exception'].splitlines()[0][:80].replace('|', '/')} |" + " |" * 9 + "\n"
    cells = [
        line["name"],
        line["tier"] + (f", {len(line['opaque'])} left" if line["opaque"] else ""),
        f"{line['before']['ops']} -> {line['after']['ops']}",
        f"{line['before']['bn']} -> {line['after']['bn']}",
        _figure(line.get("error")) + (f" ({line['wide_error']:.0e} in float64)" if "wide_error" in line else ""),
        *(_figure(line.get(name)) for name in ("own", "batch_error", "size_error")),
        *(_left(line[peer]) for peer in ("stock", "peft" if "peft" in line else "timm")),
        f"{line['seconds']:.1f}",
    ]
    return f"| {' | '.join(cells)} |\n"


def _figure(value: float | str | None) -> str:
    if isinstance(value, float):
        return f"{value:.0e}"
    return "" if value is None or value.startswith("model") else value.partition(":")[0]


def _left(peer: dict[str, Any]) -> str:
    wrong = " WRONG" if peer.get("error", 0) > 1e-2 else ""
    return peer["exception"] if "exception" in peer else f"{peer['ops']} ({peer['bn']}){wrong}"


def _not_run(missing: list[str], lines: list[dict[str, Any]]) -> str:
    families = Counts(name.partition("/")[0] for name in missing)
    waiting = [f"{count} of {family}" for family, count in families.items()] if len(missing) > FEW else missing
    said = f"\nNot run yet: {', '.join(waiting)}.\n" if missing else ""
    large = "; ".join(f"{name} ({why})" for name, why in TOO_LARGE.items())
    refused = [f"`{line['name']}`: {line['not_run']}".replace("|", "/") for line in lines if "not_run" in line]
    others = "\n".join(f"- {each}" for each in refused)
    return f"{said}\nNot run, for their size: {large}.\n\n## Not built\n\n{NOT_BUILT}\n\n{others}\n"


FEW = 20
"""How many models that are not run yet the page names."""
NOT_BUILT = """Architectures of transformers that the script cannot make small, or does not know how to call, and
adapters that do not take these layers, with what was said last."""


if __name__ == "__main__":
    main()
