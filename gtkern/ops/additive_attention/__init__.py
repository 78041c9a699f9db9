"""GATv2's additive attention over a CSR graph; README.md holds the derivation."""

from gtkern.ops.additive_attention.op import additive_attention

__all__ = ["additive_attention"]
