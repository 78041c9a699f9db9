"""drop_tokens and gather_pairs: the edges and the pairs of the tokens that are kept."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from gtkern import _backends, _check
from gtkern.graph import Adjacency, Graph, heavy_items
from gtkern.ops.token_dropping.op import BACKENDS, load
from gtkern.ops.token_dropping.selection import Selection, check_selection
from gtkern.ragged import PairIndex

__all__ = ["drop_tokens", "gather_pairs"]

_INTEGERS = (torch.int32, torch.int64)


@overload
def drop_tokens(
    edges: Tensor, selection: Selection, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]: ...


@overload
def drop_tokens(
    edges: Graph, selection: Selection, *, backend: str = "auto"
) -> tuple[Graph, Tensor]: ...


def drop_tokens(
    edges: Tensor | Graph, selection: Selection, *, backend: str = "auto"
) -> tuple[Tensor | Graph, Tensor]:
    """The edges between kept tokens, their ends renumbered.

    Args:
        edges: int32 or int64 [2, E], or a `Graph` of N sources and N destinations. On a GPU the
            indices are not checked.
        selection: of N tokens.
        backend: "auto", "reference", "cpu", "triton" or "cuda"; a named one never falls back.

    Returns:
        The edges [2, E'] in the order they came in, or the graph, whose edges are numbered in the
        order of its CSR; and int64 [E'], the number that each had, to pick the rows of edge_attr
        by. On a GPU the call waits for the device once, to learn E'.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape, dtype, device or range.
        NotImplementedError: the named backend cannot run here.
    """
    check_selection(selection)
    nodes = selection.ragged.num_nodes
    if isinstance(edges, Graph):
        if (edges.num_src_nodes, edges.num_dst_nodes) != (nodes, nodes):
            raise ValueError(
                f"edges must be a Graph of {nodes} nodes, as the selection, got one of "
                f"{edges.num_src_nodes} sources and {edges.num_dst_nodes} destinations"
            )
        _check.same_device(selection=selection.index, edges=edges.csr.ptr)
        chosen = _resolve(backend, edges.device)
        found = load(chosen).drop_rows(edges.csr, selection.index, selection.position)
        ptr, index, edge, types = found
        heavy = heavy_items(ptr, index.numel())
        csr = Adjacency(ptr, index, edge.new_empty(0), types, heavy)
        kept = selection.num_kept
        return Graph(csr, (kept, kept), edges.num_edge_types), edge
    _check.tensor("edges", edges)
    edges = edges.as_subclass(Tensor)
    if edges.dtype not in _INTEGERS:
        raise TypeError(f"edges must be int32 or int64, got {edges.dtype}")
    if edges.dim() != 2 or edges.size(0) != 2:
        raise ValueError(f"edges must have shape [2, E], got {list(edges.shape)}")
    _check.same_device(selection=selection.index, edges=edges)
    chosen = _resolve(backend, edges.device)
    if edges.device.type == "cpu" and edges.numel():
        low, high = (int(value) for value in torch.aminmax(edges))
        if low < 0 or high >= nodes:
            raise ValueError(
                f"edges must be 0 .. {nodes - 1} (the selection has {nodes} tokens), "
                f"got {low if low < 0 else high}"
            )
    kept_edges, edge = load(chosen).drop_edges(
        edges[0].contiguous(), edges[1].contiguous(), selection.position
    )
    return kept_edges, edge


def gather_pairs(pairs: PairIndex, selection: Selection, *, backend: str = "auto") -> PairIndex:
    """The index of a bias for the pairs of kept tokens.

    Args:
        pairs: for every pair of selection.ragged.
        selection: of the tokens.
        backend: "auto", "reference", "cpu", "triton" or "cuda"; a named one never falls back.

    Returns:
        For every pair of selection.kept what `pairs` had for it.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, size or device.
        NotImplementedError: the named backend cannot run here.
    """
    check_selection(selection)
    if not isinstance(pairs, PairIndex):
        raise TypeError(f"pairs must be a PairIndex, got {type(pairs).__name__}")
    ragged, kept = selection.ragged, selection.kept
    if pairs.num_pairs != ragged.num_pairs:
        raise ValueError(
            f"pairs must have {ragged.num_pairs} pairs, as the selection's batch, "
            f"got {pairs.num_pairs}"
        )
    _check.same_device(selection=selection.index, pairs=pairs.index)
    chosen = _resolve(backend, pairs.device)
    index = load(chosen).gather_pairs(
        pairs.index,
        ragged.ptr,
        ragged.pair_ptr,
        selection.index,
        kept.ptr,
        kept.pair_ptr,
        kept.num_pairs,
    )
    return PairIndex(index, pairs.num_entries)


def _resolve(backend: str, device: torch.device) -> str:
    return _backends.resolve("token dropping", backend, BACKENDS, device, torch.float32)
