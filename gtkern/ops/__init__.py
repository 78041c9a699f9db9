"""The ops: one package each, with interchangeable backends."""

from gtkern.ops.sparse_attention import sparse_attention

__all__ = ["sparse_attention"]
