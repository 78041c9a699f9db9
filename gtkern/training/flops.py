"""Floating-point operations of what really runs, by torch's counter and formulas for our ops."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

import gtkern.ops  # noqa: F401  the ops must be there before their formulas

__all__ = ["count_flops"]


def count_flops(run: Callable[[], Any]) -> int:
    """The operations of a call, a multiplication with its addition being two.

    Matrix products and attention count; sums, norms and activations do not.

    Args:
        run: what to call; with its backward, if it has one.
    """
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def _of_attention(entries: int, q: Tensor, v: Tensor, *, backward: bool) -> int:
    """Of scores and weighted sums over some (query, key) entries.

    Backward computes the scores anew, and the gradients of scores, queries, keys and values.
    """
    heads, d, dv = q.size(1), q.size(2), v.size(2)
    return 2 * entries * heads * (3 * d + 2 * dv if backward else d + dv)


def _ragged_entries(
    q: Tensor, pair_ptr: Tensor, prefix_k: Tensor | None, row_set: Tensor | None
) -> int:
    slots = 0 if prefix_k is None else prefix_k.size(-3)
    rows = q.size(0) if row_set is None else int((row_set >= 0).sum())
    return int(pair_ptr[-1]) + rows * slots


@register_flop_formula(torch.ops.gtkern.ragged_attention_fwd, get_raw=True)
def _ragged_forward(
    q: Tensor, k: Tensor, v: Tensor, ptr: Tensor, pair_ptr: Tensor, max_nodes: int,
    index: Sequence[Tensor], table: Tensor | None, first_row: Sequence[int],
    prefix_k: Tensor | None, prefix_v: Tensor | None, row_set: Tensor | None,
    *rest: Any, **more: Any,
) -> int:  # fmt: skip
    return _of_attention(_ragged_entries(q, pair_ptr, prefix_k, row_set), q, v, backward=False)


@register_flop_formula(torch.ops.gtkern.ragged_attention_bwd, get_raw=True)
def _ragged_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    ptr: Tensor, pair_ptr: Tensor, max_nodes: int,
    index: Sequence[Tensor], table: Tensor | None, first_row: Sequence[int],
    prefix_k: Tensor | None, prefix_v: Tensor | None, row_set: Tensor | None,
    *rest: Any, **more: Any,
) -> int:  # fmt: skip
    return _of_attention(_ragged_entries(q, pair_ptr, prefix_k, row_set), q, v, backward=True)


@register_flop_formula(torch.ops.gtkern.block_sparse_linear_fwd, get_raw=True)
def _blocks_forward(x: Tensor, values: Tensor, *rest: Any, **more: Any) -> int:
    return 2 * math.prod(x.shape[:-1]) * values.numel()


@register_flop_formula(torch.ops.gtkern.block_sparse_linear_bwd, get_raw=True)
def _blocks_backward(grad_out: Tensor, x: Tensor, values: Tensor, *rest: Any, **more: Any) -> int:
    needs = next(part for part in rest if isinstance(part, (list, tuple)) and len(part) == 3)
    return 2 * math.prod(x.shape[:-1]) * values.numel() * sum(map(bool, needs[:2]))


def _sparse_entries(q: Tensor, csr: Sequence[Tensor], rest: Sequence[Any]) -> int:
    """The edges, and every row with every slot of a prefix, which follows six terms."""
    prefix_k = rest[6]
    return int(csr[1].numel()) + (0 if prefix_k is None else q.size(0) * prefix_k.size(0))


@register_flop_formula(torch.ops.gtkern.sparse_attention_fwd, get_raw=True)
def _sparse_forward(
    q: Tensor, k: Tensor, v: Tensor, csr: Sequence[Tensor], csc: Sequence[Tensor], *rest: Any,
    **more: Any,
) -> int:  # fmt: skip
    return _of_attention(_sparse_entries(q, csr, rest), q, v, backward=False)


@register_flop_formula(torch.ops.gtkern.sampled_attention_fwd, get_raw=True)
def _sampled_forward(
    q: Tensor, k: Tensor, v: Tensor, neighbors: Tensor, *rest: Any, **more: Any
) -> int:
    return _of_attention(neighbors.numel(), q, v, backward=False)


@register_flop_formula(torch.ops.gtkern.sparse_attention_bwd, get_raw=True)
def _sparse_backward(
    grad_out: Tensor, grad_edge_out: Tensor | None, grad_scores: Tensor | None,
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, edge_out: Tensor, lse: Tensor,
    csr: Sequence[Tensor], csc: Sequence[Tensor], *rest: Any, **more: Any,
) -> int:  # fmt: skip
    return _of_attention(_sparse_entries(q, csr, rest), q, v, backward=True)


@register_flop_formula(torch.ops.gtkern.sampled_attention_bwd, get_raw=True)
def _sampled_backward(
    grad_out: Tensor, grad_edge_out: Tensor | None, grad_scores: Tensor | None,
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, edge_out: Tensor, lse: Tensor,
    neighbors: Tensor, *rest: Any, **more: Any,
) -> int:  # fmt: skip
    return _of_attention(neighbors.numel(), q, v, backward=True)
