"""One graph whose nodes are texts, some of them with a class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gtkern.data._raw import undirected

__all__ = ["TextGraph", "check_text_graph"]

_NAMED_ROWS = 5


@dataclass
class TextGraph:
    """A text-attributed graph with one label for each node.

    Attributes:
        texts: of the N nodes.
        y: int64 [N], the class of each node; -1 where it is not known.
        edge_index: int64 [2, E]; every edge in both directions, once each, no self loops
            (`gtkern.data.undirected` makes it so).
        train_mask, val_mask, test_mask: bool [N].
        class_names: of the classes, in the order of their numbers.
        name: of the graph.
    """

    texts: list[str]
    y: Tensor
    edge_index: Tensor
    train_mask: Tensor
    val_mask: Tensor
    test_mask: Tensor
    class_names: tuple[str, ...]
    name: str = "graph"

    @property
    def num_nodes(self) -> int:
        """N."""
        return len(self.texts)

    @property
    def num_classes(self) -> int:
        """Width of a prediction."""
        return len(self.class_names)


def check_text_graph(data: Any) -> TextGraph:
    """Check what a method is given to train on, and return it.

    Raises:
        TypeError: it is no TextGraph, or an attribute has the wrong type or dtype. ValueError: a
            node without text, a class without a training node, a label or an edge out of range, an
            edge that is there in one direction only, twice, or from a node to itself; a mask that
            is empty, overlaps another, or selects a node without a label; a size that does not fit.
    """
    if not isinstance(data, TextGraph):
        raise TypeError(f"data must be a TextGraph, got {type(data).__name__}")
    if not isinstance(data.texts, list) or not all(isinstance(text, str) for text in data.texts):
        raise TypeError("data.texts must be a list of strings")
    if not data.texts:
        raise ValueError("data.texts must have at least one node, got none")
    _check_names(data)
    _check_texts(data.texts)
    for name in ("y", "edge_index", "train_mask", "val_mask", "test_mask"):
        value = getattr(data, name)
        expected = torch.bool if name.endswith("mask") else torch.int64
        if not isinstance(value, Tensor):
            raise TypeError(f"data.{name} must be a tensor, got {type(value).__name__}")
        if value.dtype != expected:
            raise TypeError(f"data.{name} must be {expected}, got {value.dtype}")
        if name != "edge_index" and list(value.shape) != [data.num_nodes]:
            raise ValueError(
                f"data.{name} must have shape [N] with N = {data.num_nodes} (texts), "
                f"got {list(value.shape)}"
            )
    _check_edges(data.edge_index, data.num_nodes)
    _check_labels(data)
    return data


def _check_names(data: TextGraph) -> None:
    names = data.class_names
    if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
        raise TypeError("data.class_names must be a tuple of strings")
    if len(names) < 2 or len(set(names)) != len(names):
        raise ValueError(
            f"data.class_names must be at least two different names, got {len(set(names))} "
            f"in {len(names)}"
        )


def _check_texts(texts: list[str]) -> None:
    empty = [row for row, text in enumerate(texts) if not text.strip()]
    if empty:
        raise ValueError(
            f"every node must have a text, got {len(empty)} without one among {len(texts)}: "
            f"{_rows(torch.tensor(empty))}"
        )


def _check_edges(edges: Tensor, num_nodes: int) -> None:
    if edges.dim() != 2 or edges.size(0) != 2:
        raise ValueError(f"data.edge_index must have shape [2, E], got {list(edges.shape)}")
    if edges.numel() and (int(edges.min()) < 0 or int(edges.max()) >= num_nodes):
        raise ValueError(
            f"data.edge_index must be in 0 .. {num_nodes - 1}, got {int(edges.min())} .. "
            f"{int(edges.max())}"
        )
    keys = (edges[0] * num_nodes + edges[1]).sort().values
    whole = undirected(edges, num_nodes)
    if not torch.equal(keys, whole[0] * num_nodes + whole[1]):
        raise ValueError(
            "data.edge_index must have every edge in both directions, once each, and no self "
            f"loops: {whole.size(1)} columns, got {edges.size(1)}; "
            "gtkern.data.undirected(edge_index, num_nodes) makes it so"
        )


def _check_labels(data: TextGraph) -> None:
    y = data.y
    if int(y.min()) < -1 or int(y.max()) >= data.num_classes:
        raise ValueError(
            f"data.y must be -1 (not known) or a class in 0 .. {data.num_classes - 1}, got "
            f"{int(y.min())} .. {int(y.max())}"
        )
    masks = {"train": data.train_mask, "val": data.val_mask, "test": data.test_mask}
    for name, mask in masks.items():
        if not bool(mask.any()):
            raise ValueError(f"data.{name}_mask must select at least one node, got none")
        unknown = mask & (y < 0)
        if bool(unknown.any()):
            raise ValueError(
                f"data.{name}_mask must select nodes with a label, got {int(unknown.sum())} "
                f"without one: {_rows(unknown.nonzero())}"
            )
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        both = masks[first] & masks[second]
        if bool(both.any()):
            raise ValueError(
                f"data.{first}_mask and data.{second}_mask must not overlap, got "
                f"{int(both.sum())} nodes in both: {_rows(both.nonzero())}"
            )
    counts = torch.bincount(y[data.train_mask], minlength=data.num_classes)
    missing = [name for name, count in zip(data.class_names, counts, strict=True) if not count]
    if missing:
        raise ValueError(
            "every class must have a training node, got none of "
            f"{', '.join(repr(name) for name in missing)}"
        )


def _rows(rows: Tensor) -> str:
    numbers = rows.flatten().tolist()
    more = ", ..." if len(numbers) > _NAMED_ROWS else ""
    word = "row" if len(numbers) == 1 else "rows"
    return f"{word} {', '.join(str(number) for number in numbers[:_NAMED_ROWS])}{more}"
