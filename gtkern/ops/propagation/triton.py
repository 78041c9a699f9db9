"""The triton backend: portable GPU kernels, and in Triton's interpreter on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from gtkern._backends import triton_interpreted
from gtkern.graph import HEAVY_ROW_EDGES
from gtkern.ops._triton import power_of_two
from gtkern.ops.propagation import iteration
from gtkern.ops.propagation.call import Operator, Options, Solution
from gtkern.ops.propagation.iteration import Sweep
from gtkern.ops.propagation.triton_kernels import heavy_sum_kernel, sweep_kernel

_ROWS, _ELEMENTS = 4, 1024
"""Of a program on a GPU: rows side by side, which wait for the longest of them, and elements."""


def solve(x: Tensor, start: Tensor | None, operator: Operator, options: Options) -> Solution:
    """See Solution."""
    return iteration.solve(launch, x, start, operator, options)


def launch(sweep: Sweep) -> Tensor:
    """See iteration.SweepKernel."""
    nodes, width = sweep.now.shape
    block_w = min(128, power_of_two(width))
    block_r, block_e = _ROWS, max(1, _ELEMENTS // (_ROWS * block_w))
    if triton_interpreted():
        block_r, block_e = 512, 16
    cut = {"W": width, "BLOCK_R": block_r, "BLOCK_E": block_e, "BLOCK_W": block_w, "num_warps": 2}
    columns, programs = -(-width // block_w), -(-nodes // block_r)
    operator, heavy = sweep.operator, sweep.operator.heavy
    partial = None
    squares = sweep.now.new_empty(0 if sweep.inverse_size is None else programs, width)
    with torch.cuda.device_of(sweep.now):
        if sweep.item is not None:
            partial = sweep.now.new_empty(heavy.size(0), width)
            heavy_sum_kernel[-(-heavy.size(0) // block_r), columns](
                heavy, operator.index, operator.weight, sweep.now, partial, heavy.size(0), **cut
            )
        sweep_kernel[programs, columns](
            operator.ptr, operator.index, operator.weight, operator.scale, operator.own,
            sweep.item, partial, sweep.x, sweep.now, sweep.before, sweep.next,
            sweep.inverse_size, squares, nodes, sweep.x.size(1), sweep.first,
            sweep.alpha, 1 - sweep.alpha, sweep.omega,
            HEAVY=HEAVY_ROW_EDGES, **cut,
        )  # fmt: skip
    return squares
