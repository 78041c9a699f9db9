"""Softmax attention over a fixed number of sampled neighbours; README.md holds the derivation."""

from gtkern.ops.sampled_attention.op import sampled_attention

__all__ = ["sampled_attention"]
