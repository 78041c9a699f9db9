"""block_sparse_linear: square and FFN-shaped weights at two densities, few rows and many."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bench.graphs import GraphSpec
from bench.harness import Call, Case, Cost, Peer, Problem, Room, Unsupported, gradient_call
from gtkern import BlockSparseMatrix
from gtkern.ops.block_sparse_linear import block_sparse_linear, op

__all__ = ["ROOM"]

FEW, MANY = 4096, 32768


def _case(name: str, rows: int, width: int, percent: int, **changes: object) -> Case:
    sizes = {"C_in": width, "C_out": width, "percent": percent, "block": 32}
    goal = 0.85 * 100 / percent
    fields: dict[str, object] = {"goals": {"fwd": goal, "fwd+bwd": goal}, **changes}
    sizes.update(fields.pop("sizes", {}))  # type: ignore[call-overload]
    return Case(name, GraphSpec(rows, rows, 0), sizes, **fields)  # type: ignore[arg-type]


def _cases() -> Iterator[Case]:
    for rows in (FEW, MANY):
        for width in (128, 256, 512, 768):
            for percent in (50, 25):
                yield _case(f"{width}-{percent}%-{rows // 1024}k", rows, width, percent)
    for rows in (FEW, MANY):
        for width in (256, 512):
            name = f"{width}-50%-{rows // 1024}k-bf16"
            yield _case(name, rows, width, 50, dtype="bfloat16", goals={})
    for size in (8, 16, 64, 128):
        yield _case(f"512-50%-4k-blocks-of-{size}", FEW, 512, 50, sizes={"block": size}, goals={})
    for activation in ("relu", "gelu"):
        yield _case(f"512-50%-4k-{activation}", FEW, 512, 50, options={"activation": activation})
    yield _case("256-to-1024-50%-4k", FEW, 256, 50, sizes={"C_out": 1024}, goals={})
    for width in (1024, 2048, 4096):
        for percent in (50, 25, 10):
            for block in (64, 128):
                yield _case(
                    f"{width}-{percent}%-32k-bf16-blocks-of-{block}", MANY, width, percent,
                    dtype="bfloat16", sizes={"block": block}, goals={"fwd": 1.3},
                    rivals=("torch-bsr",), device="cuda",
                )  # fmt: skip


@dataclass(frozen=True)
class _Data:
    """Inputs of one case.

    Attributes:
        x: [N, C_in], a leaf; grad, the gradient of the output, [N, C_out].
        weight: whose values are a leaf; dense, the same with its zeros, [C_out, C_in], a leaf.
        bias: [C_out], a leaf where the case has an activation, else None.
    """

    x: Tensor
    grad: Tensor
    weight: BlockSparseMatrix
    dense: Tensor
    bias: Tensor | None


def _prepare(case: Case, device: torch.device) -> Problem:
    generator = torch.Generator().manual_seed(1)
    rows, c_in, c_out = case.graph.num_dst, case.sizes["C_in"], case.sizes["C_out"]

    def random(*shape: int, factor: float = 1.0) -> Tensor:
        return case.hold(factor * torch.randn(*shape, generator=generator), device)

    w = random(c_out, c_in, factor=c_in**-0.5)
    # chosen in float64, so that a tie does not go one way here and another in an exact case
    block, keep = case.sizes["block"], case.sizes["percent"] / 100
    kept = BlockSparseMatrix.from_dense(w.double(), block, keep=keep)
    weight = kept.with_values(kept.values.to(w.dtype))
    dense = weight.to_dense().detach().requires_grad_()
    weight = weight.with_values(weight.values.detach().requires_grad_())
    bias = random(c_out).requires_grad_() if case.options else None
    x = random(rows, c_in).requires_grad_()
    return Problem(case, device, _Data(x, random(rows, c_out), weight, dense, bias))


def _leaves(data: _Data) -> list[Tensor]:
    return [data.x] if data.bias is None else [data.x, data.bias]


def _own(problem: Problem, passes: str, backend: str) -> Call:
    data: _Data = problem.data

    def forward() -> Tensor:
        return block_sparse_linear(
            data.x, data.weight, data.bias, backend=backend, **problem.case.options
        )

    call = gradient_call(forward, [*_leaves(data), data.weight.values], data.grad, passes)
    if passes == "fwd":
        return call

    def comparable() -> tuple[Tensor, ...]:
        # peers have gradients of the whole weight: those of kept blocks are not compared
        *gradients, _ = call()
        return tuple(gradients)

    return comparable


def _cost(problem: Problem, passes: str) -> Cost:
    """A product of N rows with the kept blocks, once forward and twice backward."""
    data: _Data = problem.data
    rows, size = data.x.size(0), data.x.element_size()
    wide, narrow = data.grad.numel() * size, data.x.numel() * size
    kept = data.weight.values.numel()
    flops, moved = 2.0 * rows * kept, wide + narrow + kept * size
    if passes == "fwd+bwd":
        flops, moved = 3 * flops, 3 * moved
    return Cost(moved, flops)


def _activated(problem: Problem, product: Tensor) -> Tensor:
    data: _Data = problem.data
    if data.bias is not None:
        product = product + data.bias
    name = problem.case.options.get("activation")
    activated: Tensor = product if name is None else getattr(functional, name)(product)
    return activated


def _dense(problem: Problem, passes: str, forward: object) -> Call:
    data: _Data = problem.data
    call = gradient_call(forward, [*_leaves(data), data.dense], data.grad, passes)  # type: ignore[arg-type]
    return call if passes == "fwd" else lambda: call()[:-1]


def _matmul(problem: Problem, passes: str) -> Call:
    """torch's dense product with the weight and its zeros."""
    data: _Data = problem.data
    return _dense(problem, passes, lambda: _activated(problem, data.x @ data.dense.T))


def _mkldnn(problem: Problem, passes: str) -> Call:
    """oneDNN's linear on the same dense weight, which torch takes by itself for bfloat16 only."""
    data: _Data = problem.data
    if problem.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        raise Unsupported("oneDNN computes on CPUs")
    if passes != "fwd":
        raise Unsupported("has no gradients in eager mode")

    def forward() -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(
            data.x, data.dense, data.bias, problem.case.options.get("activation", "none"), [],
            "none",
        )  # fmt: skip

    return _dense(problem, passes, forward)


def _bsr(problem: Problem, passes: str) -> Call:
    """torch's product with a sparse_bsr weight."""
    data: _Data = problem.data
    if passes != "fwd":
        raise Unsupported("torch has no gradients for a BSR weight")
    weight = data.weight.to_bsr()
    return _dense(problem, passes, lambda: _activated(problem, (weight @ data.x.T).T))


def _needs_gpu(problem: Problem) -> None:
    if problem.device.type != "cuda":
        raise Unsupported("runs on GPUs alone")


def _stk(problem: Problem, passes: str) -> Call:
    """stk: a dense matrix times a block-sparse one of square blocks of 128."""
    _needs_gpu(problem)
    data: _Data = problem.data
    block = problem.case.sizes["block"]
    if block != 128 or data.x.element_size() != 2:
        raise Unsupported("has blocks of 128 and 16-bit numbers alone")
    try:
        import stk
    except ImportError as error:
        raise Unsupported("stanford-stk is not installed") from error
    weight = stk.ops.to_sparse(data.dense.detach().T.contiguous(), block)
    values = weight.data.requires_grad_()

    def forward() -> Tensor:
        return _activated(problem, stk.ops.dds(data.x, weight))

    call = gradient_call(forward, [*_leaves(data), values], data.grad, passes)
    return call if passes == "fwd" else lambda: call()[:-1]


def _blksprs(problem: Problem, passes: str) -> Call:
    """blksprs: both factors as block-sparse matrices, the first with all of its blocks."""
    _needs_gpu(problem)
    data: _Data = problem.data
    block = problem.case.sizes["block"]
    if passes != "fwd":
        raise Unsupported("is compared forward")
    try:
        import blksprs as bs
    except ImportError as error:
        raise Unsupported("blksprs is not installed") from error
    dense = data.dense.detach().T.contiguous()[None]
    rows, inner, outer = data.x.size(0), dense.size(1), dense.size(2)
    kept = dense.view(1, inner // block, block, outer // block, block).ne(0).any(4).any(2)
    full = [
        torch.ones(1, rows // block, size // block, dtype=torch.bool, device=problem.device)
        for size in (inner, outer)
    ]
    bs.utils.disable_validation()
    weight = bs.ops.to_sparse(dense, kept, block)
    x = bs.ops.to_sparse(data.x.detach()[None], full[0], block)
    of_product: dict[str, Any] = {}
    of_result: dict[str, Any] = {}

    def forward() -> Tensor:
        product = bs.ops.matmul(x, full[0], weight, kept, full[1], block, layout_cache=of_product)
        dense = bs.ops.to_dense(product, full[1], block, layout_cache=of_result)
        return _activated(problem, dense[0])

    return _dense(problem, passes, forward)


ROOM = Room(
    name="block_sparse_linear",
    cases=tuple(_cases()),
    backends=op.BACKENDS,
    prepare=_prepare,
    own=_own,
    cost=_cost,
    peers={
        "torch-matmul": Peer(_matmul),
        "onednn-linear": Peer(_mkldnn),
        "torch-bsr": Peer(_bsr),
        "stk": Peer(_stk, compiled=True),
        "blksprs": Peer(_blksprs, compiled=True),
    },
    goal_peers=("torch-matmul",),
    bound="matmul",
)
