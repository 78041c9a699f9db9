"""sampled_attention: the public function, its checks, and the torch.library ops behind it."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gtkern import _backends, _check
from gtkern.ops import _attention
from gtkern.ops._attention import OPTIONS_SCHEMA, TERMS_SCHEMA, Forward, Needs, Terms
from gtkern.ops.sampled_attention import reference
from gtkern.ops.sampled_attention.native import Native

__all__ = ["sampled_attention"]

BACKENDS = ("reference", "cpu", "triton", "cuda")
RELEASED = "spexphormer-release"


def sampled_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    neighbors: Tensor,
    *,
    edge_type: Tensor | None = None,
    scale: float | None = None,
    key_scale: Tensor | None = None,
    bias: Tensor | None = None,
    edge_query: Tensor | None = None,
    edge_attr: Tensor | None = None,
    clamp: float | None = None,
    temperature: float = 1.0,
    dropout: float = 0.0,
    seed: int | Tensor | None = None,
    normalization: str = "softmax",
    return_scores: bool = False,
    compat: str | None = None,
    backend: str = "auto",
) -> Any:
    r"""Softmax attention of every node over its K sampled neighbours.

    For node i, place m with neighbour j = neighbors[i, m], and head h::

        score = clamp((scale * (Σ_d q[i,h,d] key_scale[i,m,h,d] k[j,h,d]
                                + Σ_c edge_query[i,h,c] edge_attr[i,m,c])
                       + bias[i,m,h]) / temperature)
        a     = exp(score) / Σ_m exp(score)
        out   = Σ_m dropout(a) v[j,h]

    the sums running over the places that hold a neighbour. A repeated neighbour counts as often as
    it appears. A node without neighbours, or with every score at -inf, gets 0 and gives zero
    gradients.

    Args:
        q: [N_dst, H, D], float32, bfloat16, float16 or float64; D at most 256.
        k: [N_src, H, D], dtype of q.
        v: [N_src, H, Dv], dtype of q; Dv at most 256.
        neighbors: int32 [N_dst, K], 0 .. N_src - 1, or -1 for a place that holds none. On a GPU
            the values are not checked.
        edge_type: uint8 [N_dst, K]; selects the row of key_scale and bias. It must be below their
            T; on a GPU this is not checked.
        scale: multiplies the products; default D ** -0.5.
        key_scale: default 1. By edge type [T, H, D] or [T, H, 1], or by place [N_dst, K, H, D] or
            [N_dst, K, H, 1].
        bias: default 0. By edge type [T, H] or by place [N_dst, K, H].
        edge_query: [N_dst, H, De], dtype of q; needs edge_attr.
        edge_attr: [N_dst, K, De], dtype of q; needs edge_query. With the pair, the attended
            edge_attr is returned too.
        clamp: c > 0 holds scores in [-c, c], with zero gradient outside.
        temperature: > 0.
        dropout: probability in [0, 1) that a normalised score is set to 0, the others growing by
            1 / (1 - dropout).
        seed: 64-bit integer or 0-d int64 CPU tensor of the dropout mask; default: drawn from
            torch's generator. Place (i, m) counts as edge i * K + m.
        normalization: "softmax", or "exphormer": exp(score) / (Σ exp(score) + 1e-6).
        return_scores: also return the normalised scores a.
        compat: "spexphormer-release" computes the products of q and k as the released code of
            Spexphormer does, which mixes heads with places where H > 1 (README.md): for running
            its checkpoints. Reference backend only.
        backend: "auto", "reference", "cpu", "triton" or "cuda"; a named one never falls back.

    Returns:
        out [N_dst, H, Dv]; then, where asked for, Σ dropout(a) edge_attr [N_dst, H, De] (with
        edge_attr) and a [N_dst, K, H], before dropout, 0 at empty places, float32 or wider (with
        return_scores). One result comes bare, several as a tuple.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape, dtype, device or range.
        NotImplementedError: the named backend cannot run here.

    Reference: Shirzad et al. 2024 (Spexphormer), section 4.
    """
    _check_inputs(q, k, v, neighbors, edge_type)
    heads, width = q.size(1), q.size(2)
    places = [*neighbors.shape]
    key_table, key_edge = _by_type_or_place("key_scale", key_scale, places, (heads, width))
    bias_table, bias_edge = _by_type_or_place("bias", bias, places, (heads,))
    _check_edge_pair(edge_query, edge_attr, q, places)
    _check.same_device(
        q=q,
        k=k,
        v=v,
        neighbors=neighbors,
        edge_type=edge_type,
        key_scale=key_scale,
        bias=bias,
        edge_query=edge_query,
        edge_attr=edge_attr,
    )
    _check.flag("return_scores", return_scores)
    numbers = _attention.numbers(width, scale, clamp, temperature, dropout, normalization)
    chosen = _resolve(backend, compat, q)
    terms = Terms(key_table, bias_table, key_edge, bias_edge, edge_query, edge_attr)
    seed_tensor = _check.seed("seed", seed) if dropout > 0 else None
    types = _types(edge_type, neighbors)

    if chosen == "reference":
        if not torch.compiler.is_compiling():
            _check_values(neighbors, types, k.size(0), terms)
        result = reference.forward(
            q,
            k,
            v,
            neighbors,
            types,
            terms,
            _attention.options(numbers, seed_tensor),
            return_scores,
            released=compat is not None,
        )
    else:
        result = Forward(
            *torch.ops.gtkern.sampled_attention_fwd(
                q.contiguous(),
                k.contiguous(),
                v.contiguous(),
                neighbors.contiguous(),
                types,
                *(None if term is None else term.contiguous() for term in terms),
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


def _check_inputs(
    q: Tensor, k: Tensor, v: Tensor, neighbors: Tensor, edge_type: Tensor | None
) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        _check.floating(name, tensor)
    _check.tensor("neighbors", neighbors)
    if neighbors.dtype != torch.int32:
        raise TypeError(f"neighbors must be int32, got {neighbors.dtype}")
    _check.rank("q", q, "N_dst, H, D")
    _check.rank("k", k, "N_src, H, D")
    _check.rank("v", v, "N_src, H, Dv")
    _check.rank("neighbors", neighbors, "N_dst, K")
    num_dst, heads, width = q.shape
    num_src = k.size(0)
    _check.shape("k", k, "N_src, H, D", (num_src, heads, width))
    _check.shape("v", v, "N_src, H, Dv", (num_src, heads, v.size(2)))
    _check.shape("neighbors", neighbors, "N_dst, K", (num_dst, neighbors.size(1)))
    if edge_type is not None:
        _check.tensor("edge_type", edge_type)
        if edge_type.dtype != torch.uint8:
            raise TypeError(f"edge_type must be uint8, got {edge_type.dtype}")
        _check.shape("edge_type", edge_type, "N_dst, K", neighbors.shape)
    _check.same_dtype("k", k, "q", q)
    _check.same_dtype("v", v, "q", q)
    if heads < 1:
        raise ValueError("q must have at least 1 head, got 0")
    for name, size in (("q", width), ("v", v.size(2))):
        if not 1 <= size <= 256:
            raise ValueError(f"{name} must have a head width of 1 .. 256, got {size}")


def _by_type_or_place(
    name: str,
    value: Tensor | None,
    places: list[int],
    tail: tuple[int, ...],
) -> tuple[Tensor | None, Tensor | None]:
    """Tell a table by edge type from a tensor by place; one of the two results is None."""
    if value is None:
        return None, None
    _check.floating(name, value)
    by_type = value.dim() == 1 + len(tail)
    lead = [*value.shape[:1]] if by_type else places
    shapes = [[*lead, *tail], [*lead, *tail[:-1], 1]] if len(tail) == 2 else [[*lead, *tail]]
    if [*value.shape] not in shapes:
        letters = "H" if len(tail) == 1 else "H, D"
        raise ValueError(
            f"{name} must have shape [T, {letters}] (by edge type) or [N_dst, K, {letters}] (by "
            f"place) with N_dst, K = {places} and {letters} = {list(tail)}, got {[*value.shape]}"
        )
    if by_type and not lead[0]:
        raise ValueError(f"{name} must have a row for at least 1 edge type, got 0")
    return (value, None) if by_type else (None, value)


def _check_edge_pair(
    edge_query: Tensor | None, edge_attr: Tensor | None, q: Tensor, places: list[int]
) -> None:
    if edge_query is None and edge_attr is None:
        return
    if edge_query is None:
        raise ValueError("edge_query must be given too: edge_query and edge_attr work as a pair")
    if edge_attr is None:
        raise ValueError("edge_attr must be given too: edge_query and edge_attr work as a pair")
    _check.floating("edge_query", edge_query)
    _check.floating("edge_attr", edge_attr)
    _check.rank("edge_attr", edge_attr, "N_dst, K, De")
    width = edge_attr.size(2)
    _check.shape("edge_attr", edge_attr, "N_dst, K, De", (*places, width))
    _check.shape("edge_query", edge_query, "N_dst, H, De", (q.size(0), q.size(1), width))
    if not 1 <= width <= 256:
        raise ValueError(f"edge_attr must have a width of 1 .. 256, got {width}")
    _check.same_dtype("edge_query", edge_query, "q", q)
    _check.same_dtype("edge_attr", edge_attr, "q", q)


def _resolve(backend: str, compat: str | None, q: Tensor) -> str:
    if compat is None:
        return _backends.resolve("sampled_attention", backend, BACKENDS, q.device, q.dtype)
    if compat != RELEASED:
        raise ValueError(f"compat must be None or {RELEASED!r}, got {compat!r}")
    return _backends.resolve(
        f"sampled_attention with compat={RELEASED!r}",
        backend,
        ("reference",),
        q.device,
        q.dtype,
    )


def _types(edge_type: Tensor | None, neighbors: Tensor) -> Tensor:
    if edge_type is None:
        return neighbors.new_empty(0, dtype=torch.uint8)
    return edge_type.contiguous()


def _check_values(neighbors: Tensor, edge_type: Tensor, num_src: int, terms: Terms) -> None:
    """Check indices on the CPU; on a GPU it would wait for the device."""
    if neighbors.device.type != "cpu" or neighbors.numel() == 0:
        return
    low, high = (int(value) for value in torch.aminmax(neighbors))
    if low < -1 or high >= num_src:
        wrong = low if low < -1 else high
        raise ValueError(
            f"neighbors must be -1 (none) or 0 .. {num_src - 1} (N_src - 1), got {wrong}"
        )
    largest = None
    for name, table in (("key_scale", terms.key_table), ("bias", terms.bias_table)):
        if table is None or edge_type.numel() == 0:
            continue
        largest = int(edge_type.max()) if largest is None else largest
        if largest >= table.size(0):
            raise ValueError(
                f"edge_type must be 0 .. {table.size(0) - 1} (the rows of {name}), got {largest}"
            )


torch.library.define(
    "gtkern::sampled_attention_fwd",
    f"(Tensor q, Tensor k, Tensor v, Tensor neighbors, Tensor edge_type, {TERMS_SCHEMA}, "
    f"{OPTIONS_SCHEMA}, bool return_scores, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
)
torch.library.define(
    "gtkern::sampled_attention_bwd",
    "(Tensor grad_out, Tensor? grad_edge_out, Tensor? grad_scores, Tensor q, Tensor k, Tensor v, "
    f"Tensor out, Tensor edge_out, Tensor lse, Tensor neighbors, Tensor edge_type, {TERMS_SCHEMA}, "
    f"{OPTIONS_SCHEMA}, bool[] needs, str backend) -> ({', '.join(['Tensor'] * 9)})",
)


def _load(backend: str) -> Any:
    """What has `forward` and `backward` of a backend; triton is imported only here."""
    if backend == "triton":
        return importlib.import_module("gtkern.ops.sampled_attention.triton")
    return Native(backend)


@torch.library.impl("gtkern::sampled_attention_fwd", "CompositeExplicitAutograd")
def _forward(
    q: Tensor, k: Tensor, v: Tensor, neighbors: Tensor, edge_type: Tensor,
    key_table: Tensor | None, bias_table: Tensor | None,
    key_edge: Tensor | None, bias_edge: Tensor | None,
    edge_query: Tensor | None, edge_attr: Tensor | None,
    scale: float, clamp: float, temperature: float, dropout: float, eps: float,
    seed: Tensor | None, return_scores: bool, backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    terms = Terms(key_table, bias_table, key_edge, bias_edge, edge_query, edge_attr)
    _check_values(neighbors, edge_type, k.size(0), terms)
    options = _attention.options((scale, clamp, temperature, dropout, eps), seed)
    terms = _attention.widened(terms, q)
    return tuple(
        _load(backend).forward(q, k, v, neighbors, edge_type, terms, options, return_scores)
    )


@torch.library.impl("gtkern::sampled_attention_bwd", "CompositeExplicitAutograd")
def _backward(
    grad_out: Tensor, grad_edge_out: Tensor | None, grad_scores: Tensor | None,
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, edge_out: Tensor, lse: Tensor,
    neighbors: Tensor, edge_type: Tensor,
    key_table: Tensor | None, bias_table: Tensor | None,
    key_edge: Tensor | None, bias_edge: Tensor | None,
    edge_query: Tensor | None, edge_attr: Tensor | None,
    scale: float, clamp: float, temperature: float, dropout: float, eps: float,
    seed: Tensor | None, needs: Sequence[bool], backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    terms = Terms(key_table, bias_table, key_edge, bias_edge, edge_query, edge_attr)
    options = _attention.options((scale, clamp, temperature, dropout, eps), seed)
    gradients = _load(backend).backward(
        grad_out.contiguous(),
        None if grad_edge_out is None else grad_edge_out.contiguous(),
        None if grad_scores is None else grad_scores.contiguous(),
        q,
        k,
        v,
        out,
        edge_out,
        lse,
        neighbors,
        edge_type,
        _attention.widened(terms, q),
        options,
        Needs(*needs),
    )
    return tuple(_attention.narrowed(gradients, terms, Needs(*needs)))


@torch.library.register_fake("gtkern::sampled_attention_fwd")
def _forward_fake(
    q: Tensor, k: Tensor, v: Tensor, neighbors: Tensor, edge_type: Tensor,
    key_table: Tensor | None, bias_table: Tensor | None,
    key_edge: Tensor | None, bias_edge: Tensor | None,
    edge_query: Tensor | None, edge_attr: Tensor | None,
    scale: float, clamp: float, temperature: float, dropout: float, eps: float,
    seed: Tensor | None, return_scores: bool, backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    work = _attention.accumulation_dtype(q)
    num_dst, heads, _ = q.shape
    scores = (num_dst, neighbors.size(1), heads) if return_scores else (0,)
    return (
        q.new_empty(num_dst, heads, v.size(2)),
        q.new_empty(0) if edge_query is None else torch.empty_like(edge_query),
        q.new_empty(num_dst, heads, dtype=work),
        q.new_empty(scores, dtype=work),
    )


@torch.library.register_fake("gtkern::sampled_attention_bwd")
def _backward_fake(
    grad_out: Tensor, grad_edge_out: Tensor | None, grad_scores: Tensor | None,
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, edge_out: Tensor, lse: Tensor,
    neighbors: Tensor, edge_type: Tensor,
    key_table: Tensor | None, bias_table: Tensor | None,
    key_edge: Tensor | None, bias_edge: Tensor | None,
    edge_query: Tensor | None, edge_attr: Tensor | None,
    scale: float, clamp: float, temperature: float, dropout: float, eps: float,
    seed: Tensor | None, needs: Sequence[bool], backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    inputs = (q, k, v, key_table, bias_table, key_edge, bias_edge, edge_query, edge_attr)
    return tuple(
        torch.empty_like(tensor) if needed and tensor is not None else q.new_empty(0)
        for tensor, needed in zip(inputs, needs, strict=True)
    )


# where the differentiable inputs stand in the forward schema: q, k, v, then the six terms
_DIFFERENTIABLE = (0, 1, 2, 5, 6, 7, 8, 9, 10)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    out, edge_out, lse, _ = output
    ctx.save_for_backward(out, edge_out, lse, *inputs[:11])
    ctx.options = inputs[11:17]
    ctx.return_scores = inputs[17]
    ctx.backend = inputs[18]


def _autograd(
    ctx: Any,
    grad_out: Tensor | None,
    grad_edge_out: Tensor | None,
    grad_lse: Tensor | None,
    grad_scores: Tensor | None,
) -> tuple[Any, ...]:
    out, edge_out, lse, q, k, v, neighbors, edge_type, *terms = ctx.saved_tensors
    needs = [bool(ctx.needs_input_grad[at]) for at in _DIFFERENTIABLE]
    gradients = torch.ops.gtkern.sampled_attention_bwd(
        torch.zeros_like(out) if grad_out is None else grad_out,
        grad_edge_out if terms[4] is not None else None,
        grad_scores if ctx.return_scores else None,
        q,
        k,
        v,
        out,
        edge_out,
        lse,
        neighbors,
        edge_type,
        *terms,
        *ctx.options,
        needs,
        ctx.backend,
    )
    result: list[Any] = [None] * 19
    for at, needed, gradient in zip(_DIFFERENTIABLE, needs, gradients, strict=True):
        result[at] = gradient if needed else None
    return tuple(result)


torch.library.register_autograd(
    "gtkern::sampled_attention_fwd", _autograd, setup_context=_setup_context
)


def _refuse(ctx: Any, *gradients: Tensor) -> None:
    raise NotImplementedError(
        "sampled_attention's compiled backends have no second derivatives; use backend='reference'"
    )


torch.library.register_autograd("gtkern::sampled_attention_bwd", _refuse)
