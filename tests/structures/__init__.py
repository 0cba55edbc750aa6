"""The model zoo of the tests: small networks, the sizes they take, and what should be left of them."""

from __future__ import annotations

from .blocks import Model as Model
from .blocks import Net as Net
from .blocks import Scalar as Scalar
from .blocks import Sum as Sum
from .blocks import conv as conv
from .blocks import conv_norm as conv_norm
from .blocks import depthwise as depthwise
from .blocks import norm as norm
from .blocks import repvgg as repvgg
from .blocks import seq as seq
from .borders import BORDERS
from .branches import BRANCHES
from .constants import CONSTANTS
from .dense import DENSE
from .dense import FlatMap as FlatMap
from .dense import TokenMixer as TokenMixer
from .dense import repmlp_block as repmlp_block
from .fused import both_ways as both_ways
from .fused import each as each
from .fused import fused_once as fused_once
from .measure import build as build
from .measure import error as error
from .measure import operations as operations
from .measure import randomize as randomize
from .measure import run as run
from .measure import sample as sample
from .measure import wide as wide
from .near_misses import NEAR_MISSES as NEAR_MISSES
from .near_misses import hooked as hooked
from .networks import NETS
from .networks import RepDepthwise as RepDepthwise
from .networks import Residual as Residual
from .norms import NORMS
from .norms import Attention as Attention
from .norms import GatedMLP as GatedMLP
from .norms import HandRMSNorm as HandRMSNorm
from .norms import PreNorm as PreNorm
from .parameters import FUNCTIONS, PARAMETERS
from .parameters import FrozenNorm as FrozenNorm
from .parts import PARTS
from .pieces import PIECES
from .resampling import RESAMPLED
from .rows import CHAINS
from .spellings import SPELLED, SPELLINGS
from .table import MAPS as MAPS
from .table import Family
from .table import NearMiss as NearMiss
from .table import Shape as Shape
from .table import Structure as Structure
from .upsampling import UPSAMPLED
from .views import RESAMPLING

FAMILIES = (
    Family("Rows", "Layers one after the other become one layer: g(f(x)).", CHAINS),
    Family("Branches", "Layers side by side over one value become one layer: f(x) + g(x).", BRANCHES),
    Family("Concatenation and split", "Parts of an axis are layers of their own; equal parts become groups.", PARTS),
    Family("Views", "A view that does not mix numbers lets layers through.", RESAMPLING),
    Family("Pieces of an axis", "An axis is cut into parts, cropped, or turned into channels.", PIECES),
    Family(
        "Upsampling",
        "A convolution behind nearest upsampling is one transposed convolution, of fewer FLOPs and more numbers.",
        UPSAMPLED,
    ),
    Family(
        "Resampling",
        "A map along an axis whose weights sum to 1 stays; what is free along the axis passes it.",
        RESAMPLED,
    ),
    Family("Norms", "The scale and shift of a norm go into all layers that read it, or stay.", NORMS),
    Family("Borders", "What zero padding makes of a shift is a bias with borders of its own.", BORDERS),
    Family("Full matrices", "A convolution beside a full matrix becomes part of it: locality injection.", DENSE),
    Family("Parameter arithmetic", "What depends on parameters only is computed once.", (*FUNCTIONS, *PARAMETERS)),
    Family("Constants", "What a constant does to a value is a layer, in whatever shape it comes.", CONSTANTS),
    Family("Spellings", "One layer or sum, written in the ways that code writes it.", (*SPELLINGS, *SPELLED)),
    Family("Pieces of networks", "Several merges meet.", NETS),
)


STRUCTURES = tuple(structure for family in FAMILIES for structure in family.structures)
