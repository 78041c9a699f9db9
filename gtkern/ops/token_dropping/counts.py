"""How many tokens each graph keeps, for all backends alike."""

from __future__ import annotations

import torch
from torch import Tensor

from gtkern import _check

__all__ = ["kept_ptr"]


def kept_ptr(
    ptr: Tensor, host_ptr: Tensor, k: Tensor | None, ratio: float, always_keep: Tensor | None
) -> Tensor:
    """The first kept row of each graph, on the CPU: int64 [G + 1].

    Args:
        ptr, host_ptr: int64 [G + 1], of the graphs; host_ptr on the CPU.
        k: int64 [1] or [G], on any device; None: by `ratio`.
        always_keep: bool [N]; None: no token.
    """
    sizes = host_ptr.diff()
    if k is None:
        count = torch.as_tensor(_check.share_of(ratio, sizes)).clamp(min=1)
    else:
        count = k.to("cpu")
        if bool((count < 0).any()):
            at = int((count < 0).nonzero()[0])
            raise ValueError(f"k must not be negative, got {int(count[at])} for graph {at}")
    if always_keep is not None:
        before = torch.cat((ptr.new_zeros(1), always_keep.cumsum(0)))
        count = torch.maximum(count, before[ptr].diff().to("cpu"))
    count = torch.minimum(count, sizes)
    return torch.cat((host_ptr.new_zeros(1), count.cumsum(0)))
