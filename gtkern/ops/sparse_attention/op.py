"""sparse_attention: the public function, its checks, and the torch.library ops behind it."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gtkern import _backends, _check
from gtkern.graph import Adjacency, Graph
from gtkern.ops import _attention
from gtkern.ops._attention import (
    OPTIONS_SCHEMA,
    TERMS_SCHEMA,
    Forward,
    Gradients,
    Needs,
    Terms,
)
from gtkern.ops.sparse_attention import prefix as prefixes
from gtkern.ops.sparse_attention import reference
from gtkern.ops.sparse_attention.native import Native
from gtkern.ops.sparse_attention.prefix import PrefixGradients
from gtkern.ops.sparse_attention.types import Prefix

__all__ = ["sparse_attention"]

BACKENDS = ("reference", "cpu", "triton", "cuda")


def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    graph: Graph,
    *,
    scale: float | None = None,
    key_scale: Tensor | None = None,
    bias: Tensor | None = None,
    edge_query: Tensor | None = None,
    edge_attr: Tensor | None = None,
    prefix_k: Tensor | None = None,
    prefix_v: Tensor | None = None,
    clamp: float | None = None,
    temperature: float = 1.0,
    dropout: float = 0.0,
    seed: int | Tensor | None = None,
    normalization: str = "softmax",
    return_scores: bool = False,
    backend: str = "auto",
) -> Any:
    r"""Softmax attention of every node over the edges that come into it.

    For an edge e = j -> i and a head h::

        product = Σ_d q[i,h,d] m[e,h,d] k[j,h,d] + Σ_c edge_query[i,h,c] edge_attr[e,c]
        score = clamp((scale * product + b[e,h]) / temperature)
        a     = exp(score) / Σ_{edges into i} exp(score)
        out   = Σ_{edges into i} dropout(a) v[j,h]

    A prefix joins the sums of every node as edges from P further sources would, with m = 1, b = 0
    and no edge_attr. A node without edges and prefix, or with every score at -inf, gets 0 and gives
    zero gradients.

    Args:
        q: [N_dst, H, D], float32, bfloat16, float16 or float64; D at most 256.
        k: [N_src, H, D], dtype of q.
        v: [N_src, H, Dv], dtype of q; Dv at most 256.
        graph: the edges; N_src and N_dst are its sizes.
        scale: multiplies the products; default D ** -0.5.
        key_scale: m, default 1. By edge type [T, H, D] or [T, H, 1] when the graph has edge types,
            or by edge [E, H, D] or [E, H, 1] in the order the graph was given its edges. (Where T
            equals E and the graph has types, it is by type.)
        bias: b, default 0. [T, H] by edge type or [E, H] by edge, as key_scale.
        edge_query: [N_dst, H, De], dtype of q; needs edge_attr.
        edge_attr: [E, De], dtype of q, in the order the graph was given its edges; needs
            edge_query. With the pair, the attended edge_attr is returned too: keys k[j] + W e and
            values v[j] + W e need no [E, H, D] tensor (peers: PyG TransformerConv).
        prefix_k: [P, H, D], dtype of q: keys that every node sees besides its edges (a soft
            prompt); needs prefix_v, and does not go with return_scores.
        prefix_v: [P, H, Dv], dtype of q.
        clamp: c > 0 holds scores in [-c, c], with zero gradient outside.
        temperature: > 0.
        dropout: probability in [0, 1) that a normalised score is set to 0, the others growing by
            1 / (1 - dropout).
        seed: 64-bit integer or 0-d int64 CPU tensor of the dropout mask; default: drawn from
            torch's generator. The same seed gives the same mask on every backend.
        normalization: "softmax", or "exphormer": exp(score) / (Σ exp(score) + 1e-6).
        return_scores: also return the normalised scores a.
        backend: "auto", "reference", "cpu", "triton" or "cuda"; a named one never falls back.

    Returns:
        out [N_dst, H, Dv]; then, where asked for, Σ dropout(a) edge_attr [N_dst, H, De] (with
        edge_attr) and a [E, H] in the order the graph was given its edges, before dropout, float32
        or wider (with return_scores). One result comes bare, several as a tuple.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape, dtype, device or range.
        NotImplementedError: the named backend cannot run here.

    Reference: Shirzad et al. 2023 (Exphormer), eq. 2; Dao et al. 2022 (FlashAttention), for the
    recomputing backward pass; Li and Liang 2021, section 4, for the prefix.
    """
    _check_inputs(q, k, v, graph)
    _check.flag("return_scores", return_scores)
    num_edges, heads, width = graph.num_edges, q.size(1), q.size(2)
    key_table, key_edge = _by_type_or_edge("key_scale", key_scale, graph, (heads, width))
    bias_table, bias_edge = _by_type_or_edge("bias", bias, graph, (heads,))
    _check_edge_pair(edge_query, edge_attr, q, num_edges)
    prefix = _check_prefix(prefix_k, prefix_v, q, v, return_scores)
    _check.same_device(
        q=q,
        k=k,
        v=v,
        graph=graph.csr.ptr,
        key_scale=key_scale,
        bias=bias,
        edge_query=edge_query,
        edge_attr=edge_attr,
        prefix_k=prefix_k,
        prefix_v=prefix_v,
    )
    numbers = _attention.numbers(width, scale, clamp, temperature, dropout, normalization)
    chosen = _backends.resolve("sparse_attention", backend, BACKENDS, q.device, q.dtype)
    terms = Terms(key_table, bias_table, key_edge, bias_edge, edge_query, edge_attr)
    seed_tensor = _check.seed("seed", seed) if dropout > 0 else None

    if chosen == "reference":
        options = _attention.options(numbers, seed_tensor)
        result = reference.forward(q, k, v, graph.csr, terms, prefix, options, return_scores)
    else:
        differentiated = torch.is_grad_enabled() and any(
            tensor is not None and tensor.requires_grad for tensor in (q, k, v, *terms)
        )
        result = Forward(
            *torch.ops.gtkern.sparse_attention_fwd(
                q.contiguous(),
                k.contiguous(),
                v.contiguous(),
                list(graph.csr),
                list(graph.csc) if differentiated else [],
                *(None if term is None else term.contiguous() for term in terms),
                *((None, None) if prefix is None else (part.contiguous() for part in prefix)),
                *numbers,
                seed_tensor,
                return_scores,
                chosen,
            )
        )
    wanted = [result.out]
    if edge_attr is not None:
        wanted.append(result.edge_out)
    if return_scores:
        wanted.append(result.scores)
    return wanted[0] if len(wanted) == 1 else tuple(wanted)


def _check_inputs(q: Tensor, k: Tensor, v: Tensor, graph: Graph) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        _check.floating(name, tensor)
    if not isinstance(graph, Graph):
        raise TypeError(
            f"graph must be a gtkern.Graph (Graph.from_any makes one), got {type(graph).__name__}"
        )
    _check.rank("q", q, "N_dst, H, D")
    heads, width = q.size(1), q.size(2)
    _check.shape("q", q, "N_dst, H, D", (graph.num_dst_nodes, heads, width))
    _check.shape("k", k, "N_src, H, D", (graph.num_src_nodes, heads, width))
    _check.rank("v", v, "N_src, H, Dv")
    _check.shape("v", v, "N_src, H, Dv", (graph.num_src_nodes, heads, v.size(2)))
    _check.same_dtype("k", k, "q", q)
    _check.same_dtype("v", v, "q", q)
    if heads < 1:
        raise ValueError("q must have at least 1 head, got 0")
    for name, size in (("q", width), ("v", v.size(2))):
        if not 1 <= size <= 256:
            raise ValueError(f"{name} must have a head width of 1 .. 256, got {size}")


def _by_type_or_edge(
    name: str, value: Tensor | None, graph: Graph, tail: tuple[int, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """Tell a table by edge type from a tensor by edge; one of the two results is None."""
    if value is None:
        return None, None
    _check.floating(name, value)
    letters = "H" if len(tail) == 1 else "H, D"
    rows = value.size(0) if value.dim() else 0
    by_type = graph.has_edge_types and (rows != graph.num_edges or rows == graph.num_edge_types)
    fits = value.dim() == 1 + len(tail) and value.size(1) == tail[0]
    if fits and len(tail) == 2:
        fits = value.size(2) in (1, tail[1])
    if by_type:
        if not fits or rows < graph.num_edge_types:
            raise ValueError(
                f"{name} must have shape [T, {letters}] with T >= {graph.num_edge_types} edge "
                f"types or [E, {letters}] with E = {graph.num_edges}, and {letters} = "
                f"{list(tail)}, got {list(value.shape)}"
            )
    elif not fits or rows != graph.num_edges:
        hint = "" if graph.has_edge_types else " (the graph has no edge types)"
        raise ValueError(
            f"{name} must have shape [E, {letters}] = {[graph.num_edges, *tail]}{hint}, "
            f"got {list(value.shape)}"
        )
    return (value, None) if by_type else (None, value)


def _check_edge_pair(
    edge_query: Tensor | None, edge_attr: Tensor | None, q: Tensor, num_edges: int
) -> None:
    if edge_query is None and edge_attr is None:
        return
    for name, value in (("edge_query", edge_query), ("edge_attr", edge_attr)):
        if value is None:
            raise ValueError(f"{name} must be given too: edge_query and edge_attr work as a pair")
    assert edge_query is not None and edge_attr is not None
    _check.floating("edge_query", edge_query)
    _check.floating("edge_attr", edge_attr)
    _check.rank("edge_attr", edge_attr, "E, De")
    width = edge_attr.size(1)
    _check.shape("edge_attr", edge_attr, "E, De", (num_edges, width))
    _check.shape("edge_query", edge_query, "N_dst, H, De", (q.size(0), q.size(1), width))
    if not 1 <= width <= 256:
        raise ValueError(f"edge_attr must have a width of 1 .. 256, got {width}")
    _check.same_dtype("edge_query", edge_query, "q", q)
    _check.same_dtype("edge_attr", edge_attr, "q", q)


def _check_prefix(
    prefix_k: Tensor | None, prefix_v: Tensor | None, q: Tensor, v: Tensor, return_scores: bool
) -> Prefix | None:
    if prefix_k is None and prefix_v is None:
        return None
    for name, value in (("prefix_k", prefix_k), ("prefix_v", prefix_v)):
        if value is None:
            raise ValueError(f"{name} must be given too: prefix_k and prefix_v work as a pair")
        _check.floating(name, value)
    assert prefix_k is not None and prefix_v is not None
    _check.rank("prefix_k", prefix_k, "P, H, D")
    slots = prefix_k.size(0)
    _check.shape("prefix_k", prefix_k, "P, H, D", (slots, q.size(1), q.size(2)))
    _check.shape("prefix_v", prefix_v, "P, H, Dv", (slots, q.size(1), v.size(2)))
    _check.same_dtype("prefix_k", prefix_k, "q", q)
    _check.same_dtype("prefix_v", prefix_v, "q", q)
    if return_scores:
        raise ValueError("return_scores must be False with prefix_k: its scores belong to no edge")
    return Prefix(prefix_k, prefix_v)


def _prefix(k: Tensor | None, v: Tensor | None) -> Prefix | None:
    return None if k is None or v is None else Prefix(k, v)


_PREFIX_SCHEMA = "Tensor? prefix_k, Tensor? prefix_v"
torch.library.define(
    "gtkern::sparse_attention_fwd",
    f"(Tensor q, Tensor k, Tensor v, Tensor[] csr, Tensor[] csc, {TERMS_SCHEMA}, "
    f"{_PREFIX_SCHEMA}, {OPTIONS_SCHEMA}, bool return_scores, str backend) "
    f"-> ({', '.join(['Tensor'] * 4)})",
)
torch.library.define(
    "gtkern::sparse_attention_bwd",
    "(Tensor grad_out, Tensor? grad_edge_out, Tensor? grad_scores, Tensor q, Tensor k, Tensor v, "
    f"Tensor out, Tensor edge_out, Tensor lse, Tensor[] csr, Tensor[] csc, {TERMS_SCHEMA}, "
    f"{_PREFIX_SCHEMA}, {OPTIONS_SCHEMA}, bool[] needs, str backend) "
    f"-> ({', '.join(['Tensor'] * 11)})",
)


def _load(backend: str) -> Any:
    """What has `forward` and `backward` of a backend; triton is imported only here."""
    if backend == "triton":
        return importlib.import_module("gtkern.ops.sparse_attention.triton")
    return Native(backend)


@torch.library.impl("gtkern::sparse_attention_fwd", "CompositeExplicitAutograd")
def _forward(
    q: Tensor, k: Tensor, v: Tensor, csr: Sequence[Tensor], csc: Sequence[Tensor],
    key_table: Tensor | None, bias_table: Tensor | None,
    key_edge: Tensor | None, bias_edge: Tensor | None,
    edge_query: Tensor | None, edge_attr: Tensor | None,
    prefix_k: Tensor | None, prefix_v: Tensor | None,
    scale: float, clamp: float, temperature: float, dropout: float, eps: float,
    seed: Tensor | None, return_scores: bool, backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    terms = Terms(key_table, bias_table, key_edge, bias_edge, edge_query, edge_attr)
    options = _attention.options((scale, clamp, temperature, dropout, eps), seed)
    terms = _attention.widened(terms, q)
    result = _load(backend).forward(q, k, v, Adjacency(*csr), terms, options, return_scores)
    prefix = _prefix(prefix_k, prefix_v)
    if prefix is not None:
        result = prefixes.merge(result, q, prefix, csr[1].numel(), options)
    return tuple(result)


@torch.library.impl("gtkern::sparse_attention_bwd", "CompositeExplicitAutograd")
def _backward(
    grad_out: Tensor, grad_edge_out: Tensor | None, grad_scores: Tensor | None,
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, edge_out: Tensor, lse: Tensor,
    csr: Sequence[Tensor], csc: Sequence[Tensor],
    key_table: Tensor | None, bias_table: Tensor | None,
    key_edge: Tensor | None, bias_edge: Tensor | None,
    edge_query: Tensor | None, edge_attr: Tensor | None,
    prefix_k: Tensor | None, prefix_v: Tensor | None,
    scale: float, clamp: float, temperature: float, dropout: float, eps: float,
    seed: Tensor | None, needs: Sequence[bool], backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    terms = Terms(key_table, bias_table, key_edge, bias_edge, edge_query, edge_attr)
    options = _attention.options((scale, clamp, temperature, dropout, eps), seed)
    prefix = _prefix(prefix_k, prefix_v)
    grad_out = grad_out.contiguous()
    grad_edge_out = None if grad_edge_out is None else grad_edge_out.contiguous()
    wanted = Needs(*needs[:9])
    if any(wanted):
        gradients = _load(backend).backward(
            grad_out,
            grad_edge_out,
            None if grad_scores is None else grad_scores.contiguous(),
            q,
            k,
            v,
            out,
            edge_out,
            lse,
            Adjacency(*csr),
            Adjacency(*csc),
            _attention.widened(terms, q),
            options,
            wanted,
            prefix is not None,
        )
        gradients = _attention.narrowed(gradients, terms, wanted)
    else:
        gradients = Gradients(*(q.new_empty(0) for _ in wanted))
    mine = PrefixGradients(None, None)
    if prefix is not None and (wanted.q or any(needs[9:])):
        mine = prefixes.backward(
            grad_out,
            grad_edge_out,
            q,
            out,
            edge_out,
            lse,
            prefix,
            csr[1].numel(),
            options,
            gradients.q if wanted.q else None,
            (needs[9], needs[10]),
        )
    return (*gradients, *(q.new_empty(0) if each is None else each for each in mine))


@torch.library.register_fake("gtkern::sparse_attention_fwd")
def _forward_fake(
    q: Tensor, k: Tensor, v: Tensor, csr: Sequence[Tensor], csc: Sequence[Tensor],
    key_table: Tensor | None, bias_table: Tensor | None,
    key_edge: Tensor | None, bias_edge: Tensor | None,
    edge_query: Tensor | None, edge_attr: Tensor | None,
    prefix_k: Tensor | None, prefix_v: Tensor | None,
    scale: float, clamp: float, temperature: float, dropout: float, eps: float,
    seed: Tensor | None, return_scores: bool, backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    work = _attention.accumulation_dtype(q)
    num_dst, heads, _ = q.shape
    scores = (csr[1].numel(), heads) if return_scores else (0,)
    return (
        q.new_empty(num_dst, heads, v.size(2)),
        q.new_empty(0) if edge_query is None else torch.empty_like(edge_query),
        q.new_empty(num_dst, heads, dtype=work),
        q.new_empty(scores, dtype=work),
    )


@torch.library.register_fake("gtkern::sparse_attention_bwd")
def _backward_fake(
    grad_out: Tensor, grad_edge_out: Tensor | None, grad_scores: Tensor | None,
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, edge_out: Tensor, lse: Tensor,
    csr: Sequence[Tensor], csc: Sequence[Tensor],
    key_table: Tensor | None, bias_table: Tensor | None,
    key_edge: Tensor | None, bias_edge: Tensor | None,
    edge_query: Tensor | None, edge_attr: Tensor | None,
    prefix_k: Tensor | None, prefix_v: Tensor | None,
    scale: float, clamp: float, temperature: float, dropout: float, eps: float,
    seed: Tensor | None, needs: Sequence[bool], backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    inputs = (
        q, k, v, key_table, bias_table, key_edge, bias_edge, edge_query, edge_attr,
        prefix_k, prefix_v,
    )  # fmt: skip
    return tuple(
        torch.empty_like(tensor, memory_format=torch.contiguous_format)
        if needed and tensor is not None
        else q.new_empty(0)
        for tensor, needed in zip(inputs, needs, strict=True)
    )


# where the differentiable inputs stand in the forward schema: q, k, v, the six terms, the prefix
_DIFFERENTIABLE = (0, 1, 2, 5, 6, 7, 8, 9, 10, 11, 12)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, csr, csc = inputs[:5]
    out, edge_out, lse, _ = output
    ctx.save_for_backward(q, k, v, out, edge_out, lse, *csr, *csc, *inputs[5:13])
    ctx.num_csc = len(csc)
    ctx.options = inputs[13:19]
    ctx.return_scores = inputs[19]
    ctx.backend = inputs[20]


def _autograd(
    ctx: Any,
    grad_out: Tensor | None,
    grad_edge_out: Tensor | None,
    grad_lse: Tensor | None,
    grad_scores: Tensor | None,
) -> tuple[Any, ...]:
    q, k, v, out, edge_out, lse, *rest = ctx.saved_tensors
    csr, csc, terms = rest[:5], rest[5 : 5 + ctx.num_csc], rest[5 + ctx.num_csc :]
    needs = [bool(ctx.needs_input_grad[at]) for at in _DIFFERENTIABLE]
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    gradients = torch.ops.gtkern.sparse_attention_bwd(
        grad_out,
        grad_edge_out if terms[4] is not None else None,
        grad_scores if ctx.return_scores else None,
        q,
        k,
        v,
        out,
        edge_out,
        lse,
        csr,
        csc,
        *terms,
        *ctx.options,
        needs,
        ctx.backend,
    )
    result: list[Any] = [None] * 21
    result[3], result[4] = [None] * len(csr), [None] * len(csc)
    for at, needed, gradient in zip(_DIFFERENTIABLE, needs, gradients, strict=True):
        result[at] = gradient if needed else None
    return tuple(result)


torch.library.register_autograd(
    "gtkern::sparse_attention_fwd", _autograd, setup_context=_setup_context
)


def _refuse(ctx: Any, *gradients: Tensor) -> None:
    raise NotImplementedError(
        "sparse_attention's compiled backends have no second derivatives; use backend='reference'"
    )


torch.library.register_autograd("gtkern::sparse_attention_bwd", _refuse)
