"""Packs a list of PyG graphs, and says which of them is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def pack(graphs: Sequence[Any]) -> dict[str, Any]:
    """The tensors of PackedGraphs, from graphs with x, edge_index, and edge_attr and y if any."""
    if len(graphs) == 0:
        raise ValueError("graphs must have at least one graph, got none")
    has_attr = any(_given(graph, "edge_attr") for graph in graphs)
    has_label = any(_given(graph, "y") for graph in graphs)
    first = check_graph(0, graphs[0], has_attr, has_label)
    for number, graph in enumerate(graphs[1:], 1):
        sizes = check_graph(number, graph, has_attr, has_label)
        for name, (size, dtype) in sizes.items():
            expected = first.setdefault(name, (size, dtype))
            if (size, dtype) != expected:
                raise ValueError(
                    f"graph {number}: {name} must have {expected[0]} columns of {expected[1]} "
                    f"as in graph 0, got {size} of {dtype}"
                )
    node_ptr = _pointer([graph.x.size(0) for graph in graphs])
    edge_ptr = _pointer([graph.edge_index.size(1) for graph in graphs])
    shift = torch.repeat_interleave(node_ptr[:-1], edge_ptr.diff())
    labels = torch.stack([graph.y.reshape(-1) for graph in graphs]) if has_label else None
    if labels is not None and not labels.is_floating_point() and labels.size(1) == 1:
        labels = labels[:, 0]
    return {
        "x": torch.cat([graph.x for graph in graphs]),
        "edge_index": torch.cat([graph.edge_index for graph in graphs], dim=1) + shift,
        "node_ptr": node_ptr,
        "edge_ptr": edge_ptr,
        "y": labels,
        "edge_attr": torch.cat([graph.edge_attr for graph in graphs if _given(graph, "edge_attr")])
        if has_attr
        else None,
    }


def check_graph(
    number: int, graph: Any, has_attr: bool, has_label: bool
) -> dict[str, tuple[int, torch.dtype]]:
    """Check one graph; returns the columns and dtype of what it has."""
    x, edges = getattr(graph, "x", None), getattr(graph, "edge_index", None)
    for name, value, rank, axes in (("x", x, 2, "[n, F]"), ("edge_index", edges, 2, "[2, e]")):
        if not isinstance(value, Tensor):
            raise TypeError(f"graph {number}: {name} must be a tensor, got {type(value).__name__}")
        if value.dim() != rank:
            raise ValueError(
                f"graph {number}: {name} must have shape {axes}, got {list(value.shape)}"
            )
    assert isinstance(x, Tensor)
    assert isinstance(edges, Tensor)
    if edges.dtype != torch.int64 or edges.size(0) != 2:
        raise ValueError(
            f"graph {number}: edge_index must be int64 [2, e], "
            f"got {edges.dtype} {list(edges.shape)}"
        )
    if edges.numel() > 0:
        low, high = (int(value) for value in torch.aminmax(edges))
        if low < 0 or high >= x.size(0):
            raise ValueError(
                f"graph {number}: edge_index must be 0 .. {x.size(0) - 1} (its nodes - 1), "
                f"got {low if low < 0 else high}"
            )
    found = {"x": (x.size(1), x.dtype)}
    if has_attr and (_given(graph, "edge_attr") or edges.size(1) > 0):
        attr = getattr(graph, "edge_attr", None)
        if not isinstance(attr, Tensor) or attr.dim() != 2 or attr.size(0) != edges.size(1):
            got = list(attr.shape) if isinstance(attr, Tensor) else type(attr).__name__
            raise ValueError(
                f"graph {number}: edge_attr must have shape [{edges.size(1)}, Fe], got {got}"
            )
        found["edge_attr"] = (attr.size(1), attr.dtype)
    if has_label:
        label = getattr(graph, "y", None)
        if not isinstance(label, Tensor):
            raise TypeError(f"graph {number}: y must be a tensor, got {type(label).__name__}")
        found["y"] = (label.numel(), label.dtype)
    return found


def _given(graph: Any, name: str) -> bool:
    return getattr(graph, name, None) is not None


def _pointer(counts: list[int]) -> Tensor:
    return torch.nn.functional.pad(torch.tensor(counts, dtype=torch.int64).cumsum(0), (1, 0))
