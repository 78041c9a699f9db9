"""token_dropping: pooling of molecule batches and of a large one, and the moving of rows alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.graphs import BatchSpec
from bench.harness import Call, Case, Cost, Peer, Problem, Room, Unsupported, gradient_call
from gtkern import Ragged
from gtkern.ops.token_dropping import (
    Selection,
    drop_tokens,
    gather_tokens,
    op,
    scatter_tokens,
    select_tokens,
)

__all__ = ["ROOM"]

POOL = {"C": 64, "degree": 2}
"""degree: edges that come into a node; in molecules about 2.2."""

CASES = (
    Case("nci1", BatchSpec("nci1"), POOL, passes=("fwd",), goals={"fwd": 4.0}, quick=0.1),
    Case("molhiv", BatchSpec("molhiv"), POOL, passes=("fwd",), goals={"fwd": 4.0}, quick=0.1),
    Case("million", BatchSpec("1000", 1000), {"C": 64, "degree": 20}, passes=("fwd",),
         goals={"fwd": 4.0}, quick=0.01),
    Case("gather-64", BatchSpec("1000", 1000), {"C": 64}, options={"part": "gather"}, quick=0.01),
    Case("gather-256", BatchSpec("1000", 500), {"C": 256}, options={"part": "gather"}, quick=0.01),
    Case("scatter-64", BatchSpec("1000", 1000), {"C": 64}, options={"part": "scatter"}, quick=0.01),
    Case("scatter-256", BatchSpec("1000", 500), {"C": 256}, options={"part": "scatter"},
         quick=0.01),
    *(
        Case(f"{part}-256-bf16-large", BatchSpec("1000", 4000), {"C": 256}, dtype="bfloat16",
             options={"part": part}, bound_goals={"fwd": 0.85}, device="cuda", quick=0.001)
        for part in ("gather", "scatter")
    ),
)  # fmt: skip


@dataclass(frozen=True)
class _Data:
    """x [N, C], a leaf; score [N]; edges [2, E] inside the graphs; half of the tokens selected."""

    ragged: Ragged
    x: Tensor
    score: Tensor
    edges: Tensor
    selection: Selection

    @property
    def kept(self) -> Tensor:
        """Rows of as many kept tokens: a leaf [M, C]."""
        return self.x.detach()[: self.selection.num_kept].requires_grad_()


def _prepare(case: Case, device: torch.device) -> Problem:
    assert isinstance(case.graph, BatchSpec)
    sizes = torch.from_numpy(case.graph.sizes())
    generator = torch.Generator().manual_seed(1)
    ragged = Ragged.from_ptr(torch.cat((sizes.new_zeros(1), sizes.cumsum(0))))
    nodes = ragged.num_nodes
    x = torch.randn(nodes, case.sizes["C"], generator=generator)
    score = torch.randn(nodes, generator=generator)
    graph = ragged.batch().repeat_interleave(case.sizes.get("degree", 0))
    # both ends anywhere in the graph
    share = torch.rand(2, graph.numel(), generator=generator)
    edges = ragged.ptr[graph] + (share * sizes[graph]).long()
    ragged, score = ragged.to(device), case.hold(score, device)
    selection = select_tokens(score, ragged, ratio=0.5)
    data = _Data(ragged, case.hold(x, device).requires_grad_(), score, edges.to(device), selection)
    return Problem(case, device, data)


def _own(problem: Problem, passes: str, backend: str) -> Call:
    data: _Data = problem.data
    part = problem.case.options.get("part")
    if part is not None:
        move = gather_tokens if part == "gather" else scatter_tokens
        return _moving(problem, passes, lambda rows: move(rows, data.selection, backend=backend))

    def pool() -> tuple[Tensor, ...]:
        chosen = select_tokens(data.score, data.ragged, ratio=0.5, backend=backend)
        rows = gather_tokens(data.x.detach(), chosen, backend=backend)
        edges, number = drop_tokens(data.edges, chosen, backend=backend)
        return rows, edges, number, chosen.kept.ptr

    return pool


def _moving(problem: Problem, passes: str, move: Any) -> Call:
    data: _Data = problem.data
    rows = data.x if problem.case.options["part"] == "gather" else data.kept
    grad = torch.ones_like(move(rows))
    return gradient_call(lambda: move(rows), [rows], grad, passes)


def _cost(problem: Problem, passes: str) -> Cost:
    """Kept rows are read and written once each; of a scatter all rows are written. The edges are
    read, those kept written with their numbers.
    """
    data: _Data = problem.data
    kept = data.selection.num_kept
    row = data.x.size(1) * data.x.element_size()
    part = problem.case.options.get("part")
    gathered = 2 * kept * row + 8 * kept
    scattered = kept * row + data.ragged.num_nodes * (row + 4)
    if part is not None:
        forward, backward = (gathered, scattered) if part == "gather" else (scattered, gathered)
        return Cost(forward + (backward if passes == "fwd+bwd" else 0))
    edges = data.edges.size(1)
    kept_edges = int((data.selection.position[data.edges] >= 0).all(0).sum())
    chosen = 8 * data.ragged.num_nodes + 8 * kept
    return Cost(gathered + chosen + 16 * edges + 24 * kept_edges, edges=edges)


def _pyg(problem: Problem, passes: str) -> Call:
    """What PyG's TopKPooling does behind its scores: top-k, the rows and their graphs, and
    filter_adj with the numbers of the edges as attributes.
    """
    if "part" in problem.case.options:
        raise Unsupported("is compared on pooling as a whole")
    try:
        from torch_geometric.nn.pool.connect.filter_edges import filter_adj
        from torch_geometric.nn.pool.select.topk import topk
    except ImportError as error:
        raise Unsupported("torch_geometric is not installed") from error
    data: _Data = problem.data
    batch = data.ragged.batch()
    number = torch.arange(data.edges.size(1), device=problem.device)

    def pool() -> tuple[Tensor, ...]:
        kept = topk(data.score, 0.5, batch)
        edges, attributes = filter_adj(data.edges, number, kept, num_nodes=data.score.size(0))
        assert attributes is not None
        return data.x.detach()[kept], edges, attributes, batch[kept]

    return pool


def _torch(problem: Problem, passes: str) -> Call:
    """index_select; index_copy into zeros."""
    data: _Data = problem.data
    part = problem.case.options.get("part")
    if part is None:
        raise Unsupported("only moves rows")
    index, nodes = data.selection.index, data.ragged.num_nodes

    def move(rows: Tensor) -> Tensor:
        if part == "gather":
            return rows.index_select(0, index)
        return rows.new_zeros(nodes, rows.size(1)).index_copy(0, index, rows)

    return _moving(problem, passes, move)


ROOM = Room(
    name="token_dropping",
    cases=CASES,
    backends=op.BACKENDS,
    prepare=_prepare,
    own=_own,
    cost=_cost,
    peers={"pyg-topk-pooling": Peer(_pyg), "torch-index": Peer(_torch)},
    goal_peers=("pyg-topk-pooling",),
    same=False,
    bound="copy",
)
