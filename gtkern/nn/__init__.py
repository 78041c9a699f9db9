"""Layers: parameters and shapes; every forward is a few op calls."""

from gtkern.nn.attention import (
    EdgeTypeTerms,
    ExphormerAttention,
    NarrowAttention,
    SampledAttention,
)
from gtkern.nn.block import TransformerBlock
from gtkern.nn.norm import BatchNorm, GraphNorm, synchronize_norms

__all__ = [
    "BatchNorm",
    "EdgeTypeTerms",
    "ExphormerAttention",
    "GraphNorm",
    "NarrowAttention",
    "SampledAttention",
    "TransformerBlock",
    "synchronize_norms",
]
