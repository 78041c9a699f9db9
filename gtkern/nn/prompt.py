"""What a method adds to one layer of a network whose weights stay as they are."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from gtkern.ragged import Ragged

__all__ = ["Prompt"]


class Prompt(NamedTuple):
    """A vector for the rows that a layer reads, and keys and values that they all see.

    Attributes:
        vector: [C], added to every row; or [G, C], to the rows of each graph; None: nothing.
        prefix_k, prefix_v: [P, H, D] each, as the layer's `prefix` makes them of tokens; None: no
            tokens. With prefix_set [S, P, H, D].
        prefix_set: int64 [G]; which of the S prefixes a graph sees, -1 for none; None: all graphs
            see the one there is.
    """

    vector: Tensor | None = None
    prefix_k: Tensor | None = None
    prefix_v: Tensor | None = None
    prefix_set: Tensor | None = None

    def added_to(self, x: Tensor, ragged: Ragged | None = None) -> Tensor:
        """Rows x [N, C] with their vector; where each graph has its own, `ragged` has them."""
        if self.vector is None:
            return x
        vector = self.vector.to(x.dtype)
        if vector.dim() == 1:
            return x + vector
        assert ragged is not None
        return x + vector.index_select(0, ragged.batch())

    def prefix(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """What attention is called with behind rows, graphs and biases."""
        return self.prefix_k, self.prefix_v, self.prefix_set
