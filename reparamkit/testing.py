"""The tests we give our own rules and readers, for yours.

from reparamkit.testing import check_rule, check_reader
check_rule(my_rule, lambda: nn.Sequential(MyLayer(8), nn.ReLU()), shape=((1, 4), 8, (3, 9), (3, 9)))
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .algebra.form import Form, source_form
from .algebra.size import free_size
from .capture.arguments import Inputs
from .carried import report
from .compare import relative_error, undisturbed
from .errors import EquivalenceError, NotFusable, RuleError
from .layers.registry import READERS, Reader
from .layers.writers import plan
from .pipeline import fuse
from .proof import SITE_TOLERANCE
from .rulebook.builtin import RULES
from .rulebook.rule import Rule

Shape = Sequence[int | tuple[int, int]]
"""A shape in which a pair (low, high) stands for any size from low to high."""


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw random parameters and batch-norm statistics, in place: fresh ones (mean 0, variance 1) hide mistakes.

    Args:
        model: in any mode.
        seed: the same seed gives the same numbers.

    Returns:
        The model itself, now in eval mode.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if not tensor.is_floating_point():
                continue
            if name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            else:
                fan_in = max(1, tensor.numel() // max(1, tensor.shape[0] if tensor.dim() > 1 else tensor.numel()))
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / fan_in**0.5)
    # Classes override `train` and forget to return the model.
    model.eval()
    return model


def check_rule(
    rule: Rule | str, make_model: Callable[[], nn.Module], shape: Shape, *, trials: int = 10, seed: int = 0
) -> None:
    """Check that a rule applies to a model and keeps what it computes, for random numbers and shapes.

    Each trial fuses a fresh model in float64, and checks that the rule was used, that the outputs are the same for the
    shape that was traced and for another batch size, and that the model itself is left as it was.

    Args:
        rule: a graph rule, registered or not, or the name of a registered one.
        make_model: returns a new model that the rule applies to.
        shape: of the model's input; a pair (low, high) stands for any size from low to high.
        trials: how many models and inputs are drawn.
        seed: the same seed draws the same ones.

    Raises:
        RuleError: the rule was not used.
        EquivalenceError: the outputs differ, or the model was changed.
    """
    rule = RULES[rule] if isinstance(rule, str) else rule
    extra = [] if rule.name in RULES else [rule]
    draw = random.Random(seed)
    for trial in range(trials):
        model = randomize(make_model(), seed + trial).double()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        x = _input(shape, draw)
        fused = fuse(model, x, extra_rules=extra)
        used = {name for merge in report(fused).merges for name in merge.rules}
        if rule.name not in used:
            raise RuleError(f"rule '{rule.name}' was not used on this model:\n{report(fused)}")
        for each in (x, _like(x, shape, draw)):
            (found,), (wanted,) = (undisturbed(m, Inputs((each,))) for m in (fused, model))
            _compare(found, wanted, rule.name, each)
        if any(not torch.equal(before[name], tensor) for name, tensor in model.state_dict().items()):
            raise EquivalenceError(f"fusing with rule '{rule.name}' changed the model that was given")


def check_reader(make_layer: Callable[[], nn.Module], shape: Shape, *, trials: int = 10, seed: int = 0) -> None:
    """Check that the reader of a layer says what the layer computes, for random numbers and shapes.

    Each trial writes the form that the reader returns as one plain layer, and compares that with the layer itself in
    float64. All sizes but those that the layer fixes stay free.

    Args:
        make_layer: returns a new layer that has a reader.
        shape: of its input; a pair (low, high) stands for any size from low to high.
        trials: how many layers and inputs are drawn.
        seed: the same seed draws the same ones.

    Raises:
        RuleError: there is no reader, or it fails.
        NotFusable: the reader refuses, or the layer has several inputs.
        EquivalenceError: the outputs differ.
    """
    draw = random.Random(seed)
    for trial in range(trials):
        layer = randomize(make_layer(), seed + trial).double()
        reader = READERS.of_module(layer)
        if reader is None:
            raise RuleError(f"there is no reader for {type(layer).__name__}: declare one with @reparamkit.reader")
        x = _input(shape, draw)
        sizes = tuple(free_size("x", d - x.dim(), n) for d, n in enumerate(x.shape))
        form = _read(reader, layer, source_form("x", sizes))
        if len(form.terms) != 1:
            raise NotFusable("check_reader checks layers of one input")
        written = plan(form.sample, form.bias).build()
        for each in (x, _like(x, shape, draw)):
            _compare(written(each), layer(each), type(layer).__name__, each)


def _read(reader: Reader, layer: nn.Module, x: Form) -> Form:
    try:
        found = reader(layer, x)
    except NotFusable:
        raise
    except Exception as error:
        raise RuleError(f"the reader of {reader.name} fails ({type(error).__name__}: {error})") from error
    found = found[0] if isinstance(found, tuple) and found else found
    if not isinstance(found, Form):
        raise RuleError(f"the reader of {reader.name} returned {type(found).__name__}, not a form")
    return found


def _input(shape: Shape, draw: random.Random) -> Tensor:
    sizes = [n if isinstance(n, int) else draw.randint(*n) for n in shape]
    return torch.randn(sizes, generator=torch.Generator().manual_seed(draw.randint(0, 2**31)), dtype=torch.float64)


def _like(x: Tensor, shape: Shape, draw: random.Random) -> Tensor:
    """Another batch size, which no merge may depend on; the other sizes as traced."""
    first = shape[0] if isinstance(shape[0], int) else draw.randint(*shape[0])
    generator = torch.Generator().manual_seed(draw.randint(0, 2**31))
    return torch.randn((first, *x.shape[1:]), generator=generator, dtype=torch.float64)


def _compare(found: Tensor, wanted: Tensor, name: str, x: Tensor) -> None:
    error = relative_error(found, wanted)
    if not error <= SITE_TOLERANCE:
        raise EquivalenceError(f"'{name}' changes the output on an input of shape {tuple(x.shape)}: error {error:.2e}")
