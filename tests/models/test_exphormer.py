"""The networks: sizes of the papers, and what an augmented graph holds."""

from __future__ import annotations

import pytest
import torch

from gtkern import Graph, ops
from gtkern.models import Exphormer, SampledExphormer, ScoreEstimator, augment

RING = torch.stack((torch.arange(40), (torch.arange(40) + 1) % 40))


def parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_parameters_are_those_of_the_papers_amazon2m_network() -> None:
    network = SampledExphormer(100, 47, width=128, heads=1, layers=2)
    assert parameters(network) == 300_209


def test_parameters_are_those_of_the_papers_proteins_network() -> None:
    # the published number needs 4 heads; the published configuration says 1
    assert parameters(SampledExphormer(8, 112, width=64, heads=4, layers=2)) == 79_224


@pytest.mark.parametrize("wrong", [-1, 40, 2**32])
def test_augmenting_refuses_nodes_that_are_not_there(wrong: int) -> None:
    edges = RING.clone()
    edges[1, 3] = wrong
    with pytest.raises(ValueError, match=rf"edge_index must be 0 \.\. 39 .*got {wrong}"):
        augment(edges, 40, expander_degree=3)


def test_augmenting_takes_short_and_long_integers_alike() -> None:
    short, long = (augment(edges, 40, expander_degree=3) for edges in (RING.int(), RING))
    assert all(torch.equal(a, b) for a, b in zip(short.csr, long.csr, strict=True))


def test_augmented_graph_has_three_types_in_its_own_order() -> None:
    graph = augment(RING, 40, expander_degree=3, seed=1)
    types = graph.edge_type()
    assert types is not None
    assert torch.bincount(types.long()).tolist() == [40, 240, 40]
    assert graph.degree().tolist() == [8] * 40
    assert graph.csr.edge_id.numel() == 0
    loops = graph.edge_index()[:, types == 2]
    assert torch.equal(loops[0], loops[1])


def test_without_expander_only_edges_and_self_loops_remain() -> None:
    graph = augment(RING, 40, expander_degree=0)
    types = graph.edge_type()
    assert types is not None
    assert sorted(set(types.tolist())) == [0, 2]


def test_the_same_seed_gives_the_same_graph() -> None:
    first, same, other = (augment(RING, 40, expander_degree=2, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(first.csr.index, same.csr.index)
    assert not torch.equal(first.csr.index, other.csr.index)


def test_scores_of_every_row_sum_to_one() -> None:
    graph = augment(RING, 40, expander_degree=2)
    network = ScoreEstimator(3, 2, layers=3).eval()
    with torch.inference_mode():
        scores = list(network.scores(torch.randn(40, 3), graph, 0.5))
    assert len(scores) == 3
    for score in scores:
        total = torch.zeros(40).index_add(0, graph.edge_index()[1], score)
        torch.testing.assert_close(total, torch.ones(40), rtol=0, atol=1e-4)


def test_scores_belong_to_the_forward_pass() -> None:
    graph = augment(RING, 40, expander_degree=2)
    network, x = ScoreEstimator(3, 2, layers=2).eval(), torch.randn(40, 3)
    with torch.inference_mode():
        hidden = network.encoder(x)
        attention = network.attention[0]
        attended, score = attention(
            hidden, graph, network.type_embedding.weight, 0.7, return_scores=True
        )
        scores = list(network.scores(x, graph, 0.7))
        hidden = network.blocks[0](hidden, attended)
        attended = network.attention[1](hidden, graph, network.type_embedding.weight, 0.7)
        logits = network.head(network.blocks[1](hidden, attended))
    assert torch.equal(scores[0], score[:, 0])
    torch.testing.assert_close(network(x, graph, 0.7), logits)


def test_a_sample_of_all_edges_gives_each_node_its_own_output() -> None:
    graph = augment(RING, 40, expander_degree=2)
    sampled = ops.sample_neighbors(graph, torch.rand(2, graph.num_edges), [6, 6], seed=0)
    network, x = SampledExphormer(3, 4, width=16, heads=2, layers=2).eval(), torch.randn(40, 3)

    def logits(targets: torch.Tensor) -> torch.Tensor:
        layers = ops.layer_batches(targets, sampled)
        with torch.inference_mode():
            out: torch.Tensor = network(x[layers[0].nodes], layers)
        return out

    everyone = logits(torch.arange(40))
    torch.testing.assert_close(logits(torch.tensor([7, 31])), everyone[[7, 31]])


def test_exphormer_learns_from_its_neighbours() -> None:
    graph = augment(RING, 40, expander_degree=2)
    network = Exphormer(3, 2, width=8, heads=2, layers=2)
    network(torch.randn(40, 3), graph).sum().backward()
    assert all(
        parameter.grad is not None and bool(parameter.grad.isfinite().all())
        for parameter in network.parameters()
    )


@pytest.mark.parametrize("name", ["in_features", "layers", "post_layers"])
def test_sizes_below_one_are_named(name: str) -> None:
    sizes = {"in_features": 3, "layers": 2, "post_layers": 1, name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        ScoreEstimator(
            sizes["in_features"], 2, layers=sizes["layers"], post_layers=sizes["post_layers"]
        )


def test_an_augmented_graph_is_a_graph() -> None:
    assert isinstance(augment(RING, 40), Graph)
