"""How the models of graphs read a batch: PyG's Data, or what PackedGraphs.batch gives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gtkern.nn import Prompt
from gtkern.ragged import Ragged

__all__ = [
    "above_zero",
    "at_least",
    "each_with_prompt",
    "encoding",
    "graphs_of",
    "head_width",
    "one_of",
    "share",
]


def graphs_of(data: Any) -> Ragged:
    """The graphs of a batch; data without `ptr` are one graph.

    Raises:
        ValueError: ptr does not end at the rows of x.
    """
    ptr = getattr(data, "ptr", None)
    nodes = data.x.size(0)
    if ptr is None:
        ptr = torch.tensor([0, nodes], device=data.x.device)
    ragged = Ragged.from_ptr(ptr)
    if ragged.num_nodes != nodes:
        raise ValueError(f"ptr must end at the {nodes} rows of x, got {ragged.num_nodes}")
    return ragged


def encoding(
    data: Any, name: str, rows: int | None, model: str, columns: int | None = None
) -> Tensor:
    """An array that a model's `encode` adds to the data.

    Args:
        data: the batch.
        name: of the array.
        rows: its first size; None: any.
        model: the class whose `encode` adds it, for messages.
        columns: its second size; None: it has one axis.

    Raises:
        ValueError: it is not there, or of another size.
    """
    value = getattr(data, name, None)
    if value is None:
        raise ValueError(
            f"data.{name} must be given, got None; {model}.encode(packed, settings) adds it"
        )
    shape = [value.size(0) if rows is None else rows, *(() if columns is None else (columns,))]
    if list(value.shape) != shape:
        raise ValueError(
            f"data.{name} must have shape {shape}, got {list(value.shape)}; "
            f"{model}.encode(packed, settings) adds it for these settings"
        )
    tensor: Tensor = value
    return tensor


def each_with_prompt(
    layers: Iterable[nn.Module], prompts: Sequence[Prompt | None] | None
) -> list[tuple[nn.Module, Prompt | None]]:
    """The layers of a model, each with what is added to it.

    Raises:
        ValueError: there are not as many prompts as layers.
    """
    every = list(layers)
    given = [None] * len(every) if prompts is None else list(prompts)
    if len(given) != len(every):
        raise ValueError(
            f"prompts must have one entry for each of the {len(every)} layers, got {len(given)}"
        )
    return list(zip(every, given, strict=True))


def head_width(width: int, heads: int) -> int:
    """C / H.

    Raises:
        ValueError: H does not divide C, or a head would be wider than 256.
    """
    if heads < 1 or width % heads or width // heads > 256:
        raise ValueError(f"heads must divide width {width} into heads of at most 256, got {heads}")
    return width // heads


def at_least(name: str, value: int, low: int) -> None:
    """Raise ValueError if `value` is below `low`."""
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}")


def above_zero(name: str, value: float) -> None:
    """Raise ValueError unless `value` is above 0 and finite."""
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be above 0 and finite, got {value}")


def one_of(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def share(name: str, value: float) -> None:
    """Raise ValueError unless `value` is in [0, 1)."""
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value}")
