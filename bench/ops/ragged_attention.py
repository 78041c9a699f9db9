"""ragged_attention: batches of molecules, with and without the bias of Graphormer."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.graphs import BatchSpec
from bench.harness import Call, Case, Cost, Peer, Problem, Room, Unsupported, gradient_call
from gtkern import PairIndex, Ragged
from gtkern.nn import RaggedMultiheadAttention
from gtkern.ops.ragged_attention import op, ragged_attention

__all__ = ["ROOM"]

GOAL = {"fwd+bwd": 3.0}
LONG = {"fwd": 1.0, "fwd+bwd": 1.0}
"""Of one long graph, which pads nothing."""
GPS = {"H": 4, "D": 16}
TRANS = {"H": 8, "D": 32}
GRAPHORMER = {"H": 32, "D": 24, "B": 40}

CASES = (
    Case("nci1", BatchSpec("nci1"), GPS, goals=GOAL, quick=0.1),
    Case("nci1-wide", BatchSpec("nci1"), TRANS, goals=GOAL, quick=0.1),
    Case("nci1-layer", BatchSpec("nci1"), GPS, options={"layer": True}, goals=GOAL, quick=0.1),
    Case("nci1-wide-layer", BatchSpec("nci1"), TRANS, options={"layer": True}, goals=GOAL,
         quick=0.1),
    Case("nci1-bias", BatchSpec("nci1"), GRAPHORMER, goals=GOAL, quick=0.1),
    Case("molhiv", BatchSpec("molhiv"), GPS, goals=GOAL, quick=0.1),
    Case("molhiv-wide", BatchSpec("molhiv"), TRANS, goals=GOAL, quick=0.1),
    Case("molhiv-layer", BatchSpec("molhiv"), GPS, options={"layer": True}, goals=GOAL, quick=0.1),
    Case("molhiv-wide-layer", BatchSpec("molhiv"), TRANS, options={"layer": True}, goals=GOAL,
         quick=0.1),
    Case("molhiv-bias", BatchSpec("molhiv"), GRAPHORMER, goals=GOAL, quick=0.1),
    Case("pattern", BatchSpec("patterns", 32), GPS, quick=0.1),
    Case("one-of-512", BatchSpec("512", 1), GPS, goals=LONG, quick=0.05),
    Case("one-of-1024", BatchSpec("1024", 1), {"H": 8, "D": 64}, goals=LONG, quick=0.05),
    Case("one-of-2048", BatchSpec("2048", 1), TRANS, goals=LONG, quick=0.05),
    Case("molhiv-bias-bf16", BatchSpec("molhiv", 256), GRAPHORMER, dtype="bfloat16",
         goals={"fwd+bwd": 8.0}, rivals=("padded-sdpa",), device="cuda", quick=0.1),
    *(
        Case(f"{32_768 // size}-of-{size}-bias-bf16", BatchSpec(str(size), 32_768 // size),
             {"H": 16, "D": 64, "B": 40}, dtype="bfloat16", goals={"fwd": 0.8},
             rivals=("torch-varlen",), device="cuda", quick=0.05)
        for size in (512, 1024, 2048)
    ),
)  # fmt: skip


@dataclass(frozen=True)
class _Data:
    """Inputs of one case.

    Attributes:
        q, k, v: [N, H, D], leaves; grad, the gradient of the output, likewise.
        ragged: the graphs; mask, bool [G, n_max]: the places of a padded batch that hold a node.
        index: of the bias, padded: int64 [G, n_max, n_max]; and pairs, the same packed. None
            without B.
        table: [B, H], a leaf.
        x: [N, H * D], a leaf, the input of a layer.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    grad: Tensor
    ragged: Ragged
    mask: Tensor
    index: Tensor | None
    pairs: PairIndex | None
    table: Tensor | None
    x: Tensor

    @property
    def leaves(self) -> list[Tensor]:
        """What gets a gradient."""
        return [leaf for leaf in (self.q, self.k, self.v, self.table) if leaf is not None]

    def dense(self, rows: Tensor) -> Tensor:
        """[N, H, D] as [G, H, n_max, D], with zeros in the places without a node."""
        padded = rows.new_zeros(*self.mask.shape, *rows.shape[1:])
        padded[self.mask] = rows
        return padded.transpose(1, 2)


def _prepare(case: Case, device: torch.device) -> Problem:
    assert isinstance(case.graph, BatchSpec)
    sizes = torch.from_numpy(case.graph.sizes())
    generator = torch.Generator().manual_seed(1)
    ragged = Ragged.from_ptr(torch.cat((sizes.new_zeros(1), sizes.cumsum(0))))
    heads, width = case.sizes["H"], case.sizes["D"]

    def random(*shape: int) -> Tensor:
        return case.hold(torch.randn(*shape, generator=generator), device)

    nodes, most = ragged.num_nodes, ragged.max_nodes
    q, k, v, grad = (random(nodes, heads, width) for _ in range(4))
    mask = torch.arange(most) < sizes[:, None]
    index = pairs = table = None
    if "B" in case.sizes:
        # distances of a molecule's atoms: small ones are frequent
        drawn = torch.rand(ragged.num_pairs, generator=generator).square() * case.sizes["B"]
        pairs = PairIndex.from_tensor(drawn.to(torch.uint8), ragged, case.sizes["B"])
        index = torch.zeros(sizes.numel(), most, most, dtype=torch.int64)
        index[mask[:, :, None] & mask[:, None, :]] = pairs.index.long()
        pairs, index = pairs.to(device), index.to(device)
        table = random(case.sizes["B"], heads).requires_grad_()
    data = _Data(
        q.requires_grad_(),
        k.requires_grad_(),
        v.requires_grad_(),
        grad,
        ragged.to(device),
        mask.to(device),
        index,
        pairs,
        table,
        random(nodes, heads * width).requires_grad_(),
    )
    return Problem(case, device, data)


def _own(problem: Problem, passes: str, backend: str) -> Call:
    data: _Data = problem.data
    if problem.case.options.get("layer"):
        attend = functools.partial(ragged_attention, backend=backend)
        layer = RaggedMultiheadAttention(data.x.size(1), data.q.size(1), attend=attend)
        _fill(layer, problem)
        leaves = [data.x, *layer.parameters()]
        return gradient_call(
            lambda: layer(data.x, data.ragged), leaves, data.grad.flatten(1), passes
        )
    bias = [] if data.pairs is None or data.table is None else [(data.pairs, data.table)]

    def forward() -> Tensor:
        return ragged_attention(data.q, data.k, data.v, data.ragged, bias=bias, backend=backend)

    return gradient_call(forward, data.leaves, data.grad, passes)


def _fill(layer: torch.nn.Module, problem: Problem) -> None:
    """The same weights for both sides of a race, in the order of torch.nn.MultiheadAttention."""
    generator = torch.Generator().manual_seed(2)
    case = problem.case
    layer.to(problem.device, case.hold(torch.empty(0)).dtype)
    with torch.no_grad():
        for _, parameter in sorted(layer.named_parameters()):
            fresh = torch.randn(parameter.shape, generator=generator) * parameter.size(-1) ** -0.5
            parameter.copy_(case.hold(fresh))


def _cost(problem: Problem, passes: str) -> Cost:
    """Two products of n_g² D for each head forward, five more backward."""
    data: _Data = problem.data
    heads, width = data.q.shape[1:]
    pairs = data.ragged.num_pairs
    rows = data.q.numel() * data.q.element_size()
    indices = 0 if data.pairs is None else pairs
    flops, moved = 4 * pairs * heads * width, 4 * rows + indices
    if problem.case.options.get("layer"):
        flops += 2 * data.q.size(0) * 4 * (heads * width) ** 2
    if passes == "fwd+bwd":
        flops += 10 * pairs * heads * width
        moved += 8 * rows + indices
        if problem.case.options.get("layer"):
            flops += 4 * data.q.size(0) * 4 * (heads * width) ** 2
    return Cost(moved, flops, edges=pairs)


def _no_layer(problem: Problem) -> None:
    if problem.case.options.get("layer"):
        raise Unsupported("is compared on the attention alone")


def _padded(problem: Problem, passes: str) -> Call:
    """torch's scaled_dot_product_attention on the padded batch, the bias looked up densely."""
    _no_layer(problem)
    data: _Data = problem.data

    def forward() -> Tensor:
        attn_mask = data.mask[:, None, None, :]
        if data.index is not None and data.table is not None:
            bias = torch.nn.functional.embedding(data.index, data.table).permute(0, 3, 1, 2)
            attn_mask = bias.masked_fill(~attn_mask, float("-inf"))
        out = torch.nn.functional.scaled_dot_product_attention(
            data.dense(data.q), data.dense(data.k), data.dense(data.v), attn_mask=attn_mask
        )
        return out.transpose(1, 2)[data.mask]

    return gradient_call(forward, data.leaves, data.grad, passes)


def _nested(problem: Problem, passes: str) -> Call:
    """torch's scaled_dot_product_attention on nested tensors of the jagged layout."""
    _no_layer(problem)
    data: _Data = problem.data
    if data.table is not None:
        raise Unsupported("nested tensors take no bias")
    offsets = data.ragged.ptr

    def forward() -> Tensor:
        q, k, v = (
            torch.nested.nested_tensor_from_jagged(rows, offsets).transpose(1, 2)
            for rows in (data.q, data.k, data.v)
        )
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        values: Tensor = out.transpose(1, 2).values()
        return values

    return gradient_call(forward, data.leaves, data.grad, passes)


def _varlen(problem: Problem, passes: str) -> Call:
    """torch's varlen_attn, which takes no bias: where the case has one, it does less, and its
    result differs.
    """
    _no_layer(problem)
    data: _Data = problem.data
    if problem.device.type != "cuda" or data.q.element_size() != 2:
        raise Unsupported("runs on GPUs, in 16 bits alone")
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        raise Unsupported("torch has no varlen_attn before 2.10") from error
    ptr, most = data.ragged.ptr.int(), data.ragged.max_nodes

    def forward() -> Tensor:
        out: Tensor = varlen_attn(data.q, data.k, data.v, ptr, ptr, most, most)
        return out

    call = gradient_call(forward, [data.q, data.k, data.v], data.grad, passes)
    if data.table is None or passes == "fwd":
        return call
    zeros = torch.zeros_like(data.table)
    return lambda: (*call(), zeros)


def _gps(problem: Problem, passes: str) -> Call:
    """What PyG's GPSConv does for attn_type="multihead"."""
    if not problem.case.options.get("layer"):
        raise Unsupported("is a layer with projections, compared in the cases of layers")
    try:
        from torch_geometric.utils import to_dense_batch
    except ImportError as error:
        raise Unsupported("torch_geometric is not installed") from error
    data: _Data = problem.data
    layer = torch.nn.MultiheadAttention(data.x.size(1), data.q.size(1), batch_first=True)
    _fill(layer, problem)
    batch = data.ragged.batch()

    def forward() -> Tensor:
        dense, mask = to_dense_batch(data.x, batch)
        out, _ = layer(dense, dense, dense, key_padding_mask=~mask, need_weights=False)
        rows: Tensor = out[mask]
        return rows

    leaves = [data.x, *layer.parameters()]
    return gradient_call(forward, leaves, data.grad.flatten(1), passes)


ROOM = Room(
    name="ragged_attention",
    cases=CASES,
    backends=op.BACKENDS,
    prepare=_prepare,
    own=_own,
    cost=_cost,
    peers={
        "padded-sdpa": Peer(_padded),
        "nested-sdpa": Peer(_nested),
        "torch-varlen": Peer(_varlen),
        "gpsconv-multihead": Peer(_gps),
    },
    goal_peers=("padded-sdpa", "gpsconv-multihead"),
    bound="matmul",
)
