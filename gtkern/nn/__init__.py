"""Layers: parameters and shapes; every forward is a few op calls."""

from gtkern.nn.attention import (
    EdgeTypeTerms,
    ExphormerAttention,
    NarrowAttention,
    SampledAttention,
)
from gtkern.nn.block import TransformerBlock, make_norm
from gtkern.nn.dropout import dropout
from gtkern.nn.norm import BatchNorm, GraphNorm, synchronize_norms

__all__ = [
    "BatchNorm",
    "EdgeTypeTerms",
    "ExphormerAttention",
    "GraphNorm",
    "NarrowAttention",
    "SampledAttention",
    "TransformerBlock",
    "dropout",
    "make_norm",
    "synchronize_norms",
]
