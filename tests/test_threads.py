"""Several Python threads at once: the same results as one alone, and nobody else's settings."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import gtkern
from gtkern import BlockSparseMatrix, Graph, PairIndex, Ragged, ops, transforms
from gtkern.nn.dropin.graphs import GraphCache
from gtkern.testing import random_edges, random_graph

THREADS, ROUNDS = 4, 3
NODES = 700


def at_once(calls: list[Callable[[], Any]]) -> list[Any]:
    """What each call gives, made by a thread of its own, all beginning together."""
    results: list[Any] = [None] * len(calls)
    gate = threading.Barrier(len(calls))

    def work(at: int) -> None:
        gate.wait()
        try:
            results[at] = calls[at]()
        except BaseException as error:
            results[at] = error

    threads = [threading.Thread(target=work, args=(at,)) for at in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).requires_grad_()


def learned(result: Any, *leaves: Tensor) -> list[Tensor]:
    """A result and its gradients."""
    parts = list(result) if isinstance(result, tuple) else [result]
    cotangent = torch.linspace(-1, 1, parts[0].numel()).view(parts[0].shape)
    return [*(part.detach() for part in parts), *torch.autograd.grad(parts[0], leaves, cotangent)]


def calls() -> dict[str, Callable[[], Any]]:
    """One of each room, on tensors that all threads share; large enough for several blocks."""
    graph = random_graph("power_law", NODES, 9 * NODES, num_edge_types=3, seed=0)
    edges = random_edges("uniform", NODES, 4 * NODES, seed=1)
    both = Graph.from_edge_index(torch.cat((edges, edges.flip(0)), 1), NODES)
    ragged = Ragged.from_ptr(torch.arange(0, NODES + 1, 20))
    generator = torch.Generator().manual_seed(2)
    index = torch.randint(0, 5, (ragged.num_pairs,), generator=generator).to(torch.uint8)
    pairs = PairIndex.from_tensor(index, ragged, 5)
    neighbors = torch.randint(-1, NODES, (NODES, 8), generator=generator).int()
    dense = torch.randn(96, 64, generator=generator)
    matrix = BlockSparseMatrix.from_dense(dense, 16, keep=0.5)
    score, weight = leaf(NODES), torch.rand(graph.num_edges, generator=generator)
    chosen = ops.select_tokens(score.detach(), ragged, ratio=0.5)
    q, k, v, bias = leaf(NODES, 4, 12), leaf(NODES, 4, 12), leaf(NODES, 4, 12), leaf(3, 4)
    narrow, x, table = leaf(NODES, 1, 4), leaf(NODES, 64), leaf(5, 4)
    vector = leaf(4, 12)
    dropped = {"dropout": 0.3, "seed": 5}
    return {
        "sparse_attention": lambda: learned(
            ops.sparse_attention(q, k, v, graph, bias=bias, **dropped), q, k, v, bias
        ),
        "sparse_attention, narrow": lambda: learned(
            ops.sparse_attention(narrow, narrow, narrow, graph), narrow
        ),
        "additive_attention": lambda: learned(
            ops.additive_attention(q, k, None, graph, vector, **dropped), q, k, vector
        ),
        "sampled_attention": lambda: learned(
            ops.sampled_attention(q, k, v, neighbors, **dropped), q, k, v
        ),
        "ragged_attention": lambda: learned(
            ops.ragged_attention(q, k, v, ragged, bias=[(pairs, table)], **dropped), q, k, v, table
        ),
        "sample_neighbors": lambda: ops.sample_neighbors(graph, weight, [3, 9], seed=4),
        "sampling_table": lambda: ops.sampling_table(graph, weight)[:2],
        "layer_batches": lambda: ops.layer_batches(
            torch.arange(50), ops.sample_neighbors(graph, weight, [3, 3], seed=0)
        ),
        "propagate": lambda: learned(ops.propagate(both, x, 0.3, steps=6), x),
        "block_sparse_linear": lambda: learned(
            ops.block_sparse_linear(x, matrix, activation="gelu"), x
        ),
        "select_tokens": lambda: learned(
            ops.select_tokens(score, ragged, ratio=0.4, noise="gumbel", seed=3).gate, score
        ),
        "gather_tokens": lambda: learned(ops.gather_tokens(x, chosen), x),
        "drop_tokens": lambda: ops.drop_tokens(edges, chosen),
        "gather_pairs": lambda: ops.gather_pairs(pairs, chosen).index,
        "hop_distances": lambda: transforms.hop_distances(
            torch.empty(2, 0, dtype=torch.int64), ragged.ptr, 3
        ),
        "expander_edges": lambda: transforms.expander_edges(NODES, 2, seed=1),
    }


@pytest.mark.parametrize("name", list(calls()))
def test_threads_get_what_one_alone_gets(name: str) -> None:
    call = calls()[name]
    alone = call()
    for _ in range(ROUNDS):
        for result in at_once([call] * THREADS):
            assert equal(result, alone)
    assert torch.get_num_threads() == 2


def test_different_ops_at_once_do_not_disturb_each_other() -> None:
    every = [*calls().values()]
    alone = [call() for call in every]
    assert equal(at_once(every), alone)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_thread_keeps_its_number_of_threads(threads: int) -> None:
    call = calls()["sparse_attention"]

    def alone() -> int:
        torch.set_num_threads(threads)
        call()
        return torch.get_num_threads()

    def other() -> int:
        before = torch.get_num_threads()
        call()
        return torch.get_num_threads() - before

    assert at_once([alone, other, other]) == [threads, 0, 0]


def lazily(graph: Graph) -> list[Any]:
    """All that a graph makes on first use."""
    return [*graph.csc, graph.is_symmetric(), *graph.gcn_norm(), graph.edge_index()]


def test_threads_that_use_a_new_graph_first_see_it_whole() -> None:
    edges = random_edges("hub", NODES, 20 * NODES, seed=3)
    alone = lazily(Graph.from_edge_index(edges, NODES))
    for _ in range(5):
        graph = Graph.from_edge_index(edges, NODES)
        for result in at_once([lambda graph=graph: lazily(graph)] * THREADS):  # type: ignore[misc]
            assert equal(result, alone)


def test_threads_make_the_same_graph_from_the_same_edges() -> None:
    edges = random_edges("power_law", NODES, 20 * NODES, seed=3)
    alone = Graph.from_edge_index(edges, NODES)
    made = at_once([lambda: Graph.from_edge_index(edges, NODES)] * THREADS)
    assert all(equal([*graph.csr], [*alone.csr]) for graph in made)


def test_a_cache_of_graphs_never_mixes_them_up() -> None:
    several = [random_edges("uniform", 60, 200 + 10 * seed, seed=seed) for seed in range(24)]
    cache = GraphCache()

    def look(first: int) -> bool:
        for at in range(3 * len(several)):
            edges = several[(first + at) % len(several)]
            if not torch.equal(cache.graph(edges, (60, 60)).edge_index(), edges):
                return False
        return True

    assert all(at_once([lambda at=at: look(5 * at) for at in range(THREADS)]))  # type: ignore[misc]


def test_twins_share_their_cache_with_threads() -> None:
    from torch_geometric.nn import TransformerConv

    torch.manual_seed(0)
    model = torch.nn.ModuleList(TransformerConv(16, 8, heads=2) for _ in range(2))
    gtkern.accelerate(model)
    x, edges = torch.randn(NODES, 16), random_edges("uniform", NODES, 6 * NODES, seed=0)

    def call() -> list[Tensor]:
        hidden = model[0](x, edges)
        gradients = torch.autograd.grad(model[1](hidden, edges).sum(), list(model.parameters()))
        return [hidden.detach(), *gradients]

    alone = call()
    for _ in range(ROUNDS):
        for result in at_once([call] * THREADS):
            assert equal(result, alone)
