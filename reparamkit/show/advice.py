"""What to do about a layer that was left: one table, from the reasons to advice."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Advice:
    """One kind of reason for which layers are left, with what to do about it.

    Attributes:
        kind: its name.
        title: what these reasons have in common, as the end of a sentence about the layer.
        advice: what the user could do.
        pattern: regular expression that finds a reason of this kind; of several kinds, the first in `TABLE` counts.
        counts: whether layers left for this reason are among the mergeable layers of `Report.coverage`.
    """

    kind: str
    title: str
    advice: str
    pattern: str
    counts: bool = True


TABLE = (
    Advice(
        "training",
        "depends on the batch, or is random",
        "call model.eval() before fuse; a batch norm must keep running statistics (track_running_stats=True)",
        r"training mode|training=True|running statistics|statistics of the batch",
    ),
    Advice(
        "left out",
        "left out by the call",
        "nothing, if this was meant; else change only=, skip= or without=",
        r"left out by |is switched off",
    ),
    Advice(
        "border",
        "differs at a zero-padded border",
        "put the batch norm after the convolution, or pad once at the start and use padding=0; nothing is lost by"
        " leaving it: this pair is not exactly one convolution",
        r"zero padding|border|no symmetric padding|along part of a dimension|weighs border|same in every window",
    ),
    Advice(
        "resampled",
        "is resampled in between",
        "put norms and 1x1 convolutions next to each other; an interpolation, an average of windows or a reflection"
        " stays, and lets through only what is the same along its axes",
        r"resampl|averages of windows|averages over whole axes|one position is read|nearest positions|that crops"
        r"|windows that are cut off",
    ),
    Advice(
        "closed",
        "is one call of torch",
        "nothing, if that call is what you want; a block that is written with nn.Linear and"
        " F.scaled_dot_product_attention is looked into",
        r"torch computes it in one call",
        counts=False,
    ),
    Advice(
        "compiled",
        "is compiled already",
        "fuse the model as it was before torch.jit.script, and compile the fused one",
        r"it is compiled",
        counts=False,
    ),
    Advice(
        "cost",
        "exact, and would not pay",
        'nothing, for speed; objective="launches" takes merges that raise FLOPs or stored numbers',
        r"would raise |would add work|would save nothing|is not cheaper than|slower when merged|cannot be timed",
    ),
    Advice(
        "captured",
        "could not be traced",
        "the modules inside were fused by themselves; to reach this one, pass example_inputs if there were none, and"
        " replace branches on values by tensor operations (torch.where)",
        r"cannot be captured|cannot be traced|could not be traced|are captured by themselves|depends on the data of"
        r"|parameter that the model does not have|writes into a tensor of the model|a trace cannot answer",
    ),
    Advice(
        "sizes",
        "needs sizes",
        "pass example_inputs, if there were none: then sizes are known, and what holds for them only is guarded; what"
        " mixes a size that stays free, such as the batch, cannot be one layer",
        r"pass example_inputs|rank of (this|a) tensor|unknown rank|fixed sizes? |size is free|free sizes?"
        r"|free number of"
        r"|sizes cannot be followed|whose size cannot be followed|cannot be followed|partly free"
        r"|size that is free|channels that is not known"
        r"|size that is unknown|computed at run time|not known to be 1|depend on the input's size"
        r"|happens to be 1|a multiple of|no fixed multiple",
    ),
    Advice(
        "shared",
        "used at several places",
        "give each place a module of its own (copy.deepcopy) before fusing",
        r"called at \S+ places|on constants too|times in a run|times inside a module|tied to another|read elsewhere"
        r"|in use elsewhere|was traced apart|is cut through|code of the model (?:reads|asks for the very class)"
        r"|could leave it none",
    ),
    Advice(
        "method",
        "is used in part by a method",
        "compute what belongs together in one method, or remove the method if nothing calls it",
        r"uses a part of what would be merged|to whoever calls it",
    ),
    Advice(
        "recorded",
        "is what the model can be asked for",
        "nothing: values inside that a flag returns (output_hidden_states) stay as they are",
        r"may record",
    ),
    Advice(
        "hooks",
        "is observed by hooks",
        "remove the hooks before fuse and set them again on the fused model",
        r"hooks|a hook of|what a hook keeps",
    ),
    Advice(
        "replaced",
        "has a part that was put in later",
        "merge the adapter into its layer (in peft: merge_and_unload), or remove it, before fuse",
        r"is now of class",
    ),
    Advice(
        "in place",
        "is overwritten in place",
        "use the out-of-place form (inplace=False, x = x + y instead of x += y)",
        r"in place|in-place|overwritten",
    ),
    Advice(
        "changing",
        "goes by what changes while the model runs",
        "set attributes of modules before fuse and not in a forward; what a forward only counts is no obstacle",
        r"while the model runs",
    ),
    Advice(
        "dtype",
        "changes its number format",
        "fuse in float32 outside autocast, and convert the fused model",
        r"inside an autocast|dtype|complex|overflows|too small for|rounded to|values of \w+ are not merged"
        r"|weights are quantised",
    ),
    Advice(
        "gradients",
        "keeps gradients apart",
        "drop detach() in a model that is only run",
        r"without its history",
    ),
    Advice(
        "random",
        "is another in each call",
        "remove the parametrization (torch.nn.utils.parametrize.remove_parametrizations) first, if one draw will do",
        r"draws random numbers",
    ),
    Advice(
        "numbers",
        "holds infinity or no number",
        "look for what damaged the weights; a factor that is meant to be infinite stays where it is",
        r"not finite",
    ),
    Advice(
        "shapes",
        "mixes shapes that one layer cannot",
        "give both sides of the sum or product the same shape (x.flatten(1) rather than x.reshape(-1, n), which hides"
        " the batch)",
        r"broadcast|do not agree|sizes 1 and|sizes may differ|mixes several dimensions|mixes the samples"
        r"|mean over the batch|differs from place to place|changes the dimensions"
        r"|number of dimensions|of rank|needs \d+ dimensions|need.*dimensions"
        r"|come from another dimension|averaged axes|splits or joins an axis|not a scale|nothing is mixed|takes a slice"
        r"|slice that takes nothing|has the size 0|that are cropped|behind a crop"
        r"|through the graph|sampled again|zeros|no single layer computes|would differ from place|is not the same",
    ),
    Advice(
        "code",
        "sits in code that cannot be written again",
        "make the forward around it plain: values come in as arguments, results go out as results; or pass"
        " as_graph=True, which writes no code",
        r"its forward|whose forward|the forward of|uses a value|which is not inside it|generated method"
        r"|is a GraphModule|holds it in an object|reader does not know|a value from inside the merge"
        r"|cannot be checked|does not reach|hands on a|whose keys are not names|as a plain number|has its code in it"
        r"|of the model asks",
    ),
    Advice(
        "order",
        "is viewed in an order that a layer makes",
        "write reshape() in place of view()",
        r"takes a view\(\)",
    ),
    Advice(
        "alone",
        "has no linear neighbour",
        "nothing: there is a nonlinearity on both sides",
        r"nothing linear beside it",
    ),
    Advice(
        "scale",
        "has a scale that others need",
        "nothing: a scale leaves only if everything that reads it can absorb it",
        r"cannot absorb|could not absorb|keeps its place",
    ),
    Advice(
        "nonlinear",
        "is not linear in its input",
        "nothing: weights that depend on the input cannot be merged beforehand",
        r"computed from the input|(product|sum) of two values|division by a value|not affine|not a constant"
        r"|more than one value|sum of constants",
    ),
    Advice(
        "unread",
        "is not understood by any reader",
        "teach it: @reparamkit.reader(MyLayer), see the page 'Add a rule'",
        r"not understood|cannot read|not a form|is not a module here|full matrix over|fails in float64|of several"
        r" dimensions|index that is no slice|narrow from the end|einsum that is not|expected a tensor|not proved"
        r"|cannot be run on|has no data|a concatenation with something|a roll over all|a split of \S+ into"
        r"|repeats of all|the attribute '",
    ),
)
"""In order: the first whose pattern is found is meant. A reason may name several causes, the first tells most."""

OTHER = Advice("other", "for another reason", "the reason says what is in the way", "")


def advice(reason: str) -> Advice:
    """The entry of the table that a reason of a refusal belongs to; `OTHER` if there is none."""
    return next((each for each in TABLE if re.search(each.pattern, reason)), OTHER)
