"""propagate: the public function, its checks, and the torch.library op behind it."""

from __future__ import annotations

import importlib
import math
from typing import Any

import torch
from torch import Tensor

from gtkern import _backends, _check
from gtkern.graph import Graph, rows_equal_columns
from gtkern.ops.propagation import reference
from gtkern.ops.propagation.call import (
    METHODS,
    ConvergenceError,
    Operator,
    Options,
    Report,
    default_limit,
    work_dtype,
)
from gtkern.ops.propagation.native import Native

__all__ = ["propagate"]

BACKENDS = ("reference", "cpu", "triton", "cuda")
_TOL = 1e-6
_ROUNDING = 5e-7
"""What rounding to float32 leaves of alpha times a residual, at worst; README.md measures it."""
_MOST_SWEEPS = 2**31 - 1
_ONE_WAY = (
    "graph must have every edge in both directions for weight='sym', and this one has not; "
    "add the reverse edges (torch_geometric.utils.to_undirected does) or give weight [E]"
)


def propagate(
    graph: Graph,
    x: Tensor,
    alpha: float,
    *,
    weight: str | Tensor = "sym",
    tol: float | None = None,
    steps: int | None = None,
    method: str = "chebyshev",
    max_iter: int | None = None,
    z0: Tensor | None = None,
    beta: float | Tensor = 0.0,
    g0: Tensor | None = None,
    theta: float | Tensor = 0.0,
    return_report: bool = False,
    backend: str = "auto",
) -> Any:
    r"""The fixed point of personalised propagation, or so many sweeps towards it.

    Solves, for each column of x::

        Z = (1 - alpha) Â Z + alpha X

    Backward solves the adjoint, which is the gradient of x, by the same method and rule::

        G = (1 - alpha) Âᵀ G + alpha dL/dZ

    Nothing of a sweep is kept for it. Forward starts from x, or (1 - beta) z0 + beta x; backward
    from dL/dZ, or (1 - theta) g0 + theta dL/dZ. With `steps`, and without z0 and g0, the gradient
    is exactly that of the sweeps as they were made.

    Args:
        graph: N nodes; row i of Â holds the edges j -> i.
        x: [N, C], float32, bfloat16, float16 or float64. Iterates and sums are float32 or wider.
        alpha: in (0, 1); the share of x.
        weight: "sym": Â = D^-1/2 (A + I) D^-1/2, with a self loop for each node (one that is
            there is not doubled) and D the degrees with it; the edges must come in both
            directions. Or floats [E] in the order the graph was given its edges: Â as given,
            nothing added; no gradient.
        tol: sweep until no column's residual |(1 - alpha) Â z + alpha x - z| exceeds
            tol |alpha x|, which for a symmetric Â of norm 1 bounds the error by tol |x|; positive.
            Default, without `steps`: 1e-6, or 5e-7 / alpha where that is more and x not float64:
            below it rounding may keep a residual.
        steps: make exactly so many sweeps, at least 1, and test nothing.
        method: "chebyshev": Chebyshev's semi-iteration, for an Â that is symmetric with
            eigenvalues in [-1, 1] ("sym" always is). "power": the plain sweep
            z <- (1 - alpha) Â z + alpha x, for any Â, such as a row-normalised one.
        max_iter: the most sweeps with `tol`; default: more than twice what an Â of norm 1 takes.
        z0, g0: [N, C], dtype of x: where forward and backward start; no gradient.
        beta, theta: in [0, 1], one or for each row [N]; a row never visited has 1. Unused without
            z0 and g0.
        return_report: also return a Report of sweeps and residuals.
        backend: "auto", "reference", "cpu", "triton" or "cuda"; a named one never falls back.

    Returns:
        Z [N, C], dtype of x; with return_report also the Report, whose backward half is there
        after backward.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape, dtype, device or range.
        ConvergenceError: max_iter sweeps did not reach tol, or x, z0 or weight hold NaN or
            infinity; a RuntimeError. Never with `steps`.
        NotImplementedError: the named backend cannot run here.

    Reference: Gasteiger et al. 2019 (APPNP), eq. 4 and 5; Xue et al. 2023 (LazyGNN), section 3.
    """
    _check_inputs(graph, x, weight)
    _check.flag("return_report", return_report)
    options = _options(alpha, tol, steps, method, max_iter, x.dtype)
    for name, value in (("z0", z0), ("g0", g0)):
        if value is not None:
            _check.floating(name, value)
            _check.shape(name, value, "N, C", x.shape)
            _check.same_dtype(name, value, "x", x)
    for name, share in (("beta", beta), ("theta", theta)):
        if isinstance(share, Tensor):
            _check.floating(name, share)
            _check.shape(name, share, "N", (x.size(0),))
    _check.same_device(
        x=x,
        graph=graph.csr.ptr,
        weight=weight if isinstance(weight, Tensor) else None,
        z0=z0,
        g0=g0,
        beta=beta if isinstance(beta, Tensor) else None,
        theta=theta if isinstance(theta, Tensor) else None,
    )
    beta = _share("beta", beta, x)
    theta = _share("theta", theta, x)
    chosen = _backends.resolve("propagate", backend, BACKENDS, x.device, x.dtype)
    given = None if isinstance(weight, str) else weight
    compiling = torch.compiler.is_compiling()
    if given is None:
        # a graph that was never asked cannot be while it is traced: the op then looks each time
        if graph.symmetric is None and not compiling:
            graph.is_symmetric()
        if graph.symmetric is False:
            raise ValueError(_ONE_WAY)
    back = graph.csr
    if given is not None and x.requires_grad and torch.is_grad_enabled():
        back = graph.csc
    norm = graph.gcn_norm() if given is None else None
    report = None
    if return_report and not compiling:
        report = torch.zeros(2, dtype=torch.float64, device="cpu")
    z, took = torch.ops.gtkern.propagate_fwd(
        x.contiguous(),
        None if z0 is None else _mix(z0.detach(), x.detach(), beta),
        None if g0 is None else g0.detach(),
        None if g0 is None else theta,
        *(graph.csr.ptr, graph.csr.index, graph.csr.edge_id, graph.csr.heavy),
        *(back.ptr, back.index, back.edge_id, back.heavy),
        given,
        None if norm is None else norm.scale,
        None if norm is None else norm.own,
        *options,
        options.chebyshev if given is not None else graph.symmetric is None,
        report,
        chosen,
    )
    return (z, Report(took.detach(), report)) if return_report else z


def _check_inputs(graph: Graph, x: Tensor, weight: str | Tensor) -> None:
    if not isinstance(graph, Graph):
        raise TypeError(
            f"graph must be a gtkern.Graph (Graph.from_any makes one), got {type(graph).__name__}"
        )
    if graph.num_src_nodes != graph.num_dst_nodes:
        raise ValueError(
            "graph must have as many sources as destinations, got "
            f"{graph.num_src_nodes} and {graph.num_dst_nodes}"
        )
    _check.floating("x", x)
    _check.rank("x", x, "N, C")
    _check.shape("x", x, "N, C", (graph.num_dst_nodes, x.size(1)))
    if isinstance(weight, str):
        if weight != "sym":
            raise ValueError(f"weight must be 'sym' or a tensor [E], got {weight!r}")
        return
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be 'sym' or a tensor [E], got {type(weight).__name__}")
    _check.floating("weight", weight)
    _check.shape("weight", weight, "E", (graph.num_edges,))
    if weight.requires_grad:
        raise ValueError("weight must not require a gradient, which propagate does not compute")


def _options(
    alpha: float,
    tol: float | None,
    steps: int | None,
    method: str,
    max_iter: int | None,
    dtype: torch.dtype,
) -> Options:
    alpha = _check.number("alpha", alpha, 0, 1, open_low=True)
    if alpha == 1:
        raise ValueError("alpha must be in (0, 1), got 1")
    if method not in METHODS:
        names = " or ".join(repr(name) for name in METHODS)
        raise ValueError(f"method must be {names}, got {method!r}")
    chebyshev = method == "chebyshev"
    if steps is not None:
        if tol is not None or max_iter is not None:
            other = "tol" if tol is not None else "max_iter"
            raise ValueError(f"{other} must not be given with steps, which tests nothing")
        return Options(alpha, 0.0, _count("steps", steps), chebyshev)
    if tol is None:
        tol = _TOL if dtype == torch.float64 else max(_TOL, _ROUNDING / alpha)
    tol = _check.number("tol", tol, 0, math.inf, open_low=True)
    if max_iter is None:
        limit = default_limit(alpha, tol, method)
        if limit > _MOST_SWEEPS:
            raise ValueError(
                f"max_iter must be given where alpha is so small ({alpha:g}): an Â of norm 1 may "
                f"take more than {_MOST_SWEEPS} sweeps"
            )
        return Options(alpha, tol, max(20, int(limit)), chebyshev)
    return Options(alpha, tol, _count("max_iter", max_iter), chebyshev)


def _count(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {_check.short(value)}")
    if value > _MOST_SWEEPS:
        raise ValueError(f"{name} must be at most {_MOST_SWEEPS}, got {_check.short(value)}")
    return value


def _share(name: str, value: float | Tensor, x: Tensor) -> Tensor:
    """As a tensor of x's dtype that multiplies rows: [1, 1] or [N, 1]."""
    if not isinstance(value, Tensor):
        number = _check.number(name, value, 0, 1)
        return torch.full((1, 1), number, dtype=x.dtype, device=x.device)
    return value.detach().to(x.dtype)[:, None]


def _mix(kept: Tensor, fresh: Tensor, share: Tensor) -> Tensor:
    """(1 - share) kept + share fresh: where a solve starts."""
    return ((1 - share) * kept + share * fresh).contiguous()


torch.library.define(
    "gtkern::propagate_fwd",
    "(Tensor x, Tensor? start, Tensor? g0, Tensor? theta, "
    "Tensor ptr, Tensor index, Tensor edge_id, Tensor heavy, "
    "Tensor back_ptr, Tensor back_index, Tensor back_edge_id, Tensor back_heavy, "
    "Tensor? weight, Tensor? scale, Tensor? own, "
    "float alpha, float tol, int limit, bool chebyshev, bool check, Tensor? report, str backend)"
    " -> (Tensor, Tensor)",
)


def _load(backend: str) -> Any:
    """What has `solve` of a backend; triton is imported only here."""
    if backend == "triton":
        return importlib.import_module("gtkern.ops.propagation.triton")
    return reference if backend == "reference" else Native(backend)


@torch.library.impl("gtkern::propagate_fwd", "CompositeExplicitAutograd")
def _forward(
    x: Tensor, start: Tensor | None, g0: Tensor | None, theta: Tensor | None,
    ptr: Tensor, index: Tensor, edge_id: Tensor, heavy: Tensor,
    back_ptr: Tensor, back_index: Tensor, back_edge_id: Tensor, back_heavy: Tensor,
    weight: Tensor | None, scale: Tensor | None, own: Tensor | None,
    alpha: float, tol: float, limit: int, chebyshev: bool, check: bool, report: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    work = work_dtype(x.dtype)
    if weight is not None:
        weight = (weight[edge_id] if edge_id.numel() else weight).to(work).contiguous()
    scale, own = (None if value is None else value.to(work) for value in (scale, own))
    operator = Operator(ptr, index, heavy, weight, scale, own)
    options = Options(alpha, tol, limit, chebyshev)
    if check and not rows_equal_columns(ptr, index, weight):
        raise ValueError(_ONE_WAY if weight is None else _not_symmetric(weight))
    if x.numel() == 0:
        return torch.empty_like(x), torch.zeros(2, dtype=torch.float64)
    z, sweeps, residual = _load(backend).solve(x, start, operator, options)
    if tol and not residual <= tol:
        raise _failure(x.dtype, sweeps, residual, options)
    return z, torch.tensor([sweeps, residual if tol else -1.0], dtype=torch.float64)


def _not_symmetric(weight: Tensor) -> str:
    if not weight.isfinite().all():
        return "weight must be finite, got NaN or infinity"
    return (
        "weight must be that of a symmetric matrix for method='chebyshev', and this one is not; "
        "use method='power'"
    )


def _failure(dtype: torch.dtype, sweeps: int, residual: float, options: Options) -> Exception:
    after = f"propagate has a relative residual of {residual:.3g} after {sweeps} sweeps"
    if not math.isfinite(residual):
        return ConvergenceError(
            f"{after}: x, z0, weight or the gradient holds NaN or infinity, or (1 - alpha) Â "
            "enlarges what it is given",
            sweeps,
            residual,
        )
    advice = "raise max_iter, tol or alpha"
    if work_dtype(dtype) == torch.float32 and residual < 1e-4:
        advice += ", or use float64: float32 sums may not be able to do better"
    elif options.chebyshev:
        advice += "; method='chebyshev' needs the eigenvalues of Â in [-1, 1]"
    return ConvergenceError(f"{after}, and tol is {options.tol:.3g}; {advice}", sweeps, residual)


@torch.library.register_fake("gtkern::propagate_fwd")
def _forward_fake(
    x: Tensor, start: Tensor | None, g0: Tensor | None, theta: Tensor | None,
    ptr: Tensor, index: Tensor, edge_id: Tensor, heavy: Tensor,
    back_ptr: Tensor, back_index: Tensor, back_edge_id: Tensor, back_heavy: Tensor,
    weight: Tensor | None, scale: Tensor | None, own: Tensor | None,
    alpha: float, tol: float, limit: int, chebyshev: bool, check: bool, report: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(x), torch.empty(2, dtype=torch.float64, device="cpu")


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[2:15])
    ctx.options, ctx.backend = inputs[15:19], inputs[21]
    # written by backward, which a saved tensor must not be
    ctx.report = inputs[20]
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, grad_z: Tensor | None, grad_took: Tensor | None) -> tuple[Any, ...]:
    """The same op with the rows and columns of Â changed, so that it has a backward too."""
    result: list[Any] = [None] * 22
    if grad_z is None:
        return tuple(result)
    g0, theta, *matrix = ctx.saved_tensors
    there, back, (weight, scale, own) = matrix[:4], matrix[4:8], matrix[8:]
    grad_z = grad_z.contiguous()
    start = None if g0 is None else _mix(g0, grad_z.detach(), theta)
    result[0], took = torch.ops.gtkern.propagate_fwd(
        grad_z, start, None, None, *back, *there, weight, scale, own, *ctx.options, False,
        None, ctx.backend,
    )  # fmt: skip
    if ctx.report is not None:
        ctx.report.copy_(took.detach())
    return tuple(result)


torch.library.register_autograd("gtkern::propagate_fwd", _autograd, setup_context=_setup_context)
