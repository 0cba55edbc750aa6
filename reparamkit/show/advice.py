"""What to do about a layer that was left: one table, from the kinds of reasons to advice."""

from __future__ import annotations

from dataclasses import dataclass

from ..reasons import Kind


@dataclass(frozen=True)
class Advice:
    """One kind of reason for which layers are left, with what to do about it.

    Attributes:
        kind: its name.
        title: what these reasons have in common, as the end of a sentence about the layer.
        advice: what the user could do.
        counts: whether layers left for this reason are among the mergeable layers of `Report.coverage`.
    """

    kind: str
    title: str
    advice: str
    counts: bool = True


_TEXTS = {
    Kind.TRAINING: (
        "depends on the batch, or is random",
        "call model.eval() before fuse; a batch norm must keep running statistics (track_running_stats=True)",
    ),
    Kind.LEFT_OUT: ("left out by the call", "nothing, if this was meant; else change only=, skip= or without="),
    Kind.BORDER: (
        "differs at a zero-padded border",
        "put the batch norm after the convolution, or pad once at the start and use padding=0; nothing is lost by"
        " leaving it: this pair is not exactly one convolution",
    ),
    Kind.RESAMPLED: (
        "is resampled in between",
        "put norms and 1x1 convolutions next to each other; an interpolation, an average of windows or a"
        " reflection stays, and lets through only what is the same along its axes",
    ),
    Kind.CLOSED: (
        "is one call of torch",
        "nothing, if that call is what you want; a block that is written with nn.Linear and"
        " F.scaled_dot_product_attention is looked into",
    ),
    Kind.COMPILED: (
        "is compiled already",
        "fuse the model as it was before torch.jit.script, and compile the fused one",
    ),
    Kind.COST: (
        "exact, and would not pay",
        'nothing, for speed; objective="launches" takes merges that raise FLOPs or stored numbers',
    ),
    Kind.CAPTURED: (
        "could not be traced",
        "the modules inside were fused by themselves; to reach this one, pass example_inputs if there were none,"
        " and replace branches on values by tensor operations (torch.where)",
    ),
    Kind.SIZES: (
        "needs sizes",
        "pass example_inputs, if there were none: then sizes are known, and what holds for them only is guarded;"
        " what mixes a size that stays free, such as the batch, cannot be one layer",
    ),
    Kind.SHARED: ("used at several places", "give each place a module of its own (copy.deepcopy) before fusing"),
    Kind.METHOD: (
        "is used in part by a method",
        "compute what belongs together in one method, or remove the method if nothing calls it",
    ),
    Kind.RECORDED: (
        "is what the model can be asked for",
        "nothing: values inside that a flag returns (output_hidden_states) stay as they are",
    ),
    Kind.HOOKS: ("is observed by hooks", "remove the hooks before fuse and set them again on the fused model"),
    Kind.REPLACED: (
        "has a part that was put in later",
        "merge the adapter into its layer (in peft: merge_and_unload), or remove it, before fuse",
    ),
    Kind.IN_PLACE: (
        "is overwritten in place",
        "use the out-of-place form (inplace=False, x = x + y instead of x += y)",
    ),
    Kind.CHANGING: (
        "goes by what changes while the model runs",
        "set attributes of modules before fuse and not in a forward; what a forward only counts is no obstacle",
    ),
    Kind.DTYPE: ("changes its number format", "fuse in float32 outside autocast, and convert the fused model"),
    Kind.GRADIENTS: ("keeps gradients apart", "drop detach() in a model that is only run"),
    Kind.RANDOM: (
        "is another in each call",
        "remove the parametrization (torch.nn.utils.parametrize.remove_parametrizations) first, if one draw will do",
    ),
    Kind.NUMBERS: (
        "holds infinity or no number",
        "look for what damaged the weights; a factor that is meant to be infinite stays where it is",
    ),
    Kind.SHAPES: (
        "mixes shapes that one layer cannot",
        "give both sides of the sum or product the same shape (x.flatten(1) rather than x.reshape(-1, n), which"
        " hides the batch)",
    ),
    Kind.CODE: (
        "sits in code that cannot be written again",
        "make the forward around it plain: values come in as arguments, results go out as results; or pass"
        " as_graph=True, which writes no code",
    ),
    Kind.ORDER: ("is viewed in an order that a layer makes", "write reshape() in place of view()"),
    Kind.ALONE: ("has no linear neighbour", "nothing: there is a nonlinearity on both sides"),
    Kind.SCALE: (
        "has a scale that others need",
        "nothing: a scale leaves only if everything that reads it can absorb it",
    ),
    Kind.NONLINEAR: (
        "is not linear in its input",
        "nothing: weights that depend on the input cannot be merged beforehand",
    ),
    Kind.UNREAD: (
        "is not understood by any reader",
        "teach it: @reparamkit.reader(MyLayer), see the page 'Add a rule'",
    ),
    Kind.OTHER: ("for another reason", "the reason says what is in the way"),
}
"""Per kind its title, and the advice."""

ADVICE = {
    kind: Advice(kind.value, *texts, counts=kind not in (Kind.CLOSED, Kind.COMPILED)) for kind, texts in _TEXTS.items()
}
"""For every kind of reason what to do."""
