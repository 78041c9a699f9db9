"""How networks are trained, whatever the method."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gtkern.training.settings import setting

__all__ = ["Optimization", "schedule_factor"]


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """How a network is trained.

    Attributes:
        epochs: how often every training example is seen.
        lr: peak learning rate.
        weight_decay: added to the gradient by "adam", apart from it by "adamw".
        optimizer: "adamw" or "adam".
        schedule: of the learning rate after the warm-up: "cosine" goes down to 0 in half a cosine,
            "constant" stays, "plateau" multiplies it by `plateau_factor` when the validation metric
            was not better than ever in more than `plateau_patience` evaluations in a row.
        warmup_epochs: epochs in which the learning rate rises in a line; 0 with "plateau".
        plateau_factor, plateau_patience: see schedule.
        clip_grad_norm: largest norm of the gradient; 0: no limit.
        eval_every: epochs from one evaluation to the next.
    """

    epochs: int = setting(low=1)
    lr: float = setting(above=0)
    weight_decay: float = setting(1e-3, low=0)
    optimizer: str = setting("adamw", choices=("adamw", "adam"))
    schedule: str = setting("cosine", choices=("cosine", "constant", "plateau"))
    warmup_epochs: int = setting(5, low=0)
    plateau_factor: float = setting(0.5, above=0, below=1)
    plateau_patience: int = setting(10, low=0)
    clip_grad_norm: float = setting(1.0, low=0)
    eval_every: int = setting(1, low=1)

    def __post_init__(self) -> None:
        if self.schedule == "plateau" and self.warmup_epochs:
            raise ValueError(
                f"warmup_epochs must be 0 with the schedule plateau, got {self.warmup_epochs}"
            )


def schedule_factor(settings: Optimization, epoch: int) -> float:
    """Factor of the learning rate in an epoch from 0, but for what plateaus take off.

    The first epoch has 1e-6 when there is a warm-up, not 0.
    """
    warmup = settings.warmup_epochs
    if epoch < warmup:
        return max(1e-6, epoch / warmup)
    if settings.schedule != "cosine":
        return 1.0
    progress = (epoch - warmup) / max(1, settings.epochs - warmup)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
