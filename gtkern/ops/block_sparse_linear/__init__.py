"""A linear layer of which only some blocks are kept; README.md holds the derivation."""

from gtkern.ops.block_sparse_linear.op import block_sparse_linear

__all__ = ["block_sparse_linear"]
