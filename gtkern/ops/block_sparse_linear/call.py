"""What a call of block_sparse_linear brings to a backend, and what comes back."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from gtkern.block_sparse import BlockIndex

__all__ = ["ACTIVATIONS", "Forward", "Gradients", "Needs", "Weight"]

ACTIVATIONS = ("none", "relu", "gelu", "silu")
"""By the number that native kernels know them by."""


class Weight(NamedTuple):
    """The weight of a call; see gtkern/block_sparse.py.

    Attributes:
        values: [B, block_rows, block_cols], contiguous. What lies past the matrix must not be read
            into a sum, and gets gradient 0.
        blocks: which blocks they are.
        out_features: C_out; C_in is the width of x.
    """

    values: Tensor
    blocks: BlockIndex
    out_features: int


class Forward(NamedTuple):
    """Attributes:
    out: [M, C_out], dtype of x.
    kept: [M, C_out], dtype of x: x Wᵀ + bias before gelu or silu, for backward; no elements for
        other activations, or where `keep` is false.
    """

    out: Tensor
    kept: Tensor


class Needs(NamedTuple):
    """Which gradients are wanted."""

    x: bool
    values: bool
    bias: bool


class Gradients(NamedTuple):
    """One for each differentiable input, in its shape and dtype; no elements where not needed."""

    x: Tensor
    values: Tensor
    bias: Tensor
