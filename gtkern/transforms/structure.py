"""What models ask of a graph's structure: degrees, distances, paths, random walks.

All functions take many graphs at once, packed as in one batch: `edge_index` numbers the nodes
through, and graph g has the nodes ptr[g] .. ptr[g + 1]. Pairs of nodes (i, j) of one graph are in
row-major order, graph after graph, n_g² for each. Edges are directed; in an undirected graph, which
has both directions, distances are symmetric.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gtkern import _check
from gtkern.transforms import _structure_numpy

try:
    from gtkern import _graph as _native
except ImportError:
    _native = None  # type: ignore[assignment]

__all__ = [
    "MAX_NODES",
    "degrees",
    "hop_distances",
    "random_walk_encoding",
    "shortest_path_edges",
]

MAX_NODES = 8192
"""Graphs with more nodes have no arrays over pairs of nodes, unless the caller says so."""

_MAX_STEPS = 2**15 - 1
_MAX_EDGES = 2**31 - 1


def hop_distances(
    edge_index: Tensor, ptr: Tensor, max_hops: int, *, max_nodes: int = MAX_NODES
) -> Tensor:
    """Edges of a shortest path between any two nodes of a graph.

    Args:
        edge_index: int64 [2, E] on the CPU, sources in row 0, in any order.
        ptr: int64 [G + 1].
        max_hops: 1 .. 32766.
        max_nodes: a graph with more is refused.

    Returns:
        int16 [Σ n_g²]; entry (i, j) is for the path from j to i, as messages go: 0 on the diagonal,
        max_hops + 1 when j does not reach i or is further away.

    Raises:
        TypeError: a wrong type. ValueError: a node that is not there, an edge between two graphs,
            or a graph with too many nodes; names the graph.

    Reference: Ying et al. 2021 (Graphormer), section 3.1.2.
    """
    max_hops = _integer("max_hops", max_hops, _MAX_STEPS - 1)
    edges, begins = _checked(edge_index, ptr, max_nodes)
    return torch.from_numpy(
        _functions().hop_distances(edges, begins, max_hops, torch.get_num_threads())
    )


def shortest_path_edges(
    edge_index: Tensor, ptr: Tensor, max_length: int, *, max_nodes: int = MAX_NODES
) -> Tensor:
    """The edges of one shortest path between any two nodes of a graph.

    From j the path goes to the lowest-numbered neighbour that is nearer to i, by the edge of the
    lowest number, and so on.

    Args:
        edge_index, ptr, max_nodes: as for `hop_distances`; fewer than 2**31 edges.
        max_length: edges of a path to keep, 1 .. 32767.

    Returns:
        int32 [Σ n_g², max_length]: row (i, j) has the numbers of the edges (columns of edge_index)
        on the path from j to i, first the one that enters i, -1 beyond its end. Rows of pairs
        without a path, and of i = j, are -1.

    Raises:
        TypeError, ValueError: as for `hop_distances`.

    Reference: Ying et al. 2021 (Graphormer), section 3.1.3; Li et al. 2023 (KPGT), section 4.1.
    """
    max_length = _integer("max_length", max_length, _MAX_STEPS)
    edges, begins = _checked(edge_index, ptr, max_nodes)
    return torch.from_numpy(
        _functions().shortest_path_edges(edges, begins, max_length, torch.get_num_threads())
    )


def random_walk_encoding(edge_index: Tensor, ptr: Tensor, steps: int) -> Tensor:
    """How likely a random walk is back where it began: the diagonal of (D⁻¹A)^t, t = 1 .. steps.

    The walk leaves a node by any of its outgoing edges alike, so a repeated edge counts repeatedly;
    a node without one is never come back to. PyG's AddRandomWalkPE has the same values.

    Args:
        edge_index, ptr: as for `hop_distances`; graphs may be of any size.
        steps: 1 .. 32767.

    Returns:
        float32 [N, steps].

    Raises:
        TypeError, ValueError: as for `hop_distances`.

    Reference: Dwivedi et al. 2022, "Graph neural networks with learnable structural and positional
    representations", section 3.2.
    """
    steps = _integer("steps", steps, _MAX_STEPS)
    edges, begins = _checked(edge_index, ptr, None)
    return torch.from_numpy(
        _functions().return_probabilities(edges, begins, steps, torch.get_num_threads())
    )


def degrees(edge_index: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
    """Edges into each node, and out of it.

    Args:
        edge_index: int64 [2, E], sources in row 0.
        num_nodes: N.

    Returns:
        Two int64 [N].

    Raises:
        TypeError: `edge_index` is no int64 tensor. ValueError: wrong shape, or out of range.
    """
    _edges(edge_index)
    num_nodes = _integer("num_nodes", num_nodes, _MAX_EDGES, low=0)
    if edge_index.numel() > 0:
        low, high = (int(value) for value in torch.aminmax(edge_index))
        if low < 0 or high >= num_nodes:
            raise ValueError(
                f"edge_index must be 0 .. {num_nodes - 1} (num_nodes - 1), "
                f"got {low if low < 0 else high}"
            )
    source, destination = edge_index
    return (
        torch.bincount(destination, minlength=num_nodes),
        torch.bincount(source, minlength=num_nodes),
    )


def _functions() -> Any:
    return _structure_numpy if _native is None else _native


def _integer(name: str, value: Any, high: int, low: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be {low} .. {high}, got {_check.short(int(value))}")
    return int(value)


def _edges(edge_index: Tensor) -> None:
    _check.tensor("edge_index", edge_index)
    if edge_index.dim() != 2 or edge_index.size(0) != 2 or edge_index.size(1) > _MAX_EDGES:
        raise ValueError(
            f"edge_index must have shape [2, E], E < 2**31, got {list(edge_index.shape)}"
        )
    if edge_index.dtype != torch.int64:
        raise TypeError(f"edge_index must be int64, got {edge_index.dtype}")
    if edge_index.device.type != "cpu":
        raise ValueError(f"edge_index must be on cpu, got {edge_index.device}")


def _checked(
    edge_index: Tensor, ptr: Tensor, max_nodes: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Check packed graphs; returns both as arrays."""
    _edges(edge_index)
    _check.tensor("ptr", ptr)
    if ptr.dim() != 1 or ptr.numel() == 0:
        raise ValueError(f"ptr must have shape [G + 1], got {list(ptr.shape)}")
    if ptr.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"ptr must be int64, got {ptr.dtype}")
    if ptr.device.type != "cpu":
        raise ValueError(f"ptr must be on cpu, got {ptr.device}")
    ptr = ptr.to(torch.int64)
    counts = ptr.diff()
    if int(ptr[0]) != 0 or bool(_check.falls(ptr).any()):
        raise ValueError(f"ptr must begin with 0 and not fall, got {_short(ptr)}")
    if int(ptr[-1]) > _MAX_EDGES:
        raise ValueError(f"ptr must end at {_MAX_EDGES} nodes at most, got {int(ptr[-1])}")
    if max_nodes is not None:
        large = (counts > max_nodes).nonzero()
        if large.numel() > 0:
            graph = int(large[0])
            raise ValueError(
                f"every graph must have at most {max_nodes} nodes (max_nodes), for there is an "
                f"entry for each pair of them: graph {graph} has {int(counts[graph])}"
            )
    _check_ends(edge_index, ptr)
    return edge_index.numpy(), ptr.numpy()


def _check_ends(edge_index: Tensor, ptr: Tensor) -> None:
    """Raise ValueError unless both ends of every edge are nodes of one graph."""
    num_nodes = int(ptr[-1])
    graph_of = torch.repeat_interleave(ptr.diff())
    outside = ((edge_index < 0) | (edge_index >= num_nodes)).any(0)
    if bool(outside.any()):
        edge = int(outside.nonzero()[0])
        ends = edge_index[:, edge].tolist()
        inside = [end for end in ends if 0 <= end < num_nodes]
        whose = f" of graph {int(graph_of[inside[0]])}" if inside else ""
        raise ValueError(
            f"edge_index must be 0 .. {num_nodes - 1} (nodes - 1), got {ends[0]} -> {ends[1]} "
            f"(edge {edge}{whose})"
        )
    first, second = graph_of[edge_index[0]], graph_of[edge_index[1]]
    between = (first != second).nonzero()
    if between.numel() > 0:
        edge = int(between[0])
        source, destination = edge_index[:, edge].tolist()
        raise ValueError(
            f"edge_index must join nodes of one graph, got {source} -> {destination} (edge {edge}) "
            f"from graph {int(first[edge])} to graph {int(second[edge])}"
        )


def _short(values: Tensor) -> str:
    return f"{values[:8].tolist()}{' ...' if values.numel() > 8 else ''}"
