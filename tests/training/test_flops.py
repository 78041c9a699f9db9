"""Operations are counted for what runs, our ops among it."""

from __future__ import annotations

import torch

from gtkern import Graph, Ragged, ops
from gtkern.training.flops import count_flops

HEADS, WIDTH = 2, 4
PAIRS = 3 * 3 + 5 * 5


def attend(prefix: int = 0, sets: tuple[int, ...] | None = None) -> torch.Tensor:
    q, k, v = torch.randn(3, 8, HEADS, WIDTH).requires_grad_().unbind(0)
    shape = () if sets is None else (max(sets) + 1,)
    extra = torch.randn(2, *shape, prefix, HEADS, WIDTH) if prefix else (None, None)
    return ops.ragged_attention(
        q,
        k,
        v,
        Ragged.from_ptr(torch.tensor([0, 3, 8])),
        prefix_k=extra[0],
        prefix_v=extra[1],
        prefix_set=None if sets is None else torch.tensor(sets),
    )


def test_ragged_attention_counts_pairs() -> None:
    assert count_flops(attend) == 2 * PAIRS * HEADS * 2 * WIDTH
    assert count_flops(lambda: attend(3)) == 2 * (PAIRS + 8 * 3) * HEADS * 2 * WIDTH
    assert count_flops(lambda: attend(3, (-1, 1))) == 2 * (PAIRS + 5 * 3) * HEADS * 2 * WIDTH


def test_backward_computes_scores_anew() -> None:
    assert count_flops(lambda: attend().sum().backward()) == 2 * PAIRS * HEADS * 7 * WIDTH


def test_sampled_attention_counts_neighbours() -> None:
    q, k, v = torch.randn(3, 8, HEADS, WIDTH).requires_grad_().unbind(0)
    neighbors = torch.randint(8, (8, 3), dtype=torch.int32)

    def run() -> None:
        ops.sampled_attention(q, k, v, neighbors).sum()

    assert count_flops(run) == 2 * 24 * HEADS * 2 * WIDTH


def test_sparse_attention_counts_edges_and_the_prefix() -> None:
    q, k, v = torch.randn(3, 8, HEADS, WIDTH).requires_grad_().unbind(0)
    graph = Graph.from_edge_index(torch.randint(8, (2, 20)), 8)
    prefix = torch.randn(3, HEADS, WIDTH)

    def run(*prefix: torch.Tensor) -> None:
        slots = dict(zip(("prefix_k", "prefix_v"), prefix, strict=False))
        ops.sparse_attention(q, k, v, graph, **slots).sum().backward()

    assert count_flops(run) == 2 * 20 * HEADS * 7 * WIDTH
    assert count_flops(lambda: run(prefix, prefix)) == 2 * (20 + 8 * 3) * HEADS * 7 * WIDTH


def test_matrix_products_are_torchs() -> None:
    layer, x = torch.nn.Linear(3, 5), torch.randn(7, 3)
    assert count_flops(lambda: layer(x)) == 2 * 7 * 3 * 5
