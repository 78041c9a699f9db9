"""The host's side of a solve on a GPU: tiles of channels, sweeps, and when to look at residuals."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from gtkern.ops.propagation.call import (
    Operator,
    Options,
    Solution,
    column_sizes,
    momenta,
)

__all__ = ["Sweep", "SweepKernel", "solve"]

_LEAST_TILE = 32
_MOST_SWEEPS_UNTESTED = 8
_CACHE_BYTES = 2**24
"""Where the device does not tell the size of its second-level cache."""


class Sweep(NamedTuple):
    """One sweep of a tile of channels: next = omega g(now) + (1 - omega) before.

    For iterates y = scale z, g(y)_i is
    (1 - alpha) scale_i^2 (Σ_e weight_e y_j + own_i y_i) + alpha scale_i x_i.

    Attributes:
        x: [N, C], of which the tile starts at `first`.
        now, before, next: float32 [N, W], contiguous; W, a multiple of 4, pads the tile with
            zeros; next may be before.
        inverse_size: float32 [W]: asks for the squares of (g(now) - now) inverse_size / scale_i;
            None: they are not wanted.
        item: int32 [N]; the first of the pieces `heavy` of each row that has more than
            HEAVY_ROW_EDGES edges; None without such rows.
    """

    x: Tensor
    first: int
    now: Tensor
    before: Tensor
    next: Tensor
    operator: Operator
    item: Tensor | None
    alpha: float
    omega: float
    inverse_size: Tensor | None


class SweepKernel(Protocol):
    """Launches a sweep; returns sums of squares, float32 [any, W], without rows if not wanted."""

    def __call__(self, sweep: Sweep) -> Tensor:
        """See the class."""


def solve(
    launch: SweepKernel, x: Tensor, start: Tensor | None, operator: Operator, options: Options
) -> Solution:
    """See Solution."""
    nodes, channels = x.shape
    begin = x if start is None else start
    scale = None if operator.scale is None else operator.scale[:, None]
    inverse_size = column_sizes(x, begin, options.alpha).reciprocal().float()
    item = _first_items(operator)
    width = tile_width(nodes, channels, _cache_bytes(x.device))
    z, sweeps, residual = torch.empty_like(x), 0, math.nan
    for first in range(0, channels, width):
        tile = slice(first, min(first + width, channels))
        used = tile.stop - first
        # kernels read four channels at once
        now, other = x.new_zeros(2, nodes, -(-used // 4) * 4, dtype=torch.float32)
        now[:, :used] = begin[:, tile] if scale is None else scale * begin[:, tile]
        unit = now.new_zeros(now.size(1))
        unit[:used] = inverse_size[tile]
        done, next_test, found = 0, 1, math.nan
        for omega in itertools.islice(momenta(options), options.limit):
            done += 1
            test = options.tol > 0 and done in (next_test, options.limit)
            squares = launch(
                Sweep(
                    x,
                    first,
                    now,
                    now if done == 1 else other,
                    other,
                    operator,
                    item,
                    options.alpha,
                    omega,
                    unit if test else None,
                )
            )
            if test:
                found = math.sqrt(float(squares.sum(0, dtype=torch.float64).max()))
                # what was measured is `now`; NaN ends the loop too
                if not options.tol < found < math.inf:
                    break
                next_test = done + _missing(found, options)
            now, other = other, now
        z[:, tile] = now[:, :used] if scale is None else now[:, :used] / scale
        sweeps = max(sweeps, done)
        residual = found if math.isnan(residual) else max(residual, found)
        if options.tol and not found <= options.tol:
            return Solution(z, sweeps, found)
    return Solution(z, sweeps, residual)


def tile_width(nodes: int, channels: int, cache_bytes: int) -> int:
    """Channels of a tile: so many that its iterate fits in half of the cache, if that leaves at
    least 32 of them; else as many as a warp's lanes read at once.
    """
    fits = cache_bytes // 2 // (4 * max(nodes, 1)) // _LEAST_TILE * _LEAST_TILE
    return min(channels, fits if fits >= _LEAST_TILE else 128)


def _missing(residual: float, options: Options) -> int:
    """Sweeps until the next test: those that the bound of the method asks for."""
    norm = 1 - options.alpha
    if options.chebyshev:
        norm /= 1 + math.sqrt(options.alpha * (2 - options.alpha))
    missing = math.log(options.tol / residual) / math.log(norm)
    return max(1, min(_MOST_SWEEPS_UNTESTED, math.floor(missing)))


def _cache_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return _CACHE_BYTES
    properties = torch.cuda.get_device_properties(device)
    return int(getattr(properties, "L2_cache_size", _CACHE_BYTES))


def _first_items(operator: Operator) -> Tensor | None:
    pieces = operator.heavy.size(0)
    if pieces == 0:
        return None
    nodes = operator.ptr.numel() - 1
    number = torch.arange(pieces, dtype=torch.int32, device=operator.ptr.device)
    none = number.new_full((nodes,), pieces)
    return none.scatter_reduce(0, operator.heavy[:, 0], number, "amin")
