"""What a call of propagate brings to a backend, and what comes back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "METHODS",
    "ConvergenceError",
    "Operator",
    "Options",
    "Report",
    "Solution",
    "column_sizes",
    "default_limit",
    "momenta",
    "work_dtype",
]

METHODS = ("chebyshev", "power")


class ConvergenceError(RuntimeError):
    """A solve that did not reach its tolerance, and gives no result.

    Attributes:
        sweeps: how many were made.
        residual: the largest column's relative residual after them.
    """

    def __init__(self, message: str, sweeps: int, residual: float) -> None:
        super().__init__(message)
        self.sweeps = sweeps
        self.residual = residual


class Operator(NamedTuple):
    """The matrix Â, by rows: (Â z)_i = scale_i (Σ_e weight_e scale_j z_j + own_i scale_i z_i).

    Attributes:
        ptr: int64 [N + 1]. index: int32 [E]; the column j of each entry. heavy: int64 [M, 3]; see
            gtkern.graph.Adjacency.
        weight: [E], by position, in the dtype of the sums; None: ones.
        scale: [N], in that dtype; None: ones.
        own: [N], in that dtype: how often a row counts beside its edges; None: zeros.
    """

    ptr: Tensor
    index: Tensor  # type: ignore[assignment]  # shadows tuple.index, which nobody calls here
    heavy: Tensor
    weight: Tensor | None
    scale: Tensor | None
    own: Tensor | None


class Options(NamedTuple):
    """The numbers of a call.

    Attributes:
        alpha: in (0, 1).
        tol: the largest relative residual that a result may have; 0: `limit` sweeps, untested.
        limit: the most sweeps, or exactly so many.
        chebyshev: with the momentum of Chebyshev's semi-iteration.
    """

    alpha: float
    tol: float
    limit: int
    chebyshev: bool


class Solution(NamedTuple):
    """Attributes:
    z: [N, C], dtype of x.
    sweeps: products with Â that were made.
    residual: max over columns of |(1 - alpha) Â z + alpha x - z| / |alpha x|; NaN where the
        options ask for no test.
    """

    z: Tensor
    sweeps: int
    residual: float


class Report:
    """What a solve took. The backward half is there once backward has run.

    Attributes:
        forward: float64 [2] on the CPU: sweeps, and the residual or -1 where none was measured.
        backward: the same of the last backward pass, 0 before it; None in compiled functions.
    """

    def __init__(self, forward: Tensor, backward: Tensor | None) -> None:
        self.forward = forward
        self.backward = backward

    @property
    def sweeps(self) -> int:
        """Products with Â in forward."""
        return int(self.forward[0])

    @property
    def residual(self) -> float:
        """The largest column's relative residual; NaN where `steps` was given."""
        return _residual(self.forward)

    @property
    def backward_sweeps(self) -> int | None:
        """Products with Âᵀ in the last backward pass; None where there was none."""
        took = 0 if self.backward is None else int(self.backward[0])
        return took or None

    @property
    def backward_residual(self) -> float | None:
        """As `residual`, of the last backward pass; None where there was none."""
        if self.backward is None or self.backward_sweeps is None:
            return None
        return _residual(self.backward)

    def __repr__(self) -> str:
        return (
            f"Report(sweeps={self.sweeps}, residual={self.residual:.3g}, "
            f"backward_sweeps={self.backward_sweeps}, backward_residual={self.backward_residual})"
        )


def _residual(took: Tensor) -> float:
    return float(took[1]) if took[1] >= 0 else math.nan


def work_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of iterates and sums: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def momenta(options: Options) -> Iterator[float]:
    """ω of each sweep, z_next = z_before + ω ((1 - alpha) Â z + alpha x - z_before).

    Reference: Golub and Varga 1961, Chebyshev semi-iterative methods, part I, eq. 1.7.
    """
    square = (1 - options.alpha) ** 2
    omega = 1.0
    yield omega
    if options.chebyshev:
        omega = 1 / (1 - square / 2)
    while True:
        yield omega
        if options.chebyshev:
            omega = 1 / (1 - square * omega / 4)


def default_limit(alpha: float, tol: float, method: str) -> float:
    """Twice the sweeps that a symmetric Â of norm 1 takes at most from z = x, and 20.

    Whole, or infinite where alpha is too small to tell 1 - alpha from 1.
    """
    rate = -math.log1p(-alpha)
    if method == "chebyshev":
        rate += math.log1p(math.sqrt(alpha * (2 - alpha)))
    # the product tol * alpha may be too small for a float
    sweeps = -(math.log(tol) + math.log(alpha) - math.log(4)) / rate
    return 20 + 2 * math.ceil(sweeps) if math.isfinite(sweeps) else math.inf


def column_sizes(x: Tensor, start: Tensor, alpha: float) -> Tensor:
    """float64 [C]: |alpha x| of each column, what a residual is relative to; |alpha start| where
    that is 0. Never 0.
    """
    of_x, of_start = (
        alpha * torch.linalg.vector_norm(value, dim=0, dtype=torch.float64) for value in (x, start)
    )
    return torch.where(of_x > 0, of_x, of_start).clamp_min(1e-30)
