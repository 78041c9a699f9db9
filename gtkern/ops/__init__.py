"""The ops: one package each, with interchangeable backends."""

from gtkern.ops.block_sparse_linear import block_sparse_linear
from gtkern.ops.neighbor_sampling import (
    LayerBatch,
    Neighbors,
    SamplingTable,
    layer_batches,
    sample_neighbors,
    sampling_table,
)
from gtkern.ops.ragged_attention import ragged_attention
from gtkern.ops.sampled_attention import sampled_attention
from gtkern.ops.sparse_attention import sparse_attention

__all__ = [
    "LayerBatch",
    "Neighbors",
    "SamplingTable",
    "block_sparse_linear",
    "layer_batches",
    "ragged_attention",
    "sample_neighbors",
    "sampled_attention",
    "sampling_table",
    "sparse_attention",
]
