"""The settings of pre-training on molecules."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

from gtkern.training.graph_settings import MODELS, GraphTraining
from gtkern.training.settings import setting

__all__ = ["PRETRAINED", "Masking", "PretrainSettings", "Targets", "pretrain_settings_class"]

PRETRAINED = ("graphormer", "graphgps")
"""The models that can be pre-trained: those whose rows are atoms."""


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What is learned of whole molecules, and what each part of the loss counts.

    Attributes:
        descriptors: factor of the mean squared error of rdkit's descriptors, in units of their
            standard deviation; 0: they are not learned. clip: they are cut at so many of them.
        fingerprint: the same of the cross-entropy of a Morgan fingerprint's bits.
        bits: of the fingerprint. radius: of its environments, in bonds.
        atoms: factor of the cross-entropy of masked atoms' elements.
    """

    descriptors: float = setting(1.0, low=0)
    clip: float = setting(5.0, above=0)
    fingerprint: float = setting(1.0, low=0)
    bits: int = setting(512, low=1)
    radius: int = setting(2, low=0)
    atoms: float = setting(1.0, low=0)

    def __post_init__(self) -> None:
        if not (self.descriptors or self.fingerprint or self.atoms):
            raise ValueError("descriptors, fingerprint or atoms must be above 0, got 0 for all")


@dataclass(frozen=True, kw_only=True)
class Masking:
    """Which atoms are hidden in a step, to be predicted.

    Attributes:
        graphs: share of the molecules that have hidden atoms; the targets of whole molecules are
            learned from the others.
        atoms: share of such a molecule's atoms that are hidden, on average.
    """

    graphs: float = setting(0.25, low=0, high=1)
    atoms: float = setting(0.15, above=0, below=1)


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """Everything that decides a pre-training, but for the molecules and the machine.

    Attributes:
        dataset: name of the molecules. model: one of PRETRAINED.
        on_bad: what becomes of molecules that cannot be read: "raise", or "skip" to leave them out.
        seed: of the weights, batches, masks, dropout, and of which molecules are held out.
        held_out: share of the molecules for validation, and as much for the test.
        network: settings of the model. targets, masking, training: see there.
    """

    dataset: str = setting()
    model: str = setting(choices=PRETRAINED)
    on_bad: str = setting("raise", choices=("raise", "skip"))
    seed: int = setting(0, low=0, high=2**31 - 1)
    held_out: float = setting(0.02, above=0, below=0.5)
    network: Any = None
    targets: Targets = Targets()
    masking: Masking = Masking()
    training: GraphTraining

    def __post_init__(self) -> None:
        if self.targets.atoms and not self.masking.graphs:
            raise ValueError("targets.atoms must be 0 where masking.graphs is 0")
        if self.masking.graphs == 1 and (self.targets.descriptors or self.targets.fingerprint):
            raise ValueError(
                "masking.graphs must be below 1 where targets.descriptors or targets.fingerprint "
                "is above 0"
            )


@functools.cache
def pretrain_settings_class(model: str) -> type[PretrainSettings]:
    """PretrainSettings whose network has the settings of a model, one of PRETRAINED."""
    cls: type[PretrainSettings] = dataclasses.make_dataclass(
        "PretrainSettings",
        [("network", MODELS[model][1]), ("model", str, setting(choices=(model,)))],
        bases=(PretrainSettings,),
        frozen=True,
        kw_only=True,
    )
    return cls
