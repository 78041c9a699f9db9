"""What the calls of softmax attention share."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..draw import FLOATS, Draw


def width(draw: Draw) -> int:
    """A head width: mostly odd small ones, sometimes the widest."""
    return draw.one((1, 2, 3, 4, 8, 13, 16, 24, 33, 64, 256 if draw.chance(0.2) else 5))


def dtype(draw: Draw) -> torch.dtype:
    return draw.one((torch.float32, *FLOATS))


def options(draw: Draw) -> dict[str, Any]:
    """The options that the rooms have in common."""
    dropout = draw.one((0.0, 0.0, 0.5, 0.9))
    return {
        "scale": draw.maybe(0.3, lambda: draw.one((0.5, 0.0, -1.0, 1, 1e-30))),
        "dropout": dropout,
        "seed": draw.seed(),
    }


def score_options(draw: Draw) -> dict[str, Any]:
    """Those of sparse and sampled attention."""
    return {
        **options(draw),
        "clamp": draw.maybe(0.3, lambda: draw.one((5.0, 1, 1e-3, math.inf))),
        "temperature": draw.one((1.0, 1, 0.5, 8.0)),
        "normalization": draw.one(("softmax", "softmax", "exphormer")),
        "return_scores": draw.chance(0.4),
        "backend": draw.backend(),
    }


def term(draw: Draw, kind: torch.dtype, *shape: int) -> Tensor:
    """An optional input of a score, in the dtype of q or another."""
    return draw.floats(*shape, dtype=kind if draw.chance(0.7) else draw.one(FLOATS))
