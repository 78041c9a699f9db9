"""Kernels for graph transformers, and the methods built on them."""

from gtkern import _native

_native.load()

from gtkern import ops  # noqa: E402
from gtkern.block_sparse import BlockSparseMatrix  # noqa: E402
from gtkern.dropin import accelerate, restore  # noqa: E402
from gtkern.graph import Graph  # noqa: E402
from gtkern.ragged import PairIndex, Ragged  # noqa: E402

__all__ = [
    "BlockSparseMatrix",
    "Graph",
    "PairIndex",
    "Ragged",
    "__version__",
    "accelerate",
    "ops",
    "restore",
]

__version__ = "0.1.0"
