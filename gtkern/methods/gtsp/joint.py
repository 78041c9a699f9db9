"""Several dimensions pruned in one run, and a budget of FLOPs split among them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from gtkern.methods.gtsp.heads import HeadPruner
from gtkern.methods.gtsp.layers import LayerPruner
from gtkern.methods.gtsp.neurons import NeuronPruner
from gtkern.methods.gtsp.pruner import Pruner, Schedule, attention_sites
from gtkern.methods.gtsp.settings import DIMENSIONS, PruneSettings
from gtkern.methods.gtsp.tokens import TokenPruner
from gtkern.methods.gtsp.weights import WeightPruner
from gtkern.training.flops import count_flops
from gtkern.training.task import Task

__all__ = [
    "JointPruner",
    "Pruning",
    "cut",
    "make_pruners",
    "schedules",
    "split_budget",
    "with_ratios",
]

_BISECTIONS = 12


class JointPruner:
    """Several pruners as one.

    Args:
        pruners: by dimension; each is of another one.

    Attributes:
        pruners: the same, in the order in which they prepare a model: weights first, by the names
            they have in the dense model, then what wraps attention, from the inside out.
    """

    def __init__(self, pruners: Mapping[str, Pruner]) -> None:
        order = ("weights", "heads", "tokens", "layers")
        self.pruners = {name: pruners[name] for name in order if name in pruners}

    def prepare(self, model: nn.Module) -> nn.Module:
        """See Pruner.prepare."""
        for pruner in self.pruners.values():
            pruner.prepare(model)
        return model

    def step(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """See Pruner.step."""
        for pruner in self.pruners.values():
            pruner.step(optimizer)

    def compact(self, model: nn.Module) -> nn.Module:
        """See Pruner.compact; what was put around last goes first."""
        for pruner in reversed(self.pruners.values()):
            pruner.compact()
        return model

    @property
    def settled(self) -> bool:
        """Whether all is pruned that is to be."""
        return all(pruner.settled for pruner in self.pruners.values())

    def kept(self) -> dict[str, dict[str, float]]:
        """The kept share by dimension and layer."""
        return {name: dict(pruner.kept()) for name, pruner in self.pruners.items()}

    def restored(self) -> None:
        """See Pruner.restored."""
        for pruner in self.pruners.values():
            pruner.restored()

    def state_dict(self) -> dict[str, Any]:
        """See Pruner.state_dict."""
        return {name: pruner.state_dict() for name, pruner in self.pruners.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See Pruner.load_state_dict."""
        for name, pruner in self.pruners.items():
            pruner.load_state_dict(state[name])


class Pruning(Callback):
    """Lightning calls the pruners behind each step of the optimiser.

    An epoch's weights count as the best only once all is pruned.

    Args:
        pruner: whose model is the task's network.
    """

    def __init__(self, pruner: JointPruner) -> None:
        self.pruner = pruner

    def on_train_batch_end(
        self, trainer: lightning.Trainer, task: lightning.LightningModule, *rest: Any
    ) -> None:
        """Follow the step."""
        self.pruner.step(trainer.optimizers[0])

    def on_validation_start(
        self, trainer: lightning.Trainer, task: lightning.LightningModule
    ) -> None:
        """Tell the task whether its evaluation counts."""
        assert isinstance(task, Task)
        task.settled = self.pruner.settled

    def state_dict(self) -> dict[str, Any]:
        """Of the pruners."""
        return self.pruner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of the pruners."""
        self.pruner.load_state_dict(state_dict)


def schedules(settings: PruneSettings, steps_per_epoch: int) -> dict[str, Schedule]:
    """The schedule of each dimension that is pruned."""
    stretch = settings.stretch
    names = [name for name in DIMENSIONS if settings.ratios[name] < 1]
    begin, end = stretch.begin * steps_per_epoch + 1, stretch.end * steps_per_epoch
    if not stretch.order:
        whole = Schedule(begin=begin, end=max(begin, end), every=stretch.every)
        return dict.fromkeys(names, whole)
    ordered = [name for name in stretch.order if name in names]
    missing = [name for name in names if name not in ordered]
    if missing:
        raise ValueError(f"stretch.order must name {', '.join(missing)} too, which has a ratio")
    made = {}
    for at, name in enumerate(ordered):
        first = begin + at * (end - begin + 1) // len(ordered)
        last = begin + (at + 1) * (end - begin + 1) // len(ordered) - 1
        made[name] = Schedule(begin=first, end=max(first, last), every=stretch.every)
    return made


def make_pruners(
    settings: PruneSettings, schedule: Mapping[str, Schedule], network: nn.Module
) -> JointPruner:
    """The pruners that settings ask for.

    Args:
        settings: their ratios; those of 1 need no pruner.
        schedule: by dimension.
        network: that they are for.
    """
    makers: dict[str, Callable[[Schedule], Pruner]] = {
        "tokens": lambda when: TokenPruner(
            settings.tokens.ratio, when, temperature=settings.tokens.temperature
        ),
        "heads": lambda when: HeadPruner(
            settings.heads.ratio,
            when,
            start=settings.heads.start,
            exchange=settings.heads.exchange,
            seed=settings.seed,
        ),
        "layers": lambda when: LayerPruner(settings.layers.ratio, when, drop=settings.layers.drop),
        "weights": lambda when: _weights(settings, when, network),
    }
    return JointPruner({name: makers[name](when) for name, when in schedule.items()})


def _weights(settings: PruneSettings, when: Schedule, network: nn.Module) -> Pruner:
    weights = settings.weights
    if weights.structure == "neurons":
        return NeuronPruner(weights.ratio, when)
    if weights.structure == "single":
        return WeightPruner(weights.ratio, when, exchange=weights.exchange)
    rows, columns = weights.block
    # heads are the blocks of attention; the last layer has few rows, and all of them matter
    return WeightPruner(
        weights.ratio,
        when,
        exchange=weights.exchange,
        block=(rows, columns),
        without=[*(f"{site.name}.attention" for site in attention_sites(network)), "head"],
    )


def split_budget(
    settings: PruneSettings, network: nn.Module, batch: Any
) -> tuple[PruneSettings, int, int]:
    """Find the ratios with which a compact network needs the budget's share of the FLOPs at most.

    The largest r is taken with which the FLOPs of a forward pass, counted on the compact network,
    are within the budget. Heads and layers come in whole numbers, the nearest ones, and one of each
    stays: the FLOPs may be less than the budget.

    Args:
        settings: with budget and split.
        network: dense; it stays as it is.
        batch: what it is called with.

    Returns:
        The settings with those ratios; the FLOPs of the dense and of the compact network.

    Raises:
        ValueError: there is no budget, or it cannot be met.
    """
    if settings.budget is None:
        raise ValueError("settings.budget must be a number, got None")
    sites = attention_sites(network)
    attention = [site.attention() for site in sites]
    whole = {
        "heads": min(part.num_heads for part in attention if part is not None),
        "layers": len(sites),
    }
    dense = _flops(network, batch)

    def tried(r: float) -> tuple[PruneSettings, int]:
        made = with_ratios(
            settings,
            {
                name: _nearest(r**share, whole.get(name)) if share else 1.0
                for name, share in zip(DIMENSIONS, settings.split, strict=True)
            },
        )
        return made, _flops(cut(made, network), batch)

    low, high = 0.0, 1.0
    best, flops = tried(low + 1e-6)
    if flops > settings.budget * dense:
        raise ValueError(
            f"budget must be at least {flops / dense:.3f}, which is what this split can reach, "
            f"got {settings.budget}"
        )
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        made, found = tried(middle)
        if found <= settings.budget * dense:
            low, best, flops = middle, made, found
        else:
            high = middle
    return best, dense, flops


def _nearest(ratio: float, parts: int | None) -> float:
    """The ratio; of a dimension of whole parts, the nearest that keeps whole ones, one at least."""
    return max(ratio, 1e-3) if parts is None else max(round(ratio * parts), 1) / parts


def with_ratios(settings: PruneSettings, ratios: Mapping[str, float]) -> PruneSettings:
    """The settings with other ratios, and no budget."""
    parts = {name: replace(getattr(settings, name), ratio=ratio) for name, ratio in ratios.items()}
    return replace(settings, budget=None, **parts)  # type: ignore[arg-type]


def cut(settings: PruneSettings, network: nn.Module) -> nn.Module:
    """A compact copy of a network, pruned at once: as large as one pruned while training.

    Args:
        settings: their ratios; which heads and layers go does not follow from training.
        network: dense; it stays as it is.
    """
    settings = replace(settings, heads=replace(settings.heads, start="random"))
    once = Schedule(begin=1, end=1, every=1)
    names: Sequence[str] = [name for name in DIMENSIONS if settings.ratios[name] < 1]
    pruner = make_pruners(settings, dict.fromkeys(names, once), network)
    model = pruner.prepare(copy.deepcopy(network))
    pruner.step()
    return pruner.compact(model)


def _flops(network: nn.Module, batch: Any) -> int:
    training = network.training
    network.eval()
    with torch.no_grad():
        flops = count_flops(lambda: network(batch))
    network.train(training)
    return flops
