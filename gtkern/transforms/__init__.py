"""What is done to a graph before a model sees it."""

from gtkern.transforms.expander import expander_edges, spectral_gap
from gtkern.transforms.structure import (
    degrees,
    hop_distances,
    random_walk_encoding,
    shortest_path_edges,
)

__all__ = [
    "degrees",
    "expander_edges",
    "hop_distances",
    "random_walk_encoding",
    "shortest_path_edges",
    "spectral_gap",
]
