"""Layers: parameters and shapes; every forward is a few op calls."""

from gtkern.nn.attention import (
    EdgeTypeTerms,
    ExphormerAttention,
    NarrowAttention,
    SampledAttention,
)
from gtkern.nn.block import TransformerBlock, make_norm
from gtkern.nn.block_sparse import BlockSparseLinear
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

__all__ = [
    "BatchNorm",
    "BlockSparseLinear",
    "EdgeTypeTerms",
    "ExphormerAttention",
    "FeatureEncoder",
    "GraphNorm",
    "NarrowAttention",
    "Prompt",
    "Propagation",
    "RaggedMultiheadAttention",
    "SampledAttention",
    "TokenDroppingAttention",
    "TransformerBlock",
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
    "with_tokens",
]
