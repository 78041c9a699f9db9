"""The specification of sample_neighbors: PyTorch, with exact integers wherever chance decides."""

from __future__ import annotations

import torch
from torch import Tensor

from gtkern.graph import Adjacency
from gtkern.ops.neighbor_sampling.table import MOST_DRAWN, is_candidate, num_draws, sorted_weight
from gtkern.random import exponential, philox

DRAW_STREAM = 1 << 30
FILL_STREAM = 1 << 31

_MASK = 0xFFFFFFFF


def forward(
    csr: Adjacency,
    weight: Tensor | None,
    prefix: Tensor | None,
    k: list[int],
    seed: int,
    epoch: int,
    method: str,
    pad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample every layer.

    Args:
        weight: float32 [1 or L, E]; None: all 1.
        prefix: uint32 [1 or L, E], the table of the weights, which are then in CSR order; None:
            they are in the caller's order of the edges.
        method: "draw" or "top".
        pad: fill rows with -1 in place of draws with replacement.

    Returns:
        index int32, edge int64 and type uint8 of all layers, each [Σ_l N k[l]], layer by layer;
        type has no elements where the graph has none.
    """
    weight, prefix = sorted_weight(csr, weight, prefix)
    results = []
    for layer, count in enumerate(k):
        at = layer if weight is not None and weight.size(0) > 1 else 0
        row = _Rows(
            csr,
            None if weight is None else weight[at],
            None if prefix is None else prefix[at].to(torch.int64),
            (seed, epoch, layer),
        )
        results.append(_positions(row, count, method, pad).flatten())
    return _at(csr, torch.cat(results))


class _Rows:
    """The rows of one layer and what is drawn from them.

    Attributes:
        degree: int64 [N]. row: int64 [E], of each position of the CSR order.
        candidate: bool [E]. weight: float32 [E].
        total: int64 [N], the last prefix sums. prefix: int64 [E]; None: all edges alike.
    """

    def __init__(
        self,
        csr: Adjacency,
        weight: Tensor | None,
        prefix: Tensor | None,
        stream: tuple[int, int, int],
    ) -> None:
        num_edges = csr.index.numel()
        self.ptr, self.degree = csr.ptr, csr.ptr.diff()
        self.seed, self.epoch, self.layer = stream
        rows = torch.arange(self.degree.numel(), device=csr.ptr.device)
        self.row = torch.repeat_interleave(rows, self.degree, output_size=num_edges)
        if weight is None:
            weight = torch.ones(num_edges, dtype=torch.float32, device=csr.ptr.device)
        self.weight, self.candidate = weight, is_candidate(weight)
        self.total = self.degree.clone()
        if prefix is not None:
            self.total[self.degree > 0] = prefix[csr.ptr[1:][self.degree > 0] - 1]
            # a row's sums stand above those of the rows before it
            prefix = prefix + (self.row << 32)
        self.prefix = prefix

    def hits(self, row: Tensor, word: Tensor) -> Tensor:
        """The positions that words hit in rows [..., 1] or as many rows: int64."""
        total = self.total[row]
        # floor(word * total / 2**32), without the overflow of the product
        target = (word * (total >> 16) + ((word * (total & 0xFFFF)) >> 16)) >> 16
        if self.prefix is None:
            return self.ptr[row] + target
        return torch.searchsorted(self.prefix, (row << 32) + target, right=True)

    def words(self, row: Tensor, draw: Tensor, stream: int) -> Tensor:
        """The words of draws of rows, of a stream: int64."""
        words = philox(self.seed, (row, draw >> 2, self.layer | stream, self.epoch))
        return words.gather(-1, (draw & 3).expand(words.shape[:-1])[..., None])[..., 0]


def _positions(rows: _Rows, count: int, method: str, pad: bool) -> Tensor:
    """int64 [N, count]: the positions in the CSR order of what each row drew; -1 for nothing."""
    num_rows, num_edges = rows.degree.numel(), rows.row.numel()
    position = torch.arange(num_edges, device=rows.row.device)
    chosen = torch.zeros_like(rows.candidate)
    if method == "top":
        key = -rows.weight
    else:
        chosen[_draws(rows, count)] = True
        quad = position[::4] >> 2
        words = philox(rows.seed, (quad & _MASK, quad >> 32, rows.layer, rows.epoch))
        key = exponential(words.flatten()[:num_edges]) * (1.0 / rows.weight)

    # what was not drawn races for the places that are left
    racing = rows.candidate & ~chosen
    key = torch.where(racing, key, float("inf"))
    order = torch.sort(key, stable=True).indices
    order = order[torch.sort(rows.row[order], stable=True).indices]
    rank = torch.empty_like(position)
    rank[order] = position - rows.ptr[rows.row]
    left = torch.full_like(rows.degree, count).index_add(0, rows.row, -chosen.to(torch.int64))
    chosen |= racing & (rank < left[rows.row])

    before = torch.cat((position.new_zeros(1), chosen.to(torch.int64).cumsum(0)))
    place = before[:-1] - before[rows.ptr[rows.row]]
    result = torch.full((num_rows, count), -1, dtype=torch.int64, device=position.device)
    result[rows.row[chosen], place[chosen]] = position[chosen]
    if pad or count == 0:
        return result
    taken = before[rows.ptr[1:]] - before[rows.ptr[:-1]]
    places = torch.arange(count, device=position.device)
    row, at = ((places >= taken[:, None]) & (taken > 0)[:, None]).nonzero(as_tuple=True)
    result[row, at] = rows.hits(row, rows.words(row, at - taken[row], FILL_STREAM))
    return result


def _draws(rows: _Rows, count: int) -> Tensor:
    """Positions int64: the first `count` different ones that each row draws with replacement."""
    degree = rows.degree
    drawn = (degree >= 2 * count) & (degree > count) & (degree < 2**31) & (rows.total > 0)
    row = drawn.nonzero() if count <= MOST_DRAWN else drawn.nonzero()[:0]  # [R, 1]
    draw = torch.arange(num_draws(count), device=degree.device)[None]  # [1, T]
    hit = rows.hits(row.expand(-1, draw.numel()), rows.words(row, draw, DRAW_STREAM))
    order = torch.sort(hit, dim=1, stable=True)
    repeated = torch.zeros_like(hit, dtype=torch.bool)
    repeated[:, 1:] = order.values.diff(dim=1) == 0
    new = torch.zeros_like(repeated).scatter(1, order.indices, ~repeated)
    return hit[new & (new.cumsum(1) <= count)]


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
