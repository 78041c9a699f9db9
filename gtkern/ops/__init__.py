"""The ops: one package each, with interchangeable backends."""

from gtkern.ops.neighbor_sampling import LayerBatch, Neighbors, layer_batches, sample_neighbors
from gtkern.ops.sampled_attention import sampled_attention
from gtkern.ops.sparse_attention import sparse_attention

__all__ = [
    "LayerBatch",
    "Neighbors",
    "layer_batches",
    "sample_neighbors",
    "sampled_attention",
    "sparse_attention",
]
