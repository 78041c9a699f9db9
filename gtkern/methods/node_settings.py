"""The settings that the methods on one graph share; light to import."""

from __future__ import annotations

from dataclasses import dataclass

from gtkern.training.metrics import METRICS
from gtkern.training.settings import setting

__all__ = ["Expander", "NodeSettings", "PowerLaw"]


@dataclass(frozen=True, kw_only=True)
class Expander:
    """The random edges that join the graph's own.

    Attributes:
        algorithm: see gtkern.transforms.expander_edges.
        degree: d; every node gets 2 d edges in. 0: none.
    """

    algorithm: str = setting("hamiltonian", choices=("hamiltonian", "random_d", "random_d_2"))
    degree: int = setting(15, low=0)


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """The generated graph of the data set power-law; see gtkern.data.power_law."""

    nodes: int = setting(1_000_000, low=4, high=2**31 - 1)
    mean_degree: float = setting(19.0, low=0)
    exponent: float = setting(2.5, above=2)
    locality: float = setting(0.5, low=0, high=1)
    reach: int = setting(64, low=1)
    homophily: float = setting(0.8, low=0, high=1)
    classes: int = setting(10, low=2)
    features: int = setting(64, low=1)
    signal: float = setting(1.0, low=0)


_POWER_LAW = PowerLaw()


@dataclass(frozen=True, kw_only=True)
class NodeSettings:
    """What decides the data, the graph and the evaluation of a run.

    Attributes:
        dataset: name of the data set.
        metric: what evaluation measures: one of gtkern.training.metrics.METRICS.
        seed: of everything random: expander, weights, batches, sampling.
        data_seed: of generated data.
        power_law: what the data set power-law is; no other set takes it.
        expander: see there.
    """

    dataset: str = setting()
    metric: str = setting("accuracy", choices=METRICS)
    seed: int = setting(0, low=0, high=2**31 - 1)
    data_seed: int = setting(0, low=0, high=2**31 - 1)
    power_law: PowerLaw = _POWER_LAW
    expander: Expander

    def __post_init__(self) -> None:
        if self.dataset != "power-law" and self.power_law != _POWER_LAW:
            raise ValueError(
                f"power_law is for the data set power-law alone, got it with {self.dataset}"
            )
