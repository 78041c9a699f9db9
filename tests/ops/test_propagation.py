"""propagate: the contract, and what only it promises."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from contract import RoomContract
from room import (
    BadInput,
    Call,
    Room,
    Sample,
    assert_all_within_budget,
    assert_bit_equal,
    cotangent,
    everywhere,
    graph_edges,
    graph_join,
    graph_relabel,
    graph_structure,
    run,
)
from torch import Tensor

from gtkern import Graph, nn, ops
from gtkern.ops.propagation import iteration
from gtkern.ops.propagation.op import BACKENDS
from gtkern.testing import assert_within_budget, random_edges

ROWS = ("z0", "g0", "beta", "theta")
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6}


def propagate(*, x: Tensor, graph: Graph, alpha: float, **options: Any) -> Any:
    """The op; samples hold z0 and g0 in float64, and a tolerance that goes with the dtype."""
    dtype = getattr(x, "dtype", None)
    for name in ("z0", "g0"):
        if getattr(options.get(name), "dtype", None) == torch.float64:
            options[name] = options[name].to(dtype)
    if options.get("tol") == "dtype":
        options["tol"] = TOLERANCE.get(dtype, 1e-6)
    return ops.propagate(graph, x, alpha, **options)


def undirected(law: str, nodes: int, edges: int) -> Graph:
    """Random edges in both directions; duplicates and self loops as they fall."""
    ends = random_edges(law, nodes, edges // 2, seed=5)
    return Graph.from_edge_index(torch.cat((ends, ends.flip(0)), dim=1), nodes)


def make(
    law: str,
    nodes: int,
    edges: int,
    channels: int,
    *,
    weight: str | None = None,
    start: bool = False,
    by_row: bool = False,
    **options: Any,
) -> Call:
    """A call on a random graph.

    Args:
        weight: "mean": row-normalised weights of a directed graph; "symmetric": random ones below
            the normalised; None: "sym".
        start: with z0 and g0, beta and theta.
        by_row: beta and theta for each row, 1 for every third.
    """
    generator = torch.Generator().manual_seed(nodes)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    graph = undirected(law, nodes, edges)
    others: dict[str, Any] = {"alpha": 0.25, **options}
    if weight == "mean":
        graph = Graph.from_edge_index(random_edges(law, nodes, edges, seed=6), nodes)
        destination = graph.edge_index()[1]
        others["weight"] = graph.degree().double().reciprocal()[destination]
    if weight == "symmetric":
        source, destination = graph.edge_index()
        scale = graph.gcn_norm().scale
        share = torch.rand(nodes, generator=generator, dtype=torch.float64)
        others["weight"] = (scale * share)[source] * (scale * share)[destination]
    if start:
        others |= {"z0": normal(nodes, channels), "g0": normal(nodes, channels)}
        others |= {"beta": 0.6, "theta": 0.5}
    if by_row:
        share = torch.rand(nodes, generator=generator, dtype=torch.float64)
        share[::3] = 1
        others |= {"beta": share, "theta": share.flip(0)}
    return Call({"x": normal(nodes, channels)}, {"x": "src"}, {"graph": graph, **others})


def structure(others: Mapping[str, Any]) -> list[Tensor]:
    graph = others["graph"]
    given = [others[name] for name in ("weight", *ROWS) if isinstance(others.get(name), Tensor)]
    return [*graph_structure(others), *graph.gcn_norm(), *given]


def saved_bytes(call: Call) -> int:
    """A float64 g0 and theta are kept as they were made to fit x; without them, nothing."""
    kept = [call.others[name] for name in ("g0", "theta") if name in call.others]
    return sum(8 * value.numel() if isinstance(value, Tensor) else 8 for value in kept)


def relabel(others: Mapping[str, Any], source_to: Tensor, destination_to: Tensor) -> dict[str, Any]:
    renamed = graph_relabel(others, source_to, destination_to)
    for name in ROWS:
        if isinstance(renamed.get(name), Tensor):
            value = renamed[name]
            renamed[name] = torch.empty_like(value).index_copy(0, destination_to, value)
    return renamed


def join(calls: list[Mapping[str, Any]]) -> dict[str, Any]:
    joined = graph_join(calls)
    for name in ("weight", *ROWS):
        if isinstance(joined.get(name), Tensor):
            joined[name] = torch.cat([others[name] for others in calls])
    return joined


def orders(call: Call, generator: torch.Generator) -> dict[str, Tensor]:
    """Rows and columns of the matrix change places together."""
    order = torch.randperm(call.tensors["x"].size(0), generator=generator)
    return {"src": order, "dst": order}


def sample(name: str, *sizes: Any, size: str = "small", **options: Any) -> Sample:
    return Sample(name, functools.partial(make, *sizes, **options), size)


SAMPLES = (
    sample("tol", "uniform", 7, 16, 3, size="tiny", tol="dtype", alpha=0.4),
    sample("steps", "uniform", 6, 14, 5, size="tiny", steps=3),
    sample("lazy", "uniform", 5, 12, 2, size="tiny", steps=2, method="power", weight="mean"),
    sample("directed", "uniform", 9, 20, 17, size="broad", tol="dtype", method="power",
           weight="mean"),
    sample("weighted", "power_law", 30, 120, 33, tol="dtype", weight="symmetric", size="broad"),
    sample("warm", "uniform", 20, 60, 4, steps=2, method="power", start=True),
    sample("warm_rows", "power_law", 20, 60, 8, tol="dtype", start=True, by_row=True, size="broad"),
    sample("no_edges", "uniform", 4, 0, 3, tol="dtype"),
    sample("no_edges_weighted", "uniform", 4, 0, 3, steps=2, method="power",
           weight="symmetric"),
    sample("one_node", "uniform", 1, 4, 3, tol="dtype"),
    sample("no_channels", "uniform", 4, 6, 0, steps=2),
    sample("no_nodes", "uniform", 0, 0, 3, tol="dtype"),
    sample("self_loops", "regular", 3, 12, 2, steps=4, alpha=0.1),
    sample("hub", "hub", 600, 5000, 5, size="long", steps=2),
    sample("hub_directed", "hub", 60, 3000, 3, size="long", steps=2, method="power", weight="mean"),
    sample("wide", "power_law", 200, 1500, 100, size="broad", tol="dtype", alpha=0.3),
    sample("odd", "power_law", 150, 900, 41, size="broad", tol="dtype", weight="symmetric"),
    sample("hub_10_000", "hub", 11_000, 30_000, 3, size="broad", steps=3),
    sample("several_tiles", "uniform", 300, 900, 160, size="broad", steps=5, method="power",
           weight="mean", start=True),
)  # fmt: skip


def change(**arguments: Any) -> Any:
    """Replace arguments by values, or by functions of the right arguments."""
    return lambda right: {
        name: value(right) if callable(value) and not isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }


def directed(right: Mapping[str, Any]) -> Graph:
    """As many nodes, and edges one way."""
    nodes = right["x"].size(0)
    return Graph.from_edge_index(torch.tensor([[0, 1], [1, 2]]), nodes)


def ones(right: Mapping[str, Any]) -> Tensor:
    return torch.ones(right["graph"].num_edges)


def uneven(right: Mapping[str, Any]) -> Tensor:
    return torch.arange(1.0, right["graph"].num_edges + 1)


BAD = (
    BadInput("graph_no_graph", change(graph=torch.ones(2, 3)), TypeError,
             r"^graph must be a gtkern.Graph .*got Tensor"),
    BadInput("graph_bipartite",
             change(graph=Graph.from_edge_index(torch.zeros(2, 1, dtype=torch.int64), (3, 7))),
             ValueError, r"^graph must have as many sources as destinations, got 3 and 7"),
    BadInput("graph_one_way", change(graph=directed), ValueError,
             r"^graph must have every edge in both directions for weight='sym'.*to_undirected"),
    BadInput("x_no_tensor", change(x=[[1.0]]), TypeError, r"^x must be a tensor, got list"),
    BadInput("x_integer", change(x=lambda a: a["x"].long()), TypeError,
             r"^x must be float32, bfloat16, float16 or float64, got torch.int64"),
    BadInput("x_rank", change(x=torch.ones(7)), ValueError, r"^x must have shape \[N, C\], got"),
    BadInput("x_rows", change(x=torch.ones(8, 3)), ValueError,
             r"^x must have shape \[N, C\] = \[7, 3\], got \[8, 3\]"),
    BadInput("x_device", change(x=torch.ones(7, 3, device="meta")), ValueError,
             r"^graph must be on the device of x \(meta\), got cpu"),
    BadInput("x_nan", change(x=torch.full((7, 3), math.nan)), ops.ConvergenceError,
             r"residual of nan after 1 sweeps.*NaN or infinity"),
    BadInput("x_infinite", change(x=torch.full((7, 3), math.inf)), ops.ConvergenceError,
             r"NaN or infinity"),
    BadInput("alpha_type", change(alpha="0.1"), TypeError, r"^alpha must be a number, got str"),
    BadInput("alpha_zero", change(alpha=0.0), ValueError, r"^alpha must be in \(0, 1\], got 0"),
    BadInput("alpha_one", change(alpha=1.0), ValueError, r"^alpha must be in \(0, 1\), got 1"),
    BadInput("alpha_nan", change(alpha=math.nan), ValueError, r"^alpha must be in .*got nan"),
    BadInput("alpha_tiny", change(alpha=1e-300), ValueError,
             r"^max_iter must be given where alpha is so small \(1e-300\)"),
    BadInput("alpha_least", change(alpha=5e-324), ValueError, r"^max_iter must be given where"),
    BadInput("steps_too_many", change(tol=None, steps=2**63), ValueError,
             r"^steps must be at most 2147483647, got 9223372036854775808"),
    BadInput("return_report_number", change(return_report=1), TypeError,
             r"^return_report must be True or False, got int"),
    BadInput("tol_zero", change(tol=0.0), ValueError, r"^tol must be in \(0, inf\], got 0"),
    BadInput("tol_negative", change(tol=-1.0), ValueError, r"^tol must be in .*got -1"),
    BadInput("steps_zero", change(tol=None, steps=0), ValueError,
             r"^steps must be at least 1, got 0"),
    BadInput("steps_type", change(tol=None, steps=2.0), TypeError,
             r"^steps must be an integer, got float"),
    BadInput("steps_and_tol", change(steps=2), ValueError, r"^tol must not be given with steps"),
    BadInput("steps_and_limit", change(tol=None, steps=2, max_iter=3), ValueError,
             r"^max_iter must not be given with steps"),
    BadInput("limit_zero", change(max_iter=0), ValueError, r"^max_iter must be at least 1, got 0"),
    BadInput("limit_short", change(max_iter=2), ops.ConvergenceError,
             r"residual of .* after 2 sweeps, and tol is 1e-06; raise max_iter"),
    BadInput("method_unknown", change(method="cg"), ValueError,
             r"^method must be 'chebyshev' or 'power', got 'cg'"),
    BadInput("weight_unknown", change(weight="mean"), ValueError,
             r"^weight must be 'sym' or a tensor \[E\], got 'mean'"),
    BadInput("weight_type", change(weight=1.0), TypeError,
             r"^weight must be 'sym' or a tensor \[E\], got float"),
    BadInput("weight_integer", change(weight=lambda a: ones(a).long()), TypeError,
             r"^weight must be float32"),
    BadInput("weight_size", change(weight=torch.ones(3)), ValueError,
             r"^weight must have shape \[E\] = \[16\], got \[3\]"),
    BadInput("weight_gradient", change(weight=lambda a: ones(a).requires_grad_()), ValueError,
             r"^weight must not require a gradient"),
    BadInput("weight_uneven", change(weight=uneven), ValueError,
             r"^weight must be that of a symmetric matrix for method='chebyshev'.*'power'"),
    BadInput("weight_nan", change(weight=lambda a: ones(a) * math.nan), ValueError,
             r"^weight must be finite"),
    BadInput("weight_large", change(weight=ones), ops.ConvergenceError, r"raise max_iter|NaN"),
    BadInput("z0_shape", change(z0=torch.ones(7, 2)), ValueError,
             r"^z0 must have shape \[N, C\] = \[7, 3\], got \[7, 2\]"),
    BadInput("g0_shape", change(g0=torch.ones(6, 3)), ValueError, r"^g0 must have shape \[N, C\]"),
    BadInput("z0_integer", change(z0=torch.ones(7, 3).long()), TypeError,
             r"^z0 must be float32, bfloat16"),
    BadInput("z0_dtype", change(z0=lambda a: a["x"].half()), TypeError,
             r"^z0 must have the dtype of x \(torch.float32\), got torch.float16"),
    BadInput("g0_no_tensor", change(g0=0.0), TypeError, r"^g0 must be a tensor, got float"),
    BadInput("beta_type", change(beta="all"), TypeError, r"^beta must be a number, got str"),
    BadInput("beta_large", change(beta=1.5), ValueError, r"^beta must be in \[0, 1\], got 1.5"),
    BadInput("theta_rows", change(theta=torch.ones(3)), ValueError,
             r"^theta must have shape \[N\] = \[7\], got \[3\]"),
    BadInput("backend_unknown", change(backend="numpy"), ValueError,
             r"^backend must be one of 'auto', 'reference', .*got 'numpy'"),
)  # fmt: skip

ROOM = Room(
    op=propagate,
    samples=SAMPLES,
    results=lambda call: [("z", "dst")],
    structure=structure,
    edges=graph_edges,
    relabel=relabel,
    join=join,
    saved_bytes=saved_bytes,
    waits=lambda call: call.others.get("steps") is None,
    orders=orders,
    backends=BACKENDS,
    bad=BAD,
)


def dense(others: Mapping[str, Any]) -> Tensor:
    """(1 - alpha) Â, float64 [N, N]."""
    graph = others["graph"]
    nodes = graph.num_dst_nodes
    source, destination = graph.edge_index()
    matrix = torch.zeros(nodes, nodes, dtype=torch.float64)
    if isinstance(others.get("weight"), Tensor):
        matrix.index_put_((destination, source), others["weight"], accumulate=True)
    else:
        one = torch.ones(source.numel(), dtype=torch.float64)
        matrix.index_put_((destination, source), one, accumulate=True)
        matrix.fill_diagonal_(1)
        scale = matrix.sum(1).rsqrt()
        matrix = scale[:, None] * matrix * scale
    return (1 - others["alpha"]) * matrix


class TestContract(RoomContract):
    """Every claim of the contract."""

    room = ROOM

    def test_destinations_without_edges_get_zero_and_give_zero(
        self, backend: str, device: torch.device, sample: Sample
    ) -> None:
        """A node without edges keeps x with its implied self loop, and alpha x without."""
        call = sample.build()
        if "z0" in call.others:
            pytest.skip("so many sweeps from elsewhere end elsewhere")
        source, destination = call.others["graph"].edge_index()
        nodes = call.tensors["x"].size(0)
        idle = torch.bincount(torch.cat((source, destination)), minlength=nodes) == 0
        factor = call.others["alpha"] if "weight" in call.others else 1.0
        narrow = call.cast(torch.float32, device)
        found = run(ROOM, narrow, backend, needs=())["z"].cpu()[idle]
        expected = factor * narrow.tensors["x"].cpu().double()[idle]
        assert_within_budget(found, expected, dtype=torch.float32)

    @pytest.mark.sizes("tiny")
    def test_nan_stays_in_its_rows(
        self, backend: str, device: torch.device, sample: Sample
    ) -> None:
        """So many sweeps carry it as many edges far; a tolerance is not met by it."""
        call = sample.build()
        steps = call.others.get("steps")
        near = torch.eye(call.tensors["x"].size(0), dtype=torch.float64) + dense(call.others).abs()
        reached = torch.linalg.matrix_power(near, steps or 1)[:, 0] > 0
        narrow = call.cast(torch.float32, device)
        clean = run(ROOM, narrow, backend, needs=())["z"]
        x = narrow.tensors["x"].clone()
        x[0] = math.nan
        struck = narrow._replace(tensors={"x": x})
        if steps is None:
            with pytest.raises(ops.ConvergenceError):
                run(ROOM, struck, backend, needs=())
            return
        found = run(ROOM, struck, backend, needs=())["z"]
        assert found[reached].isnan().all()
        assert_bit_equal({"z": found[~reached]}, {"z": clean[~reached]})

    @pytest.mark.sizes("tiny", "small", "long")
    def test_a_graph_does_not_see_its_batch_mates(
        self, backend: str, device: torch.device, sample: Sample
    ) -> None:
        """Bit by bit where sweeps are counted; a tolerance holds for the batch as a whole."""
        call = sample.build()
        if "steps" in call.others:
            super().test_a_graph_does_not_see_its_batch_mates(backend, device, sample)
            return
        x = call.tensors["x"]
        joined = Call({"x": torch.cat((x, x + 1))}, call.axes, join([call.others, call.others]))
        found = run(ROOM, joined.cast(torch.float32, device), backend, needs=())["z"]
        alone = run(ROOM, call.cast(torch.float32, device), backend, needs=())["z"]
        assert_within_budget(found[: x.size(0)], alone.double(), dtype=torch.float32)


@everywhere(ROOM)
@pytest.mark.parametrize("weight", [None, "symmetric", "mean"])
def test_the_fixed_point_is_the_dense_solution(
    backend: str, device: torch.device, weight: str | None
) -> None:
    method = "power" if weight == "mean" else "chebyshev"
    call = make("power_law", 40, 160, 6, weight=weight, method=method, tol="dtype", alpha=0.2)
    dtype = torch.float64 if backend in ("reference", "cpu") else torch.float32
    found = run(ROOM, call.cast(dtype, device), backend)
    system = torch.eye(40, dtype=torch.float64) - dense(call.others)
    x = call.tensors["x"].requires_grad_()
    expected = {"z": torch.linalg.solve(system, 0.2 * x)}
    expected["grad of x"] = torch.autograd.grad(expected["z"], x, cotangent(expected["z"], 0))[0]
    expected = {name: value.detach() for name, value in expected.items()}
    assert_all_within_budget(found, expected, dtype)


@everywhere(ROOM)
@pytest.mark.parametrize("weight", [None, "mean"])
def test_counted_sweeps_are_the_lazy_solver(
    backend: str, device: torch.device, weight: str
) -> None:
    """LazyGNN's forward and backward written out, with the transpose in backward."""
    steps, alpha, beta, theta = 2, 0.1, 0.6, 0.5
    call = make(
        "uniform", 12, 40, 5, weight=weight, start=True, steps=steps, method="power", alpha=alpha
    )
    matrix, x, z0, g0 = (
        dense(call.others), call.tensors["x"], call.others["z0"], call.others["g0"]
    )  # fmt: skip
    z = (1 - beta) * z0 + beta * x
    grad = cotangent(x, 0)
    g = (1 - theta) * g0 + theta * grad
    for _ in range(steps):
        z = matrix @ z + alpha * x
        g = matrix.T @ g + alpha * grad
    found = run(ROOM, call.cast(torch.float32, device), backend)
    assert_all_within_budget(found, {"z": z, "grad of x": g}, torch.float32)


@everywhere(ROOM)
@pytest.mark.parametrize("method", ["chebyshev", "power"])
def test_counted_sweeps_have_the_gradient_of_the_sweeps_unrolled(
    backend: str, device: torch.device, method: str
) -> None:
    call = make("uniform", 12, 40, 5, weight="symmetric", steps=4, method=method, alpha=0.1)
    matrix, x = dense(call.others), call.tensors["x"].requires_grad_()
    z, before, omega, square = x, x, 1.0, 0.9**2
    for sweep in range(4):
        z, before = before + omega * (matrix @ z + 0.1 * x - before), z
        if method == "chebyshev":
            omega = 1 / (1 - square / 2) if sweep == 0 else 1 / (1 - square * omega / 4)
    (grad,) = torch.autograd.grad(z, x, cotangent(z, 0))
    found = run(ROOM, call.cast(torch.float32, device), backend)
    assert_all_within_budget(found, {"z": z.detach(), "grad of x": grad}, torch.float32)


@everywhere(ROOM)
def test_forward_and_backward_are_adjoint(backend: str, device: torch.device) -> None:
    call = make("uniform", 30, 90, 4, weight="mean", method="power", tol="dtype")
    call = call.cast(torch.float32, device)
    x = call.tensors["x"].requires_grad_()
    z = propagate(x=x, **call.others, backend=backend)
    other = torch.randn(z.shape, generator=torch.Generator().manual_seed(1)).to(device)
    (gradient,) = torch.autograd.grad(z, x, other)
    forward, backward = (z.double() * other).sum(), (x.double() * gradient).sum()
    assert abs(forward - backward) < 1e-5 * z.norm() * other.norm()


@everywhere(ROOM)
def test_what_backward_keeps_does_not_grow_with_sweeps(backend: str, device: torch.device) -> None:
    kept = []
    for steps in (1, 40):
        call = make("uniform", 30, 90, 16, steps=steps).cast(torch.float32, device)
        storages: dict[int, int] = {}

        def keep(tensor: Tensor, storages: dict[int, int] = storages) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            ROOM.op(x=call.tensors["x"].requires_grad_(), **call.others, backend=backend)
        assert storages
        kept.append(sum(storages.values()))
    assert kept[0] == kept[1]


@everywhere(ROOM)
def test_reports_tell_what_forward_and_backward_took(backend: str, device: torch.device) -> None:
    call = make("uniform", 40, 160, 4, alpha=0.1, tol=1e-6).cast(torch.float32, device)
    x = call.tensors["x"].requires_grad_()
    z, report = propagate(x=x, **call.others, return_report=True, backend=backend)
    assert 5 < report.sweeps < 50 and 0 < report.residual <= 1e-6
    assert report.backward_sweeps is None and report.backward_residual is None
    z.square().sum().backward()
    assert 5 < report.backward_sweeps < 50 and 0 < report.backward_residual <= 1e-6
    call.others.update(steps=3, tol=None)
    z, report = propagate(x=x, **call.others, return_report=True, backend=backend)
    z.sum().backward()
    assert report.sweeps == report.backward_sweeps == 3 and math.isnan(report.residual)


@everywhere(ROOM)
def test_a_warm_start_saves_sweeps(backend: str, device: torch.device) -> None:
    call = make("uniform", 40, 160, 4, alpha=0.1).cast(torch.float32, device)
    x = call.tensors["x"].requires_grad_()

    def solve(z0: Tensor | None, g0: Tensor | None) -> tuple[Tensor, Tensor, Any]:
        z, report = propagate(x=x, **call.others, z0=z0, g0=g0, return_report=True, backend=backend)
        (gradient,) = torch.autograd.grad(z, x, z.detach().sign())
        return z.detach(), gradient, report

    z, gradient, cold = solve(None, None)
    _, _, warm = solve(z, gradient)
    assert warm.sweeps < cold.sweeps / 2 and warm.backward_sweeps < cold.backward_sweeps / 2


@everywhere(ROOM, only_fast=True)
def test_chebyshev_saves_most_sweeps_where_the_power_iteration_is_slow(
    backend: str, device: torch.device
) -> None:
    """A wave along a path, which one sweep hardly changes."""
    nodes = 1000
    line = torch.arange(nodes - 1)
    ends = torch.stack((line, line + 1))
    graph = Graph.from_edge_index(torch.cat((ends, ends.flip(0)), dim=1), nodes).to(device)
    x = torch.cos(math.pi * (torch.arange(nodes, device=device) + 0.5) / nodes)[:, None]
    took = [
        propagate(
            x=x, graph=graph, alpha=0.1, method=method, z0=torch.zeros_like(x), tol=1e-5,
            return_report=True, backend=backend,
        )[1].sweeps
        for method in ("chebyshev", "power")
    ]  # fmt: skip
    assert 3.9 * took[0] <= took[1]


def star(leaves: int, device: torch.device) -> Graph:
    """Node 0 and so many others, joined to it alone."""
    leaf = torch.arange(1, leaves + 1)
    ends = torch.stack((leaf, torch.zeros_like(leaf)))
    return Graph.from_edge_index(torch.cat((ends, ends.flip(0)), dim=1), leaves + 1).to(device)


@everywhere(ROOM)
def test_a_hub_of_like_neighbors_is_summed_exactly(backend: str, device: torch.device) -> None:
    """Term by term, like terms are all rounded the same way: 1e-5 here after two sweeps."""
    graph = star(1_500, device)
    x = torch.rand(1, 128, device=device).expand(graph.num_dst_nodes, -1)
    options = {"graph": graph, "alpha": 0.1, "steps": 2, "method": "power"}
    z = propagate(x=x, **options, backend=backend)
    exact = propagate(x=x.double(), **options, backend="reference")
    assert ((z - exact).abs() / exact).max() < 2e-6


@everywhere(ROOM)
def test_an_infinity_reaches_its_neighbor_as_one(backend: str, device: torch.device) -> None:
    graph = star(40, device)
    x = torch.ones(41, 2, device=device)
    x[5, 0] = math.inf
    z = propagate(x=x, graph=graph, alpha=0.1, steps=1, method="power", backend=backend)
    assert z[0, 0] == math.inf
    z[[0, 5], 0] = 0
    assert z.isfinite().all()


@everywhere(ROOM, only_fast=True)
@pytest.mark.parametrize("leaves", [33, 20_000])
def test_the_default_tolerance_is_reached_where_rounding_is_worst(
    backend: str, device: torch.device, leaves: int
) -> None:
    graph = star(leaves, device)
    x = torch.rand(1, 64, device=device).expand(graph.num_dst_nodes, -1)
    for alpha in (0.05, 0.1, 0.5):
        *_, report = propagate(x=x, graph=graph, alpha=alpha, return_report=True, backend=backend)
        assert report.residual <= max(1e-6, 5e-7 / alpha)


@everywhere(ROOM)
def test_a_column_of_zeros_is_solved_from_any_start(backend: str, device: torch.device) -> None:
    call = make("uniform", 20, 60, 3, start=True, tol="dtype").cast(torch.float32, device)
    call.tensors["x"][:, 1] = 0
    z = propagate(**call.tensors, **call.others, backend=backend)
    assert z[:, 1].abs().max() < 1e-5 and z[:, 0].abs().max() > 0.1


@everywhere(ROOM)
def test_channels_may_take_several_tiles(
    backend: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where an iterate of all channels is larger than the cache; the last tile is narrower."""
    monkeypatch.setattr(iteration, "_cache_bytes", lambda device: 2 * 4 * 20 * 32)
    assert iteration.tile_width(20, 70, 2 * 4 * 20 * 32) == 32
    call = make("uniform", 20, 60, 70, steps=2, start=True).cast(torch.float32, device)
    found = run(ROOM, call, backend)
    for first, last in ((0, 32), (64, 70)):
        part = {name: call.others[name][:, first:last] for name in ("z0", "g0")}
        alone = call._replace(
            tensors={"x": call.tensors["x"][:, first:last]}, others={**call.others, **part}
        )
        z = run(ROOM, alone, backend, needs=())["z"]
        assert_bit_equal({"z": found["z"][:, first:last]}, {"z": z})


def test_tiles_fit_in_half_of_the_cache_or_are_as_wide_as_a_warp_reads() -> None:
    assert iteration.tile_width(169_000, 768, 50 * 2**20) == 32
    assert iteration.tile_width(20_000, 768, 50 * 2**20) == 320
    assert iteration.tile_width(20_000, 40, 50 * 2**20) == 40
    assert iteration.tile_width(2_449_029, 768, 50 * 2**20) == 128


def test_existing_self_loops_are_not_doubled() -> None:
    edges = torch.tensor([[0, 1, 0, 0], [1, 0, 0, 0]])
    x = torch.eye(2, dtype=torch.float64)
    with_loops, without = (
        ops.propagate(Graph.from_edge_index(ends, 2), x, 0.2, tol=1e-12)
        for ends in (edges, edges[:, :2])
    )
    assert torch.equal(with_loops, without)


def test_the_module_is_the_op() -> None:
    call = make("uniform", 12, 40, 5)
    layer = nn.Propagation(alpha=0.2, steps=3, method="power")
    graph, x = call.others["graph"], call.tensors["x"]
    expected = ops.propagate(graph, x, 0.2, steps=3, method="power")
    assert torch.equal(layer(x, graph), expected)
    assert "alpha=0.2, steps=3, method='power'" in repr(layer)
