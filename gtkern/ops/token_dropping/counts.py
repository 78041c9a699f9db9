"""How many tokens each graph keeps, for all backends alike; the cpu backend has it natively."""

from __future__ import annotations

import torch
from torch import Tensor

from gtkern import _check

__all__ = ["check_k", "first_nan", "kept_ptr"]


def check_k(k: Tensor) -> None:
    """Raise ValueError where a number is negative."""
    if bool((k < 0).any()):
        at = int((k < 0).nonzero()[0])
        raise ValueError(f"k must not be negative, got {int(k[at])} for graph {at}")


def first_nan(score: Tensor) -> int:
    """The first row whose score is NaN, or -1."""
    # most scores have none, and a sum is the quickest way to know
    if not bool(score.sum().isnan()) or not bool(score.isnan().any()):
        return -1
    return int(score.isnan().nonzero()[0])


def kept_ptr(
    ptr: Tensor, host_ptr: Tensor, k: Tensor | None, ratio: float, always_keep: Tensor | None
) -> Tensor:
    """The first kept row of each graph, on the CPU: int64 [G + 1].

    Args:
        ptr, host_ptr: int64 [G + 1], of the graphs; host_ptr on the CPU.
        k: int64 [1] or [G], not negative, on any device; None: by `ratio`.
        always_keep: bool [N]; None: no token.
    """
    sizes = host_ptr.diff()
    if k is None:
        count = torch.as_tensor(_check.share_of(ratio, sizes)).clamp(min=1)
    else:
        count = k.to("cpu")
    if always_keep is not None:
        before = torch.cat((ptr.new_zeros(1), always_keep.cumsum(0)))
        count = torch.maximum(count, before[ptr].diff().to("cpu"))
    count = torch.minimum(count, sizes)
    return torch.cat((host_ptr.new_zeros(1), count.cumsum(0)))
