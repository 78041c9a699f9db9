"""What Graphormer asks of a data set: degrees, and for each pair of nodes a distance and a path."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gtkern.models.chunks import Chunk, chunks, local_numbers, narrow
from gtkern.nn.pair_bias import distinct_rows
from gtkern.transforms import degrees, hop_distances, shortest_path_edges

__all__ = ["NAMES", "PAIRS", "PATHS", "PATH_COUNT", "encode", "rows_of_codes"]

PAIRS, PATHS, PATH_COUNT = "graphormer_pairs", "graphormer_paths", "graphormer_path_count"
NAMES = ("in_degree", "out_degree", PAIRS, PATHS, PATH_COUNT)
"""The arrays that `encode` adds."""

_MAX_CODES = 2**15 - 2


def rows_of_codes(sizes: Sequence[int]) -> Tensor:
    """For every combination of values, numbered as `_codes` does, its rows in one long table.

    Args:
        sizes: values of each column.

    Returns:
        int64 [prod(sizes), columns].
    """
    values = torch.cartesian_prod(*(torch.arange(size) for size in sizes))
    begin = torch.tensor((0, *sizes[:-1])).cumsum(0)
    return values.reshape(-1, len(sizes)) + begin


def encode(
    packed: Any,
    *,
    max_degree: int,
    max_distance: int,
    path_length: int,
    attend_within: int | None,
) -> None:
    """Add the arrays of NAMES to a PackedGraphs; see Graphormer.encode and its settings."""
    _add_degrees(packed, max_degree)
    codes, count = _codes(packed) if path_length else (None, 0)
    sizes = [max_distance + 3, *([count + 1] * path_length if codes is not None else [])]
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for chunk in chunks(packed):
        distance = hop_distances(chunk.edge_index, chunk.ptr, max_distance).long()
        rows = distance[:, None] + 1
        if codes is not None:
            edges = shortest_path_edges(chunk.edge_index, chunk.ptr, path_length).long()
            along = codes[chunk.edges][edges.clamp(min=0)] if edges.numel() else edges
            rows = torch.cat((rows, torch.where(edges < 0, 0, along + 1)), dim=1)
        hidden = None if attend_within is None else distance >= attend_within
        parts.append(_of(chunk, rows, sizes, hidden))
    nothing = torch.empty(0, dtype=torch.int64)
    parts = parts or [(nothing, nothing.new_empty(0, len(sizes)), nothing)]
    pairs, paths, counts = (torch.cat(part) for part in zip(*parts, strict=True))
    packed.add(PATH_COUNT, counts, torch.arange(len(packed) + 1))
    packed.add(PATHS, narrow(paths), torch.nn.functional.pad(counts.cumsum(0), (1, 0)))
    packed.add(PAIRS, narrow(pairs), packed.pair_ptr(tokens=1))


def _of(
    chunk: Chunk, rows: Tensor, sizes: Sequence[int], hidden: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Number the different rows of each graph; row 0 of each is that of its token.

    Args:
        chunk: the graphs.
        rows: int64 [Σ n_g², K]; of each pair, in order.
        sizes: of the columns.
        hidden: bool [Σ n_g²]; pairs that do not attend; None: all attend.

    Returns:
        The numbers [Σ (n_g + 1)²] of all pairs, token included, -1 for those that do not attend;
        the rows [P, K]; how many each graph has [g].
    """
    nodes = chunk.sizes
    graph, pair = local_numbers(nodes.square())
    at, number = distinct_rows(torch.cat((graph[:, None], rows), dim=1), [nodes.numel(), *sizes])
    # the different rows come ordered by graph
    counts = torch.bincount(graph[at], minlength=nodes.numel())
    local = number - (counts.cumsum(0) - counts)[graph] + 1
    if hidden is not None:
        local = torch.where(hidden, -1, local)
    wide = (nodes + 1).square()
    size = nodes[graph]
    place = (wide.cumsum(0) - wide)[graph] + (pair // size + 1) * (size + 1) + pair % size + 1
    pairs = torch.zeros(int(wide.sum()), dtype=torch.int64)
    pairs[place] = local
    # one row of zeros, the token's, before those of each graph
    paths = torch.zeros(at.numel() + nodes.numel(), rows.size(1), dtype=torch.int64)
    paths[torch.arange(at.numel()) + graph[at] + 1] = rows[at]
    return pairs, paths, counts + 1


def _add_degrees(packed: Any, max_degree: int) -> None:
    nodes = int(packed.node_ptr[-1])
    found = degrees(packed.edge_index, nodes)
    for name, degree in zip(("in_degree", "out_degree"), found, strict=True):
        if nodes and int(degree.max()) > max_degree:
            node = int(degree.argmax())
            graph = int(torch.searchsorted(packed.node_ptr, node, right=True)) - 1
            raise ValueError(
                f"max_degree must be at least the largest degree, got {max_degree}: a node of "
                f"graph {graph} has {name} {int(degree[node])}"
            )
        packed.add(name, degree.to(torch.int32), packed.node_ptr)


def _codes(packed: Any) -> tuple[Tensor | None, int]:
    """One number for the features of each edge [E], and how many there can be; None without."""
    features = packed.edge_attr
    if features is None or features.size(1) == 0:
        return None, 0
    if features.is_floating_point():
        one_hot = ((features == 0) | (features == 1)).all(1) & (features.sum(1) == 1)
        if not bool(one_hot.all()):
            edge = int((~one_hot).nonzero()[0])
            graph = int(torch.searchsorted(packed.edge_ptr, edge, right=True)) - 1
            raise ValueError(
                "edge_attr must be of categories: integers, or floats with one 1 in each row, got "
                f"{features[edge].tolist()} in graph {graph}; path_length=0 leaves edges out"
            )
        return features.argmax(1), features.size(1)
    sizes = packed.edge_categories
    count = math.prod(sizes)
    if count > _MAX_CODES:
        raise ValueError(
            f"the features of edges must have at most {_MAX_CODES} combinations, got {count} from "
            f"the sizes {list(sizes)}; path_length=0 leaves edges out"
        )
    code = torch.zeros(features.size(0), dtype=torch.int64)
    for column, size in enumerate(sizes):
        code = code * size + features[:, column]
    return code, count
