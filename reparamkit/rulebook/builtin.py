"""The built-in rules, in one tuple: the names by which `fuse` may use the two laws of the algebra."""

from __future__ import annotations

from .injected import InjectedLinear, is_mergeable, merge
from .pattern import call, value
from .rule import Registry, Rule

BUILTIN = (
    Rule(
        "chain",
        "g(f(x)) = (G F) x + G b + c",
        "Layers in a row become one: convolution, batch norm, linear layer, scale, average pool, zero padding. "
        "Zero padding between two windows is merged only where the border comes out exact.",
    ),
    Rule(
        "dense_chain",
        "g(f(x)) = M x,  M = T(G) T(F)",
        "Layers in a row along an axis of fixed size, written as a full matrix: exact where padding meets padding, "
        "or where a convolution meets a full matrix.",
    ),
    Rule(
        "parallel_sum",
        "f(x) + g(x) = (F + G) x + b + c",
        "Branches over one tensor become one layer: kernels of any size, dilation and parity, 1x1, identity, scale, "
        "average pool.",
    ),
    Rule(
        "direct_sum",
        "[f(x), g(y)] = [F 0; 0 G] [x, y] + [b, c]",
        "A concatenation is read as the sum of its parts with zeros around each: a layer behind it goes into every "
        "part, convolutions of one value are stacked, equal convolutions on equal parts of a split become one with "
        "groups.",
    ),
    Rule(
        "stack_layers",
        "[A x + a, B x + b] = [A; B] x + [a; b]",
        "Layers of one kind that read one value (queries, keys and values) become one, whose result is split. Only "
        'with objective="launches": neither FLOPs nor stored numbers change.',
    ),
    Rule(
        "locality_injection",
        "FC(x) + conv(x) = (W + T(K)) x + b",
        "A convolution beside a full matrix over the same axes is written onto the matrix's diagonals "
        "(RepMLPNet, CVPR 2022, section 3.3). A layer that `inject_locality` put in becomes one linear layer again.",
        pattern=call(InjectedLinear, value("x"), name="layer"),
        build=merge,
        guard=is_mergeable,
    ),
    Rule(
        "norm_into_linear",
        "W (gamma * n(x) + beta) + b = (W diag(gamma)) n(x) + (W beta + b)",
        "The scale and the shift of a layer, RMS or group norm go into the linear layers and convolutions that read "
        "it: into all of them, or the norm stays whole. What is left of the norm has no parameters.",
    ),
    Rule(
        "constant_fold",
        "f(x; g(w)) = f(x; w'),  w' = g(w)",
        "Arithmetic on parameters only is done once, in float64: weight and spectral norm, weight standardisation, "
        "masks, low-rank updates, kernels that are generated from fewer numbers.",
    ),
    Rule(
        "probe",
        "f(x) = M x + f(0),  M = f(I) - f(0)",
        "A layer that is affine but not a convolution (resampling, reflected or circular padding, roll, uneven "
        "averages) is read as a full matrix on a fixed size, and merged where a full matrix stands beside it or "
        "behind it.",
    ),
)

RULES = Registry(BUILTIN)
"""The rules that `fuse` uses by default; `reparamkit.rules`."""
