"""The settings of tuning."""

from __future__ import annotations

from dataclasses import dataclass

from gtkern.training.graph_settings import GraphTraining
from gtkern.training.settings import setting

__all__ = ["MODES", "UNREAD", "PromptSettings", "TuneSettings", "check_readable"]

MODES = ("deepgpt", "full", "head", "prompt", "prefix")
"""What is trained: prompts of both kinds and the head; everything; the head; the graph prompts and
the head; the prefix tokens and the head."""

UNREAD = {
    "estrogen": "its files are in the bundle of KPGT's authors, which no reader here knows",
    "metstab": "its files are in the bundle of KPGT's authors, which no reader here knows",
    "molpcba": "it is OGB's ogbg-molpcba, which no reader here knows",
}
"""Data sets of the paper that cannot be read, and why."""


@dataclass(frozen=True, kw_only=True)
class PromptSettings:
    """The prompts; see gtkern.methods.deepgpt.PromptTuner.

    Attributes:
        prefix_tokens: P, tokens of each layer; not of the mode "prompt".
        graph_prompt_init: "uniform" in [0, 1), as the released code, or "zero".
        prefix_std: standard deviation of the tokens before training.
        layers: the first layer with prompts, from 0, and the one behind the last; None: all.
        reparameterize: whether tokens come out of an MLP while they are trained.
        dropout: of the tokens.
    """

    prefix_tokens: int = setting(40, low=1)
    graph_prompt_init: str = setting("uniform", choices=("uniform", "zero"))
    prefix_std: float = setting(1.0, low=0)
    layers: tuple[int, ...] | None = setting(None, low=0)
    reparameterize: bool = False
    dropout: float = setting(0.0, low=0, below=1)

    def __post_init__(self) -> None:
        if self.layers is not None and (len(self.layers) != 2 or self.layers[0] >= self.layers[1]):
            raise ValueError(
                f"layers must be two numbers, the first layer and the one behind the last, got "
                f"{list(self.layers)}"
            )


@dataclass(frozen=True, kw_only=True)
class TuneSettings:
    """Everything that decides a tuning, but for the backbone, the data and the machine.

    Attributes:
        dataset: name of the data set. on_bad: see GraphSettings.
        seed: of the prompts, the head, the batches, dropout and the folds.
        train: one of MODES.
        split: "folds", or a kind of split with a test of its own: "default", "published",
            "scaffold", "random".
        folds: with "folds", parts of the graphs: one is evaluated, all others are trained on, as in
            the paper. fold: number of that part, from 0.
        prompts: see PromptSettings.
        backbone_dropout: whether the frozen backbone's dropout is on in training.
        training: of what is trained. full_lr: peak learning rate in its place where all is.
    """

    dataset: str = setting()
    on_bad: str = setting("raise", choices=("raise", "skip"))
    seed: int = setting(42, low=0, high=2**31 - 1)
    train: str = setting("deepgpt", choices=MODES)
    split: str = setting("folds", choices=("folds", "default", "published", "scaffold", "random"))
    folds: int = setting(5, low=3)
    fold: int = setting(0, low=0)
    prompts: PromptSettings = PromptSettings()
    backbone_dropout: bool = True
    training: GraphTraining
    full_lr: float = setting(1e-4, above=0)

    def __post_init__(self) -> None:
        if self.fold >= (self.folds if self.split == "folds" else 1):
            raise ValueError(
                f"fold must be less than folds {self.folds}, and 0 without folds, got {self.fold}"
            )


def check_readable(dataset: str) -> None:
    """See that there is a reader of a data set of the paper.

    Raises:
        ValueError: there is none; says why.
    """
    if dataset in UNREAD:
        raise ValueError(f"{dataset} cannot be read: {UNREAD[dataset]}")
