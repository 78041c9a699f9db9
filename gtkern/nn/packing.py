"""Rows of a packed batch: tokens beside the nodes of each graph, and sums over each graph."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gtkern.ragged import Ragged

__all__ = ["WithTokens", "pool", "with_tokens"]


class WithTokens(NamedTuple):
    """A batch whose graphs have T further rows each.

    Attributes:
        x: [N + G T, C].
        ragged: of these rows.
        nodes: int64 [N]; the rows of the nodes.
        tokens: int64 [G, T]; the rows of the tokens.
    """

    x: Tensor
    ragged: Ragged
    nodes: Tensor
    tokens: Tensor


def with_tokens(x: Tensor, ragged: Ragged, tokens: Tensor, *, first: bool) -> WithTokens:
    """Put tokens into every graph of a batch.

    Args:
        x: [N, C].
        ragged: the graphs of x.
        tokens: [T, C], the same for every graph; or [G, T, C].
        first: whether they come before a graph's nodes, else after them.
    """
    graphs, count = ragged.num_graphs, tokens.size(-2)
    if tokens.dim() == 2:
        tokens = tokens.expand(graphs, -1, -1)
    ptr = ragged.ptr + count * torch.arange(graphs + 1, device=x.device)
    begin = ptr[:-1] if first else ptr[1:] - count
    at = begin[:, None] + torch.arange(count, device=x.device)
    # one gather from nodes and tokens: its backward is one sum, with no row written twice
    order = torch.empty(x.size(0) + graphs * count, dtype=torch.int64, device=x.device)
    node = torch.arange(x.size(0), device=x.device)
    nodes = node + ragged.batch() * count + (count if first else 0)
    order[nodes] = node
    order[at.flatten()] = x.size(0) + torch.arange(graphs * count, device=x.device)
    packed = torch.cat((x, tokens.flatten(0, 1).to(x.dtype))).index_select(0, order)
    return WithTokens(packed, Ragged.from_ptr(ptr), nodes, at)


def pool(x: Tensor, ragged: Ragged, how: str = "add") -> Tensor:
    """One vector for each graph.

    Args:
        x: [N, C].
        ragged: the graphs.
        how: "add", or "mean"; both give a graph without nodes 0.

    Returns:
        [G, C].
    """
    if how not in ("add", "mean"):
        raise ValueError(f"how must be 'add' or 'mean', got {how!r}")
    if ragged.num_graphs == 0:
        return x.new_zeros(0, x.size(1))
    total = torch.segment_reduce(x, "sum", offsets=ragged.ptr, axis=0)
    return total if how == "add" else total / ragged.sizes().clamp(min=1)[:, None]
