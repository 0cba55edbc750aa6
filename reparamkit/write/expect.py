"""A check of a rank as a layer."""

from __future__ import annotations

from torch import Tensor, nn

from ..tracing.guards import expect_rank


class Expect(nn.Identity):
    """What is left of a merged layer where the merge was proved for one rank of its input, or from one on: a check."""

    def __init__(self, rank: int, or_more: bool = False) -> None:
        super().__init__()
        self.rank, self.or_more = rank, or_more

    def forward(self, input: Tensor) -> Tensor:
        """input: any shape of `rank` dimensions (`or_more`); returned as it is."""
        expect_rank(input, self.rank, self.or_more)
        return input
