"""Tables of weights that stay the same over many samples, and how they are made of torch's ops."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gtkern import _check, _native
from gtkern.graph import Adjacency, Graph

__all__ = ["SamplingTable", "sampling_table"]

SMALLEST_WEIGHT = 2.0**-100
LARGEST_WEIGHT = 2.0**100
MOST_DRAWN = 64
"""More edges of a row than this are not drawn one after the other, but raced."""
_SHARE_BITS = 24


class SamplingTable(NamedTuple):
    """Weights made ready to be sampled by; `sampling_table` makes one.

    Attributes:
        row_ptr: int64 [N + 1]; that of the graph's CSR.
        weight: float32 [L, E] in the order of the graph's CSR.
        prefix: uint32 [L, E]; in each row the sums of integer shares of the weights so far.
    """

    row_ptr: Tensor
    weight: Tensor
    prefix: Tensor

    def to(self, device: torch.device | str) -> SamplingTable:
        """The same table on another device."""
        return SamplingTable(*(tensor.to(device) for tensor in self))


def sampling_table(graph: Graph, weight: Tensor) -> SamplingTable:
    """Sort weights into the graph's order and sum them up, once for many samples.

    `sample_neighbors` takes the table in place of the weights and gives the same bits for it, but
    then looks only at the edges that it draws.

    Args:
        graph: the edges.
        weight: [E] for all layers or [L, E], float, 0 .. 2**100, in the order the graph was given
            its edges. On a GPU the values are not checked.

    Returns:
        The table, 8 bytes for each weight.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape, dtype, device or range.
    """
    check_graph(graph)
    weight = checked_weight(weight, graph)
    check_values(weight)
    csr = graph.csr
    if weight.device.type == "cpu" and _native.missing_reason("cpu") is None:
        ordered, prefix = _native.ops("cpu").sampling_table(csr.ptr, csr.edge_id, weight)
        return SamplingTable(csr.ptr, ordered, prefix)
    ordered = weight[:, csr.edge_id] if csr.edge_id.numel() else weight.clone()
    return SamplingTable(csr.ptr, ordered, prefix_sums(csr, ordered).to(torch.uint32))


def prefix_sums(csr: Adjacency, weight: Tensor) -> Tensor:
    """The prefix sums of weights float32 [L, E] in CSR order, as int64; README.md defines them."""
    num_rows, num_edges = csr.ptr.numel() - 1, weight.size(1)
    begin, end = csr.ptr[:-1], csr.ptr[1:]
    row = torch.repeat_interleave(
        torch.arange(num_rows, device=weight.device), csr.ptr.diff(), output_size=num_edges
    )
    result = torch.empty(weight.shape, dtype=torch.int64, device=weight.device)
    for layer, values in enumerate(weight):
        candidate = is_candidate(values)
        values = torch.where(candidate, values, 0.0)
        largest = values.new_zeros(num_rows).scatter_reduce(0, row, values, "amax")
        share = values / torch.where(largest > 0, largest, 1.0)[row] * 2.0**_SHARE_BITS
        share = torch.where(candidate, share.to(torch.int64).clamp(min=1), 0)
        before = torch.cat((share.new_zeros(1), share.cumsum(0)))
        total = before[end] - before[begin]
        shift = torch.frexp((total >> 32).to(torch.float64)).exponent.to(torch.int64)
        result[layer] = (before[1:] - before[begin][row]) >> shift[row]
    return result


def sorted_weight(
    csr: Adjacency, weight: Tensor | None, prefix: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The weights [1 or L, E] in CSR order and their table, from weights in the caller's order
    unless their table is there already.
    """
    if weight is None or prefix is not None:
        return weight, prefix
    weight = weight[:, csr.edge_id] if csr.edge_id.numel() else weight
    return weight, prefix_sums(csr, weight).to(torch.uint32)


def num_draws(count: int) -> int:
    """How many draws with replacement a row makes for `count` edges."""
    return (2 * count + 15) // 16 * 16


def is_candidate(weight: Tensor) -> Tensor:
    """Whether edges of these weights may be drawn."""
    return (weight >= SMALLEST_WEIGHT) & (weight <= LARGEST_WEIGHT)


def check_graph(graph: Graph) -> None:
    """Raise TypeError unless `graph` is one."""
    if not isinstance(graph, Graph):
        raise TypeError(
            f"graph must be a gtkern.Graph (Graph.from_any makes one), got {type(graph).__name__}"
        )


def checked_weight(weight: Tensor, graph: Graph) -> Tensor:
    """The weights as float32 [1 or L, E]."""
    _check.floating("weight", weight)
    num_edges = graph.num_edges
    if (
        weight.dim() not in (1, 2)
        or weight.size(-1) != num_edges
        or weight.size(0) == 0 < num_edges
    ):
        raise ValueError(
            f"weight must have shape [E] or [L, E] with E = {num_edges}, got {list(weight.shape)}"
        )
    _check.same_device(graph=graph.csr.ptr, weight=weight)
    weight = weight.detach().to(torch.float32)
    return (weight[None] if weight.dim() == 1 else weight).contiguous()


def check_values(weight: Tensor) -> None:
    """Check weights on the CPU; on a GPU it would wait for the device."""
    if weight.device.type != "cpu" or weight.numel() == 0:
        return
    low, high = (float(value) for value in torch.aminmax(weight))
    if not (low >= 0 and high <= LARGEST_WEIGHT):
        wrong = high if low >= 0 else low
        raise ValueError(f"weight must be 0 .. 2**100, got {wrong:g}")
