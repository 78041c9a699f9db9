"""GraphCache: what was made from edges, kept as long as these live and are not changed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from gtkern.graph import Graph
from gtkern.ragged import Ragged

__all__ = ["GraphCache"]

T = TypeVar("T")
_MOST = 32


class _Entry(NamedTuple):
    sources: tuple[weakref.ref[Any], ...]
    state: tuple[Hashable, ...]
    value: Any


class GraphCache:
    """Grouped edges by the tensors they were made from.

    The layers of a model share one, so that each edge_index is grouped once, for all of them and
    for every call with the same tensor. A tensor is known by its identity and version: a change in
    place is seen, one through `.data` or NumPy is not. Entries of dead tensors go. A copy, or a
    pickle, begins empty.

    Attributes:
        pinned: a graph that stands for every edge_index; see `gtkern.nn.with_graph`.
    """

    def __init__(self) -> None:
        self.pinned: Graph | None = None
        self._entries: dict[Hashable, _Entry] = {}

    def __reduce__(self) -> tuple[type[GraphCache], tuple[()]]:
        return GraphCache, ()

    @torch.compiler.disable
    def get(self, sources: tuple[Tensor, ...], kind: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives, from before where the sources are the same.

        Args:
            sources: what it is made from.
            kind: tells apart what else it depends on.
            make: called outside of inference mode, for what it makes outlives the mode.
        """
        if any(source.is_inference() for source in sources):
            # they have no version that would tell of a change
            return make()
        key = (kind, *(id(source) for source in sources))
        state = tuple(_state(source) for source in sources)
        entry = self._entries.get(key)
        if entry is not None and entry.state == state:
            alive = zip(entry.sources, sources, strict=True)
            if all(reference() is source for reference, source in alive):
                value: T = entry.value
                return value
        with torch.inference_mode(False), torch.no_grad():
            value = make()
        kept = {
            name: other
            for name, other in self._entries.items()
            if name != key and all(reference() is not None for reference in other.sources)
        }
        while len(kept) >= _MOST:
            kept.pop(next(iter(kept)))
        kept[key] = _Entry(tuple(weakref.ref(source) for source in sources), state, value)
        # one assignment, and no dict changes once it is there: threads see all of one or the other,
        # and what is lost where two assign is made again
        self._entries = kept
        return value

    @torch.compiler.disable
    def known(self, source: Tensor) -> bool:
        """Whether this tensor, unchanged, was asked about before.

        What is made of a tensor pays for itself from the second call on; a small one that is new in
        each call had better be left to the layer.
        """
        met: list[bool] = self.get((source,), "met", list)
        if met:
            return True
        met.append(True)
        return False

    def graph(self, edges: Any, num_nodes: tuple[int, int]) -> Graph:
        """The graph of an edge_index, a torch sparse matrix, or the pinned one.

        Args:
            edges: int [2, E]; or [N_dst, N_src], sparse.
            num_nodes: (N_src, N_dst).

        Raises:
            ValueError: the pinned graph has other sizes; or see Graph.from_any.
        """
        if self.pinned is not None:
            self._check_pinned(self.pinned, edges, num_nodes)
            return self.pinned
        graph: Graph = self.get((edges,), num_nodes, lambda: Graph.from_any(edges, num_nodes))
        return graph

    def source(self, edges: Tensor, num_nodes: tuple[int, int]) -> Tensor:
        """What stands for edges as a source of `get`: themselves, or part of the pinned graph."""
        if self.pinned is None:
            return edges
        self._check_pinned(self.pinned, edges, num_nodes)
        return self.pinned.csr.ptr

    def ragged(self, batch: Tensor) -> Ragged:
        """The graphs of a batch vector [N]."""
        ragged: Ragged = self.get((batch,), "ragged", lambda: Ragged.from_batch(batch))
        return ragged

    @staticmethod
    def _check_pinned(pinned: Graph, edges: Tensor, num_nodes: tuple[int, int]) -> None:
        count = edges.size(1) if edges.layout == torch.strided else edges._nnz()
        sizes = (pinned.num_src_nodes, pinned.num_dst_nodes)
        if sizes != num_nodes or pinned.num_edges != count:
            raise ValueError(
                f"edge_index must be that of the graph given to with_graph, of {sizes} nodes and "
                f"{pinned.num_edges} edges, got {num_nodes} nodes and {count} edges"
            )


def _state(tensor: Tensor) -> tuple[Hashable, ...]:
    place = tensor.data_ptr() if tensor.layout == torch.strided else 0
    return tensor._version, tuple(tensor.shape), place
