"""Layer-wise batches: the nodes that each layer must compute, and its neighbours among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gtkern import _check, _native
from gtkern.ops.neighbor_sampling.op import Neighbors

__all__ = ["LayerBatch", "layer_batches"]


class LayerBatch(NamedTuple):
    """What one layer computes: the first N_dst of its N_src nodes, from its neighbours.

    Attributes:
        nodes: int64 [N_src]; the sources, by their number in the whole graph. The first N_dst are
            the nodes that the layer computes, which are all nodes of the layer after it.
        index: int32 [N_dst, k]; the neighbours as places in `nodes`; -1 for none.
        edge: int64 [N_dst, k]; the caller's numbers of the edges; -1 for none.
        type: uint8 [N_dst, k], or None when the graph has no edge types.
    """

    nodes: Tensor
    index: Tensor  # type: ignore[assignment]
    edge: Tensor
    type: Tensor | None


def layer_batches(targets: Tensor, neighbors: Sequence[Neighbors]) -> tuple[LayerBatch, ...]:
    """Collect, from the last layer back to the first, the nodes a batch of targets needs.

    The sources of a layer are its targets, then their neighbours in the order in which they are
    first seen; they are the targets of the layer before it.

    Args:
        targets: int32 or int64 [B], distinct: the nodes whose last-layer output is wanted.
        neighbors: of each layer, the first layer first, as `sample_neighbors` gives them.

    Returns:
        One batch for each layer, the first layer first: the inputs of the whole network are those
        of the nodes result[0].nodes, its outputs stand in the order of targets.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape, dtype, device or range.

    Reference: Shirzad et al. 2024 (Spexphormer), algorithm 3.
    """
    _check.tensor("targets", targets)
    if targets.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"targets must be int32 or int64, got {targets.dtype}")
    _check.rank("targets", targets, "B")
    _check.has_values("targets", targets)
    if not isinstance(neighbors, Sequence):
        raise TypeError(
            f"neighbors must be a sequence of Neighbors, got {type(neighbors).__name__}"
        )
    if not neighbors:
        raise ValueError("neighbors must hold at least 1 layer, got none")
    for layer, sampled in enumerate(neighbors):
        if not isinstance(sampled, Neighbors):
            raise TypeError(f"neighbors must hold Neighbors, got {type(sampled).__name__}")
        _check_layer(f"neighbors[{layer}]", sampled)
        if sampled.index.size(0) != neighbors[0].index.size(0):
            raise ValueError(
                f"neighbors must have as many rows in every layer ({neighbors[0].index.size(0)}), "
                f"got {sampled.index.size(0)} in layer {layer}"
            )
        _check.same_device(targets=targets, neighbors=sampled.index)
    num_nodes = neighbors[0].index.size(0)
    nodes = targets.to(torch.int64)
    if nodes.numel():
        low, high = (int(value) for value in torch.aminmax(nodes))
        if low < 0 or high >= num_nodes:
            wrong = low if low < 0 else high
            raise ValueError(f"targets must be 0 .. {num_nodes - 1} (N - 1), got {wrong}")
    if nodes.unique().numel() != nodes.numel():
        raise ValueError("targets must be distinct, got a node twice")

    make = _native_layer if _has_native(nodes) else _layer
    batches = []
    for layer, sampled in reversed([*enumerate(neighbors)]):
        try:
            batches.append(make(nodes, sampled))
        except RuntimeError:
            # looked at again only where something is wrong: all rows are many more than a batch's
            _check_sources(f"neighbors[{layer}]", sampled)
            raise
        nodes = batches[-1].nodes
    return tuple(reversed(batches))


def _check_layer(name: str, sampled: Neighbors) -> None:
    """Raise unless the three tensors are as `Neighbors` says: native code writes by their sizes."""
    parts = [("index", sampled.index, torch.int32), ("edge", sampled.edge, torch.int64)]
    if sampled.type is not None:
        parts.append(("type", sampled.type, torch.uint8))
    for part, value, dtype in parts:
        _check.tensor(f"{name}.{part}", value)
        if value.dtype != dtype:
            raise TypeError(f"{name}.{part} must be {dtype}, got {value.dtype}")
        _check.rank(f"{name}.{part}", value, "N, k")
        _check.shape(f"{name}.{part}", value, "N, k", sampled.index.shape)
        _check.same_device(**{f"{name}.index": sampled.index, f"{name}.{part}": value})


def _check_sources(name: str, sampled: Neighbors) -> None:
    """Raise ValueError unless every source is one of the N rows."""
    high, nodes = int(sampled.index.max()), sampled.index.size(0)
    if high >= nodes:
        raise ValueError(f"{name}.index must be below {nodes} (N), got {high}")


def _has_native(nodes: Tensor) -> bool:
    return nodes.device.type == "cpu" and _native.missing_reason("cpu") is None


def _native_layer(nodes: Tensor, sampled: Neighbors) -> LayerBatch:
    none = nodes.new_empty((0, sampled.index.size(1)), dtype=torch.uint8)
    sources, index, edge, kind = _native.ops("cpu").layer_batch(
        nodes.contiguous(),
        sampled.index.contiguous(),
        sampled.edge.contiguous(),
        none if sampled.type is None else sampled.type.contiguous(),
    )
    return LayerBatch(sources, index, edge, None if sampled.type is None else kind)


def _layer(nodes: Tensor, sampled: Neighbors) -> LayerBatch:
    index = sampled.index[nodes].to(torch.int64)
    real = index >= 0
    sources, places = _distinct(torch.cat((nodes, index[real])))
    local = sampled.index.new_full(index.shape, -1)
    local[real] = places[nodes.numel() :].to(torch.int32)
    kind = None if sampled.type is None else sampled.type[nodes]
    return LayerBatch(sources, local, sampled.edge[nodes], kind)


def _distinct(values: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct values in first-seen order, and the place of every value among them."""
    unique, inverse = torch.unique(values, return_inverse=True)
    position = torch.arange(values.numel(), device=values.device)
    first = position.new_full((unique.numel(),), values.numel())
    first = first.scatter_reduce(0, inverse, position, "amin")
    order = first.argsort()
    rank = torch.empty_like(order)
    rank[order] = torch.arange(order.numel(), device=values.device)
    return unique[order], rank[inverse]
