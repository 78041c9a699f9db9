"""Operations are counted for what runs, our ops among it."""

from __future__ import annotations

import torch

from gtkern import Ragged, ops
from gtkern.training.flops import count_flops

HEADS, WIDTH = 2, 4
PAIRS = 3 * 3 + 5 * 5


def attend(prefix: int = 0) -> tuple[torch.Tensor, int]:
    q, k, v = torch.randn(3, 8, HEADS, WIDTH).requires_grad_().unbind(0)
    extra = torch.randn(2, prefix, HEADS, WIDTH) if prefix else (None, None)
    ragged = Ragged.from_ptr(torch.tensor([0, 3, 8]))
    return ops.ragged_attention(q, k, v, ragged, prefix_k=extra[0], prefix_v=extra[1])


def test_ragged_attention_counts_pairs() -> None:
    assert count_flops(attend) == 2 * PAIRS * HEADS * 2 * WIDTH
    assert count_flops(lambda: attend(3)) == 2 * (PAIRS + 8 * 3) * HEADS * 2 * WIDTH


def test_backward_computes_scores_anew() -> None:
    assert count_flops(lambda: attend().sum().backward()) == 2 * PAIRS * HEADS * 7 * WIDTH


def test_sampled_attention_counts_neighbours() -> None:
    q, k, v = torch.randn(3, 8, HEADS, WIDTH).requires_grad_().unbind(0)
    neighbors = torch.randint(8, (8, 3), dtype=torch.int32)

    def run() -> None:
        ops.sampled_attention(q, k, v, neighbors).sum()

    assert count_flops(run) == 2 * 24 * HEADS * 2 * WIDTH


def test_matrix_products_are_torchs() -> None:
    layer, x = torch.nn.Linear(3, 5), torch.randn(7, 3)
    assert count_flops(lambda: layer(x)) == 2 * 7 * 3 * 5
