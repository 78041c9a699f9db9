"""The settings of pruning."""

from __future__ import annotations

from dataclasses import dataclass

from gtkern.training.graph_settings import GraphTraining
from gtkern.training.settings import setting

__all__ = [
    "DIMENSIONS",
    "Heads",
    "Layers",
    "PruneSettings",
    "Stretch",
    "Tokens",
    "Weights",
]

DIMENSIONS = ("tokens", "heads", "layers", "weights")


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Of tokens; see TokenPruner.

    Attributes:
        ratio: of a graph's nodes that attend in each layer; 1: all.
        temperature: of the noise in training.
    """

    ratio: float = setting(1.0, above=0, high=1)
    temperature: float = setting(1.0, above=0)


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Of attention heads; see HeadPruner.

    Attributes:
        ratio: of a layer's heads that are kept.
        start: "dense" or "random".
        exchange: share of the open heads that is exchanged in each action.
    """

    ratio: float = setting(1.0, above=0, high=1)
    start: str = setting("dense", choices=("dense", "random"))
    exchange: float = setting(0.25, low=0, high=1)


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Of attention blocks; see LayerPruner.

    Attributes:
        ratio: of the blocks that are kept.
        drop: rate at which blocks are left out of training steps in the end.
    """

    ratio: float = setting(1.0, above=0, high=1)
    drop: float = setting(0.5, low=0, below=1)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Of weights; see WeightPruner and NeuronPruner.

    Attributes:
        ratio: of the weights that are kept.
        structure: "single": weights one by one, as in the paper; "blocks": of linear layers outside
            attention; "neurons": hidden channels.
        block: rows and columns of "blocks".
        exchange: share of the weights that is exchanged at first; not of "neurons".
    """

    ratio: float = setting(1.0, above=0, high=1)
    structure: str = setting("single", choices=("single", "blocks", "neurons"))
    block: tuple[int, ...] = setting((32, 32), low=8, high=128)
    exchange: float = setting(0.5, low=0, high=1)

    def __post_init__(self) -> None:
        if len(self.block) != 2:
            raise ValueError(f"block must be two numbers, rows and columns, got {list(self.block)}")


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """When pruners act.

    Attributes:
        begin, end: epochs of training, 0 <= begin < end: from the start of the first to the start
            of the last all is pruned.
        every: steps from one action to the next.
        order: dimensions that follow each other, each in an equal part of the epochs; empty: all at
            the same time.
    """

    begin: int = setting(0, low=0)
    end: int = setting(low=1)
    every: int = setting(200, low=1)
    order: tuple[str, ...] = setting((), choices=DIMENSIONS)

    def __post_init__(self) -> None:
        if self.end <= self.begin:
            raise ValueError(f"end must be greater than begin {self.begin}, got {self.end}")
        if len(set(self.order)) < len(self.order):
            raise ValueError(f"order must name a dimension once, got {list(self.order)}")


@dataclass(frozen=True, kw_only=True)
class PruneSettings:
    """How a network is pruned.

    Attributes:
        dataset: name of the data set these settings are for.
        seed: of the batches, dropout and noise, and of the weights where they are drawn.
        start: "trained": from the weights of the run; "scratch": from new ones, as in the paper.
        tokens, heads, layers, weights: of the four dimensions; a ratio of 1 leaves one alone.
        budget: None: the ratios are those above; else the share of the dense network's FLOPs that
            the compact one may need at most, out of which the ratios are found.
        split: with a budget, for tokens, heads, layers and weights: the dimension's ratio is
            r ** its number, with one r for all; 0 leaves one alone.
        stretch: when pruners act. training: while masks are there.
        finetune: epochs of the compact network after that, at a rate that falls from finetune_lr
            in half a cosine.
    """

    dataset: str = setting()
    seed: int = setting(0, low=0, high=2**31 - 1)
    start: str = setting("trained", choices=("trained", "scratch"))
    tokens: Tokens = Tokens()
    heads: Heads = Heads()
    layers: Layers = Layers()
    weights: Weights = Weights()
    budget: float | None = setting(None, above=0, high=1)
    split: tuple[float, ...] = setting((0.0, 1.0, 0.0, 1.0), low=0, high=8)
    stretch: Stretch
    training: GraphTraining
    finetune: int = setting(0, low=0)
    finetune_lr: float = setting(1e-4, above=0)

    def __post_init__(self) -> None:
        if len(self.split) != len(DIMENSIONS):
            raise ValueError(f"split must be {len(DIMENSIONS)} numbers, got {len(self.split)}")
        if self.stretch.end >= self.training.epochs:
            raise ValueError(
                f"training.epochs must be more than stretch.end {self.stretch.end}, as the last "
                f"epochs are of the pruned network, got {self.training.epochs}"
            )
        if self.budget is not None and not any(self.split):
            raise ValueError("split must give a dimension more than 0, got none")
        if self.budget is not None and self.split[3] and self.weights.structure == "single":
            raise ValueError(
                "weights.structure must be blocks or neurons with a budget: single weights save "
                "no FLOPs that run"
            )

    @property
    def ratios(self) -> dict[str, float]:
        """The kept share by dimension."""
        return {name: getattr(self, name).ratio for name in DIMENSIONS}
