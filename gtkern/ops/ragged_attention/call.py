"""What a call of ragged_attention brings to a backend, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

__all__ = ["Batch", "Bias", "Forward", "Gradients", "Needs", "Options", "Prefix"]


class Batch(NamedTuple):
    """The graphs of a call; see gtkern/ragged.py.

    Attributes:
        ptr: int64 [G + 1]; graph g owns the rows ptr[g] .. ptr[g + 1].
        pair_ptr: int64 [G + 1]; its pairs begin at pair_ptr[g].
        max_nodes: the largest graph.
    """

    ptr: Tensor
    pair_ptr: Tensor
    max_nodes: int


class Bias(NamedTuple):
    """The tables that biases come from, stacked.

    Attributes:
        indices: uint8 or int16 [num_pairs] each; 255 or -1 masks a pair.
        table: [B, H], accumulation dtype: the rows of all tables; None without indices.
        first_row: where the rows of each index begin in `table`: pair x with index[m][x] = b gets
            table[first_row[m] + b].
    """

    indices: Sequence[Tensor]
    table: Tensor | None
    first_row: Sequence[int]


class Prefix(NamedTuple):
    """Keys and values that a query sees after those of its graph.

    Attributes:
        k: [P, H, D], or of several sets [S, P, H, D].
        v: [P, H, Dv], or [S, P, H, Dv].
        row_set: int64 [N]: the set that each row's graph sees, outside 0 .. S - 1 for none; the
            same for all rows of a graph. None: there is one set, and all see it.
    """

    k: Tensor | None = None
    v: Tensor | None = None
    row_set: Tensor | None = None

    @property
    def slots(self) -> int:
        """P; 0 without a prefix."""
        return 0 if self.k is None else self.k.size(-3)

    @property
    def sets(self) -> int:
        """S; 1 where all see the same."""
        return 1 if self.k is None or self.row_set is None else self.k.size(0)


class Options(NamedTuple):
    """The numbers of a call.

    Attributes:
        scale: multiplies the products (not the bias).
        dropout: probability that a normalised score is dropped.
        seed: 64 bits for the dropout mask; 0 without dropout. Pair x is item x; prefix slot p of
            query i is item num_pairs + i * P + p (see gtkern/random.py).
    """

    scale: float
    dropout: float
    seed: int


class Forward(NamedTuple):
    """Attributes:
    out: [N, H, Dv], dtype of q.
    lse: [N, H], accumulation dtype: log Σ exp(score); -inf for a query without keys.
    """

    out: Tensor
    lse: Tensor


class Needs(NamedTuple):
    """Which gradients are wanted."""

    q: bool
    k: bool
    v: bool
    table: bool
    prefix_k: bool
    prefix_v: bool


class Gradients(NamedTuple):
    """One for each differentiable input, in its shape and dtype; no elements where not needed."""

    q: Tensor
    k: Tensor
    v: Tensor
    table: Tensor
    prefix_k: Tensor
    prefix_v: Tensor
