"""The settings of runs on whole graphs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gtkern.models import (
    GraphGPS,
    GraphGPSSettings,
    Graphormer,
    GraphormerSettings,
    GraphTrans,
    GraphTransSettings,
    LiGhT,
    LiGhTSettings,
)
from gtkern.training.optimization import Optimization
from gtkern.training.settings import setting

__all__ = ["MODELS", "GraphSettings", "GraphTraining", "settings_class"]

MODELS: Mapping[str, tuple[type[Any], type[Any]]] = {
    "graphgps": (GraphGPS, GraphGPSSettings),
    "graphtrans": (GraphTrans, GraphTransSettings),
    "graphormer": (Graphormer, GraphormerSettings),
    "light": (LiGhT, LiGhTSettings),
}
"""The models and their settings by name."""


@dataclass(frozen=True, kw_only=True)
class GraphTraining(Optimization):
    """How a model is trained on graphs.

    Attributes:
        batch_size: graphs in a step.
        loss: of numbers, "mse" or "l1"; classes and 0/1 tasks always have the cross-entropy.
    """

    batch_size: int = setting(128, low=1)
    loss: str = setting("mse", choices=("mse", "l1"))


@dataclass(frozen=True, kw_only=True)
class GraphSettings:
    """Everything that decides a run, but for the data and the machine.

    Attributes:
        dataset: name of the data set. model: one of MODELS.
        on_bad: what becomes of graphs that cannot be read: "raise", or "skip" to leave them out.
        seed: of the weights, the batches, dropout, and the split where it is drawn.
        split: kind of split: "default" for the set's usual one, else one it has, such as "random".
        folds: the graphs are cut into so many parts, each the test of one run and the next one
            its validation, whatever `split` says; 0: no such parts. fold: the part that is
            this run's test, from 0.
        network: settings of the model. training: see GraphTraining.
    """

    dataset: str = setting()
    model: str = setting(choices=tuple(MODELS))
    on_bad: str = setting("raise", choices=("raise", "skip"))
    seed: int = setting(0, low=0, high=2**31 - 1)
    split: str = setting("default", choices=("default", "published", "scaffold", "random"))
    folds: int = setting(0, low=0)
    fold: int = setting(0, low=0)
    network: Any = None
    training: GraphTraining

    def __post_init__(self) -> None:
        if self.folds in (1, 2):
            raise ValueError(f"folds must be 0 or at least 3, got {self.folds}")
        if self.fold >= max(1, self.folds):
            raise ValueError(f"fold must be less than folds {self.folds}, got {self.fold}")


@functools.cache
def settings_class(model: str) -> type[GraphSettings]:
    """GraphSettings whose network has the settings of a model, one of MODELS."""
    cls: type[GraphSettings] = dataclasses.make_dataclass(
        "GraphSettings",
        [("network", MODELS[model][1]), ("model", str, setting(choices=(model,)))],
        bases=(GraphSettings,),
        frozen=True,
        kw_only=True,
    )
    return cls
