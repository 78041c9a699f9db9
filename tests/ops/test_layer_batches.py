"""layer_batches: what each layer of a mini-batch needs, against a plain loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sampling_room import rows

from gtkern import Graph, ops
from gtkern.ops import Neighbors
from gtkern.ops.neighbor_sampling import batches
from gtkern.testing import random_graph


def batches_by_hand(
    targets: list[int], neighbors: tuple[Neighbors, ...]
) -> list[tuple[list[int], list[list[int]], list[list[int]]]]:
    """Nodes, local indices and edges of each layer, one neighbour after the other."""
    found, nodes = [], targets
    for layer in reversed(neighbors):
        seen = {node: at for at, node in enumerate(nodes)}
        local = []
        for node in nodes:
            places = [
                j if j < 0 else seen.setdefault(j, len(seen)) for j in layer.index[node].tolist()
            ]
            local.append(places)
        found.append((list(seen), local, layer.edge[nodes].tolist()))
        nodes = list(seen)
    return found[::-1]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("targets", [[4, 0, 17], [], [29], list(range(30))])
def test_batches_hold_what_their_targets_need(
    device: torch.device, dtype: torch.dtype, targets: list[int]
) -> None:
    graph = random_graph("power_law", 30, 150, num_edge_types=2, seed=2, device=device)
    weight = torch.rand(2, 150, device=device)
    neighbors = ops.sample_neighbors(graph, weight, [4, 3], seed=1, fill="pad")
    wanted = torch.tensor(targets, dtype=dtype, device=device)
    batches = ops.layer_batches(wanted, neighbors)
    assert len(batches) == 2
    expected = batches_by_hand(targets, neighbors)
    for batch, sampled, (nodes, index, edge) in zip(batches, neighbors, expected, strict=True):
        assert batch.nodes.dtype == torch.int64 and batch.nodes.tolist() == nodes
        assert batch.index.dtype == torch.int32 and batch.index.tolist() == index
        assert batch.edge.tolist() == edge
        assert batch.type is not None and sampled.type is not None
        rows = batch.nodes[: batch.index.size(0)]
        assert torch.equal(batch.type, sampled.type[rows])
    assert batches[1].index.size(0) == len(targets)
    assert batches[0].index.size(0) == batches[1].nodes.numel()


@pytest.mark.parametrize(
    ("targets", "error", "match"),
    [
        ([0, 1], TypeError, r"^targets must be a tensor, got list"),
        (torch.tensor([0.0]), TypeError, r"^targets must be int32 or int64, got torch.float32"),
        (torch.tensor([[0]]), ValueError, r"^targets must have shape \[B\], got \[1, 1\]"),
        (torch.tensor([0, 4]), ValueError, r"^targets must be 0 \.\. 3 \(N - 1\), got 4"),
        (torch.tensor([-1]), ValueError, r"^targets must be 0 \.\. 3 \(N - 1\), got -1"),
        (torch.tensor([2, 0, 2]), ValueError, r"^targets must be distinct"),
    ],
)
def test_bad_targets_are_refused(targets: Any, error: type[Exception], match: str) -> None:
    graph = random_graph("uniform", 4, 12, seed=0)
    neighbors = ops.sample_neighbors(graph, k=2, seed=0, method="uniform")
    with pytest.raises(error, match=match):
        ops.layer_batches(targets, neighbors)


def test_bad_layers_are_refused() -> None:
    graph = random_graph("uniform", 4, 12, seed=0)
    (layer,) = ops.sample_neighbors(graph, k=2, seed=0, method="uniform")
    (other,) = ops.sample_neighbors(rows(1, 1), k=2, seed=0, method="uniform")
    targets = torch.tensor([0])
    with pytest.raises(ValueError, match=r"^neighbors must hold at least 1 layer, got none"):
        ops.layer_batches(targets, [])
    with pytest.raises(TypeError, match=r"^neighbors must hold Neighbors, got Tensor"):
        ops.layer_batches(targets, [layer.index])
    with pytest.raises(ValueError, match=r"^neighbors must have as many rows in every layer"):
        ops.layer_batches(targets, [layer, other])
    with pytest.raises(TypeError, match=r"^neighbors must be a sequence of Neighbors, got Tensor"):
        ops.layer_batches(targets, layer.index)
    wrong = layer._replace(edge=layer.edge[:, :1])
    with pytest.raises(ValueError, match=r"^neighbors\[0\].edge must have shape .*, got \[4, 1\]"):
        ops.layer_batches(targets, [wrong, layer])
    wrong = layer._replace(index=layer.index.long())
    with pytest.raises(TypeError, match=r"^neighbors\[1\].index must be torch.int32"):
        ops.layer_batches(targets, [layer, wrong])
    wrong = layer._replace(index=layer.index + 9)
    with pytest.raises(ValueError, match=r"^neighbors\[0\].index must be below 4 \(N\), got \d+"):
        ops.layer_batches(targets, [wrong])


@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize("backend", ["cpu"])
@pytest.mark.parametrize("device", ["cpu"])
def test_native_layer_batches_equal_those_of_torch(backend: str, device: str, typed: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    edge_index = torch.randint(300, (2, 900), generator=generator)
    edge_type = torch.randint(4, (900,), generator=generator) if typed else None
    graph = Graph.from_edge_index(edge_index, 300, edge_type=edge_type)
    (sampled,) = ops.sample_neighbors(graph, torch.rand(900), 4, seed=0, fill="pad")
    nodes = torch.randperm(300, generator=generator)[:40]
    native, expected = batches._native_layer(nodes, sampled), batches._layer(nodes, sampled)
    for got, wanted in zip(native, expected, strict=True):
        assert (got is None) == (wanted is None)
        assert got is None or torch.equal(got, wanted)
