"""The specification of token dropping: plain PyTorch, any device, differentiable by autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from gtkern.graph import Adjacency
from gtkern.random import gumbel, philox

STREAM = 1
"""The last word of the noise's counters; those of dropout masks have 0 there."""

_MASK = 0xFFFFFFFF


def keys(score: Tensor, seed: int | None) -> Tensor:
    """What tokens are ranked by: score + noise, in float32, or float64 with such scores."""
    key = score if score.dtype == torch.float64 else score.float()
    if seed is None:
        return key
    row = torch.arange(score.numel(), device=score.device)
    quad = row[::4] >> 2
    words = philox(seed, (quad & _MASK, quad >> 32, 0, STREAM)).flatten()[: score.numel()]
    # the noise times 2**-26 is exact, so that the sum is rounded once
    return key + gumbel(words).to(key.dtype) * 2.0**-26


def select(
    score: Tensor,
    ptr: Tensor,
    kept_ptr: Tensor,
    num_kept: int,
    always_keep: Tensor | None,
    seed: int | None,
) -> tuple[Tensor, Tensor]:
    """The rows kept, int64 [M], ascending; and where each row stands among them, int32 [N]."""
    graph = _graph(ptr, score.numel())
    key = keys(score, seed)
    order = torch.where(key.isnan(), float("-inf"), key).sort(descending=True, stable=True).indices
    # stable sorts by ever weightier marks: NaN last, always kept first, by graph
    order = order[key.isnan()[order].to(torch.uint8).sort(stable=True).indices]
    if always_keep is not None:
        order = order[(~always_keep)[order].to(torch.uint8).sort(stable=True).indices]
    order = order[graph[order].sort(stable=True).indices]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(order.numel(), device=order.device) - ptr[graph]
    kept = rank < kept_ptr.diff()[graph]
    index = kept.nonzero()[:, 0]
    position = torch.full_like(graph, -1, dtype=torch.int32)
    position[index] = torch.arange(num_kept, dtype=torch.int32, device=position.device)
    return index, position


def gate(
    score: Tensor,
    ptr: Tensor,
    index: Tensor,
    always_keep: Tensor | None,
    temperature: float,
    seed: int | None,
) -> Tensor:
    """1 for each kept row [M], with the gradient of y."""
    graph = _graph(ptr, score.numel())
    # log_softmax shifts the scores of a graph alike, which softmax does not see
    z = keys(score, seed) / temperature
    chosen_from = torch.ones_like(graph, dtype=torch.bool)
    if always_keep is not None:
        chosen_from = ~always_keep
    z = torch.where(chosen_from, z, float("-inf"))
    graphs = ptr.numel() - 1
    peak = z.new_full((graphs,), float("-inf")).scatter_reduce(0, graph, z.detach(), "amax")
    # a graph without tokens to choose from has no largest; any finite stand-in gives exp(-inf) = 0
    peak = torch.where(peak == float("-inf"), torch.zeros_like(peak), peak)
    weight = (z - peak[graph]).exp()
    total = torch.zeros_like(peak).index_add(0, graph, weight)
    y = weight / torch.where(total == 0, torch.ones_like(total), total)[graph]
    y = y[index]
    # y - y is 0, not NaN, where y is finite: the value is 1 to the bit
    return (1 + (y - y.detach())).to(score.dtype)


def gather(x: Tensor, gate: Tensor | None, index: Tensor, position: Tensor) -> Tensor:
    """The kept rows of x [N, C], times the gate [M]: [M, C]."""
    rows = x.index_select(0, index)
    return rows if gate is None else rows * gate[:, None]


def scatter(y: Tensor, fill: Tensor | None, index: Tensor, position: Tensor) -> Tensor:
    """The rows y [M, C] in their places, those of fill [N, C] or zeros in the others: [N, C]."""
    rows = position.numel()
    out = y.new_zeros(rows, y.size(1)) if fill is None else fill
    return out.index_copy(0, index, y)


def drop_edges(source: Tensor, destination: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    """The edges [2, E'] between kept tokens, renumbered, and their numbers int64 [E']."""
    at = torch.stack((position[source.long()], position[destination.long()]))
    edge = (at >= 0).all(0).nonzero()[:, 0]
    return at[:, edge].to(source.dtype), edge


def drop_rows(
    csr: Adjacency, index: Tensor, position: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The kept rows of a CSR without the dropped sources.

    Returns:
        ptr int64 [M + 1]; the sources int32 [E'], the caller's numbers int64 [E'] and the types
        uint8 [E'] of the edges, or no types.
    """
    rows = torch.arange(csr.ptr.numel() - 1, device=csr.ptr.device)
    row = torch.repeat_interleave(rows, csr.ptr.diff(), output_size=csr.index.numel())
    source = position[csr.index.long()]
    at = ((source >= 0) & (position[row] >= 0)).nonzero()[:, 0]
    degree = torch.bincount(position[row[at]].long(), minlength=index.numel())
    ptr = torch.cat((degree.new_zeros(1), degree.cumsum(0)))
    edge = csr.edge_id[at] if csr.edge_id.numel() else at
    return ptr, source[at], edge, csr.edge_type[at] if csr.edge_type.numel() else csr.edge_type


def gather_pairs(
    entry: Tensor,
    ptr: Tensor,
    pair_ptr: Tensor,
    index: Tensor,
    kept_ptr: Tensor,
    kept_pair_ptr: Tensor,
    num_pairs: int,
) -> Tensor:
    """The entries of the pairs [num_pairs] of kept tokens, out of those of all pairs."""
    sizes = kept_ptr.diff()
    graphs = torch.arange(sizes.numel(), device=ptr.device)
    graph = torch.repeat_interleave(graphs, sizes.square(), output_size=num_pairs)
    local = torch.arange(num_pairs, device=ptr.device) - kept_pair_ptr[graph]
    first, size = kept_ptr[graph], sizes[graph]
    query = index[first + local // size] - ptr[graph]
    key = index[first + local % size] - ptr[graph]
    return entry[pair_ptr[graph] + query * ptr.diff()[graph] + key]


def _graph(ptr: Tensor, rows: int) -> Tensor:
    """int64 [N]: the graph of each row."""
    graphs = torch.arange(ptr.numel() - 1, device=ptr.device)
    return torch.repeat_interleave(graphs, ptr.diff(), output_size=rows)
