"""Dropout whose mask does not take longer than the layers around it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from gtkern import _check
from gtkern.ops import _dropout

__all__ = ["dropout", "dropout_add", "relu_dropout"]

_LEVELS = 2**16


def dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """Set elements to 0 at random and scale the others by 1 / (1 - probability).

    On a CPU torch's own draws number by number, which costs more than the matrix products around
    it; here one 32-bit word decides two elements, and the mask is not stored. The probability is
    rounded to 1 / 65536.

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
    if _dropout.available(x):
        return _dropout.dropout(x, None, probability, _check.seed("seed", None))
    # a probability just below 1 must not round to 1
    dropped = min(round(probability * _LEVELS), _LEVELS - 1)
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    lanes = draws.view(torch.int16)[: x.numel()].view(x.shape)
    kept = lanes >= dropped - _LEVELS // 2
    return x * (kept * (_LEVELS / (_LEVELS - dropped))).to(x.dtype)


def dropout_add(x: Tensor, residual: Tensor, probability: float, training: bool) -> Tensor:
    """residual + dropout(x), for `residual` of the shape of x; see dropout."""
    alike = residual.dtype == x.dtype and residual.shape == x.shape
    if training and probability > 0 and alike and _dropout.available(x):
        return _dropout.dropout(x, residual, probability, _check.seed("seed", None))
    return residual + dropout(x, probability, training)


def relu_dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """dropout(relu(x)); see dropout."""
    if training and probability > 0 and _dropout.available(x):
        return _dropout.relu_dropout(x, probability, _check.seed("seed", None))
    return dropout(functional.relu(x), probability, training)
