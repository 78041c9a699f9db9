"""The yardsticks compute what they stand in for."""

from __future__ import annotations

import pytest
import torch

from gtkern import Graph, ops, peers


@pytest.mark.parametrize("method", ["weighted", "uniform", "top"])
def test_samples_in_numpy_are_samples(method: str) -> None:
    generator = torch.Generator().manual_seed(0)
    edge_index = torch.randint(0, 30, (2, 200), generator=generator)
    edge_index = edge_index[:, edge_index[1] > 0]
    graph = Graph.from_edge_index(edge_index, 30)
    weight = torch.rand(2, graph.num_edges, generator=generator) + 0.1
    by = None if method == "uniform" else weight
    layers = peers.sample_neighbors(graph, by, (3, 9), seed=0, method=method)
    expected = ops.sample_neighbors(graph, by, [3, 9], seed=0, method=method)
    for layer, own in zip(layers, expected, strict=True):
        assert layer.index.shape == own.index.shape
        real = own.index >= 0
        assert torch.equal(layer.index >= 0, real)
        assert torch.equal(layer.index[real].long(), edge_index[0][layer.edge[real]])
        rows = torch.arange(30)[:, None].expand_as(real)
        assert torch.equal(edge_index[1][layer.edge[real]], rows[real])
    # a row that has enough edges repeats none
    degree = torch.bincount(edge_index[1], minlength=30)
    for row in (degree >= 3).nonzero().flatten().tolist():
        chosen = layers[0].edge[row].tolist()
        assert len(set(chosen)) == 3
        if method == "top":
            assert set(chosen) == set(expected[0].edge[row].tolist())


def test_weights_decide_the_samples() -> None:
    graph = Graph.from_edge_index(torch.stack((torch.arange(10), torch.zeros(10).long())), 10)
    weight = torch.full((1, 10), 1e-6)
    weight[0, 3] = weight[0, 7] = 1.0
    (layer,) = peers.sample_neighbors(graph, weight, (2,), seed=1, epoch=4)
    assert set(layer.index[0].tolist()) == {3, 7}
