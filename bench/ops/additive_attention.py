"""additive_attention: GATv2's attention on the graphs that sparse_attention is measured on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bench.graphs import GraphSpec, edge_index
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
from gtkern.ops.additive_attention import additive_attention, op

__all__ = ["ROOM"]

PHOTO = GraphSpec(7_650, 7_650, 475_000, law="lognormal", skew=0.8)
TOLOKERS = GraphSpec(11_758, 11_758, 1_400_000, law="lognormal", skew=0.9)

CASES = (
    Case("photo", PHOTO, {"H": 2, "D": 28}, goals={"fwd+bwd": 4}),
    Case("tolokers", TOLOKERS, {"H": 4, "D": 8}, goals={"fwd+bwd": 4}),
)


@dataclass(frozen=True)
class _Data:
    """Inputs of one case.

    Attributes:
        leaves: q and k [N, H, D], which are the values too, and the vector [H, D].
        grad: [N, H, D], the gradient of the output.
        graph: with its CSC made.
        source, destination: int64 [E], sorted by destination, as suits the peers.
    """

    leaves: list[Tensor]
    grad: Tensor
    graph: Graph
    source: Tensor
    destination: Tensor


def _prepare(case: Case, device: torch.device) -> Problem:
    spec, sizes = case.graph, case.sizes
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return case.hold(torch.randn(*shape, generator=generator), device)

    heads, width = sizes["H"], sizes["D"]
    leaves = [random(spec.num_dst, heads, width), random(spec.num_src, heads, width)]
    leaves.append(random(heads, width) / width**0.5)
    edges = edge_index(spec).to(device)

    def make() -> Graph:
        graph = Graph.from_edge_index(edges, (spec.num_src, spec.num_dst))
        graph.csc  # noqa: B018 - made on first use
        return graph

    seconds = time_once_per_graph(make, device)
    graph = make()
    destination = torch.repeat_interleave(torch.arange(spec.num_dst, device=device), graph.degree())
    data = _Data(
        [leaf.requires_grad_() for leaf in leaves],
        random(spec.num_dst, heads, width),
        graph,
        graph.csr.index.long(),
        destination,
    )
    return Problem(case, device, data, seconds)


def _own(problem: Problem, passes: str, backend: str) -> Call:
    data: _Data = problem.data
    q, k, attention = data.leaves

    def forward() -> Tensor:
        out: Tensor = additive_attention(q, k, None, data.graph, attention, backend=backend)
        return out

    return gradient_call(forward, data.leaves, data.grad, passes)


def _cost(problem: Problem, passes: str) -> Cost:
    """Rows are read once for each edge forward (K) and 3 times backward (K; Q, dO)."""
    spec, sizes = problem.case.graph, problem.case.sizes
    row = sizes["H"] * sizes["D"] * problem.data.grad.element_size()
    edges, nodes = spec.num_edges, spec.num_dst
    moved = edges * row + 2 * nodes * row + 4 * edges
    # an addition, a LeakyReLU of two operations, two multiply-adds
    flops = 7 * edges * sizes["H"] * sizes["D"]
    if passes == "fwd+bwd":
        moved += 3 * edges * row + 6 * nodes * row + 8 * edges
        # both passes: the score and a product anew, and two gradients of multiply-adds
        flops += 24 * edges * sizes["H"] * sizes["D"]
    return Cost(moved, flops, row, spec.num_src * row, edges)


def _index(x: Tensor, index: Tensor) -> Tensor:
    return x[index]


def _index_select(x: Tensor, index: Tensor) -> Tensor:
    return x.index_select(0, index)


def _eager(problem: Problem, gather: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Tensor]:
    """PyG's GATv2Conv behind its linear layers: gather, softmax over the edges, index_add."""
    try:
        from torch_geometric.utils import softmax
    except ImportError as error:
        raise Unsupported("torch_geometric is not installed") from error
    data: _Data = problem.data
    q, k, attention = data.leaves
    nodes = q.size(0)

    def forward() -> Tensor:
        key = gather(k, data.source)
        added = gather(q, data.destination) + key
        score = (functional.leaky_relu(added, 0.2) * attention).sum(-1)
        alpha = softmax(score, data.destination, num_nodes=nodes)
        message = gather(k, data.source) * alpha[..., None]
        return q.new_zeros(nodes, *k.shape[1:]).index_add(0, data.destination, message)

    return forward


def _eager_call(gather: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Problem, str], Call]:
    def make(problem: Problem, passes: str) -> Call:
        data: _Data = problem.data
        return gradient_call(_eager(problem, gather), data.leaves, data.grad, passes)

    return make


def _eager_memory(problem: Problem, passes: str) -> float:
    spec, sizes = problem.case.graph, problem.case.sizes
    tensor: int = spec.num_edges * sizes["H"] * sizes["D"] * problem.data.grad.element_size()
    return (8.0 if passes == "fwd+bwd" else 5.0) * tensor


def _compiled(problem: Problem, passes: str) -> Call:
    data: _Data = problem.data
    torch.compiler.reset()
    forward = torch.compile(_eager(problem, _index_select), dynamic=False)
    return gradient_call(forward, data.leaves, data.grad, passes)


ROOM = Room(
    name="additive_attention",
    cases=CASES,
    backends=op.BACKENDS,
    prepare=_prepare,
    own=_own,
    cost=_cost,
    peers={
        "pyg-index": Peer(_eager_call(_index), _eager_memory),
        "pyg-index-select": Peer(_eager_call(_index_select), _eager_memory),
        "pyg-compiled": Peer(_compiled, _eager_memory, compiled=True),
    },
    goal_peers=("pyg-index", "pyg-index-select"),
)
