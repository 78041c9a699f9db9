"""The cpu and cuda backends: csrc/propagation."""

from __future__ import annotations

from torch import Tensor

from gtkern import _native
from gtkern.ops.propagation import iteration
from gtkern.ops.propagation.call import Operator, Options, Solution
from gtkern.ops.propagation.iteration import Sweep


class Native:
    """The kernels of one library: backend "cpu" or "cuda"."""

    def __init__(self, backend: str) -> None:
        self.backend = backend

    def solve(
        self, x: Tensor, start: Tensor | None, operator: Operator, options: Options
    ) -> Solution:
        """See Solution. On the CPU all of it is native, on a GPU a sweep."""
        if self.backend == "cuda":
            return iteration.solve(_sweep, x, start, operator, options)
        matrix = (operator.weight, operator.scale, operator.own)
        return Solution(
            *_native.ops("cpu").propagate_solve(
                x, start, operator.ptr, operator.index, *matrix, *options
            )
        )


def _sweep(sweep: Sweep) -> Tensor:
    operator = sweep.operator
    squares: Tensor = _native.ops("cuda").propagate_sweep(
        sweep.x, sweep.first, sweep.now, sweep.before, sweep.next,
        operator.ptr, operator.index, operator.heavy, sweep.item,
        operator.weight, operator.scale, operator.own,
        sweep.alpha, sweep.omega, sweep.inverse_size,
    )  # fmt: skip
    return squares
