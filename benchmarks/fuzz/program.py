"""A random model as data: steps that are lines of Python, so that it can be run, printed, and made smaller."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reparamkit.testing import randomize

from . import parts

PARTS = {name: cls for name, cls in vars(parts).items() if inspect.isclass(cls) and cls.__module__ == parts.__name__}


@dataclass(frozen=True)
class Step:
    """One line of a forward, with the layer it calls.

    number: of the value it makes, v<number>. inputs: the values it reads. code: ``{0}``, ``{1}`` stand for the
    inputs, ``{out}`` for its value, ``{m}`` for its layer. layer: the expression that makes the layer. shared: number
    of the step whose layer is called instead. tied: number of the step whose weight is used. after: statements on the
    finished model.
    """

    number: int
    kind: str
    inputs: tuple[int, ...]
    code: str
    layer: str = ""
    shared: int | None = None
    tied: int | None = None
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Program:
    """A model and its inputs.

    shapes: of the inputs, which are the values 0, 1, ... groups: numbers of consecutive steps that form a module of
    their own. outputs: numbers. form: what is returned, "tensor", "tuple" or "dict". device: where it runs; the random
    numbers are the same on each.
    """

    seed: int
    shapes: tuple[tuple[int, ...], ...]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...] = ()
    form: str = "tensor"
    dtype: str = "float64"
    device: str = "cpu"

    @property
    def rounding(self) -> torch.dtype:
        """The narrowest dtype that takes part. On a GPU torch computes the norms of a weight norm in float32."""
        narrow = any("float32" in s.kind or (self.device != "cpu" and "weight_norm" in s.kind) for s in self.steps)
        return torch.float32 if narrow else getattr(torch, self.dtype)

    @property
    def kinds(self) -> set[str]:
        """What the program is made of."""
        return {step.kind for step in self.steps}


# --- source text ------------------------------------------------------------------------------------


def source(program: Program) -> str:
    """The classes of the model as Python, `Net` last."""
    text = [_block(program, k, steps) for k, steps in enumerate(_grouped(program))]
    return "\n\n".join([*(t for t in text if t), _net(program)])


def _grouped(program: Program) -> list[list[Step]]:
    return [[s for s in program.steps if s.number in group] for group in program.groups]


def _interface(program: Program, steps: list[Step]) -> tuple[list[int], list[int]]:
    """The values that go into a block and come out of it."""
    made = {s.number for s in steps}
    reads = sorted({n for s in steps for n in s.inputs} - made)
    later = {n for s in program.steps if s not in steps for n in s.inputs} | set(program.outputs)
    return reads, sorted(made & later)


def _block(program: Program, k: int, steps: list[Step]) -> str:
    if not steps:
        return ""
    reads, gives = _interface(program, steps)
    lines = [f"class Block{k}(nn.Module):", "    def __init__(self):", "        super().__init__()"]
    lines += [f"        {line}" for s in steps for line in _init(s)]
    lines += ["", f"    def forward(self, {', '.join(f'v{n}' for n in reads)}):"]
    lines += [f"        {line}" for s in steps for line in _forward(s)]
    lines += [f"        return {', '.join(f'v{n}' for n in gives) or 'None'}", ""]
    return "\n".join(lines)


def _net(program: Program) -> str:
    where = _places(program)
    groups = _grouped(program)
    lines = ["class Net(nn.Module):", "    def __init__(self):", "        super().__init__()"]
    lines += [f"        self.b{k} = Block{k}()" for k, steps in enumerate(groups) if steps]
    lines += [f"        {line}" for s in program.steps if s.number not in where for line in _init(s)]
    for s in program.steps:
        if s.shared is not None and _path(where, s.shared) != _path(where, s.number, s.shared):
            lines.append(f"        self.{_path(where, s.number, s.shared)} = self.{_path(where, s.shared)}")
        if s.tied is not None:
            lines.append(f"        self.{_path(where, s.number)}.weight = self.{_path(where, s.tied)}.weight")
    inputs = ", ".join(f"v{n}" for n in range(len(program.shapes)))
    lines += ["", f"    def forward(self, {inputs}):"]
    done: set[int] = set()
    for s in program.steps:
        k = where.get(s.number)
        if k is None:
            lines += [f"        {line}" for line in _forward(s)]
        elif k not in done:
            done.add(k)
            reads, gives = _interface(program, groups[k])
            call = f"self.b{k}({', '.join(f'v{n}' for n in reads)})"
            lines.append(f"        {', '.join(f'v{n}' for n in gives)} = {call}" if gives else f"        {call}")
    return "\n".join([*lines, f"        return {_returned(program)}", ""])


def _places(program: Program) -> dict[int, int]:
    return {s.number: k for k, steps in enumerate(_grouped(program)) for s in steps}


def _path(where: dict[int, int], number: int, name: int | None = None) -> str:
    """The path of the layer `name` (default: its own) as seen from the place of the step `number`."""
    own = f"m{number if name is None else name}"
    return f"b{where[number]}.{own}" if number in where else own


def _returned(program: Program) -> str:
    values = [f"v{n}" for n in program.outputs]
    if program.form == "tensor":
        return values[0]
    if program.form == "tuple":
        return f"({', '.join(values)},)"
    return "{" + ", ".join(f'"{v}": {v}' for v in values) + "}"


def _init(step: Step) -> list[str]:
    return [f"self.m{step.number} = {step.layer}"] if step.layer else []


def _forward(step: Step) -> list[str]:
    layer = step.number if step.shared is None else step.shared
    names = [f"v{n}" for n in step.inputs]
    return step.code.format(*names, out=f"v{step.number}", m=f"self.m{layer}").splitlines()


def finishing(program: Program) -> list[str]:
    """Statements on `model` after it was randomised."""
    where = _places(program)
    return [a.format(m=f"model.{_path(where, s.number)}") for s in program.steps for a in s.after]


def script(program: Program, calls: str) -> str:
    """A program that stands alone: the model, its inputs, and `calls`."""
    body = source(program)
    shapes = "".join(f"\n    torch.randn{shape}, " for shape in program.shapes)
    lines = [
        "import torch",
        "from torch import Tensor, nn",
        "from torch.nn import functional as F",
        "",
        "import reparamkit",
        "from reparamkit.testing import randomize",
        "",
        f"torch.set_default_dtype(torch.{program.dtype})  # of the inputs; the model is cast below",
        "",
        *(f"\n{inspect.getsource(cls)}" for cls in _parts_of(body)),
        "",
        body,
        "",
        f"model = randomize(Net(), {program.seed}).to(torch.{program.dtype})",
        *finishing(program),
        f'model = model.to("{program.device}")',
        f'inputs = tuple(x.to("{program.device}") for x in ({shapes}\n))',
        calls,
    ]
    return "\n".join(lines) + "\n"


def _parts_of(body: str) -> Iterator[type]:
    for name, cls in PARTS.items():
        if re.search(rf"\b{name}\(", body):
            yield cls


# --- running ----------------------------------------------------------------------------------------


def namespace() -> dict[str, Any]:
    """The names that steps may use."""
    return {"torch": torch, "nn": nn, "F": F, **PARTS, "__name__": "fuzzed"}


def build(program: Program) -> nn.Module:
    """The randomised model, in eval mode but for what its steps set otherwise."""
    names = namespace()
    exec(source(program), names)
    torch.manual_seed(program.seed)
    model = randomize(names["Net"](), program.seed).to(getattr(torch, program.dtype))
    with torch.no_grad():
        for line in finishing(program):
            exec(line, names | {"model": model})
    return model.to(program.device)  # type: ignore[no-any-return]


def inputs(program: Program, shapes: tuple[tuple[int, ...], ...] | None = None) -> tuple[Tensor, ...]:
    """Random inputs of the given shapes (default: the program's own)."""
    generator = torch.Generator().manual_seed(program.seed + 1)
    dtype = getattr(torch, program.dtype)
    return tuple(
        torch.randn(shape, generator=generator, dtype=torch.float64).to(program.device, dtype)
        for shape in shapes or program.shapes
    )


# --- making smaller ---------------------------------------------------------------------------------


def without_step(program: Program, number: int, instead: int | None) -> Program:
    """The program without a step; `instead` is read wherever its value was."""
    swap = {number: instead}
    steps = []
    for s in program.steps:
        if s.number == number or s.shared == number or s.tied == number:
            continue
        steps.append(replace(s, inputs=tuple(swap.get(n, n) if n in swap else n for n in s.inputs)))
    kept = {s.number for s in steps} | set(range(len(program.shapes)))
    outputs = tuple(swap.get(n, n) for n in program.outputs)
    if any(n not in kept for s in steps for n in s.inputs) or any(n not in kept for n in outputs):
        raise ValueError("a value is missing")
    return replace(program, steps=tuple(steps), outputs=tuple(dict.fromkeys(outputs)))


def indented(text: str) -> str:
    """For messages."""
    return textwrap.indent(text, "    ")
