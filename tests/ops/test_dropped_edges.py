"""drop_tokens and gather_pairs: edges and pairs of the kept tokens, against plain loops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from dropping_rooms import SELECT, ragged_of, some_of
from room import (
    everywhere,
)
from torch import Tensor

from gtkern import Graph, PairIndex, ops
from gtkern.ops import Selection
from gtkern.testing import random_edges


def brute_edges(edges: Tensor, selection: Selection) -> tuple[list[list[int]], list[int]]:
    place = selection.position.tolist()
    kept = [
        (place[a], place[b], at)
        for at, (a, b) in enumerate(edges.T.tolist())
        if place[a] >= 0 and place[b] >= 0
    ]
    return [[a, b] for a, b, _ in kept], [at for *_, at in kept]


EDGE_CASES = [((5, 0, 8, 1), 60), ((70, 3), 700), ((4,), 0), ((), 0), ((3,), 9)]


@everywhere(SELECT)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize(("sizes", "edges"), EDGE_CASES)
def test_edges_between_kept_tokens_stay(
    backend: str, device: torch.device, dtype: torch.dtype, sizes: Sequence[int], edges: int
) -> None:
    selection = some_of(sizes)
    ends = random_edges("uniform", sum(sizes), edges, seed=1).to(dtype)
    expected, numbers = brute_edges(ends, selection)
    found, edge = ops.drop_tokens(ends.to(device), selection.to(device), backend=backend)
    assert found.dtype == dtype and found.T.tolist() == expected
    assert edge.dtype == torch.int64 and edge.tolist() == numbers


@everywhere(SELECT)
@pytest.mark.parametrize("types", [0, 3])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("sizes", "edges"), EDGE_CASES)
def test_graphs_keep_the_rows_of_kept_tokens(
    backend: str, device: torch.device, types: int, grouped: bool, sizes: Sequence[int], edges: int
) -> None:
    selection = some_of(sizes)
    ends = random_edges("uniform", sum(sizes), edges, seed=1)
    if grouped:
        ends = ends[:, ends[1].sort(stable=True).indices]
    kind = torch.arange(edges) % types if types else None
    graph = Graph.from_edge_index(ends, sum(sizes), edge_type=kind)
    found, edge = ops.drop_tokens(graph.to(device), selection.to(device), backend=backend)
    found.validate()
    assert found.num_src_nodes == found.num_dst_nodes == selection.num_kept
    numbers = brute_edges(ends, selection)[1]
    assert sorted(edge.tolist()) == numbers
    expected = selection.position[ends[:, edge.cpu()]]
    assert torch.equal(found.edge_index().cpu(), expected.long())
    if kind is not None:
        types_found = found.edge_type()
        assert types_found is not None
        assert torch.equal(types_found.cpu().long(), kind[edge.cpu()])


@everywhere(SELECT)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16])
@pytest.mark.parametrize("sizes", [(5, 0, 8, 1), (40,), ()])
def test_pairs_of_kept_tokens_keep_their_entries(
    backend: str, device: torch.device, dtype: torch.dtype, sizes: Sequence[int]
) -> None:
    selection = some_of(sizes)
    ragged = selection.ragged
    entry = torch.randint(250, (ragged.num_pairs,)).to(dtype)
    entry[::7] = PairIndex.MASKED[dtype]
    index = PairIndex.from_tensor(entry, ragged, 250).to(device)
    found = ops.gather_pairs(index, selection.to(device), backend=backend)
    dense = torch.zeros(ragged.num_nodes, ragged.num_nodes, dtype=dtype)
    dense[ragged.pairs()] = entry
    query, key = selection.kept.pairs()
    expected = dense[selection.index[query], selection.index[key]]
    assert torch.equal(found.index.cpu(), expected) and found.num_entries == 250
    assert found.num_pairs == selection.kept.num_pairs


def bad_edges(**arguments: Any) -> tuple[Any, Any]:
    selection = some_of((3, 2))
    return ops.drop_tokens(
        **{"edges": torch.zeros(2, 4).long(), "selection": selection, **arguments}
    )


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"edges": [0]}, TypeError, r"^edges must be a tensor, got list"),
        ({"edges": torch.zeros(2, 4)}, TypeError, r"^edges must be int32 or int64, got .*float32"),
        ({"edges": torch.zeros(3, 4).long()}, ValueError, r"^edges must have shape \[2, E\]"),
        ({"edges": torch.full((2, 1), 5)}, ValueError, r"^edges must be 0 \.\. 4 .*, got 5"),
        ({"edges": torch.full((2, 1), -1)}, ValueError, r"^edges must be 0 \.\. 4 .*, got -1"),
        ({"edges": Graph.from_edge_index(torch.zeros(2, 1).long(), 4)}, ValueError,
         r"^edges must be a Graph of 5 nodes, as the selection, got one of 4 sources"),
        ({"selection": 3}, TypeError, r"^selection must be a Selection"),
    ],
)  # fmt: skip
def test_bad_edges_are_refused(
    arguments: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        bad_edges(**arguments)


def test_bad_pairs_are_refused() -> None:
    selection = some_of((3, 2))
    other = PairIndex.from_tensor(torch.zeros(4, dtype=torch.uint8), ragged_of([2]), 1)
    with pytest.raises(ValueError, match=r"^pairs must have 13 pairs, as .*, got 4"):
        ops.gather_pairs(other, selection)
    with pytest.raises(TypeError, match=r"^pairs must be a PairIndex, got Tensor"):
        ops.gather_pairs(other.index, selection)  # type: ignore[arg-type]
