"""gather_tokens and scatter_tokens: the public functions and the torch.library ops behind them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gtkern import _backends, _check
from gtkern.ops.token_dropping import reference
from gtkern.ops.token_dropping.op import BACKENDS, load, refuse_twice
from gtkern.ops.token_dropping.selection import Selection, check_rows, check_selection

__all__ = ["gather_tokens", "scatter_tokens"]


def gather_tokens(
    x: Tensor, selection: Selection, gate: Tensor | None = None, *, backend: str = "auto"
) -> Tensor:
    """The kept rows of x, one after the other; times `gate`, if given.

    Formula: out[m] = gate[m] * x[index[m]].

    Args:
        x: [N, ...]; any dtype without a gate.
        selection: of N tokens.
        gate: [M], dtype of x: selection.gate, where the scores shall learn.
        backend: "auto", "reference", "cpu", "triton" or "cuda"; a named one never falls back.

    Returns:
        [M, ...], dtype of x. Backward writes each row of the gradients once: no two threads add
        into one.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape, dtype or device.
        NotImplementedError: the named backend cannot run here.
    """
    check_selection(selection)
    check_rows("x", x, "N", selection.ragged.num_nodes, selection)
    if gate is not None:
        _check.floating("x", x)
        _check.tensor("gate", gate)
        _check.shape("gate", gate, "M", (selection.num_kept,))
        _check.same_dtype("gate", gate, "x", x)
        _check.same_device(selection=selection.index, gate=gate)
        gate = gate.contiguous()
    chosen = _backends.resolve("gather_tokens", backend, BACKENDS, x.device, x.dtype)
    rows = x.reshape(x.size(0), x.shape[1:].numel())
    if chosen == "reference":
        out = reference.gather(rows, gate, selection.index, selection.position)
    else:
        out = torch.ops.gtkern.gather_tokens_fwd(
            rows.contiguous(), gate, selection.index, selection.position, chosen
        )
    return out.view(selection.num_kept, *x.shape[1:])


def scatter_tokens(
    y: Tensor, selection: Selection, fill: Tensor | None = None, *, backend: str = "auto"
) -> Tensor:
    """The rows of the kept tokens in their places, and those of `fill`, or zeros, in the others.

    Args:
        y: [M, ...], any dtype.
        selection: of N tokens.
        fill: [N, ...], shape of y but for the rows, dtype of y.
        backend: "auto", "reference", "cpu", "triton" or "cuda"; a named one never falls back.

    Returns:
        [N, ...], dtype of y.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape, dtype or device.
        NotImplementedError: the named backend cannot run here.
    """
    check_selection(selection)
    check_rows("y", y, "M", selection.num_kept, selection)
    nodes = selection.ragged.num_nodes
    shape = (nodes, *y.shape[1:])
    if fill is not None:
        _check.tensor("fill", fill)
        _check.shape("fill", fill, "N, ...", shape)
        _check.same_dtype("fill", fill, "y", y)
        _check.same_device(selection=selection.index, fill=fill)
        fill = fill.reshape(nodes, y.shape[1:].numel()).contiguous()
    chosen = _backends.resolve("scatter_tokens", backend, BACKENDS, y.device, y.dtype)
    rows = y.reshape(y.size(0), y.shape[1:].numel())
    if chosen == "reference":
        out = reference.scatter(rows, fill, selection.index, selection.position)
    else:
        out = torch.ops.gtkern.scatter_tokens_fwd(
            rows.contiguous(), fill, selection.index, selection.position, chosen
        )
    return out.view(shape)


_PLACES = "Tensor index, Tensor position"
torch.library.define(
    "gtkern::gather_tokens_fwd", f"(Tensor x, Tensor? gate, {_PLACES}, str backend) -> Tensor"
)
torch.library.define(
    "gtkern::gather_tokens_bwd",
    f"(Tensor grad_out, Tensor? x, Tensor? gate, {_PLACES}, bool[] needs, str backend) -> "
    "(Tensor, Tensor)",
)
torch.library.define(
    "gtkern::scatter_tokens_fwd", f"(Tensor y, Tensor? fill, {_PLACES}, str backend) -> Tensor"
)
torch.library.define(
    "gtkern::scatter_tokens_bwd",
    f"(Tensor grad_out, {_PLACES}, bool[] needs, str backend) -> (Tensor, Tensor)",
)


@torch.library.impl("gtkern::gather_tokens_fwd", "CompositeExplicitAutograd")
def _gather(
    x: Tensor, gate: Tensor | None, index: Tensor, position: Tensor, backend: str
) -> Tensor:
    out: Tensor = load(backend).gather(x, gate, index, position)
    return out


@torch.library.register_fake("gtkern::gather_tokens_fwd")
def _gather_fake(
    x: Tensor, gate: Tensor | None, index: Tensor, position: Tensor, backend: str
) -> Tensor:
    return x.new_empty(index.size(0), x.size(1))


@torch.library.impl("gtkern::gather_tokens_bwd", "CompositeExplicitAutograd")
def _gather_backward(
    grad_out: Tensor, x: Tensor | None, gate: Tensor | None, index: Tensor, position: Tensor,
    needs: Sequence[bool], backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    grad_x, grad_gate = load(backend).gather_backward(
        grad_out.contiguous(), x, gate, index, position, needs[0], needs[1]
    )
    return grad_x, grad_gate


@torch.library.register_fake("gtkern::gather_tokens_bwd")
def _gather_backward_fake(
    grad_out: Tensor, x: Tensor | None, gate: Tensor | None, index: Tensor, position: Tensor,
    needs: Sequence[bool], backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    rows, width = position.size(0), grad_out.size(1)
    return (
        grad_out.new_empty((rows, width) if needs[0] else (0, width)),
        grad_out.new_empty(index.size(0) if needs[1] else 0),
    )


@torch.library.impl("gtkern::scatter_tokens_fwd", "CompositeExplicitAutograd")
def _scatter(
    y: Tensor, fill: Tensor | None, index: Tensor, position: Tensor, backend: str
) -> Tensor:
    out: Tensor = load(backend).scatter(y, fill, index, position)
    return out


@torch.library.register_fake("gtkern::scatter_tokens_fwd")
def _scatter_fake(
    y: Tensor, fill: Tensor | None, index: Tensor, position: Tensor, backend: str
) -> Tensor:
    return y.new_empty(position.size(0), y.size(1))


@torch.library.impl("gtkern::scatter_tokens_bwd", "CompositeExplicitAutograd")
def _scatter_backward(
    grad_out: Tensor, index: Tensor, position: Tensor, needs: Sequence[bool], backend: str
) -> tuple[Tensor, Tensor]:
    kernels, grad_out = load(backend), grad_out.contiguous()
    none = grad_out.new_empty(0, grad_out.size(1))
    return (
        kernels.gather(grad_out, None, index, position) if needs[0] else none,
        kernels.scatter(None, grad_out, index, position) if needs[1] else none.clone(),
    )


@torch.library.register_fake("gtkern::scatter_tokens_bwd")
def _scatter_backward_fake(
    grad_out: Tensor, index: Tensor, position: Tensor, needs: Sequence[bool], backend: str
) -> tuple[Tensor, Tensor]:
    width = grad_out.size(1)
    return (
        grad_out.new_empty(index.size(0) if needs[0] else 0, width),
        grad_out.new_empty(position.size(0) if needs[1] else 0, width),
    )


def _gather_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, gate, index, position, ctx.backend = inputs
    needed = gate is not None and ctx.needs_input_grad[1]
    # rows are kept only where the gate learns from them
    ctx.save_for_backward(x if needed else None, gate, index, position)


def _gather_autograd(ctx: Any, grad_out: Tensor) -> tuple[Any, ...]:
    x, gate, index, position = ctx.saved_tensors
    needs = [bool(need) for need in ctx.needs_input_grad[:2]]
    gradients = torch.ops.gtkern.gather_tokens_bwd(
        grad_out, x, gate, index, position, needs, ctx.backend
    )
    found = [each if need else None for each, need in zip(gradients, needs, strict=True)]
    return (*found, None, None, None)


def _scatter_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, _, index, position, ctx.backend = inputs
    ctx.save_for_backward(index, position)


def _scatter_autograd(ctx: Any, grad_out: Tensor) -> tuple[Any, ...]:
    index, position = ctx.saved_tensors
    needs = [bool(need) for need in ctx.needs_input_grad[:2]]
    gradients = torch.ops.gtkern.scatter_tokens_bwd(grad_out, index, position, needs, ctx.backend)
    found = [each if need else None for each, need in zip(gradients, needs, strict=True)]
    return (*found, None, None, None)


torch.library.register_autograd(
    "gtkern::gather_tokens_fwd", _gather_autograd, setup_context=_gather_context
)
torch.library.register_autograd(
    "gtkern::scatter_tokens_fwd", _scatter_autograd, setup_context=_scatter_context
)
torch.library.register_autograd("gtkern::gather_tokens_bwd", refuse_twice)
torch.library.register_autograd("gtkern::scatter_tokens_bwd", refuse_twice)
