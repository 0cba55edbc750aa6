"""A pytest plugin: `fuse` without its built-in proofs, so that the tests have to find a mistake by themselves."""

from __future__ import annotations

from reparamkit import pipeline
from reparamkit.verify import Piece


def _unchecked(piece: Piece, where: str) -> float:
    return 0.0


pipeline.check = _unchecked
pipeline._whole = lambda fused, original, request: None
