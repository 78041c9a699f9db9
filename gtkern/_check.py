"""Checks at the door of every op: each message names the argument, what was expected, what came."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_WHOLE = 1 - 2.0**-51
FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def tensor(name: str, value: Any) -> None:
    """Raise TypeError unless `value` is a tensor, and not a sparse one."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {value.layout}")


def has_values(name: str, value: Tensor) -> None:
    """Raise ValueError where `value` lies on the device meta, which keeps none."""
    if value.device.type == "meta":
        raise ValueError(f"{name} must be on a device that holds values, got meta")


def flag(name: str, value: Any) -> None:
    """Raise TypeError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {type(value).__name__}")


def integer(name: str, value: Any, low: int, high: int) -> int:
    """Return `value` as an int in low .. high; whatever Python takes for an index is one.

    Raises:
        TypeError: no integer. ValueError: outside the range.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        count = operator.index(value)
    except (TypeError, RuntimeError):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}") from None
    if not low <= count <= high:
        raise ValueError(f"{name} must be {low} .. {high}, got {short(count)}")
    return count


def short(count: int) -> str:
    """A number for a message, where it may have any number of digits."""
    return str(count) if abs(count) < 2**64 else f"an integer of {count.bit_length()} bits"


def floating(name: str, value: Any) -> None:
    """Raise TypeError unless `value` is a tensor of a floating dtype that kernels have."""
    tensor(name, value)
    if value.dtype not in FLOATING:
        raise TypeError(f"{name} must be float32, bfloat16, float16 or float64, got {value.dtype}")


def rank(name: str, value: Tensor, axes: str) -> None:
    """Raise ValueError unless `value` has the dimensions `axes`, named as in "N_dst, H, D"."""
    if value.dim() != len(axes.split(",")):
        raise ValueError(f"{name} must have shape [{axes}], got {list(value.shape)}")


def shape(name: str, value: Tensor, axes: str, sizes: Sequence[int]) -> None:
    """Raise ValueError unless `value` has exactly `sizes`; `axes` names them."""
    if list(value.shape) != list(sizes):
        raise ValueError(
            f"{name} must have shape [{axes}] = {list(sizes)}, got {list(value.shape)}"
        )


def same_dtype(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Raise TypeError unless both tensors have one dtype."""
    if value.dtype != other.dtype:
        raise TypeError(
            f"{name} must have the dtype of {other_name} ({other.dtype}), got {value.dtype}"
        )


def same_device(**tensors: Tensor | None) -> None:
    """Raise ValueError unless all given tensors lie on the first one's device."""
    first_name, first = "", None
    for name, value in tensors.items():
        if value is None:
            continue
        if first is None:
            first_name, first = name, value
        elif value.device != first.device:
            raise ValueError(
                f"{name} must be on the device of {first_name} ({first.device}), got {value.device}"
            )


def falls(values: Tensor) -> Tensor:
    """bool [N - 1]: where a value is below the one before it.

    Not by their difference, which wraps where values are as large as their dtype has them.
    """
    return values[1:] < values[:-1]


def number(name: str, value: Any, low: float, high: float, *, open_low: bool = False) -> float:
    """Return `value` as a float in low .. high.

    Raises:
        TypeError: no number. ValueError: outside the range, or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    bracket = "(" if open_low else "["
    try:
        size = float(value)
    except OverflowError:
        size = math.inf if value > 0 else -math.inf
        # no float holds it: in no range, not even in one without an end
        high = min(high, sys.float_info.max)
    if not (low < size if open_low else low <= size) or not size <= high:
        raise ValueError(f"{name} must be in {bracket}{low:g}, {high:g}], got {size:g}")
    return size


def share_of(share: float, total: int | Tensor) -> int | Tensor:
    """ceil(share * total), where a product that is whole but for rounding counts as whole.

    The share and the product are each rounded by 2**-53 of their size: 0.07 * 100 is 7.
    """
    if isinstance(total, Tensor):
        return (total.double() * share * _WHOLE).ceil().to(torch.int64)
    return math.ceil(share * total * _WHOLE)


def dropout(value: Any) -> float:
    """Return `value` as a probability that 32 random bits can tell from 1.

    Raises:
        TypeError: no number. ValueError: outside [0, 1).
    """
    share = number("dropout", value, -math.inf, math.inf)
    if not 0 <= share <= 1 - 2.0**-32:
        raise ValueError(f"dropout must be in [0, 1), got {share:g}")
    return share


def seed(name: str, value: int | Tensor | None) -> Tensor:
    """Return `value` as a 0-d int64 CPU tensor; None draws one from torch's default generator.

    A tensor, not a number: torch.compile then needs neither a new graph for each seed nor a break.
    """
    if value is None:
        return torch.randint(2**63 - 1, (), dtype=torch.int64, device="cpu")
    if isinstance(value, Tensor):
        if value.dtype != torch.int64 or value.dim() != 0 or value.device.type != "cpu":
            raise TypeError(
                f"{name} must be an integer or a 0-d int64 CPU tensor, got {value.dtype} "
                f"{list(value.shape)} on {value.device}"
            )
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{name} must fit in 64 signed bits, got {short(value)}")
    return torch.tensor(value, dtype=torch.int64)
