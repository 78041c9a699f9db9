"""The ops: one package each, with interchangeable backends."""

from gtkern.ops.additive_attention import additive_attention
from gtkern.ops.block_sparse_linear import block_sparse_linear
from gtkern.ops.neighbor_sampling import (
    LayerBatch,
    Neighbors,
    SamplingTable,
    layer_batches,
    sample_neighbors,
    sampling_table,
)
from gtkern.ops.propagation import ConvergenceError, Report, propagate
from gtkern.ops.ragged_attention import ragged_attention
from gtkern.ops.sampled_attention import sampled_attention
from gtkern.ops.sparse_attention import sparse_attention
from gtkern.ops.token_dropping import (
    Selection,
    drop_tokens,
    gather_pairs,
    gather_tokens,
    scatter_tokens,
    select_tokens,
)

__all__ = [
    "ConvergenceError",
    "LayerBatch",
    "Neighbors",
    "Report",
    "SamplingTable",
    "Selection",
    "additive_attention",
    "block_sparse_linear",
    "drop_tokens",
    "gather_pairs",
    "gather_tokens",
    "layer_batches",
    "propagate",
    "ragged_attention",
    "sample_neighbors",
    "sampled_attention",
    "sampling_table",
    "scatter_tokens",
    "select_tokens",
    "sparse_attention",
]
