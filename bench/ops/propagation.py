"""propagation: sweeps at the size of ogbn-arxiv, and whole solves to a tolerance."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.graphs import REAL, GraphSpec, edge_index
from bench.harness import (
    Call,
    Case,
    Cost,
    Peer,
    Problem,
    Room,
    Unsupported,
    gradient_call,
    time_once_per_graph,
)
from gtkern import Graph
from gtkern.ops.propagation import op, propagate

__all__ = ["ROOM"]

ARXIV = GraphSpec(169_000, 169_000, 2_400_000, law="powerlaw", skew=2.5)
"""Half of the edges are drawn, and each taken in both directions."""

ALPHA = 0.1
SWEEPS = {"steps": 10, "method": "power"}
FEW_SWEEPS = {"steps": 2, "method": "power"}
"""As LEADING makes; what a solve costs beside its sweeps shows."""
SOLVE = {"tol": 1e-6, "method": "chebyshev"}
TILE_CHANNELS = 32
MOST_SWEEPS = 500

CASES = (
    Case("sweeps-40", ARXIV, {"C": 40}, options=SWEEPS, passes=("fwd",), goals={"fwd": 2.0},
         quick=0.02),
    Case("sweeps-128", ARXIV, {"C": 128}, options=SWEEPS, passes=("fwd",), goals={"fwd": 2.0},
         quick=0.02),
    Case("sweeps-768", ARXIV, {"C": 768}, options=FEW_SWEEPS, passes=("fwd",),
         goals={"fwd": 2.0}, quick=0.01),
    Case("sweeps-128-bf16", ARXIV, {"C": 128}, dtype="bfloat16", options=SWEEPS, passes=("fwd",),
         quick=0.02),
    Case("solve-40", ARXIV, {"C": 40}, options=SOLVE, quick=0.02),
    Case("solve-128", ARXIV, {"C": 128}, options=SOLVE, quick=0.02),
    *(
        Case(f"{name}-128-gpu", REAL[name], {"C": 128}, options=SWEEPS, passes=("fwd",),
             goals={"fwd": 1.15}, rivals=("torch-csr",), bound_goals={"fwd": 0.85},
             device="cuda", quick=0.002)
        for name in ("arxiv", "yelp", "products")
    ),
)  # fmt: skip


@dataclass(frozen=True)
class _Data:
    """Inputs of one case.

    Attributes:
        graph: asked for its symmetry and norm.
        matrix: the same Â for the peers, self loops and all: CSR, float32.
        x: [N, C], a leaf. grad: [N, C].
        products: forward's and backward's together, by pass.
    """

    graph: Graph
    matrix: Tensor
    x: Tensor
    grad: Tensor
    products: dict[str, int]


def _prepare(case: Case, device: torch.device) -> Problem:
    spec = case.graph
    half = edge_index(spec)[:, : spec.num_edges // 2].to(device)
    edges = torch.cat((half, half.flip(0)), dim=1)
    nodes = spec.num_dst

    def make() -> Graph:
        graph = Graph.from_edge_index(edges, nodes)
        graph.is_symmetric()
        graph.gcn_norm()
        return graph

    graph = make()
    generator = torch.Generator().manual_seed(1)
    x, grad = (
        case.hold(torch.randn(nodes, case.sizes["C"], generator=generator), device)
        for _ in range(2)
    )
    loops = torch.arange(nodes, device=device).expand(2, -1)
    source, destination = torch.cat((edges[:, edges[0] != edges[1]], loops), dim=1)
    scale = graph.gcn_norm().scale.float()
    places, values = torch.stack((destination, source)), scale[source] * scale[destination]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        matrix = torch.sparse_coo_tensor(places, values, (nodes, nodes)).coalesce().to_sparse_csr()
        if device.type == "cuda":
            # cuSPARSE reads fewer bytes then; on CPUs torch converts them at every call
            parts = matrix.crow_indices().int(), matrix.col_indices().int(), matrix.values()
            matrix = torch.sparse_csr_tensor(*parts, (nodes, nodes))
    x.requires_grad_()
    z, report = propagate(graph, x, ALPHA, **case.options, return_report=True)
    z.backward(grad)
    x.grad = None
    products = {"fwd": report.sweeps, "fwd+bwd": report.sweeps + report.backward_sweeps}
    problem = Problem(case, device, _Data(graph, matrix, x, grad, products))
    problem.prepare_s = time_once_per_graph(make, device)
    return problem


def _own(problem: Problem, passes: str, backend: str) -> Call:
    data: _Data = problem.data
    options = problem.case.options
    return gradient_call(
        lambda: propagate(data.graph, data.x, ALPHA, **options, backend=backend),
        [data.x],
        data.grad,
        passes,
    )


def _cost(problem: Problem, passes: str) -> Cost:
    """Of each product a row for each edge, in tiles of channels, and nothing else: what is streamed
    beside does not come at random.
    """
    data: _Data = problem.data
    nodes, channels = data.x.shape
    edges, size = data.graph.num_edges, 4
    # on a CPU tiles of columns are solved one after the other
    tile = min(channels, TILE_CHANNELS) if problem.device.type == "cpu" else channels
    count = data.products[passes]
    return Cost(
        count * edges * channels * size,
        flops=2.0 * count * (edges + nodes) * channels,
        row_bytes=tile * size,
        table_bytes=nodes * tile * size,
        edges=count * edges,
    )


def _steps(problem: Problem) -> int:
    steps: int | None = problem.case.options.get("steps")
    if steps is None:
        raise Unsupported("makes a number of products alone")
    if problem.case.dtype != "float32":
        raise Unsupported("is compared in float32")
    return steps


def _scipy(problem: Problem, passes: str) -> Call:
    """So many products of a scipy.sparse CSR matrix, and nothing else."""
    steps = _steps(problem)
    try:
        from scipy.sparse import csr_matrix
    except ImportError as error:
        raise Unsupported("scipy is not installed") from error
    if problem.device.type != "cpu":
        raise Unsupported("runs on CPUs alone")
    data: _Data = problem.data
    matrix = csr_matrix(
        tuple(part.numpy() for part in (
            data.matrix.values(), data.matrix.col_indices().int(), data.matrix.crow_indices().int()
        )),
        shape=data.matrix.shape,
    )  # fmt: skip
    x = data.x.detach().numpy()

    def products() -> Tensor:
        z = x
        for _ in range(steps):
            z = matrix @ z
        return torch.from_numpy(z)

    return products


def _torch_csr(problem: Problem, passes: str) -> Call:
    """So many products of a torch CSR matrix, and nothing else."""
    steps = _steps(problem)
    data: _Data = problem.data

    def products() -> Tensor:
        z = data.x.detach()
        for _ in range(steps):
            z = torch.sparse.mm(data.matrix, z)
        return z

    return products


def _torch_power(problem: Problem, passes: str) -> Call:
    """The power iteration with torch's CSR product to the same tolerance, by the same test;
    backward the same from the gradient.
    """
    tol = problem.case.options.get("tol")
    if tol is None:
        raise Unsupported("solves to a tolerance")
    data: _Data = problem.data

    def solve(x: Tensor) -> Tensor:
        source, z = ALPHA * x, x
        size = source.norm(dim=0)
        for _ in range(MOST_SWEEPS):
            moved = torch.add(source, torch.sparse.mm(data.matrix, z), alpha=1 - ALPHA)
            if float(((moved - z).norm(dim=0) / size).max()) <= tol:
                return z
            z = moved
        raise Unsupported(f"does not reach the tolerance in {MOST_SWEEPS} sweeps")

    def run() -> Any:
        z = solve(data.x.detach())
        return z if passes == "fwd" else solve(data.grad)

    return run


def _pyg(problem: Problem, passes: str) -> Call:
    """PyG's APPNP over the normalised matrix: as many steps, or 132 of them, which bring the error
    of any x to 1e-6.
    """
    if problem.case.dtype != "float32":
        raise Unsupported("is compared in float32")
    try:
        from torch_geometric.nn import APPNP
    except ImportError as error:
        raise Unsupported("torch_geometric is not installed") from error
    data: _Data = problem.data
    if "tol" in problem.case.options and data.x.size(1) > 64:
        raise Unsupported("takes a minute")
    layer = APPNP(problem.case.options.get("steps", 132), ALPHA, add_self_loops=False)
    layer.normalize = False
    return gradient_call(lambda: layer(data.x, data.matrix), [data.x], data.grad, passes)


ROOM = Room(
    name="propagation",
    cases=CASES,
    backends=op.BACKENDS,
    prepare=_prepare,
    own=_own,
    cost=_cost,
    peers={
        "scipy-csr": Peer(_scipy, numpy=True),
        "torch-csr": Peer(_torch_csr),
        "torch-power": Peer(_torch_power),
        "pyg-appnp": Peer(_pyg),
    },
    goal_peers=("scipy-csr", "torch-csr"),
    same=False,
)
