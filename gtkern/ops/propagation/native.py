"""The cpu backend: csrc/propagation."""

from __future__ import annotations

from torch import Tensor

from gtkern import _native
from gtkern.ops.propagation.call import Operator, Options, Solution


def solve(x: Tensor, start: Tensor | None, operator: Operator, options: Options) -> Solution:
    """See Solution."""
    return Solution(
        *_native.ops("cpu").propagate_solve(
            x,
            start,
            operator.ptr,
            operator.index,
            operator.weight,
            operator.scale,
            operator.own,
            *options,
        )
    )
