"""What the pruners share: their shape, their schedule, and where a model has attention."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gtkern.nn import RaggedMultiheadAttention

__all__ = [
    "AttentionSite",
    "Pruner",
    "Schedule",
    "attention_sites",
    "check_ratio",
    "clear_moments",
    "hold_at_zero",
]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When a pruner acts, in optimiser steps from 1 on.

    Attributes:
        begin: the first step at which it acts.
        end: the last one, at which all is pruned that is to be; at least begin.
        every: steps from one action to the next; the one at `end` takes place in any case.

    Reference: Zhu and Gupta 2017, eq. 1, for the cubic.
    """

    begin: int
    end: int
    every: int

    def __post_init__(self) -> None:
        if self.begin < 1:
            raise ValueError(f"begin must be at least 1, got {self.begin}")
        if self.end < self.begin:
            raise ValueError(f"end must be at least begin {self.begin}, got {self.end}")
        if self.every < 1:
            raise ValueError(f"every must be at least 1, got {self.every}")

    def due(self, step: int) -> bool:
        """Whether to act at a step."""
        inside = self.begin <= step <= self.end
        return inside and ((step - self.begin) % self.every == 0 or step == self.end)

    def share(self, step: int) -> float:
        """How much of what is to be pruned is pruned after a step, in [0, 1]; cubic in the step."""
        if step < self.begin:
            return 0.0
        if step >= self.end:
            return 1.0
        return 1.0 - (1.0 - (step - self.begin) / (self.end - self.begin)) ** 3

    def kept(self, step: int, ratio: float) -> float:
        """What is kept after a step where at last `ratio` is."""
        return 1.0 - (1.0 - ratio) * self.share(step)


class Pruner(abc.ABC):
    """Prunes one dimension of a model while it is trained.

    `prepare` puts masks into the model, which is then trained as ever; `step` follows every step of
    the optimiser; `compact` takes the masks, and what they hide, out of the model. The masked model
    and the compact one compute the same.

    Attributes:
        kind: the dimension.
        steps: of the optimiser so far.
        schedule: when the pruner acts; None: only at once, in `prepare`.
    """

    kind: ClassVar[str]

    def __init__(self, schedule: Schedule | None) -> None:
        self.schedule = schedule
        self.steps = 0
        self._model: nn.Module | None = None
        self._compacted = False

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model, changed in place: with masks, fit to be trained.

        Raises:
            RuntimeError: the pruner has a model, or had one and made it compact.
            TypeError, ValueError: the model has nothing of this dimension, or a layer cannot be
                pruned; names it.
        """
        self._check_not_compacted()
        if self._model is not None:
            raise RuntimeError(f"prepare() must be called once, got a second model for {self.kind}")
        self._prepare(model)
        self._model = model
        return model

    def step(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Follow a step of the optimiser; the gradients of the step must still be there.

        Args:
            optimizer: whose moments of what was pruned are set to 0.

        Raises:
            RuntimeError: before prepare(), or after compact().
        """
        self._prepared()
        self.steps += 1
        self._step(optimizer)

    def compact(self) -> nn.Module:
        """The model without masks and without what they hide: a plain module.

        It is the prepared model, changed in place.

        Raises:
            RuntimeError: before prepare(), or a second time.
        """
        model = self._prepared()
        self._compact()
        self._compacted = True
        self._model = None
        return model

    @property
    def settled(self) -> bool:
        """Whether all is pruned that is to be."""
        return self.schedule is None or self.steps >= self.schedule.end

    @abc.abstractmethod
    def kept(self) -> Mapping[str, float]:
        """What share of each layer is kept now, by the layer's name."""

    def restored(self) -> None:
        """Take up masks from the model, whose state dict was loaded from an earlier step.

        Raises:
            RuntimeError: before prepare(), or after compact().
        """
        self._prepared()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides the model's state dict."""
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.steps = int(state["steps"])

    @abc.abstractmethod
    def _prepare(self, model: nn.Module) -> None:
        """Put masks into the model."""

    @abc.abstractmethod
    def _step(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Act, where the schedule says so; self.steps counts this step."""

    @abc.abstractmethod
    def _compact(self) -> None:
        """Take masks, and what they hide, out of the model."""

    def _prepared(self) -> nn.Module:
        self._check_not_compacted()
        if self._model is None:
            raise RuntimeError(f"prepare(model) must come first: {self.kind} has no model yet")
        return self._model

    def _check_not_compacted(self) -> None:
        if self._compacted:
            raise RuntimeError(
                f"{self.kind} cannot be pruned after compact(): what the masks hid is gone; prune "
                "the dense model with a new pruner"
            )


@dataclass(frozen=True)
class AttentionSite:
    """A layer of a model that has attention.

    Attributes:
        name: of the layer in the model, such as "layers.3".
        layer: has the attribute `attention`: a RaggedMultiheadAttention, or a module around one
            that has it as its own attribute `attention`; or None.
    """

    name: str
    layer: nn.Module

    def attention(self) -> RaggedMultiheadAttention | None:
        """The attention itself, out of whatever is around it; None: it was removed."""
        inner = self._holder().attention
        assert inner is None or isinstance(inner, RaggedMultiheadAttention)
        return inner

    def replace(self, attention: RaggedMultiheadAttention | None) -> None:
        """Put another attention in its place; what is around it stays, but around None."""
        holder = self.layer if attention is None else self._holder()
        # an attribute that was a module stays a registered one when it becomes None
        holder.attention = attention

    def wrap(self, wrapper: nn.Module) -> None:
        """Put a module in place of all that the layer has there."""
        self.layer.attention = wrapper

    def _holder(self) -> Any:
        holder: Any = self.layer
        while not isinstance(holder.attention, (RaggedMultiheadAttention, type(None))):
            holder = holder.attention
        return holder


def attention_sites(model: nn.Module) -> list[AttentionSite]:
    """The layers of a model that have attention, in order; removed ones too.

    Raises:
        TypeError: there are none.
    """
    found = list(_sites(model))
    if not found:
        raise TypeError(
            "model must have layers with RaggedMultiheadAttention (GraphGPS, GraphTrans, "
            f"Graphormer, LiGhT), got {type(model).__name__}"
        )
    return found


def _sites(model: nn.Module) -> Iterator[AttentionSite]:
    # wrappers have an attribute `attention` too: only the outermost module with one is the layer
    inside: set[int] = set()
    for name, module in model.named_modules():
        if id(module) in inside or isinstance(module, RaggedMultiheadAttention):
            continue
        if "attention" not in module._modules:
            continue
        held = module._modules["attention"]
        if held is None:
            yield AttentionSite(name, module)
        elif any(isinstance(part, RaggedMultiheadAttention) for part in held.modules()):
            inside.update(id(part) for part in held.modules())
            yield AttentionSite(name, module)


def check_ratio(name: str, ratio: float) -> float:
    """The ratio, as a float.

    Raises:
        TypeError: no number. ValueError: not in (0, 1].
    """
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(ratio).__name__}")
    if not 0 < ratio <= 1:
        raise ValueError(f"{name} must be in (0, 1], got {ratio}")
    return float(ratio)


def clear_moments(
    optimizer: torch.optim.Optimizer | None, parameter: Tensor, where: Tensor
) -> None:
    """Set an optimiser's running moments of some entries of a parameter to 0.

    Moments that stay would move entries that have no gradient any more.

    Args:
        optimizer: None: nothing is done.
        parameter: one of its parameters; of others nothing is done.
        where: bool, broadcast to the parameter's shape.
    """
    if optimizer is None or parameter not in optimizer.state:
        return
    for value in optimizer.state[parameter].values():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            value.masked_fill_(where.to(value.device), 0)


def hold_at_zero(optimizer: torch.optim.Optimizer | None, parameter: Tensor, kept: Tensor) -> None:
    """Set pruned entries of a parameter, and an optimiser's moments of them, to 0.

    Args:
        optimizer: None: there are no moments.
        parameter: changed in place.
        kept: 1 for entries that stay, 0 for pruned ones; broadcast to the parameter's shape.
    """
    with torch.no_grad():
        parameter.mul_(kept)
        state = {} if optimizer is None else optimizer.state.get(parameter, {})
        for value in state.values():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                value.mul_(kept)
