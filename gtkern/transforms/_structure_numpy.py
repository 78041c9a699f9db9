"""The twin of csrc/graph for machines without a C++ compiler: the same answers, graph by graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.sparse


class _Graph(NamedTuple):
    """One graph; nodes count from 0, `number` is each edge's in the packed set."""

    nodes: int
    source: np.ndarray
    destination: np.ndarray
    number: np.ndarray


def hop_distances(
    edge_index: np.ndarray, ptr: np.ndarray, max_hops: int, threads: int
) -> np.ndarray:
    """int16 [Σ n_g²]."""
    found = [np.empty(0, dtype=np.int16)]
    for graph in _graphs(edge_index, ptr):
        hops = _distances(graph, max_hops)
        found.append(np.where(hops < 0, max_hops + 1, hops).astype(np.int16).ravel())
    return np.concatenate(found)


def shortest_path_edges(
    edge_index: np.ndarray, ptr: np.ndarray, max_length: int, threads: int
) -> np.ndarray:
    """int32 [Σ n_g², max_length]."""
    found = [np.empty((0, max_length), dtype=np.int32)]
    for graph in _graphs(edge_index, ptr):
        hops = _distances(graph, graph.nodes)
        # of the edges that leave a node, the one to the lowest node comes first
        order = np.lexsort((graph.number, graph.destination, graph.source))
        source, destination = graph.source[order], graph.destination[order]
        number = graph.number[order]
        paths = np.full((graph.nodes, graph.nodes, max_length), -1, dtype=np.int32)
        for root in range(graph.nodes):
            nearer = (hops[root, source] > 0) & (hops[root, destination] == hops[root, source] - 1)
            node, first = np.unique(source[nearer], return_index=True)
            parent, edge = destination[nearer][first], number[nearer][first]
            for distance in range(1, int(hops[root].max(initial=0)) + 1):
                here = hops[root, node] == distance
                paths[root, node[here]] = paths[root, parent[here]]
                if distance <= max_length:
                    paths[root, node[here], distance - 1] = edge[here]
        found.append(paths.reshape(-1, max_length))
    return np.concatenate(found)


def return_probabilities(
    edge_index: np.ndarray, ptr: np.ndarray, steps: int, threads: int
) -> np.ndarray:
    """float32 [N, steps]."""
    found = [np.empty((0, steps), dtype=np.float32)]
    for graph in _graphs(edge_index, ptr):
        counts = _matrix(graph.source, graph.destination, graph.nodes)
        degree = np.maximum(counts.sum(1), 1)
        step = scipy.sparse.diags_array(1 / degree) @ counts
        walk = np.eye(graph.nodes)
        returns = np.empty((graph.nodes, steps), dtype=np.float32)
        for t in range(steps):
            walk = step @ walk
            returns[:, t] = walk.diagonal()
        found.append(returns)
    return np.concatenate(found)


def _graphs(edge_index: np.ndarray, ptr: np.ndarray) -> Iterator[_Graph]:
    graph = np.searchsorted(ptr, edge_index[0], side="right") - 1
    order = np.argsort(graph, kind="stable")
    bounds = np.searchsorted(graph[order], np.arange(ptr.size))
    for g in range(ptr.size - 1):
        number = order[bounds[g] : bounds[g + 1]]
        source, destination = edge_index[:, number] - ptr[g]
        yield _Graph(int(ptr[g + 1] - ptr[g]), source, destination, number)


def _matrix(row: np.ndarray, column: np.ndarray, nodes: int) -> scipy.sparse.csr_array:
    return scipy.sparse.csr_array((np.ones(row.size), (row, column)), shape=(nodes, nodes))


def _distances(graph: _Graph, max_hops: int) -> np.ndarray:
    """int64 [n, n]: edges of a shortest path from j to i; -1 beyond max_hops."""
    step = _matrix(graph.destination, graph.source, graph.nodes)
    hops = np.full((graph.nodes, graph.nodes), -1)
    reached = np.eye(graph.nodes)
    for distance in range(min(max_hops, graph.nodes) + 1):
        new = (reached > 0) & (hops < 0)
        if not new.any():
            break
        hops[new] = distance
        reached = step @ new.astype(np.float64)
    return hops
