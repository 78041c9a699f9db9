"""sparse_attention: the papers' first phase, hubs, types, half precision, and soft prompts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

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
from gtkern.ops.sparse_attention import op, sparse_attention

__all__ = ["ROOM"]

PHOTO = GraphSpec(7_650, 7_650, 475_000, law="lognormal", skew=0.8)
TOLOKERS = GraphSpec(11_758, 11_758, 1_400_000, law="lognormal", skew=0.9)
ARXIV = GraphSpec(169_000, 169_000, 2_400_000, law="powerlaw", skew=2.5)
HUB = GraphSpec(100_000, 100_000, 1_000_000, law="hub", skew=8)
EXPHORMER_EPS = 1e-6
MOST_DENSE_NODES = 16_384
MOST_FLEX_NODES = 46_340
FLEX_BLOCK = 128

PUBLISHED = {
    "cora": (0.0193, 0.098, 0.054),
    "pubmed": (0.0306, 0.121, 0.073),
    "github": (0.672, 0.243, 2.66),
    "amazon0505": (0.681, 0.948, 1.23),
    "yelp": (2.90, 3.74, 6.77),
    "reddit": (9.16, 13.5, 30.9),
    "products": (25.3, 31.7, 44.2),
}
"""ms of Fused3S, FlashSparse and DF-GNN, kernels alone, of one head of width 128 in float16 forward
on a GH200, as the authors of Fused3S (Li et al. 2025) published them, on the real graphs."""


def _on_gpus() -> Iterator[Case]:
    """The real graphs' shapes: turbo-gnn's grid, and the one that Fused3S is measured on."""
    goals = {"fwd": 1.5, "fwd+bwd": 1.5}
    for name, graph in REAL.items():
        # below that, keys and values stay in the L2 cache
        bounds = {"fwd": 0.85} if graph.num_src > 100_000 else {}
        for dtype in ("float32", "bfloat16"):
            yield Case(
                f"{name}-{dtype}", graph, {"H": 4, "D": 64}, dtype=dtype, goals=goals,
                rivals=("turbo-gnn",), bound_goals=bounds, device="cuda", quick=0.001,
                skips=() if name in ("cora", "arxiv") else ("pyg-compiled", "torch-flex"),
            )  # fmt: skip
    for name, (fused, flash, dfgnn) in PUBLISHED.items():
        yield Case(
            f"{name}-one-head", REAL[name], {"H": 1, "D": 128}, dtype="float16", passes=("fwd",),
            published=f"Fused3S {fused}, FlashSparse {flash}, DF-GNN {dfgnn} ms on a GH200",
            device="cuda", quick=0.001, skips=("pyg-compiled", "torch-flex"),
        )  # fmt: skip
    # 2,304,000,000 numbers each
    yield Case(
        "beyond-2^31", GraphSpec(9_000_000, 9_000_000, 18_000_000, law="regular", simple=False),
        {"H": 4, "D": 64}, dtype="bfloat16", device="cuda", quick=0.0001,
        skips=("pyg-compiled", "torch-flex"),
    )  # fmt: skip


CASES = (
    Case("photo", PHOTO, {"H": 2, "D": 28}, goals={"fwd+bwd": 40}),
    Case("tolokers", TOLOKERS, {"H": 4, "D": 8}, goals={"fwd+bwd": 70}),
    Case("tolokers-narrow", TOLOKERS, {"H": 1, "D": 4}, goals={"fwd+bwd": 18}),
    Case("arxiv", ARXIV, {"H": 4, "D": 64}, passes=("fwd+bwd",), goals={"fwd+bwd": 30}, quick=0.01),
    Case(
        "photo-typed",
        PHOTO,
        {"H": 2, "D": 28, "T": 3},
        options={"clamp": 5.0, "normalization": "exphormer"},
    ),
    Case("arxiv-prefix", ARXIV, {"H": 4, "D": 64, "P": 20}, passes=("fwd+bwd",), quick=0.01),
    Case("hub", HUB, {"H": 4, "D": 16}, quick=0.2),
    Case("photo-bf16", PHOTO, {"H": 2, "D": 28}, dtype="bfloat16"),
    *_on_gpus(),
)


@dataclass(frozen=True)
class _Data:
    """Inputs of one case.

    Attributes:
        q, k, v: [N, H, D], leaves.
        key_scale: [T, H, D], a leaf, or None without edge types.
        prefix_k, prefix_v: [P, H, D], leaves, or None without a prefix.
        grad: [N, H, D], the gradient of the output.
        graph: with its CSC made.
        source, destination, kind: int64 [E], sorted by destination, as suits the peers.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    key_scale: Tensor | None
    prefix_k: Tensor | None
    prefix_v: Tensor | None
    grad: Tensor
    graph: Graph
    source: Tensor
    destination: Tensor
    kind: Tensor | None

    @property
    def leaves(self) -> list[Tensor]:
        """What gets a gradient."""
        leaves = (self.q, self.k, self.v, self.key_scale, self.prefix_k, self.prefix_v)
        return [leaf for leaf in leaves if leaf is not None]


def _prepare(case: Case, device: torch.device) -> Problem:
    spec, sizes = case.graph, case.sizes
    generator = torch.Generator().manual_seed(1)

    # a GPU's own: a CPU would take minutes for the largest cases
    numbers = generator if device.type == "cpu" else torch.Generator(device).manual_seed(1)

    def random(*shape: int) -> Tensor:
        return case.hold(torch.randn(*shape, generator=numbers, device=numbers.device), device)

    heads, width = sizes["H"], sizes["D"]
    q, grad = random(spec.num_dst, heads, width), random(spec.num_dst, heads, width)
    k, v = random(spec.num_src, heads, width), random(spec.num_src, heads, width)
    edges = edge_index(spec).to(device)
    edge_type = key_scale = None
    if "T" in sizes:
        edge_type = torch.randint(sizes["T"], (spec.num_edges,), generator=generator).to(device)
        key_scale = random(sizes["T"], heads, width).requires_grad_()
    prefix_k = prefix_v = None
    if "P" in sizes:
        prefix_k, prefix_v = (random(sizes["P"], heads, width).requires_grad_() for _ in range(2))
    nodes = (spec.num_src, spec.num_dst)

    def make() -> Graph:
        graph = Graph.from_edge_index(edges, nodes, edge_type=edge_type)
        graph.csc  # noqa: B018 - made on first use
        return graph

    seconds = time_once_per_graph(make, device)
    graph = make()
    destination = torch.repeat_interleave(torch.arange(spec.num_dst, device=device), graph.degree())
    data = _Data(
        q.requires_grad_(),
        k.requires_grad_(),
        v.requires_grad_(),
        key_scale,
        prefix_k,
        prefix_v,
        grad,
        graph,
        graph.csr.index.long(),
        destination,
        graph.csr.edge_type.long() if edge_type is not None else None,
    )
    return Problem(case, device, data, seconds)


def _own(problem: Problem, passes: str, backend: str) -> Call:
    data: _Data = problem.data

    def forward() -> Tensor:
        out: Tensor = sparse_attention(
            data.q, data.k, data.v, data.graph, key_scale=data.key_scale,
            prefix_k=data.prefix_k, prefix_v=data.prefix_v, **problem.case.options, backend=backend,
        )  # fmt: skip
        return out

    return gradient_call(forward, data.leaves, data.grad, passes)


def _cost(problem: Problem, passes: str) -> Cost:
    """Rows are read 2 times for each edge forward (K, V) and 4 times backward (K, V; Q, dO)."""
    spec, sizes = problem.case.graph, problem.case.sizes
    row = sizes["H"] * sizes["D"] * problem.data.q.element_size()
    edges, nodes = spec.num_edges, spec.num_dst
    moved = 2 * edges * row + 2 * nodes * row + 4 * edges
    flops = 4 * edges * sizes["H"] * sizes["D"]
    if passes == "fwd+bwd":
        moved += 4 * edges * row + 6 * nodes * row + 8 * edges
        flops += 10 * edges * sizes["H"] * sizes["D"]
    flops += flops // edges * nodes * sizes.get("P", 0)
    # a kernel is free to keep K and V of a node side by side, so the limit is that of double rows
    return Cost(moved, flops, 2 * row, 2 * spec.num_src * row, edges)


def _check_no_prefix(problem: Problem) -> None:
    if problem.data.prefix_k is not None:
        raise Unsupported("of the ways to see a prefix only virtual-sources is compared")


def _index(x: Tensor, index: Tensor) -> Tensor:
    return x[index]


def _index_select(x: Tensor, index: Tensor) -> Tensor:
    return x.index_select(0, index)


def _eager(problem: Problem, gather: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Tensor]:
    """The attention of PyG's message passing: gather, softmax over the edges, index_add."""
    try:
        from torch_geometric.utils import softmax
    except ImportError as error:
        raise Unsupported("torch_geometric is not installed") from error
    _check_no_prefix(problem)
    data: _Data = problem.data
    options = problem.case.options
    nodes = data.q.size(0)

    def forward() -> Tensor:
        key = gather(data.k, data.source)
        if data.key_scale is not None and data.kind is not None:
            key = key * gather(data.key_scale, data.kind)
        score = (gather(data.q, data.destination) * key).sum(-1) * data.q.size(-1) ** -0.5
        if "clamp" in options:
            score = score.clamp(-options["clamp"], options["clamp"])
        if options.get("normalization") == "exphormer":
            weight = score.exp()
            total = weight.new_zeros(nodes, weight.size(1)).index_add(0, data.destination, weight)
            alpha = weight / (gather(total, data.destination) + EXPHORMER_EPS)
        else:
            alpha = softmax(score, data.destination, num_nodes=nodes)
        message = alpha[..., None] * gather(data.v, data.source)
        return data.q.new_zeros(nodes, *data.v.shape[1:]).index_add(0, data.destination, message)

    return forward


def _eager_call(gather: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Problem, str], Call]:
    def make(problem: Problem, passes: str) -> Call:
        data: _Data = problem.data
        return gradient_call(_eager(problem, gather), data.leaves, data.grad, passes)

    return make


def _eager_memory(problem: Problem, passes: str) -> float:
    spec, sizes = problem.case.graph, problem.case.sizes
    tensor: int = spec.num_edges * sizes["H"] * sizes["D"] * problem.data.q.element_size()
    return (6.5 if passes == "fwd+bwd" else 4.0) * tensor


def _compiled(problem: Problem, passes: str) -> Call:
    data: _Data = problem.data
    forward = torch.compile(_eager(problem, _index_select), dynamic=False)
    return gradient_call(forward, data.leaves, data.grad, passes)


def _sparse(problem: Problem, passes: str) -> Call:
    """torch.sparse, head by head: sampled_addmm, softmax over CSR rows, sparse times dense."""
    _check_no_prefix(problem)
    data: _Data = problem.data
    if problem.case.options or data.key_scale is not None:
        raise Unsupported("torch.sparse has no edge types, clamp or Exphormer normalisation")
    if data.q.dtype not in (torch.float32, torch.float64):
        raise Unsupported("torch.sparse.sampled_addmm takes float32 and float64 on a CPU")
    ptr, col = data.graph.csr.ptr, data.source
    size = (data.q.size(0), data.k.size(0))
    zeros = torch.zeros_like(col, dtype=data.q.dtype)
    with warnings.catch_warnings():
        # "support is in beta state", once for each process
        warnings.simplefilter("ignore", UserWarning)
        pattern = torch.sparse_csr_tensor(ptr, col, zeros, size, check_invariants=False)
    scale = data.q.size(-1) ** -0.5
    degree = data.graph.degree()

    def forward() -> Tensor:
        heads: list[Tensor] = []
        for head in range(data.q.size(1)):
            product = torch.sparse.sampled_addmm(
                pattern, data.q[:, head], data.k[:, head].T, beta=0.0, alpha=scale
            )
            score = product.values()
            peak = torch.segment_reduce(score.detach(), "max", offsets=ptr)
            weight = (score - torch.repeat_interleave(peak, degree)).exp()
            total = torch.segment_reduce(weight, "sum", offsets=ptr)
            alpha = weight / torch.repeat_interleave(total, degree)
            weights = torch.sparse_csr_tensor(ptr, col, alpha, size, check_invariants=False)
            heads.append(weights @ data.v[:, head])
        return torch.stack(heads, 1)

    return gradient_call(forward, data.leaves, data.grad, passes)


def _sparse_memory(problem: Problem, passes: str) -> float:
    # the backward pass of the sparse product goes through a dense matrix of all pairs of nodes
    pairs = problem.case.graph.num_src * problem.case.graph.num_dst
    return 1.3 * problem.data.q.element_size() * pairs if passes == "fwd+bwd" else 0.0


def _dense(problem: Problem, passes: str) -> Call:
    """torch's scaled_dot_product_attention over all pairs of nodes, with the edges as a mask."""
    _check_no_prefix(problem)
    data: _Data = problem.data
    nodes = data.q.size(0)
    if nodes > MOST_DENSE_NODES:
        raise Unsupported(f"a dense mask for more than {MOST_DENSE_NODES:,} nodes is too large")
    if problem.case.options or data.key_scale is not None:
        raise Unsupported("dense attention has no edge types, clamp or Exphormer normalisation")
    mask = torch.zeros(nodes, data.k.size(0), dtype=torch.bool, device=data.q.device)
    mask[data.destination, data.source] = True

    def forward() -> Tensor:
        q, k, v = (x.transpose(0, 1)[None] for x in (data.q, data.k, data.v))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return out[0].transpose(0, 1)

    return gradient_call(forward, data.leaves, data.grad, passes)


def _dense_memory(problem: Problem, passes: str) -> float:
    return 6.0 * problem.case.graph.num_src * problem.case.graph.num_dst


def _flex(problem: Problem, passes: str) -> Call:
    """torch's FlexAttention, compiled, over the blocks of 128 x 128 pairs that hold an edge."""
    _check_no_prefix(problem)
    data: _Data = problem.data
    nodes, sources = data.q.size(0), data.k.size(0)
    if problem.device.type != "cuda":
        raise Unsupported("has no gradients on CPUs")
    if max(nodes, sources) > MOST_FLEX_NODES:
        raise Unsupported(f"its mask of more than {MOST_FLEX_NODES:,} nodes is too large")
    if problem.case.options or data.key_scale is not None:
        raise Unsupported("is compared without edge types, clamp and Exphormer normalisation")
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    joined = torch.zeros(nodes, sources, dtype=torch.bool, device=data.q.device)
    joined[data.destination, data.source] = True
    rows, columns = (-(-size // FLEX_BLOCK) for size in (nodes, sources))
    used = torch.zeros(rows, columns, dtype=torch.int32, device=data.q.device)
    used[data.destination // FLEX_BLOCK, data.source // FLEX_BLOCK] = 1
    mask = BlockMask.from_kv_blocks(
        used.sum(1, dtype=torch.int32)[None, None],
        used.argsort(dim=1, descending=True, stable=True).int()[None, None],
        BLOCK_SIZE=FLEX_BLOCK,
        mask_mod=lambda b, h, query, key: joined[query, key],
        seq_lengths=(nodes, sources),
    )
    attend = torch.compile(flex_attention, dynamic=False)

    def forward() -> Tensor:
        q, k, v = (x.transpose(0, 1)[None] for x in (data.q, data.k, data.v))
        return attend(q, k, v, block_mask=mask)[0].transpose(0, 1)

    return gradient_call(forward, data.leaves, data.grad, passes)


def _turbo(problem: Problem, passes: str) -> Call:
    """turbo-gnn's fused attention of a graph transformer. Its rows of K belong to destinations, and
    those of Q are gathered: what it calls K are the queries.
    """
    _check_no_prefix(problem)
    data: _Data = problem.data
    if problem.device.type != "cuda":
        raise Unsupported("runs on GPUs alone")
    if problem.case.options or data.key_scale is not None:
        raise Unsupported("has no edge types, clamp or Exphormer normalisation")
    if data.q.size(2) not in (32, 64, 128, 256):
        raise Unsupported("has heads of 32, 64, 128 and 256 alone")
    try:
        from turbo_gnn import AdjacencyForwardBackwardWithNodeBuckets, graph_transformer_aggr
    except ImportError as error:
        raise Unsupported("turbo-gnn is not installed") from error
    by_row, by_column = data.graph.csr, data.graph.csc
    adjacency = AdjacencyForwardBackwardWithNodeBuckets.from_csr(
        by_row.ptr, by_row.index, by_column.ptr, by_column.index, index_dtype=torch.int32
    ).to(problem.device)
    scale = data.q.size(-1) ** -0.5

    def forward() -> Tensor:
        out: Tensor = graph_transformer_aggr(
            adjacency, data.q.flatten(1), Q=data.k, K=data.q, V=data.v, scale=scale
        )
        return out

    return gradient_call(forward, data.leaves, data.grad, passes)


def _virtual_sources(problem: Problem, passes: str) -> Call:
    """The prefix as an edit of the graph: further sources with an edge to every node; our op."""
    data: _Data = problem.data
    if data.prefix_k is None or data.prefix_v is None:
        raise Unsupported("there is no prefix")
    nodes, slots = data.q.size(0), data.prefix_k.size(0)
    sources = data.graph.num_src_nodes
    every = torch.arange(nodes, device=data.q.device).repeat_interleave(slots)
    slot = sources + torch.arange(slots, device=data.q.device).repeat(nodes)
    edges = torch.cat((data.graph.edge_index(), torch.stack((slot, every))), 1)
    graph = Graph.from_edge_index(edges, (sources + slots, nodes))
    graph.csc  # noqa: B018 - made on first use

    def forward() -> Tensor:
        k, v = torch.cat((data.k, data.prefix_k)), torch.cat((data.v, data.prefix_v))
        out: Tensor = sparse_attention(data.q, k, v, graph, **problem.case.options)
        return out

    return gradient_call(forward, data.leaves, data.grad, passes)


ROOM = Room(
    name="sparse_attention",
    cases=CASES,
    backends=op.BACKENDS,
    prepare=_prepare,
    own=_own,
    cost=_cost,
    peers={
        "pyg-index": Peer(_eager_call(_index), _eager_memory),
        "pyg-index-select": Peer(_eager_call(_index_select), _eager_memory),
        "pyg-compiled": Peer(_compiled, _eager_memory, compiled=True),
        "torch-sparse": Peer(_sparse, _sparse_memory),
        "torch-dense": Peer(_dense, _dense_memory),
        "torch-flex": Peer(_flex, compiled=True),
        # its backward runs on the default stream, past any capture
        "turbo-gnn": Peer(_turbo, replays=False),
        "virtual-sources": Peer(_virtual_sources),
    },
    goal_peers=("pyg-index", "pyg-index-select"),
)
