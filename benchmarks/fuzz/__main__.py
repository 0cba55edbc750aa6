"""Fuse random models and check that nothing is ever wrong.

python -m benchmarks.fuzz --count 20000                 seeds 0 to 19999; goes on where it was stopped
python -m benchmarks.fuzz --seed 1234                   one program: print it, and what fails
python -m benchmarks.fuzz --device cuda                 the same models on a GPU

Each distinct failure is shrunk and written as a script of its own into the folder `--failures`.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

import torch

from .check import Failure, Skip, Trial, check
from .draw import program
from .program import Program, script, source
from .shrink import shrink

EACH = 6
"""Reproducers that are made of one kind of failure; of a price that rises, fewer."""
PRICES = ("rise", "merges more")
SLOW = 30
"""Seconds of the processor after which a program counts as hanging."""


def main() -> int:
    options = _options()
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    if options.seed is not None:
        return _one(replace(program(options.seed), device=options.device))
    return run(options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, help="one program only")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=2000, help="number of seeds")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time; go on with --state")
    parser.add_argument("--failures", type=Path, default=Path("fuzz_failures"), help="folder of the reproducers")
    parser.add_argument("--device", default="cpu", help="where the models run")
    parser.add_argument("--state", type=Path, help="a file that remembers what was done")
    return parser.parse_args()


def _one(drawn: Program) -> int:
    print(source(drawn))
    found = check(drawn)
    if found is None:
        print("holds")
        return 0
    small, failure, trial = shrink(drawn, *found)
    print(reproducer(small, failure, trial))
    return 1


@dataclass
class State:
    """What was tried. known: per distinct failure how often it was seen."""

    next: int
    tried: int = 0
    skipped: int = 0
    seconds: float = 0
    known: Counter[str] = field(default_factory=Counter)

    def write(self, path: Path | None) -> None:
        """Save, if there is a file to save to."""
        if path is not None:
            path.write_text(json.dumps(vars(self)))


def _state(start: int, path: Path | None) -> State:
    if path is None or not path.exists():
        return State(start)
    found = json.loads(path.read_text())
    return State(**(found | {"known": Counter(found["known"])}))


def run(options: argparse.Namespace) -> int:
    """Try the seeds and report; the number of distinct failures."""
    state = _state(options.start, options.state)
    begin = time.monotonic()
    before = state.seconds
    while state.next < options.start + options.count and time.monotonic() - begin < options.seconds:
        _try(replace(program(state.next), device=options.device), state, options.failures)
        state.next += 1
        state.seconds = before + time.monotonic() - begin
        if state.next % 200 == 0:
            state.write(options.state)
            print(_line(state), flush=True)
    state.write(options.state)
    print(_line(state))
    for key, seen in state.known.most_common():
        print(f"  {seen:>5} x {key}")
    return len(state.known)


def _line(state: State) -> str:
    rate = state.tried / max(state.seconds, 1e-9)
    return (
        f"seed {state.next}: {state.tried} models, {rate:.1f} per second, {state.skipped} skipped,"
        f" {len(state.known)} distinct failures"
    )


class Hanging(Exception):
    """A program takes too long."""


def _hanging(number: int, frame: FrameType | None) -> None:
    raise Hanging(f"more than {SLOW} s")


def _try(drawn: Program, state: State, failures: Path) -> None:
    signal.signal(signal.SIGVTALRM, _hanging)
    signal.setitimer(signal.ITIMER_VIRTUAL, SLOW)
    try:
        found = check(drawn)
    except Skip:
        state.skipped += 1
        return
    except Hanging as error:
        found = Failure("takes too long", str(error)), Trial(True, {})
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    state.tried += 1
    if found is None:
        return
    failure, trial = found
    small = drawn
    each = 3 if failure.kind.endswith(PRICES) else EACH
    if state.known[str(failure.key)] < each and failure.kind != "takes too long":
        small, failure, trial = shrink(drawn, failure, trial, 15)
    key = f"{failure.kind} | {failure.where} | {' '.join(sorted(small.kinds))}"
    state.known[str(failure.key)] += 1
    name = failures / f"{state.next:06d}.py"
    saved = key not in state.known and state.known[str(failure.key)] <= each
    state.known[key] += 1
    if saved:
        failures.mkdir(parents=True, exist_ok=True)
        name.write_text(reproducer(small, failure, trial))
    print(f"  seed {state.next}: {key}{f' -> {name}' if saved else ''}", flush=True)


def reproducer(small: Program, failure: Failure, trial: Trial) -> str:
    """A script with the failure as its first line."""
    head = f'"""{failure.kind}: {" ".join(failure.detail.split())[:300]} [{failure.where}]"""\n\n'
    calls = [
        f"fused = {trial}",
        "print(reparamkit.report(fused))",
        "with torch.no_grad():",
        "    wanted, found = (m(*(t.clone() for t in inputs)) for m in (model, fused))",
        "for a, b in zip(torch.utils._pytree.tree_leaves(found), torch.utils._pytree.tree_leaves(wanted)):",
        "    print(tuple(a.shape), tuple(b.shape), float((a - b).abs().max()))",
    ]
    return head.replace("\\", "/") + script(small, "\n".join(calls))


if __name__ == "__main__":
    sys.exit(main())
