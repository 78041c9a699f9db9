"""The networks that take prompts: where in them, and with what behind."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import Tensor, nn

from gtkern.models import Exphormer, GraphGPS, Graphormer, GraphTrans, LiGhT
from gtkern.nn import ExphormerAttention, RaggedMultiheadAttention

__all__ = ["GRAPH_BACKBONES", "PromptSite", "new_head", "prompt_layers", "prompt_sites", "width_of"]

GRAPH_BACKBONES = (GraphGPS, Graphormer, GraphTrans, LiGhT)
"""Those for tasks of whole graphs; Exphormer is one for tasks of nodes."""


class PromptSite(NamedTuple):
    """A layer that may take a prompt.

    Attributes:
        name: of its attention in the model.
        attention: the module there; None: it was pruned away.
        prefix: from tokens [P, C] to their keys and values [P, H, D].
    """

    name: str
    attention: nn.Module | None
    prefix: Callable[[Tensor], tuple[Tensor, Tensor]]


def prompt_sites(model: nn.Module) -> list[PromptSite]:
    """The layers of a backbone, in order.

    Raises:
        TypeError: the model is none whose layers take prompts.
    """
    if isinstance(model, Exphormer):
        inside: Iterable[Any] = model.attention
        return [
            PromptSite(f"attention.{number}", attention, attention.keys_and_values)
            for number, attention in enumerate(inside)
        ]
    if not isinstance(model, GRAPH_BACKBONES):
        names = ", ".join(kind.__name__ for kind in (*GRAPH_BACKBONES, Exphormer))
        raise TypeError(f"model must be one of {names}, got {type(model).__name__}")
    layers: Iterable[Any] = model.layers
    return [
        PromptSite(f"layers.{number}.attention", layer.attention, layer.prefix)
        for number, layer in enumerate(layers)
    ]


def width_of(model: nn.Module) -> int:
    """C of a backbone."""
    backbone: Any = model
    width: int = (
        backbone.attention[0].width if isinstance(model, Exphormer) else backbone.settings.width
    )
    return width


def prompt_layers(model: nn.Module, layers: Iterable[int] | None) -> tuple[int, ...]:
    """The numbers of the layers that get prompts, rising.

    Args:
        model: a backbone.
        layers: those asked for; None: all that have attention.

    Raises:
        TypeError, ValueError: they are no layers of the model, or cannot take prompts; named.
    """
    sites = prompt_sites(model)
    if layers is None:
        chosen = [number for number, site in enumerate(sites) if site.attention is not None]
    else:
        chosen = list(layers)
        for number in chosen:
            if isinstance(number, bool) or not isinstance(number, int):
                raise TypeError(f"layers must be integers, got {type(number).__name__}")
            if not 0 <= number < len(sites):
                raise ValueError(f"layers must be 0 .. {len(sites) - 1}, got {number}")
            if sites[number].attention is None:
                raise ValueError(
                    f"layers must have attention, got {number}: {sites[number].name} was pruned "
                    "away"
                )
        if len(set(chosen)) < len(chosen):
            raise ValueError(f"layers must name each layer once, got {chosen}")
    if not chosen:
        raise ValueError("layers must name at least one layer with attention, got none")
    for number in chosen:
        _check_attention(sites[number])
    return tuple(sorted(chosen))


def _check_attention(site: PromptSite) -> None:
    attention: Any = site.attention
    while not isinstance(attention, (RaggedMultiheadAttention, ExphormerAttention)):
        if not hasattr(attention, "keys_and_values"):
            raise ValueError(
                f"{site.name} must be RaggedMultiheadAttention or TokenDroppingAttention, got "
                f"{type(attention).__name__}; of a network that is being pruned, take the "
                "compact one"
            )
        attention = attention.attention


def new_head(model: nn.Module, num_tasks: int) -> nn.Module:
    """A head like the model's with weights of its own, as torch initialises them.

    Args:
        model: a backbone.
        num_tasks: outputs.
    """
    if num_tasks < 1:
        raise ValueError(f"num_tasks must be at least 1, got {num_tasks}")
    prompt_sites(model)
    backbone: Any = model
    head: nn.Module = copy.deepcopy(backbone.head)
    last = ""
    for name, part in head.named_modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
        if isinstance(part, nn.Linear):
            last = name
    before: Any = head.get_submodule(last)
    made = nn.Linear(before.in_features, num_tasks).to(before.weight)
    if not last:
        return made
    head.set_submodule(last, made)
    return head
