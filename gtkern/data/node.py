"""One graph with labelled nodes, the form every node task has here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["NodeData", "check_node_data", "random_split", "stratified_split"]

_CHECKED_ROWS = 1 << 16


@dataclass
class NodeData:
    """A graph with features and labels; the names are those of PyG's `Data`, which serves as well.

    Attributes:
        x: float32 [N, F].
        y: int64 [N], the class of each node; or float32 [N, tasks] of 0 and 1, NaN where unknown.
        edge_index: int32 or int64 [2, E]; sources in row 0.
        train_mask, val_mask, test_mask: bool [N].
    """

    x: Tensor
    y: Tensor
    edge_index: Tensor
    train_mask: Tensor
    val_mask: Tensor
    test_mask: Tensor

    @property
    def num_classes(self) -> int:
        """Width of a prediction: classes, or tasks."""
        return self.y.size(1) if self.y.dim() == 2 else int(self.y.max()) + 1


def check_node_data(data: Any) -> NodeData:
    """Check what a method is given to train on, and return it as NodeData.

    Args:
        data: a NodeData, or a PyG `Data` with the same attributes.

    Raises:
        TypeError: an attribute is missing or of the wrong dtype. ValueError: a size does not fit, a
            feature is not finite, a label is negative, or a split is empty.
    """
    names = ("x", "y", "edge_index", "train_mask", "val_mask", "test_mask")
    values: dict[str, Tensor] = {}
    for name in names:
        value = getattr(data, name, None)
        if not isinstance(value, Tensor):
            raise TypeError(f"data.{name} must be a tensor, got {type(value).__name__}")
        values[name] = value
    x, y = values["x"], values["y"]
    if x.dim() != 2 or x.size(0) == 0 or x.size(1) == 0:
        raise ValueError(f"data.x must have shape [N, F], not empty, got {list(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"data.x must be floating point, got {x.dtype}")
    # in pieces, for the features may be a file larger than memory
    if not all(bool(torch.isfinite(rows).all()) for rows in x.split(_CHECKED_ROWS)):
        raise ValueError("data.x must be finite, got NaN or infinite features")
    if y.dim() not in (1, 2) or y.size(0) != x.size(0):
        raise ValueError(
            f"data.y must have shape [N] or [N, tasks] with N = {x.size(0)}, got {list(y.shape)}"
        )
    if y.dim() == 1:
        if y.is_floating_point():
            raise TypeError(f"data.y must hold integer classes, got {y.dtype}")
        if bool((y < 0).any()):
            raise ValueError(f"data.y must be classes from 0, got {int(y.min())}")
    for name in names[3:]:
        mask = values[name]
        if mask.dtype != torch.bool or list(mask.shape) != [x.size(0)]:
            raise ValueError(
                f"data.{name} must be bool [N] with N = {x.size(0)}, "
                f"got {mask.dtype} {list(mask.shape)}"
            )
        if not bool(mask.any()):
            raise ValueError(f"data.{name} must select at least one node, got none")
    return NodeData(**{**values, "x": x.to(torch.float32)})


def random_split(
    num_nodes: int, fractions: Sequence[float], generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Split nodes at random.

    Args:
        num_nodes: N.
        fractions: of training and validation nodes; the rest is for the test.
        generator: draws the permutation.

    Returns:
        Three masks, bool [N].
    """
    order = torch.randperm(num_nodes, generator=generator)
    train = round(fractions[0] * num_nodes)
    val = round(fractions[1] * num_nodes)
    masks = []
    for chosen in (order[:train], order[train : train + val], order[train + val :]):
        mask = torch.zeros(num_nodes, dtype=torch.bool)
        mask[chosen] = True
        masks.append(mask)
    return masks[0], masks[1], masks[2]


def stratified_split(
    y: Tensor, fractions: Sequence[float], generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Split the labelled nodes at random, in the same shares in every class.

    Args:
        y: int64 [N], the class of each node; negative where it is not known.
        fractions: of training and validation nodes; the rest is for the test. A class has a node
            more or less in a part by rounding, and at least one for training.
        generator: draws the permutation.

    Returns:
        Three masks, bool [N]; nodes without a label are in none.
    """
    order = torch.randperm(y.numel(), generator=generator)
    masks = torch.zeros(3, y.numel(), dtype=torch.bool)
    for label in y[y >= 0].unique().tolist():
        members = order[y[order] == label]
        train = max(1, round(fractions[0] * members.numel()))
        known = max(train, round((fractions[0] + fractions[1]) * members.numel()))
        for part, chosen in enumerate((members[:train], members[train:known], members[known:])):
            masks[part, chosen] = True
    return masks[0], masks[1], masks[2]
