"""Softmax attention over a CSR graph; README.md holds the derivation."""

from gtkern.ops.sparse_attention.op import sparse_attention

__all__ = ["sparse_attention"]
