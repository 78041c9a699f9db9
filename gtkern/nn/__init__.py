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
from gtkern.nn.ragged_attention import RaggedMultiheadAttention

__all__ = [
    "BatchNorm",
    "EdgeTypeTerms",
    "ExphormerAttention",
    "GraphNorm",
    "NarrowAttention",
    "RaggedMultiheadAttention",
    "SampledAttention",
    "TransformerBlock",
    "dropout",
    "make_norm",
    "synchronize_norms",
]
