"""additive_attention: the public function, its checks, and the torch.library ops behind it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gtkern import _backends, _check
from gtkern.graph import Adjacency, Graph
from gtkern.ops.additive_attention import reference
from gtkern.ops.additive_attention.native import Native
from gtkern.ops.additive_attention.types import Forward, Inputs, Needs, Options

__all__ = ["additive_attention"]

BACKENDS = ("reference", "cpu", "triton", "cuda")
_LARGEST = sys.float_info.max


def additive_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    graph: Graph,
    attention: Tensor,
    *,
    edge_attr: Tensor | None = None,
    negative_slope: float = 0.2,
    dropout: float = 0.0,
    seed: int | Tensor | None = None,
    return_scores: bool = False,
    backend: str = "auto",
) -> Any:
    r"""GATv2's attention: scores are a vector times the LeakyReLU of sums.

    For an edge e = j -> i and a head h::

        score = Σ_d attention[h,d] LeakyReLU(q[i,h,d] + k[j,h,d] + edge_attr[e,h,d])
        a     = exp(score) / Σ_{edges into i} exp(score)
        out   = Σ_{edges into i} dropout(a) v[j,h]

    A node without edges, or with every score at -inf, gets 0 and gives zero gradients.

    Args:
        q: [N_dst, H, D], float32, bfloat16, float16 or float64; D at most 256.
        k: [N_src, H, D], dtype of q.
        v: [N_src, H, D], dtype of q. None, or the tensor k itself: the keys are the values, as in
            GATv2, and are gathered once.
        graph: the edges; N_src and N_dst are its sizes.
        attention: [H, D], dtype of q.
        edge_attr: [E, H, D], dtype of q, in the order the graph was given its edges; default 0.
        negative_slope: what LeakyReLU multiplies numbers below 0 with.
        dropout: probability in [0, 1) that a normalised score is set to 0, the others growing by
            1 / (1 - dropout).
        seed: 64-bit integer or 0-d int64 CPU tensor of the dropout mask; default: drawn from
            torch's generator. The same seed gives the same mask on every backend.
        return_scores: also return the normalised scores a.
        backend: "auto", "reference", "cpu", "triton" or "cuda"; a named one never falls back.

    Returns:
        out [N_dst, H, D]; with return_scores a pair of it and a [E, H] in the order the graph was
        given its edges, before dropout, float32 or wider.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape, dtype, device or range.
        NotImplementedError: the named backend cannot run here.

    Reference: Brody, Alon and Yahav 2022 (GATv2), eq. 7; Dao et al. 2022 (FlashAttention), for the
    recomputing backward pass.
    """
    if v is k:
        v = None
    _check_inputs(q, k, v, graph, attention, edge_attr)
    _check.flag("return_scores", return_scores)
    slope = _check.number("negative_slope", negative_slope, -_LARGEST, _LARGEST)
    share = _check.dropout(dropout)
    chosen = _backends.resolve("additive_attention", backend, BACKENDS, q.device, q.dtype)
    inputs = Inputs(q, k, v, attention, edge_attr)
    seed_tensor = _check.seed("seed", seed) if share > 0 else None

    if chosen == "reference":
        options = _options(slope, share, seed_tensor)
        result = reference.forward(inputs, graph.csr, options, return_scores)
    else:
        differentiated = torch.is_grad_enabled() and any(
            tensor is not None and tensor.requires_grad for tensor in inputs
        )
        result = Forward(
            *torch.ops.gtkern.additive_attention_fwd(
                *(None if tensor is None else tensor.contiguous() for tensor in inputs),
                list(graph.csr),
                list(graph.csc) if differentiated else [],
                slope,
                share,
                seed_tensor,
                return_scores,
                chosen,
            )
        )
    return (result.out, result.scores) if return_scores else result.out


def _check_inputs(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    graph: Graph,
    attention: Tensor,
    edge_attr: Tensor | None,
) -> None:
    given = {"k": k, "attention": attention}
    if v is not None:
        given["v"] = v
    if edge_attr is not None:
        given["edge_attr"] = edge_attr
    for name, tensor in {"q": q, **given}.items():
        _check.floating(name, tensor)
    if not isinstance(graph, Graph):
        raise TypeError(
            f"graph must be a gtkern.Graph (Graph.from_any makes one), got {type(graph).__name__}"
        )
    _check.rank("q", q, "N_dst, H, D")
    heads, width = q.size(1), q.size(2)
    _check.shape("q", q, "N_dst, H, D", (graph.num_dst_nodes, heads, width))
    for name in ("k", "v"):
        if name in given:
            _check.shape(name, given[name], "N_src, H, D", (graph.num_src_nodes, heads, width))
    _check.shape("attention", attention, "H, D", (heads, width))
    if edge_attr is not None:
        _check.shape("edge_attr", edge_attr, "E, H, D", (graph.num_edges, heads, width))
    for name, tensor in given.items():
        _check.same_dtype(name, tensor, "q", q)
    if heads < 1:
        raise ValueError("q must have at least 1 head, got 0")
    if not 1 <= width <= 256:
        raise ValueError(f"q must have a head width of 1 .. 256, got {width}")
    _check.same_device(q=q, k=k, v=v, graph=graph.csr.ptr, attention=attention, edge_attr=edge_attr)


def _options(negative_slope: float, dropout: float, seed: Tensor | None) -> Options:
    return Options(negative_slope, dropout, 0 if seed is None else int(seed))


_INPUTS_SCHEMA = "Tensor q, Tensor k, Tensor? v, Tensor attention, Tensor? edge_attr"
_OPTIONS_SCHEMA = "float negative_slope, float dropout, Tensor? seed"
torch.library.define(
    "gtkern::additive_attention_fwd",
    f"({_INPUTS_SCHEMA}, Tensor[] csr, Tensor[] csc, {_OPTIONS_SCHEMA}, bool return_scores, "
    "str backend) -> (Tensor, Tensor, Tensor)",
)
torch.library.define(
    "gtkern::additive_attention_bwd",
    f"(Tensor grad_out, Tensor? grad_scores, {_INPUTS_SCHEMA}, Tensor out, Tensor lse, "
    f"Tensor[] csr, Tensor[] csc, {_OPTIONS_SCHEMA}, bool[] needs, str backend) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


def _load(backend: str) -> Any:
    """What has `forward` and `backward` of a backend; triton is imported only here."""
    if backend == "triton":
        return importlib.import_module("gtkern.ops.additive_attention.triton")
    return Native(backend)


@torch.library.impl("gtkern::additive_attention_fwd", "CompositeExplicitAutograd")
def _forward(
    q: Tensor, k: Tensor, v: Tensor | None, attention: Tensor, edge_attr: Tensor | None,
    csr: Sequence[Tensor], csc: Sequence[Tensor],
    negative_slope: float, dropout: float, seed: Tensor | None, return_scores: bool, backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    inputs = Inputs(q, k, v, attention, edge_attr)
    options = _options(negative_slope, dropout, seed)
    return tuple(_load(backend).forward(inputs, Adjacency(*csr), options, return_scores))


@torch.library.impl("gtkern::additive_attention_bwd", "CompositeExplicitAutograd")
def _backward(
    grad_out: Tensor, grad_scores: Tensor | None,
    q: Tensor, k: Tensor, v: Tensor | None, attention: Tensor, edge_attr: Tensor | None,
    out: Tensor, lse: Tensor, csr: Sequence[Tensor], csc: Sequence[Tensor],
    negative_slope: float, dropout: float, seed: Tensor | None, needs: Sequence[bool], backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    return tuple(
        _load(backend).backward(
            grad_out.contiguous(),
            None if grad_scores is None else grad_scores.contiguous(),
            Inputs(q, k, v, attention, edge_attr),
            out,
            lse,
            Adjacency(*csr),
            Adjacency(*csc),
            _options(negative_slope, dropout, seed),
            Needs(*needs),
        )
    )


@torch.library.register_fake("gtkern::additive_attention_fwd")
def _forward_fake(
    q: Tensor, k: Tensor, v: Tensor | None, attention: Tensor, edge_attr: Tensor | None,
    csr: Sequence[Tensor], csc: Sequence[Tensor],
    negative_slope: float, dropout: float, seed: Tensor | None, return_scores: bool, backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    work = torch.float64 if q.dtype == torch.float64 else torch.float32
    scores = (csr[1].numel(), q.size(1)) if return_scores else (0,)
    return (
        torch.empty_like(q, memory_format=torch.contiguous_format),
        q.new_empty(q.size(0), q.size(1), dtype=work),
        q.new_empty(scores, dtype=work),
    )


@torch.library.register_fake("gtkern::additive_attention_bwd")
def _backward_fake(
    grad_out: Tensor, grad_scores: Tensor | None,
    q: Tensor, k: Tensor, v: Tensor | None, attention: Tensor, edge_attr: Tensor | None,
    out: Tensor, lse: Tensor, csr: Sequence[Tensor], csc: Sequence[Tensor],
    negative_slope: float, dropout: float, seed: Tensor | None, needs: Sequence[bool], backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    return tuple(
        torch.empty_like(tensor, memory_format=torch.contiguous_format)
        if needed and tensor is not None
        else q.new_empty(0)
        for tensor, needed in zip((q, k, v, attention, edge_attr), needs, strict=True)
    )


_INPUTS = len(Inputs._fields)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    csr, csc = inputs[_INPUTS : _INPUTS + 2]
    out, lse, _ = output
    ctx.save_for_backward(*inputs[:_INPUTS], out, lse, *csr, *csc)
    ctx.num_csr = len(csr)
    ctx.options = inputs[_INPUTS + 2 : _INPUTS + 5]
    ctx.return_scores, ctx.backend = inputs[_INPUTS + 5 :]


def _autograd(
    ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None, grad_scores: Tensor | None
) -> tuple[Any, ...]:
    inputs = ctx.saved_tensors[:_INPUTS]
    out, lse, *adjacency = ctx.saved_tensors[_INPUTS:]
    csr, csc = adjacency[: ctx.num_csr], adjacency[ctx.num_csr :]
    needs = [bool(needed) for needed in ctx.needs_input_grad[:_INPUTS]]
    gradients = torch.ops.gtkern.additive_attention_bwd(
        torch.zeros_like(out) if grad_out is None else grad_out,
        grad_scores if ctx.return_scores else None,
        *inputs,
        out,
        lse,
        csr,
        csc,
        *ctx.options,
        needs,
        ctx.backend,
    )
    found = [
        gradient if needed else None for gradient, needed in zip(gradients, needs, strict=True)
    ]
    return (*found, [None] * len(csr), [None] * len(csc), *[None] * 5)


torch.library.register_autograd(
    "gtkern::additive_attention_fwd", _autograd, setup_context=_setup_context
)


def _refuse(ctx: Any, *gradients: Tensor) -> None:
    raise NotImplementedError(
        "additive_attention's compiled backends have no second derivatives; use backend='reference'"
    )


torch.library.register_autograd("gtkern::additive_attention_bwd", _refuse)
