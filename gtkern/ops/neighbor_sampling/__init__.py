"""Weighted sampling of neighbours without replacement; README.md holds the derivation."""

from gtkern.ops.neighbor_sampling.batches import LayerBatch, layer_batches
from gtkern.ops.neighbor_sampling.op import Neighbors, sample_neighbors
from gtkern.ops.neighbor_sampling.table import SamplingTable, sampling_table

__all__ = [
    "LayerBatch",
    "Neighbors",
    "SamplingTable",
    "layer_batches",
    "sample_neighbors",
    "sampling_table",
]
