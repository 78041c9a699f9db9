"""block_sparse_linear: the public function, its checks, and the torch.library ops behind it."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gtkern import _backends, _check
from gtkern.block_sparse import BlockIndex, BlockSparseMatrix
from gtkern.ops.block_sparse_linear import reference
from gtkern.ops.block_sparse_linear.call import ACTIVATIONS, Needs, Weight
from gtkern.ops.block_sparse_linear.native import Native

__all__ = ["block_sparse_linear"]

BACKENDS = ("reference", "cpu", "triton", "cuda")


def block_sparse_linear(
    x: Tensor,
    weight: BlockSparseMatrix,
    bias: Tensor | None = None,
    activation: str | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    r"""A linear layer whose weight keeps only some blocks, with its activation.

    For row m and output channel n, the sum running over the kept blocks of n's block row::

        out[m,n] = activation( Σ_k x[m,k] W[n,k] + bias[n] )

    Backward gives gradients to x, to the kept blocks alone, and to the bias. A block row without
    blocks gives activation(bias).

    Args:
        x: [..., C_in], float32, bfloat16, float16 or float64.
        weight: C_out by C_in, dtype of x.
        bias: [C_out], dtype of x.
        activation: None, "relu", "gelu" (with the error function, torch's default) or "silu".
        backend: "auto", "reference", "cpu", "triton" or "cuda"; a named one never falls back.

    Returns:
        [..., C_out], dtype of x. A NaN in a row of x stays in that row.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape, dtype, device or value.
        NotImplementedError: the named backend cannot run here.

    Reference: Gray et al. 2017 (block-sparse GPU kernels); the products are those of eq. 1 with a
    weight that is zero outside the kept blocks.
    """
    _check_inputs(x, weight, bias)
    name = "none" if activation is None else activation
    if name not in ACTIVATIONS or activation == "none":
        names = ", ".join(repr(each) for each in ACTIVATIONS[1:])
        raise ValueError(f"activation must be None, {names}, got {activation!r}")
    chosen = _backends.resolve("block_sparse_linear", backend, BACKENDS, x.device, x.dtype)
    # not -1: no number of rows can be told from tensors without elements
    rows = x if x.dim() == 2 else x.reshape(x.shape[:-1].numel(), weight.shape[1])
    if chosen == "reference":
        out = reference.forward(rows, weight, bias, name)
    else:
        given = [each for each in (x, weight.values, bias) if each is not None]
        keep = torch.is_grad_enabled() and any(each.requires_grad for each in given)
        out = torch.ops.gtkern.block_sparse_linear_fwd(
            rows if chosen == "cpu" and _whole_rows(rows) else rows.contiguous(),
            weight.values.contiguous(),
            *weight.index,
            weight.shape[0],
            None if bias is None else bias.contiguous(),
            name,
            keep,
            chosen,
        )[0]
    return out if x.dim() == 2 else out.view(*x.shape[:-1], weight.shape[0])


def _check_inputs(x: Tensor, weight: BlockSparseMatrix, bias: Tensor | None) -> None:
    _check.floating("x", x)
    if not isinstance(weight, BlockSparseMatrix):
        raise TypeError(f"weight must be a BlockSparseMatrix, got {type(weight).__name__}")
    if bias is not None:
        _check.floating("bias", bias)
    out_features, in_features = weight.shape
    if x.dim() < 1 or x.size(-1) != in_features:
        raise ValueError(
            f"x must have shape [..., C_in] with C_in = {in_features}, got {list(x.shape)}"
        )
    if bias is not None:
        _check.shape("bias", bias, "C_out", (out_features,))
        _check.same_dtype("bias", bias, "x", x)
    _check.same_dtype("weight", weight.values, "x", x)
    _check.same_device(x=x, weight=weight.values, bias=bias)


def _whole_rows(rows: Tensor) -> bool:
    """Whether only the rows lie apart: the CPU kernels read such."""
    return rows.stride(1) == 1 and rows.stride(0) >= rows.size(1)


_WEIGHT = "Tensor values, Tensor row_ptr, Tensor row, Tensor col, Tensor col_ptr, Tensor order"
torch.library.define(
    "gtkern::block_sparse_linear_fwd",
    f"(Tensor x, {_WEIGHT}, SymInt out_features, Tensor? bias, str activation, bool keep, "
    "str backend) -> (Tensor, Tensor)",
)
torch.library.define(
    "gtkern::block_sparse_linear_bwd",
    f"(Tensor grad_out, Tensor x, {_WEIGHT}, Tensor kept, str activation, bool[] needs, "
    "str backend) -> (Tensor, Tensor, Tensor)",
)


def _load(backend: str) -> Any:
    """What has `forward` and `backward` of a backend; triton is imported only here."""
    if backend == "triton":
        return importlib.import_module("gtkern.ops.block_sparse_linear.triton")
    return Native(backend)


@torch.library.impl("gtkern::block_sparse_linear_fwd", "CompositeExplicitAutograd")
def _forward(
    x: Tensor, values: Tensor, row_ptr: Tensor, row: Tensor, col: Tensor, col_ptr: Tensor,
    order: Tensor, out_features: int, bias: Tensor | None, activation: str, keep: bool,
    backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    index = BlockIndex(row_ptr, row, col, col_ptr, order)
    weight = Weight(values, index, out_features)
    return tuple(_load(backend).forward(x, weight, bias, activation, keep))


@torch.library.impl("gtkern::block_sparse_linear_bwd", "CompositeExplicitAutograd")
def _backward(
    grad_out: Tensor, x: Tensor, values: Tensor, row_ptr: Tensor, row: Tensor, col: Tensor,
    col_ptr: Tensor, order: Tensor, kept: Tensor, activation: str, needs: Sequence[bool],
    backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    index = BlockIndex(row_ptr, row, col, col_ptr, order)
    weight = Weight(values, index, grad_out.size(1))
    return tuple(
        _load(backend).backward(grad_out.contiguous(), x, weight, kept, activation, Needs(*needs))
    )


@torch.library.register_fake("gtkern::block_sparse_linear_fwd")
def _forward_fake(
    x: Tensor, values: Tensor, row_ptr: Tensor, row: Tensor, col: Tensor, col_ptr: Tensor,
    order: Tensor, out_features: int, bias: Tensor | None, activation: str, keep: bool,
    backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    shape = (x.size(0), out_features)
    before = keep and activation in ("gelu", "silu")
    return x.new_empty(shape), x.new_empty(shape if before else (0,))


@torch.library.register_fake("gtkern::block_sparse_linear_bwd")
def _backward_fake(
    grad_out: Tensor, x: Tensor, values: Tensor, row_ptr: Tensor, row: Tensor, col: Tensor,
    col_ptr: Tensor, order: Tensor, kept: Tensor, activation: str, needs: Sequence[bool],
    backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    shapes: tuple[Any, ...] = (x.shape, values.shape, (grad_out.size(1),))
    return tuple(
        x.new_empty(shape if needed else (0,)) for shape, needed in zip(shapes, needs, strict=True)
    )


# where the differentiable inputs stand in the forward schema: x, values, bias
_DIFFERENTIABLE = (0, 1, 8)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, values, row_ptr, row, col, col_ptr, order, _, _, activation, _, backend = inputs
    out, kept = output
    # relu's derivative can be read off its result; without activation none is needed
    kept = out if activation == "relu" else kept
    ctx.save_for_backward(x, values, row_ptr, row, col, col_ptr, order, kept)
    ctx.activation, ctx.backend = activation, backend
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, grad_out: Tensor | None, grad_kept: Tensor | None) -> tuple[Any, ...]:
    result: list[Any] = [None] * 12
    if grad_out is None:
        return tuple(result)
    needs = [bool(ctx.needs_input_grad[at]) for at in _DIFFERENTIABLE]
    gradients = torch.ops.gtkern.block_sparse_linear_bwd(
        grad_out, *ctx.saved_tensors, ctx.activation, needs, ctx.backend
    )
    for at, needed, gradient in zip(_DIFFERENTIABLE, needs, gradients, strict=True):
        result[at] = gradient if needed else None
    return tuple(result)


torch.library.register_autograd(
    "gtkern::block_sparse_linear_fwd", _autograd, setup_context=_setup_context
)


def _refuse(ctx: Any, *gradients: Tensor) -> None:
    raise NotImplementedError(
        "block_sparse_linear's compiled backends have no second derivatives; "
        "use backend='reference'"
    )


torch.library.register_autograd("gtkern::block_sparse_linear_bwd", _refuse)
