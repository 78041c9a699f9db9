"""Dropout on CPUs in one pass: torch.library ops over csrc/common/dropout, for gtkern.nn.

The mask is a function of the seed and of an element's position (csrc/common/dropout/cpu.cpp): it is
never stored, and backward draws it again. The probability is rounded to 1 / 65536.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gtkern import _native

__all__ = ["available", "dropout", "relu_dropout"]


def available(x: Tensor) -> bool:
    """Whether the ops take x."""
    return x.device.type == "cpu" and _native.missing_reason("cpu") is None


def dropout(x: Tensor, residual: Tensor | None, probability: float, seed: Tensor) -> Tensor:
    """residual + x, elements of x set to 0 at random and the others scaled to keep its mean.

    Args:
        x: any shape, floating point, on the CPU.
        residual: shape and dtype of x; None: 0.
        probability: in [0, 1).
        seed: 0-d int64.
    """
    if residual is not None:
        residual = residual.contiguous()
    out: Tensor = torch.ops.gtkern.dropout(x.contiguous(), residual, probability, seed)
    return out


def relu_dropout(x: Tensor, probability: float, seed: Tensor) -> Tensor:
    """The same of relu(x), without a residual."""
    out: Tensor = torch.ops.gtkern.relu_dropout(x.contiguous(), probability, seed)
    return out


torch.library.define(
    "gtkern::dropout", "(Tensor x, Tensor? residual, float probability, Tensor seed) -> Tensor"
)
torch.library.define("gtkern::relu_dropout", "(Tensor x, float probability, Tensor seed) -> Tensor")
torch.library.define(
    "gtkern::relu_dropout_bwd", "(Tensor grad, Tensor out, float probability) -> Tensor"
)


@torch.library.impl("gtkern::dropout", "CompositeExplicitAutograd")
def _dropout(x: Tensor, residual: Tensor | None, probability: float, seed: Tensor) -> Tensor:
    out: Tensor = _native.ops("cpu").dropout(x, residual, probability, int(seed))
    return out


@torch.library.impl("gtkern::relu_dropout", "CompositeExplicitAutograd")
def _relu_dropout(x: Tensor, probability: float, seed: Tensor) -> Tensor:
    out: Tensor = _native.ops("cpu").relu_dropout(x, probability, int(seed))
    return out


@torch.library.impl("gtkern::relu_dropout_bwd", "CompositeExplicitAutograd")
def _relu_dropout_bwd(grad: Tensor, out: Tensor, probability: float) -> Tensor:
    result: Tensor = _native.ops("cpu").relu_dropout_bwd(grad, out, probability)
    return result


@torch.library.register_fake("gtkern::dropout")
def _dropout_fake(x: Tensor, residual: Tensor | None, probability: float, seed: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_fake("gtkern::relu_dropout")
def _relu_dropout_fake(x: Tensor, probability: float, seed: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_fake("gtkern::relu_dropout_bwd")
def _relu_dropout_bwd_fake(grad: Tensor, out: Tensor, probability: float) -> Tensor:
    return torch.empty_like(grad)


def _keep_dropout(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, _, ctx.probability, seed = inputs
    ctx.save_for_backward(seed)


def _of_dropout(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (seed,) = ctx.saved_tensors
    to_x, to_residual, *_ = ctx.needs_input_grad
    return (
        dropout(grad, None, ctx.probability, seed) if to_x else None,
        grad if to_residual else None,
        None,
        None,
    )


def _keep_relu_dropout(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.probability = inputs[1]
    ctx.save_for_backward(output)


def _of_relu_dropout(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (out,) = ctx.saved_tensors
    result = torch.ops.gtkern.relu_dropout_bwd(grad.contiguous(), out, ctx.probability)
    return result, None, None


def _keep_relu_dropout_bwd(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, out, ctx.probability = inputs
    ctx.save_for_backward(out)


def _of_relu_dropout_bwd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # linear in the gradient, and constant in the output but where it is 0
    (out,) = ctx.saved_tensors
    result = torch.ops.gtkern.relu_dropout_bwd(grad.contiguous(), out, ctx.probability)
    return result, None, None


torch.library.register_autograd("gtkern::dropout", _of_dropout, setup_context=_keep_dropout)
torch.library.register_autograd(
    "gtkern::relu_dropout", _of_relu_dropout, setup_context=_keep_relu_dropout
)
torch.library.register_autograd(
    "gtkern::relu_dropout_bwd", _of_relu_dropout_bwd, setup_context=_keep_relu_dropout_bwd
)
