"""The specification of propagate: plain PyTorch, any device."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from gtkern.ops.propagation.call import (
    Operator,
    Options,
    Solution,
    column_sizes,
    momenta,
    work_dtype,
)


def matrix(operator: Operator) -> Tensor:
    """Â, sparse [N, N], float64."""
    nodes = operator.ptr.numel() - 1
    rows = torch.arange(nodes, device=operator.ptr.device)
    row = torch.repeat_interleave(rows, operator.ptr.diff(), output_size=operator.index.numel())
    col = operator.index.to(torch.int64)
    value = torch.ones_like(row, dtype=torch.float64)
    if operator.weight is not None:
        value = operator.weight.double()
    if operator.own is not None:
        row, col = torch.cat((row, rows)), torch.cat((col, rows))
        value = torch.cat((value, operator.own.double()))
    if operator.scale is not None:
        scale = operator.scale.double()
        value = scale[row] * value * scale[col]
    place = torch.stack((row, col))
    return torch.sparse_coo_tensor(place, value, (nodes, nodes), check_invariants=False)


def solve(x: Tensor, start: Tensor | None, operator: Operator, options: Options) -> Solution:
    """z = (1 - alpha) Â z + alpha x, sweep by sweep from `start` (None: x)."""
    work = work_dtype(x.dtype)
    z = (x if start is None else start).to(work)
    size = column_sizes(x, z, options.alpha)
    source = options.alpha * x.to(work)
    # torch adds a row up term by term: in float32 a hub's thousands would be rounded the same way
    a_hat = matrix(operator)
    before, residual, sweeps = z, math.nan, 0
    for omega in itertools.islice(momenta(options), options.limit):
        sweeps += 1
        moved = (1 - options.alpha) * torch.sparse.mm(a_hat, z.double()).to(work) + source
        if options.tol:
            left = torch.linalg.vector_norm(moved - z, dim=0, dtype=torch.float64)
            residual = float((left / size).max())
            if not options.tol < residual < math.inf:
                break
        z, before = before + omega * (moved - before), z
    return Solution(z.to(x.dtype), sweeps, residual)
