"""block_sparse_linear: square and FFN-shaped weights at two densities, few rows and many."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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
    dtype = getattr(torch, case.dtype)
    rows, c_in, c_out = case.graph.num_dst, case.sizes["C_in"], case.sizes["C_out"]

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    w = random(c_out, c_in) * c_in**-0.5
    weight = BlockSparseMatrix.from_dense(w, case.sizes["block"], keep=case.sizes["percent"] / 100)
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


ROOM = Room(
    name="block_sparse_linear",
    cases=tuple(_cases()),
    backends=op.BACKENDS,
    prepare=_prepare,
    own=_own,
    cost=_cost,
    peers={"torch-matmul": Peer(_matmul), "onednn-linear": Peer(_mkldnn), "torch-bsr": Peer(_bsr)},
    goal_peers=("torch-matmul",),
)
