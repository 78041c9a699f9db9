"""Dropout whose mask does not take longer than the layers around it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["dropout"]

_LEVELS = 2**16


def dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """Set elements to 0 at random and scale the others by 1 / (1 - probability).

    On a CPU torch's own draws number by number, which costs more than the matrix products around
    it; here one 64-bit draw decides four elements. The probability is rounded to 1 / 65536.

    Args:
        x: any shape, floating point.
        probability: in [0, 1).
        training: False gives x as it is.

    Reference: Srivastava et al. 2014.
    """
    if not training or probability == 0:
        return x
    if x.device.type != "cpu":
        return functional.dropout(x, probability)
    # a probability just below 1 must not round to 1
    dropped = min(round(probability * _LEVELS), _LEVELS - 1)
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    lanes = draws.view(torch.int16)[: x.numel()].view(x.shape)
    kept = lanes >= dropped - _LEVELS // 2
    return x * (kept * (_LEVELS / (_LEVELS - dropped))).to(x.dtype)
