"""How many tokens each graph keeps, for all backends alike."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["kept_ptr"]

_WHOLE = 1 - 2.0**-51
"""A ratio and a product are rounded to 2**-53 of their size each: what is larger than a whole
number by no more counts as that number."""


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
        count = (sizes.double() * ratio * _WHOLE).ceil().to(torch.int64).clamp_(min=1)
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
