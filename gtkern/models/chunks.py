"""Going through a PackedGraphs some graphs at a time, where all pairs of nodes at once are many."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Chunk", "chunks", "local_numbers", "narrow"]

_PAIRS = 2**21


class Chunk(NamedTuple):
    """Some neighbouring graphs, numbered through on their own.

    Attributes:
        graphs: which graphs of the whole.
        edges: which columns of the whole edge_index.
        edge_index: int64 [2, E].
        ptr: int64 [g + 1].
    """

    graphs: slice
    edges: slice
    edge_index: Tensor
    ptr: Tensor

    @property
    def sizes(self) -> Tensor:
        """int64 [g]: nodes of each graph."""
        return self.ptr.diff()


def chunks(packed: Any) -> Iterator[Chunk]:
    """The graphs of a PackedGraphs, so many at a time that their pairs of nodes stay few."""
    pairs = packed.node_ptr.diff().square().cumsum(0)
    first, graphs = 0, len(packed)
    while first < graphs:
        before = int(pairs[first - 1]) if first else 0
        # at least one graph, however large
        last = max(int(torch.searchsorted(pairs, before + _PAIRS, right=True)), first + 1)
        edges = slice(int(packed.edge_ptr[first]), int(packed.edge_ptr[last]))
        begin = int(packed.node_ptr[first])
        yield Chunk(
            slice(first, last),
            edges,
            packed.edge_index[:, edges] - begin,
            packed.node_ptr[first : last + 1] - begin,
        )
        first = last


def local_numbers(counts: Tensor) -> tuple[Tensor, Tensor]:
    """For groups of `counts` [g] members, each member's group and its number inside the group."""
    group = torch.repeat_interleave(counts)
    begin = counts.cumsum(0) - counts
    return group, torch.arange(group.numel()) - begin[group]


def narrow(values: Tensor) -> Tensor:
    """The same in the narrowest of int16, int32 and int64: what batches gather over and over."""
    largest = int(values.abs().max()) if values.numel() else 0
    for dtype in (torch.int16, torch.int32):
        if largest <= torch.iinfo(dtype).max:
            return values.to(dtype)
    return values.to(torch.int64)
