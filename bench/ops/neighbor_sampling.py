"""neighbor_sampling: the resampling of each epoch, from 1.4 to 50 million edges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
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
    time_once_per_graph,
)
from gtkern import Graph, peers
from gtkern.ops.neighbor_sampling import SamplingTable, op, sample_neighbors, sampling_table

__all__ = ["ROOM"]

CASES = (
    Case(
        "tolokers",
        GraphSpec(11_758, 11_758, 1_400_000, law="lognormal", skew=0.9),
        {"K": 10},
        passes=("fwd",),
        goals={"fwd": 100},
        quick=0.1,
    ),
    Case(
        "tolokers-without-table",
        GraphSpec(11_758, 11_758, 1_400_000, law="lognormal", skew=0.9),
        {"K": 10},
        passes=("fwd",),
        options={"table": False},
        quick=0.1,
    ),
    Case(
        "tolokers-uniform",
        GraphSpec(11_758, 11_758, 1_400_000, law="lognormal", skew=0.9),
        {"K": 10},
        passes=("fwd",),
        options={"method": "uniform"},
        quick=0.1,
    ),
    Case(
        "products-quarter",
        GraphSpec(600_000, 600_000, 50_000_000, law="lognormal", skew=1.0, simple=False),
        {"K": 10},
        passes=("fwd",),
        quick=0.002,
    ),
    *(
        Case(
            f"{name}-gpu",
            REAL[name],
            {"K": 10},
            passes=("fwd",),
            rate_goals={"fwd": 100_000},
            device="cuda",
            quick=0.002,
        )
        for name in ("products", "reddit")
    ),
)

MOST_LOOP_EDGES = 60_000_000

_Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class _Data:
    """graph, weight float32 [E] in the caller's order of the edges, and their table."""

    graph: Graph
    weight: Tensor
    table: SamplingTable


def _prepare(case: Case, device: torch.device) -> Problem:
    spec = case.graph
    edges = edge_index(spec).to(device)
    weight = torch.rand(spec.num_edges, generator=torch.Generator().manual_seed(1)) + 1e-3
    weight = weight.to(device)

    def make() -> tuple[Graph, SamplingTable]:
        graph = Graph.from_edge_index(edges, (spec.num_src, spec.num_dst))
        return graph, sampling_table(graph, weight)

    # sorted edges and the table are both paid once for each graph
    seconds = time_once_per_graph(make, device)
    graph, table = make()
    return Problem(case, device, _Data(graph, weight, table), seconds)


def _own(problem: Problem, passes: str, backend: str) -> Call:
    data: _Data = problem.data
    k = problem.case.sizes["K"]
    method = problem.case.options.get("method", "weighted")
    weight = {"weighted": data.table, "uniform": None}[method]
    if not problem.case.options.get("table", True):
        weight = data.weight

    def sample() -> list[Tensor]:
        layers = sample_neighbors(data.graph, weight, k, seed=0, method=method, backend=backend)
        return [layer.index for layer in layers]

    return sample


def _cost(problem: Problem, passes: str) -> Cost:
    """Of each drawn edge, table entry, index and number are read, index and number written; without
    a table every weight is read too.
    """
    spec = problem.case.graph
    drawn = spec.num_dst * problem.case.sizes["K"]
    weights = 0 if problem.case.options.get("table", True) else 4 * spec.num_edges
    return Cost(weights + 28 * drawn, edges=spec.num_edges)


def _numpy_loop(problem: Problem, passes: str) -> Call:
    """Node by node: exponential keys, argpartition; short rows are filled with weighted draws. Its
    weights too are put into the graph's order beforehand.
    """
    data: _Data = problem.data
    k = problem.case.sizes["K"]
    if problem.case.graph.num_edges > MOST_LOOP_EDGES:
        raise Unsupported(f"takes minutes beyond {MOST_LOOP_EDGES:,} edges")
    csr = data.graph.csr
    ptr: list[int] = csr.ptr.tolist()
    order = csr.edge_id.cpu() if csr.edge_id.numel() else torch.arange(data.graph.num_edges)
    weight: _Array = data.weight.cpu()[order].numpy().astype(np.float64)
    col: _Array = csr.index.cpu().numpy()
    if problem.case.options.get("method") == "uniform":
        weight = np.ones_like(weight)
    edge: _Array = order.numpy()
    rng = np.random.default_rng(0)

    def run() -> tuple[_Array, _Array]:
        picked = peers.sample_rows(ptr, weight, k, rng)
        missing = picked < 0
        return np.where(missing, -1, col[picked]), np.where(missing, -1, edge[picked])

    return run


ROOM = Room(
    name="neighbor_sampling",
    cases=CASES,
    backends=op.BACKENDS,
    prepare=_prepare,
    own=_own,
    cost=_cost,
    peers={"numpy-loop": Peer(_numpy_loop, numpy=True)},
    goal_peers=("numpy-loop",),
    same=False,
    widens=False,
)
