"""sampled_attention: the shapes of the papers' second phase."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from gtkern.ops.sampled_attention import sampled_attention
from torch import Tensor

from bench.graphs import GraphSpec
from bench.harness import Call, Case, Cost, Peer, Problem, Room, Unsupported, gradient_call

__all__ = ["ROOM"]


def _nodes(num_dst: int, num_src: int) -> GraphSpec:
    return GraphSpec(num_src, num_dst, 0)


CASES = (
    Case(
        "photo", _nodes(7_650, 7_650), {"K": 5, "H": 2, "D": 28}, goals={"fwd+bwd": 10}, quick=0.1
    ),
    Case(
        "tolokers",
        _nodes(11_758, 11_758),
        {"K": 12, "H": 4, "D": 8},
        goals={"fwd+bwd": 10},
        quick=0.1,
    ),
    Case(
        "amazon2m-batch",
        _nodes(10_000, 100_000),
        {"K": 10, "H": 1, "D": 128},
        goals={"fwd+bwd": 10},
        quick=0.02,
    ),
)


@dataclass(frozen=True)
class _Data:
    """q, grad [N_dst, H, D]; k, v [N_src, H, D]; neighbors int32 [N_dst, K], none of them -1."""

    q: Tensor
    k: Tensor
    v: Tensor
    grad: Tensor
    neighbors: Tensor

    @property
    def leaves(self) -> list[Tensor]:
        """What gets a gradient."""
        return [self.q, self.k, self.v]


def _prepare(case: Case, device: torch.device) -> Problem:
    spec, sizes = case.graph, case.sizes
    generator = torch.Generator().manual_seed(1)
    dtype = getattr(torch, case.dtype)

    def random(nodes: int) -> Tensor:
        x = torch.randn(nodes, sizes["H"], sizes["D"], generator=generator)
        return x.to(device, dtype)

    q, k, v = (
        random(nodes).requires_grad_() for nodes in (spec.num_dst, spec.num_src, spec.num_src)
    )
    shape = (spec.num_dst, sizes["K"])
    neighbors = torch.randint(spec.num_src, shape, generator=generator, dtype=torch.int32)
    return Problem(case, device, _Data(q, k, v, random(spec.num_dst), neighbors.to(device)))


def _own(problem: Problem, passes: str, backend: str) -> Call:
    data: _Data = problem.data

    def forward() -> Tensor:
        out: Tensor = sampled_attention(data.q, data.k, data.v, data.neighbors, backend=backend)
        return out

    return gradient_call(forward, data.leaves, data.grad, passes)


def _cost(problem: Problem, passes: str) -> Cost:
    """Rows are read 2 times for each edge forward (K, V) and 4 times backward (K, V; Q, dO)."""
    spec, sizes = problem.case.graph, problem.case.sizes
    row = sizes["H"] * sizes["D"] * problem.data.q.element_size()
    edges = spec.num_dst * sizes["K"]
    moved = 2 * edges * row + 2 * spec.num_dst * row + 4 * edges
    flops = 4 * edges * sizes["H"] * sizes["D"]
    if passes == "fwd+bwd":
        moved += 4 * edges * row + 3 * spec.num_dst * row + 3 * spec.num_src * row + 8 * edges
        flops += 10 * edges * sizes["H"] * sizes["D"]
    return Cost(moved, flops, row, 2 * spec.num_src * row, edges)


def _bmm(problem: Problem, passes: str) -> Call:
    """The released formulation: gathered [N_dst, K, H, D] tensors, batched products.

    Heads are brought in front before the product, which the released code leaves out: without
    that it computes something else for H > 1.
    """
    data: _Data = problem.data
    num_dst, heads, width = data.q.shape
    count = data.neighbors.size(1)
    index = data.neighbors.flatten().long()

    def gathered(x: Tensor) -> Tensor:
        rows = x[index].view(num_dst, count, heads, width)
        return rows.transpose(1, 2).reshape(num_dst * heads, count, width)

    def forward() -> Tensor:
        query = data.q.reshape(num_dst * heads, width, 1)
        score = torch.bmm(gathered(data.k), query).squeeze(-1) * width**-0.5
        alpha = score.softmax(-1)
        out = torch.bmm(alpha[:, None, :], gathered(data.v))
        return out.view(num_dst, heads, width)

    return gradient_call(forward, data.leaves, data.grad, passes)


def _eager(gather: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Problem, str], Call]:
    """The same edges as a list: gather, PyG's softmax, index_add."""

    def make(problem: Problem, passes: str) -> Call:
        try:
            from torch_geometric.utils import softmax
        except ImportError as error:
            raise Unsupported("torch_geometric is not installed") from error
        data: _Data = problem.data
        nodes, count = data.neighbors.shape
        source = data.neighbors.flatten().long()
        destination = torch.arange(nodes, device=source.device).repeat_interleave(count)

        def forward() -> Tensor:
            score = (gather(data.q, destination) * gather(data.k, source)).sum(-1)
            alpha = softmax(score * data.q.size(-1) ** -0.5, destination, num_nodes=nodes)
            message = alpha[..., None] * gather(data.v, source)
            return torch.zeros_like(data.q).index_add(0, destination, message)

        return gradient_call(forward, data.leaves, data.grad, passes)

    return make


ROOM = Room(
    name="sampled_attention",
    cases=CASES,
    backends=("cpu", "triton", "cuda", "reference"),
    prepare=_prepare,
    own=_own,
    cost=_cost,
    peers={
        "released-bmm": Peer(_bmm),
        "pyg-index": Peer(_eager(lambda x, index: x[index])),
        "pyg-index-select": Peer(_eager(lambda x, index: x.index_select(0, index))),
    },
    goal_peers=("released-bmm",),
)
