"""Personalised propagation as a layer without parameters."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from gtkern import ops
from gtkern.graph import Graph

__all__ = ["Propagation"]


class Propagation(nn.Module):
    """Z = (1 - alpha) Â Z + alpha X: APPNP's propagation, solved, or so many sweeps of it.

    Args:
        alpha: in (0, 1); the share of X.
        steps: sweeps, untested; None: as many as `tol` takes.
        tol: the largest relative residual of a column; None: the op's default, without steps.
        method: "chebyshev" or "power"; see `gtkern.ops.propagate`.

    Reference: Gasteiger et al. 2019 (APPNP), eq. 4; Gu et al. 2020 (IGNN) for the gradient.
    """

    def __init__(
        self,
        alpha: float = 0.1,
        steps: int | None = None,
        tol: float | None = None,
        method: str = "chebyshev",
    ) -> None:
        super().__init__()
        self.alpha, self.steps, self.tol, self.method = alpha, steps, tol, method

    def forward(
        self,
        x: Tensor,
        graph: Graph,
        weight: str | Tensor = "sym",
        *,
        z0: Tensor | None = None,
        beta: float | Tensor = 0.0,
        g0: Tensor | None = None,
        theta: float | Tensor = 0.0,
        return_report: bool = False,
    ) -> Any:
        """Z [N, C] of x [N, C]; arguments and results as those of `gtkern.ops.propagate`."""
        return ops.propagate(
            graph,
            x,
            self.alpha,
            weight=weight,
            tol=self.tol,
            steps=self.steps,
            method=self.method,
            z0=z0,
            beta=beta,
            g0=g0,
            theta=theta,
            return_report=return_report,
        )

    def extra_repr(self) -> str:
        """The settings."""
        rule = f"tol={self.tol}" if self.steps is None else f"steps={self.steps}"
        return f"alpha={self.alpha}, {rule}, method={self.method!r}"
