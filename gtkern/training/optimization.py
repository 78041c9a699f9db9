"""How networks are trained, whatever the method."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gtkern.training.settings import setting

__all__ = ["Optimization", "cosine_with_warmup"]


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """How a network is trained: AdamW, warm-up, then half a cosine down to 0.

    Attributes:
        epochs: how often every training node is seen.
        lr: peak learning rate.
        weight_decay: of AdamW.
        warmup_epochs: epochs in which the learning rate rises.
        clip_grad_norm: largest norm of the gradient; 0: no limit.
        eval_every: epochs from one evaluation to the next.
    """

    epochs: int = setting(low=1)
    lr: float = setting(above=0)
    weight_decay: float = setting(1e-3, low=0)
    warmup_epochs: int = setting(5, low=0)
    clip_grad_norm: float = setting(1.0, low=0)
    eval_every: int = setting(1, low=1)


def cosine_with_warmup(epoch: int, warmup: int, epochs: int) -> float:
    """Factor of the learning rate: up in a line over `warmup` epochs, then half a cosine to 0.

    The first epoch has 1e-6 when there is a warm-up, not 0.
    """
    if epoch < warmup:
        return max(1e-6, epoch / warmup)
    progress = (epoch - warmup) / max(1, epochs - warmup)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
