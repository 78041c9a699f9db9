"""Layers: parameters and shapes; every forward is a few op calls.

Twins of other libraries' layers have those layers' names; PyG's are loaded with the first of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gtkern.nn.attention import (
    EdgeTypeTerms,
    ExphormerAttention,
    NarrowAttention,
    SampledAttention,
)
from gtkern.nn.block import TransformerBlock, make_norm
from gtkern.nn.block_sparse import BlockSparseLinear
from gtkern.nn.dropin.encoder_layer import TransformerEncoderLayer
from gtkern.nn.dropin.multihead_attention import MultiheadAttention
from gtkern.nn.dropin.pruned_linear import PrunedLinear
from gtkern.nn.dropin.twin import with_graph
from gtkern.nn.dropout import dropout, dropout_add, relu_dropout
from gtkern.nn.features import FeatureEncoder
from gtkern.nn.norm import BatchNorm, GraphNorm, synchronize_norms
from gtkern.nn.packing import WithTokens, pool, with_tokens
from gtkern.nn.pair_bias import distinct_rows, pair_biases
from gtkern.nn.prompt import Prompt
from gtkern.nn.propagation import Propagation
from gtkern.nn.ragged_attention import RaggedMultiheadAttention
from gtkern.nn.token_dropping import TokenDroppingAttention
from gtkern.nn.transformer import TransformerLayer, initialize_as_bert

if TYPE_CHECKING:
    from gtkern.nn.dropin.appnp import APPNP
    from gtkern.nn.dropin.gat_conv import GATConv
    from gtkern.nn.dropin.gatv2_conv import GATv2Conv
    from gtkern.nn.dropin.gps_conv import GPSConv
    from gtkern.nn.dropin.topk_pooling import TopKPooling
    from gtkern.nn.dropin.transformer_conv import TransformerConv

__all__ = [
    "APPNP",
    "BatchNorm",
    "BlockSparseLinear",
    "EdgeTypeTerms",
    "ExphormerAttention",
    "FeatureEncoder",
    "GATConv",
    "GATv2Conv",
    "GPSConv",
    "GraphNorm",
    "MultiheadAttention",
    "NarrowAttention",
    "Prompt",
    "Propagation",
    "PrunedLinear",
    "RaggedMultiheadAttention",
    "SampledAttention",
    "TokenDroppingAttention",
    "TopKPooling",
    "TransformerBlock",
    "TransformerConv",
    "TransformerEncoderLayer",
    "TransformerLayer",
    "WithTokens",
    "distinct_rows",
    "dropout",
    "dropout_add",
    "initialize_as_bert",
    "make_norm",
    "pair_biases",
    "pool",
    "relu_dropout",
    "synchronize_norms",
    "with_graph",
    "with_tokens",
]

_LAZY = {
    "APPNP": "appnp",
    "GATConv": "gat_conv",
    "GATv2Conv": "gatv2_conv",
    "GPSConv": "gps_conv",
    "TopKPooling": "topk_pooling",
    "TransformerConv": "transformer_conv",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"gtkern.nn.dropin.{_LAZY[name]}"), name)
