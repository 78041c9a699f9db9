"""Dense attention inside each graph of a packed batch; README.md holds the derivation."""

from gtkern.ops.ragged_attention.op import ragged_attention

__all__ = ["ragged_attention"]
