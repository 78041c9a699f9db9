"""The settings of Spexphormer; light to import, for mistakes in them should show at once."""

from __future__ import annotations

from dataclasses import dataclass

from gtkern.methods.node_settings import NodeSettings
from gtkern.training.optimization import Optimization
from gtkern.training.settings import setting

__all__ = ["Phase1", "Phase2", "Settings", "temperature_at"]


@dataclass(frozen=True, kw_only=True)
class Phase1(Optimization):
    """The narrow network, its training and its temperature.

    Attributes:
        layers, width, norm, pre_layers, post_layers, graph_bias, normalize_values: see
            ScoreEstimator.
        temperature_ratio: r, temperature_wait: w, temperature_min: in epoch t >= w the scores are
            divided by max(temperature_min, r ** (t - w)), before by 1.
    """

    layers: int = setting(4, low=1)
    width: int = setting(4, low=1, high=256)
    norm: str = setting("graph", choices=("graph", "batch", "none"))
    pre_layers: int = setting(1, low=0)
    post_layers: int = setting(1, low=1)
    graph_bias: float = setting(0.0, low=0)
    normalize_values: bool = True
    temperature_ratio: float = setting(0.99, above=0, high=1)
    temperature_wait: int = setting(5, low=0)
    temperature_min: float = setting(0.05, above=0, high=1)


@dataclass(frozen=True, kw_only=True)
class Phase2(Optimization):
    """The wide network, its training and the sampling of its edges.

    Attributes:
        layers, width, heads, norm, dropout, pre_layers, post_layers: see SampledExphormer.
        neighbors: k, edges sampled for each node in each layer, the input's layer first.
        sampling: "weighted" by the scores, "uniform", or "top" scores.
        sampling_table_gib: the most memory for a table of the scores, which makes sampling several
            times as fast; 8 bytes a layer and edge. The scores of larger graphs stay on the disk,
            in one copy, and are read anew for each sample. The samples are the same.
        resample_every: epochs a sample is used for.
        batch_size: training nodes in a step, of all processes together.
        prepared_ahead: batches that a thread makes ready while others train.
        evaluation: "batches" of batch_size; or "layers", each computed once for all nodes: far less
            work where batches reach many nodes, for four arrays [nodes, width] of memory.
    """

    layers: int = setting(4, low=1)
    width: int = setting(32, low=1)
    heads: int = setting(4, low=1)
    norm: str = setting("batch", choices=("graph", "batch"))
    dropout: float = setting(0.2, low=0, below=1)
    pre_layers: int = setting(1, low=0)
    post_layers: int = setting(1, low=1)
    neighbors: tuple[int, ...] = setting(low=1)
    sampling: str = setting("weighted", choices=("weighted", "uniform", "top"))
    sampling_table_gib: float = setting(4.0, low=0)
    resample_every: int = setting(1, low=1)
    batch_size: int = setting(100_000, low=2)
    prepared_ahead: int = setting(1, low=0)
    evaluation: str = setting("batches", choices=("batches", "layers"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.neighbors) != self.layers:
            raise ValueError(
                f"neighbors must have one number for each of {self.layers} layers, "
                f"got {list(self.neighbors)}"
            )
        if self.evaluation == "layers" and self.norm != "batch":
            raise ValueError(f"evaluation by layers needs the norm batch, got {self.norm}")
        if self.width % self.heads or self.width // self.heads > 256:
            raise ValueError(
                f"heads must divide width {self.width} into heads of at most 256, got {self.heads}"
            )


@dataclass(frozen=True, kw_only=True)
class Settings(NodeSettings):
    """Everything that decides a run, but for the data and the machine.

    Attributes:
        phase1, phase2: see there. The others: see NodeSettings.
    """

    phase1: Phase1
    phase2: Phase2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.phase1.layers < self.phase2.layers:
            raise ValueError(
                f"phase1.layers must be at least phase2.layers {self.phase2.layers}, whose layers "
                f"sample by its scores, got {self.phase1.layers}"
            )


def temperature_at(settings: Phase1, epoch: int) -> float:
    """What the scores of phase 1 are divided by in an epoch, counted from 0."""
    if epoch < settings.temperature_wait:
        return 1.0
    annealed = settings.temperature_ratio ** (epoch - settings.temperature_wait)
    return max(settings.temperature_min, annealed)
