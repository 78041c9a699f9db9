"""The specification of sample_neighbors: PyTorch, with exact integers wherever chance decides."""

from __future__ import annotations

import torch
from torch import Tensor

from gtkern.graph import Adjacency
from gtkern.random import philox

SMALLEST_WEIGHT = 2.0**-100
LARGEST_WEIGHT = 2.0**100
FILL_STREAM = 1 << 31

# Q30 coefficients of -log2(1 - x) / (2 x) on [0, 1/2], by rising powers of x
_LOG = (
    774541020,
    387264965,
    258464808,
    188062494,
    208826086,
    -157649060,
    974116327,
    -1313475288,
    1116196857,
)
_MASK = 0xFFFFFFFF


def forward(
    csr: Adjacency,
    weight: Tensor | None,
    in_csr_order: bool,
    k: list[int],
    seed: int,
    epoch: int,
    method: str,
    pad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample every layer.

    Args:
        weight: float32 [1 or L, E]; None: all 1.
        in_csr_order: of weight; False: it is in the caller's order of the edges.
        method: "race" (the exponential race) or "top".
        pad: fill rows with -1 in place of draws with replacement.

    Returns:
        index int32, edge int64 and type uint8 of all layers, each [Σ_l N k[l]], layer by layer;
        type has no elements where the graph has none.
    """
    results = []
    for layer, count in enumerate(k):
        row_weight = None
        if weight is not None:
            row_weight = weight[layer if weight.size(0) > 1 else 0]
            if csr.edge_id.numel() and not in_csr_order:
                row_weight = row_weight[csr.edge_id]
        position = _positions(csr, row_weight, count, seed, epoch, layer, method, pad)
        results.append(position.flatten())
    position = torch.cat(results)
    return _at(csr, position)


def exponential(word: Tensor) -> Tensor:
    """-2**16 log2((word + 1/2) / 2**32) as float32, the same bits everywhere.

    Relative error below 2**-23, and never 0; word 0 counts as 1. README.md derives it.
    """
    word = word.clamp(min=1)
    zeros = 32 - torch.frexp(word.to(torch.float64)).exponent.to(torch.int64)
    # (word + 1/2) / 2**32 = 2**-zeros (1 - t / 2), and t = rest / 2**32
    rest = (-(word << zeros << 1) - (1 << zeros)) & _MASK
    log = torch.full_like(rest, _LOG[-1])
    for coefficient in _LOG[-2::-1]:
        log = ((log * (rest >> 1)) >> 32) + coefficient
    fraction = ((rest * log) >> 30) + 1
    fixed = torch.where(zeros > 0, (zeros << 27) + (fraction >> 5), fraction)
    return fixed.to(torch.float32) * torch.where(zeros > 0, 2.0**-11, 2.0**-16).to(torch.float32)


def _positions(
    csr: Adjacency,
    weight: Tensor | None,
    count: int,
    seed: int,
    epoch: int,
    layer: int,
    method: str,
    pad: bool,
) -> Tensor:
    """int64 [N, count]: the positions in the CSR order of what each row drew; -1 for nothing."""
    device = csr.ptr.device
    num_rows, num_edges = csr.ptr.numel() - 1, csr.index.numel()
    position = torch.arange(num_edges, device=device)
    row = torch.repeat_interleave(
        torch.arange(num_rows, device=device), csr.ptr.diff(), output_size=num_edges
    )
    if weight is None:
        weight = torch.ones(num_edges, dtype=torch.float32, device=device)
    candidate = (weight >= SMALLEST_WEIGHT) & (weight <= LARGEST_WEIGHT)

    if method == "top":
        key = -weight
    else:
        quad = position[::4] >> 2
        words = philox(seed, (quad & _MASK, quad >> 32, layer, epoch)).flatten()[:num_edges]
        key = exponential(words) * (1.0 / weight)
    key = torch.where(candidate, key, float("inf"))
    order = torch.sort(key, stable=True).indices
    order = order[torch.sort(row[order], stable=True).indices]
    rank = torch.empty_like(position)
    rank[order] = position - csr.ptr[row]
    chosen = candidate & (rank < count)

    before = torch.cat((position.new_zeros(1), chosen.to(torch.int64).cumsum(0)))
    place = before[:-1] - before[csr.ptr[row]]
    result = torch.full((num_rows, count), -1, dtype=torch.int64, device=device)
    result[row[chosen], place[chosen]] = position[chosen]
    if pad or count == 0:
        return result
    taken = before[csr.ptr[1:]] - before[csr.ptr[:-1]]
    return _fill(result, taken, csr, row, weight, candidate, seed, epoch, layer)


def _fill(
    result: Tensor,
    taken: Tensor,
    csr: Adjacency,
    row: Tensor,
    weight: Tensor,
    candidate: Tensor,
    seed: int,
    epoch: int,
    layer: int,
) -> Tensor:
    """Weighted draws with replacement for the places that are left, by integer prefix sums."""
    count = result.size(1)
    share = torch.where(candidate, weight, 0.0)
    largest = share.new_zeros(len(result)).scatter_reduce(0, row, share, "amax")
    part = (share / torch.where(largest > 0, largest, 1.0)[row] * 2.0**24).to(torch.int64)
    part = torch.where(candidate, part.clamp(min=1), 0)
    prefix = torch.cat((part.new_zeros(1), part.cumsum(0)))  # [E + 1]

    place = torch.arange(count, device=result.device)
    rows, places = ((place >= taken[:, None]) & (taken > 0)[:, None]).nonzero(as_tuple=True)
    draw = places - taken[rows]
    words = philox(seed, (rows, draw >> 2, layer | FILL_STREAM, epoch))
    word = words.gather(1, (draw & 3)[:, None])[:, 0] >> 1
    begin = prefix[csr.ptr[rows]]
    total = prefix[csr.ptr[rows + 1]] - begin
    # floor(word * total / 2**31), without the overflow of the product
    low_bits = (1 << 31) - 1
    target = word * (total >> 31) + ((word * (total & low_bits)) >> 31)
    result[rows, places] = torch.searchsorted(prefix[1:], begin + target, right=True)
    return result


def _at(csr: Adjacency, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What stands at positions of the CSR order, for -1 nothing: index -1, edge -1, type 0."""
    real = position >= 0
    at = position[real]
    index = position.new_full(position.shape, -1, dtype=torch.int32)
    index[real] = csr.index[at]
    edge = position.new_full(position.shape, -1)
    edge[real] = csr.edge_id[at] if csr.edge_id.numel() else at
    kind = csr.edge_type.new_zeros(position.shape if csr.edge_type.numel() else 0)
    if kind.numel():
        kind[real] = csr.edge_type[at]
    return index, edge, kind
