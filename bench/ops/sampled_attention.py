"""sampled_attention: the shapes of the papers' second phase."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.graphs import GraphSpec
from bench.harness import Call, Case, Cost, Peer, Problem, Room, Unsupported, gradient_call
from gtkern.ops.sampled_attention import op, sampled_attention

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
        "photo-typed",
        _nodes(7_650, 7_650),
        {"K": 5, "H": 2, "D": 28, "T": 3},
        options={"clamp": 8.0, "scale": 1.0},
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
    *(
        Case(
            f"{nodes:,}-{dtype}".replace(",", ""),
            _nodes(nodes, nodes),
            {"K": 12, "H": 4, "D": 32},
            dtype=dtype,
            goals={"fwd": 10, "fwd+bwd": 10},
            bound_goals={"fwd": 0.75},
            device="cuda",
            quick=0.001,
        )
        for nodes, dtype in ((100_000, "float32"), (1_000_000, "float32"), (1_000_000, "bfloat16"))
    ),
)


@dataclass(frozen=True)
class _Data:
    """Inputs of one case.

    Attributes:
        q: [N_dst, H, D], a leaf; grad, the gradient of the output, likewise.
        k, v: [N_src, H, D], leaves.
        neighbors: int32 [N_dst, K], none of them -1.
        edge_type: uint8 [N_dst, K]; key_scale [T, H, D] and bias [T, H], leaves. None without T.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    grad: Tensor
    neighbors: Tensor
    edge_type: Tensor | None = None
    key_scale: Tensor | None = None
    bias: Tensor | None = None

    @property
    def leaves(self) -> list[Tensor]:
        """What gets a gradient."""
        leaves = (self.q, self.k, self.v, self.key_scale, self.bias)
        return [leaf for leaf in leaves if leaf is not None]


def _prepare(case: Case, device: torch.device) -> Problem:
    spec, sizes = case.graph, case.sizes
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return case.hold(torch.randn(*shape, generator=generator), device)

    heads, width = sizes["H"], sizes["D"]
    q, grad = (random(spec.num_dst, heads, width) for _ in range(2))
    k, v = (random(spec.num_src, heads, width) for _ in range(2))
    shape = (spec.num_dst, sizes["K"])
    neighbors = torch.randint(spec.num_src, shape, generator=generator, dtype=torch.int32)
    edge_type = key_scale = bias = None
    if "T" in sizes:
        edge_type = torch.randint(sizes["T"], shape, generator=generator, dtype=torch.uint8)
        edge_type = edge_type.to(device)
        key_scale = random(sizes["T"], heads, width).requires_grad_()
        bias = random(sizes["T"], heads).requires_grad_()
    data = _Data(
        q.requires_grad_(),
        k.requires_grad_(),
        v.requires_grad_(),
        grad,
        neighbors.to(device),
        edge_type,
        key_scale,
        bias,
    )
    return Problem(case, device, data)


def _own(problem: Problem, passes: str, backend: str) -> Call:
    data: _Data = problem.data

    def forward() -> Tensor:
        out: Tensor = sampled_attention(
            data.q, data.k, data.v, data.neighbors, edge_type=data.edge_type,
            key_scale=data.key_scale, bias=data.bias, **problem.case.options, backend=backend,
        )  # fmt: skip
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
    # a kernel is free to keep K and V of a node side by side, so the limit is that of double rows
    return Cost(moved, flops, 2 * row, 2 * spec.num_src * row, edges)


def _finish(problem: Problem, product: Tensor, bias: Tensor | None) -> Tensor:
    """Scores from products of queries and keys; bias in the shape of product."""
    options = problem.case.options
    score: Tensor = product * options.get("scale", problem.data.q.size(-1) ** -0.5)
    if bias is not None:
        score = score + bias
    if "clamp" in options:
        score = score.clamp(-options["clamp"], options["clamp"])
    return score


def _bmm(problem: Problem, passes: str) -> Call:
    """The released formulation: gathered [N_dst, K, H, D] tensors, batched products.

    Heads are brought in front before the product, which the released code leaves out: without
    that it computes something else for H > 1.
    """
    data: _Data = problem.data
    num_dst, heads, width = data.q.shape
    count = data.neighbors.size(1)
    index = data.neighbors.flatten().long()
    kind = None if data.edge_type is None else data.edge_type.flatten().long()

    def by_head(rows: Tensor) -> Tensor:
        places = rows.view(num_dst, count, heads, -1).transpose(1, 2)
        return places.reshape(num_dst * heads, count, -1)

    def forward() -> Tensor:
        key, bias = data.k[index], None
        if kind is not None and data.key_scale is not None and data.bias is not None:
            key = key * data.key_scale[kind]
            bias = by_head(data.bias[kind]).squeeze(-1)
        query = data.q.reshape(num_dst * heads, width, 1)
        product = torch.bmm(by_head(key), query).squeeze(-1)
        alpha = _finish(problem, product, bias).softmax(-1)
        out = torch.bmm(alpha[:, None, :], by_head(data.v[index]))
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
        kind = None if data.edge_type is None else data.edge_type.flatten().long()

        def forward() -> Tensor:
            key, bias = gather(data.k, source), None
            if kind is not None and data.key_scale is not None and data.bias is not None:
                key, bias = key * gather(data.key_scale, kind), gather(data.bias, kind)
            product = (gather(data.q, destination) * key).sum(-1)
            alpha = softmax(_finish(problem, product, bias), destination, num_nodes=nodes)
            message = alpha[..., None] * gather(data.v, source)
            return torch.zeros_like(data.q).index_add(0, destination, message)

        return gradient_call(forward, data.leaves, data.grad, passes)

    return make


ROOM = Room(
    name="sampled_attention",
    cases=CASES,
    backends=op.BACKENDS,
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
