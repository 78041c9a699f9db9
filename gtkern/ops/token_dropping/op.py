"""select_tokens: the public function, its checks, and the torch.library ops behind it."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import torch
from torch import Tensor

from gtkern import _backends, _check
from gtkern.ops.token_dropping import counts, reference
from gtkern.ops.token_dropping.native import Native
from gtkern.ops.token_dropping.selection import Selection
from gtkern.ragged import Ragged

__all__ = ["BACKENDS", "load", "select_tokens"]

BACKENDS = ("reference", "cpu", "triton", "cuda")
NOISES = ("gumbel",)


def select_tokens(
    score: Tensor,
    ragged: Ragged,
    *,
    ratio: float | None = None,
    k: int | Tensor | None = None,
    always_keep: Tensor | None = None,
    noise: str | None = None,
    temperature: float = 1.0,
    seed: int | Tensor | None = None,
    backend: str = "auto",
) -> Selection:
    r"""Keep the best tokens of every graph, in their order.

    Of the n_g tokens of graph g, the k_g with the largest score + noise are kept; of equals, those
    that come first. With `ratio`, k_g = max(1, ceil(ratio * n_g)), a product that is whole but for
    rounding counting as whole; with `k`, k_g = min(k, n_g). What is kept of a graph does not depend
    on the other graphs of its batch, but for the noise, which belongs to the number of a row.

    The choice hands on gradients as if it were soft (straight-through). Over the tokens of a graph
    that are chosen from::

        y    = softmax((log_softmax(score) + noise) / temperature)
        mask = [kept] - stop_gradient(y) + y;    gate = mask[index]

    so that gate is 1 exactly, and its gradients reach the scores through y.

    Args:
        score: [N], float32, bfloat16, float16 or float64. NaN is refused on a CPU; elsewhere, where
            finding it would wait for the device, it ranks last and its graph's gradients are NaN.
        ragged: the graphs; N rows.
        ratio: the share to keep, in (0, 1]; 1 keeps everything. Give either ratio or k.
        k: how many to keep of each graph: one number, at least 1, or int64 [G], not negative.
        always_keep: bool [N]; tokens that are kept whatever their score, and count towards k_g,
            which grows where they are more. They are not chosen from: their scores get no gradient.
        noise: None; or "gumbel", standard Gumbel variates, which make it a draw without replacement
            in proportion to exp(score).
        temperature: of y, positive; the choice does not depend on it.
        seed: 64-bit integer or 0-d int64 CPU tensor of the noise, which is the same on every
            backend; default: drawn from torch's generator.
        backend: "auto", "reference", "cpu", "triton" or "cuda"; a named one never falls back.

    Returns:
        The selection. On a GPU, making it waits for the device only where always_keep is given or k
        lies there.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape, dtype, device or range.
        NotImplementedError: the named backend cannot run here.

    Reference: README.md; Liu et al. 2023 (GTSP), section 4.1; Jang et al. 2017 (straight-through
    Gumbel); Kool et al. 2019 (drawing several without replacement).
    """
    _check.floating("score", score)
    if not isinstance(ragged, Ragged):
        raise TypeError(f"ragged must be a Ragged, got {type(ragged).__name__}")
    _check.rank("score", score, "N")
    _check.shape("score", score, "N", (ragged.num_nodes,))
    share, count = _check_count(ratio, k, ragged)
    if always_keep is not None:
        _check.tensor("always_keep", always_keep)
        if always_keep.dtype != torch.bool:
            raise TypeError(f"always_keep must be bool, got {always_keep.dtype}")
        _check.shape("always_keep", always_keep, "N", (ragged.num_nodes,))
    _check.same_device(score=score, ragged=ragged.ptr, always_keep=always_keep)
    if noise is not None and noise not in NOISES:
        raise ValueError(f"noise must be None or 'gumbel', got {noise!r}")
    temperature = _check.number("temperature", temperature, 0, sys.float_info.max, open_low=True)
    chosen = _backends.resolve("select_tokens", backend, BACKENDS, score.device, score.dtype)
    # always there: the choice of a call does not depend on whether a seed was given in vain
    seed_tensor = _check.seed("seed", seed) if noise else None

    score, forced = score.contiguous(), _contiguous(always_keep)
    index, position, kept_ptr, host_kept_ptr = torch.ops.gtkern.select_tokens(
        score.detach(),
        ragged.ptr,
        ragged.host_ptr,
        count,
        share,
        forced,
        seed_tensor,
        chosen,
    )
    if not score.requires_grad:
        gate = score.new_ones(index.size(0))
    elif chosen == "reference":
        gate = reference.gate(score, ragged.ptr, index, forced, temperature, _seed(seed_tensor))
    else:
        gate = torch.ops.gtkern.token_gate_fwd(
            score, ragged.ptr, index, position, forced, temperature, seed_tensor, chosen
        )
    return Selection(index, position, ragged, kept_ptr, host_kept_ptr, gate)


def _check_count(
    ratio: float | None, k: int | Tensor | None, ragged: Ragged
) -> tuple[float, Tensor | None]:
    """The share, 0 with k; and k as a tensor, [1] or [G]."""
    if (ratio is None) == (k is None):
        raise ValueError(
            f"ratio or k must be given, one of them, got {'neither' if k is None else 'both'}"
        )
    if k is None:
        return _check.number("ratio", ratio, 0, 1, open_low=True), None
    if isinstance(k, Tensor):
        if k.dtype != torch.int64:
            raise TypeError(f"k must be an integer or an int64 tensor, got {k.dtype}")
        _check.shape("k", k, "G", (ragged.num_graphs,))
        if k.device.type != "cpu":
            _check.same_device(ragged=ragged.ptr, k=k)
        return 0.0, k.contiguous()
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k must be an integer or an int64 tensor, got {type(k).__name__}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {_check.short(k)}")
    if k >= 2**63:
        raise ValueError(f"k must be below 2**63, got {_check.short(k)}")
    return 0.0, torch.tensor([k])


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _seed(seed: Tensor | None) -> int | None:
    return None if seed is None else int(seed)


def load(backend: str) -> Any:
    """The kernels of a backend; triton is imported only here."""
    if backend == "reference":
        return reference
    if backend == "triton":
        return importlib.import_module("gtkern.ops.token_dropping.triton")
    return Native(backend)


torch.library.define(
    "gtkern::select_tokens",
    "(Tensor score, Tensor ptr, Tensor host_ptr, Tensor? k, float ratio, Tensor? always_keep, "
    "Tensor? seed, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
)
_GATE = (
    "Tensor score, Tensor ptr, Tensor index, Tensor position, Tensor? always_keep, "
    "float temperature, Tensor? seed, str backend"
)
torch.library.define("gtkern::token_gate_fwd", f"({_GATE}) -> Tensor")
torch.library.define("gtkern::token_gate_bwd", f"(Tensor grad_gate, {_GATE}) -> Tensor")


@torch.library.impl("gtkern::select_tokens", "CompositeExplicitAutograd")
def _select(
    score: Tensor,
    ptr: Tensor,
    host_ptr: Tensor,
    k: Tensor | None,
    ratio: float,
    always_keep: Tensor | None,
    seed: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if k is not None:
        counts.check_k(k)
    kernels = load(backend)
    if backend == "cpu":
        host_kept_ptr, nan_row = kernels.count(score, ptr, k, ratio, always_keep)
    else:
        nan_row = counts.first_nan(score) if score.device.type == "cpu" else -1
        host_kept_ptr = counts.kept_ptr(ptr, host_ptr, k, ratio, always_keep)
    if nan_row >= 0:
        raise ValueError(f"score must not hold NaN, got one at row {nan_row}")
    # an output of its own, not host_kept_ptr again; from pinned memory nothing waits for a GPU
    if ptr.device.type == "cuda":
        kept_ptr = host_kept_ptr.pin_memory().to(ptr.device, non_blocking=True)
    else:
        kept_ptr = host_kept_ptr.clone()
    index, position = kernels.select(
        score, ptr, kept_ptr, int(host_kept_ptr[-1]), always_keep, _seed(seed)
    )
    return index, position, kept_ptr, host_kept_ptr


@torch.library.register_fake("gtkern::select_tokens")
def _select_fake(
    score: Tensor,
    ptr: Tensor,
    host_ptr: Tensor,
    k: Tensor | None,
    ratio: float,
    always_keep: Tensor | None,
    seed: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kept = torch.library.get_ctx().new_dynamic_size()
    return (
        ptr.new_empty(kept),
        ptr.new_empty(score.size(0), dtype=torch.int32),
        torch.empty_like(ptr),
        torch.empty_like(host_ptr),
    )


@torch.library.impl("gtkern::token_gate_fwd", "CompositeExplicitAutograd")
def _gate(
    score: Tensor,
    ptr: Tensor,
    index: Tensor,
    position: Tensor,
    always_keep: Tensor | None,
    temperature: float,
    seed: Tensor | None,
    backend: str,
) -> Tensor:
    return score.new_ones(index.size(0))


@torch.library.register_fake("gtkern::token_gate_fwd")
def _gate_fake(
    score: Tensor,
    ptr: Tensor,
    index: Tensor,
    position: Tensor,
    always_keep: Tensor | None,
    temperature: float,
    seed: Tensor | None,
    backend: str,
) -> Tensor:
    return score.new_empty(index.size(0))


@torch.library.impl("gtkern::token_gate_bwd", "CompositeExplicitAutograd")
def _gate_backward(
    grad_gate: Tensor,
    score: Tensor,
    ptr: Tensor,
    index: Tensor,
    position: Tensor,
    always_keep: Tensor | None,
    temperature: float,
    seed: Tensor | None,
    backend: str,
) -> Tensor:
    gradient: Tensor = load(backend).gate_backward(
        grad_gate.contiguous(), score, ptr, position, always_keep, temperature, _seed(seed)
    )
    return gradient


@torch.library.register_fake("gtkern::token_gate_bwd")
def _gate_backward_fake(
    grad_gate: Tensor,
    score: Tensor,
    ptr: Tensor,
    index: Tensor,
    position: Tensor,
    always_keep: Tensor | None,
    temperature: float,
    seed: Tensor | None,
    backend: str,
) -> Tensor:
    return torch.empty_like(score)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    score, ptr, index, position, always_keep, ctx.temperature, seed, ctx.backend = inputs
    ctx.save_for_backward(score, ptr, index, position, always_keep, seed)


def _autograd(ctx: Any, grad_gate: Tensor) -> tuple[Any, ...]:
    score, ptr, index, position, always_keep, seed = ctx.saved_tensors
    gradient = torch.ops.gtkern.token_gate_bwd(
        grad_gate, score, ptr, index, position, always_keep, ctx.temperature, seed, ctx.backend
    )
    return (gradient, *[None] * 7)


torch.library.register_autograd("gtkern::token_gate_fwd", _autograd, setup_context=_setup_context)


def refuse_twice(ctx: Any, *gradients: Tensor) -> None:
    """The backward of a backward."""
    raise NotImplementedError(
        "the compiled backends of token dropping have no second derivatives; use "
        "backend='reference'"
    )


torch.library.register_autograd("gtkern::token_gate_bwd", refuse_twice)
