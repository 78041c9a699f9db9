"""What is done to a graph before a model sees it."""

from gtkern.transforms.expander import expander_edges, spectral_gap

__all__ = ["expander_edges", "spectral_gap"]
