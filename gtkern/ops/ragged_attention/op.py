"""ragged_attention: the public function, its checks, and the torch.library ops behind it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gtkern import _backends, _check
from gtkern.ops.ragged_attention import reference
from gtkern.ops.ragged_attention.call import Batch, Bias, Needs, Options, Prefix
from gtkern.ops.ragged_attention.native import Native
from gtkern.ragged import PairIndex, Ragged

__all__ = ["ragged_attention"]

BACKENDS = ("reference", "cpu", "triton", "cuda")


def ragged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ragged: Ragged,
    *,
    bias: Sequence[tuple[PairIndex, Tensor]] = (),
    prefix_k: Tensor | None = None,
    prefix_v: Tensor | None = None,
    prefix_set: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    seed: int | Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    r"""Dense attention inside each graph of a packed batch: no padding, no n² tensor.

    For query i and a key j of the same graph, and head h::

        score = scale * Σ_d q[i,h,d] k[j,h,d] + Σ_m table_m[index_m[i,j], h]
        a     = exp(score) / Σ exp(score)
        out   = Σ dropout(a) v[j,h]

    the sums running over the keys of i's graph that no index masks for i, and over the prefix,
    whose scores have no bias. A query without keys gets 0 and gives zero gradients.

    Args:
        q: [N, H, D], float32, bfloat16, float16 or float64; D at most 256.
        k: [N, H, D], dtype of q.
        v: [N, H, Dv], dtype of q; Dv at most 256.
        ragged: which rows belong to which graph; N of them.
        bias: pairs (index, table): for every pair of nodes a row of a table [B, H], B at least
            index.num_entries. All tables have one dtype: that of q, or float32.
        prefix_k: [P, H, D], dtype of q: keys that every query of the batch sees; needs prefix_v.
            With prefix_set, S sets of them: [S, P, H, D].
        prefix_v: [P, H, Dv], dtype of q; with prefix_set [S, P, H, Dv].
        prefix_set: int64 [G], which of the sets 0 .. S - 1 the queries of each graph see; -1: none.
            Another number is an error on a CPU. On a GPU, and in compiled code, values are not read
            back, and such a number counts as -1.
        scale: multiplies the products; default D ** -0.5.
        dropout: probability in [0, 1) that a normalised score is set to 0, the others growing by
            1 / (1 - dropout).
        seed: 64-bit integer or 0-d int64 CPU tensor of the dropout mask; default: drawn from
            torch's generator.
        backend: "auto", "reference", "cpu", "triton" or "cuda"; a named one never falls back.

    Returns:
        [N, H, Dv], dtype of q. A NaN in a row of q reaches that row alone, one in k or v the rows
        of its graph.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape, dtype, device or range.
        NotImplementedError: the named backend cannot run here.

    Reference: Vaswani et al. 2017, eq. 1; the bias by table is that of Ying et al. 2021
    (Graphormer), section 3.1.2; the prefix that of Li and Liang 2021, section 4.
    """
    _check_inputs(q, k, v, ragged)
    indices, tables = _check_bias(bias, q, ragged)
    _check_prefix(prefix_k, prefix_v, prefix_set, q, v, ragged)
    names = {f"bias[{at}]": table for at, table in enumerate(tables)}
    _check.same_device(q=q, k=k, v=v, ragged=ragged.ptr, **names, prefix_k=prefix_k,
                       prefix_v=prefix_v, prefix_set=prefix_set)  # fmt: skip
    prefix = Prefix(prefix_k, prefix_v, _row_set(prefix_k, prefix_set, ragged))
    largest = sys.float_info.max
    factor = (
        q.size(2) ** -0.5 if scale is None else _check.number("scale", scale, -largest, largest)
    )
    dropout = _check.dropout(dropout)
    chosen = _backends.resolve("ragged_attention", backend, BACKENDS, q.device, q.dtype)
    seed_tensor = _check.seed("seed", seed) if dropout > 0 else None

    table, first_row = None, []
    if tables:
        rows = 0
        for each in tables:
            first_row.append(rows)
            rows += each.size(0)
        table = tables[0] if len(tables) == 1 else torch.cat(tables)
    index = [each.index for each in indices]
    if chosen == "reference":
        options = _options(factor, dropout, seed_tensor)
        stacked = Bias(index, table, first_row)
        return reference.forward(q, k, v, ragged, stacked, prefix, options).out
    out: Tensor = torch.ops.gtkern.ragged_attention_fwd(
        *(
            rows if chosen == "cpu" and _whole_rows(rows) else rows.contiguous()
            for rows in (q, k, v)
        ),
        ragged.ptr,
        ragged.pair_ptr,
        ragged.max_nodes,
        index,
        None if table is None else table.contiguous(),
        first_row,
        *(None if part is None else part.contiguous() for part in prefix),
        factor,
        dropout,
        seed_tensor,
        chosen,
    )[0]
    return out


def _check_inputs(q: Tensor, k: Tensor, v: Tensor, ragged: Ragged) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        _check.floating(name, tensor)
    if not isinstance(ragged, Ragged):
        raise TypeError(f"ragged must be a Ragged, got {type(ragged).__name__}")
    _check.rank("q", q, "N, H, D")
    _check.rank("v", v, "N, H, Dv")
    nodes, heads, width = q.shape
    if nodes != ragged.num_nodes:
        raise ValueError(f"q must have {ragged.num_nodes} rows (ragged.num_nodes), got {nodes}")
    _check.shape("k", k, "N, H, D", (nodes, heads, width))
    _check.shape("v", v, "N, H, Dv", (nodes, heads, v.size(2)))
    _check.same_dtype("k", k, "q", q)
    _check.same_dtype("v", v, "q", q)
    if heads < 1:
        raise ValueError("q must have at least 1 head, got 0")
    for name, size in (("q", width), ("v", v.size(2))):
        if not 1 <= size <= 256:
            raise ValueError(f"{name} must have a head width of 1 .. 256, got {size}")


def _check_bias(
    bias: Sequence[tuple[PairIndex, Tensor]], q: Tensor, ragged: Ragged
) -> tuple[list[PairIndex], list[Tensor]]:
    indices: list[PairIndex] = []
    tables: list[Tensor] = []
    if isinstance(bias, PairIndex) or not isinstance(bias, Sequence):
        raise TypeError(f"bias must be a sequence of (index, table), got {type(bias).__name__}")
    for at, each in enumerate(bias):
        if not isinstance(each, Sequence) or len(each) != 2:
            raise TypeError(f"bias[{at}] must be a pair (index, table), got {type(each).__name__}")
        index, table = each
        if not isinstance(index, PairIndex):
            raise TypeError(f"bias[{at}][0] must be a PairIndex, got {type(index).__name__}")
        if index.num_pairs != ragged.num_pairs:
            raise ValueError(
                f"bias[{at}][0] must have {ragged.num_pairs} pairs (ragged.num_pairs), "
                f"got {index.num_pairs}"
            )
        if index.device != ragged.device:
            raise ValueError(
                f"bias[{at}][0] must be on the device of ragged ({ragged.device}), "
                f"got {index.device}"
            )
        name = f"bias[{at}][1]"
        _check.floating(name, table)
        if table.dtype not in (q.dtype, torch.float32):
            raise TypeError(
                f"{name} must have the dtype of q ({q.dtype}) or float32, got {table.dtype}"
            )
        if tables:
            _check.same_dtype(name, table, "bias[0][1]", tables[0])
        _check.rank(name, table, "B, H")
        if table.size(0) < index.num_entries or table.size(1) != q.size(1):
            raise ValueError(
                f"{name} must have shape [B, H] with B at least {index.num_entries} "
                f"(num_entries of its index) and H = {q.size(1)}, got {list(table.shape)}"
            )
        indices.append(index)
        tables.append(table)
    return indices, tables


def _check_prefix(
    prefix_k: Tensor | None,
    prefix_v: Tensor | None,
    prefix_set: Tensor | None,
    q: Tensor,
    v: Tensor,
    ragged: Ragged,
) -> None:
    if prefix_k is None and prefix_v is None:
        if prefix_set is not None:
            raise ValueError("prefix_k and prefix_v must be given too: prefix_set chooses of them")
        return
    if prefix_k is None:
        raise ValueError("prefix_k must be given too: prefix_k and prefix_v work as a pair")
    if prefix_v is None:
        raise ValueError("prefix_v must be given too: prefix_k and prefix_v work as a pair")
    _check.floating("prefix_k", prefix_k)
    _check.floating("prefix_v", prefix_v)
    axes = "P" if prefix_set is None else "S, P"
    _check.rank("prefix_k", prefix_k, f"{axes}, H, D")
    slots = prefix_k.shape[:-2]
    _check.shape("prefix_k", prefix_k, f"{axes}, H, D", (*slots, q.size(1), q.size(2)))
    _check.shape("prefix_v", prefix_v, f"{axes}, H, Dv", (*slots, q.size(1), v.size(2)))
    _check.same_dtype("prefix_k", prefix_k, "q", q)
    _check.same_dtype("prefix_v", prefix_v, "q", q)
    if prefix_set is None:
        return
    _check.tensor("prefix_set", prefix_set)
    if prefix_set.dtype != torch.int64:
        raise TypeError(f"prefix_set must be int64, got {prefix_set.dtype}")
    _check.shape("prefix_set", prefix_set, "G", (ragged.num_graphs,))
    if prefix_k.size(0) < 1:
        raise ValueError("prefix_k must have at least 1 set, got 0")


def _row_set(prefix_k: Tensor | None, prefix_set: Tensor | None, ragged: Ragged) -> Tensor | None:
    """See Prefix.row_set."""
    if prefix_k is None or prefix_set is None:
        return None
    if prefix_set.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = prefix_set[(prefix_set < -1) | (prefix_set >= prefix_k.size(0))]
        if wrong.numel():
            raise ValueError(
                f"prefix_set must be -1 .. {prefix_k.size(0) - 1} (sets - 1), got {int(wrong[0])}"
            )
    return prefix_set.index_select(0, ragged.batch())


def _whole_rows(rows: Tensor) -> bool:
    """Whether only the rows lie apart, as in parts of one projection: the CPU kernels read such."""
    return rows.stride(2) == 1 and rows.stride(1) == rows.size(2) and rows.stride(0) > 0


def _options(scale: float, dropout: float, seed: Tensor | None) -> Options:
    return Options(scale, dropout, 0 if seed is None else int(seed))


_INPUTS = (
    "Tensor ptr, Tensor pair_ptr, SymInt max_nodes, Tensor[] index, Tensor? table, "
    "SymInt[] first_row, Tensor? prefix_k, Tensor? prefix_v, Tensor? row_set, float scale, "
    "float dropout, Tensor? seed"
)
torch.library.define(
    "gtkern::ragged_attention_fwd",
    f"(Tensor q, Tensor k, Tensor v, {_INPUTS}, str backend) -> (Tensor, Tensor)",
)
torch.library.define(
    "gtkern::ragged_attention_bwd",
    "(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
    f"{_INPUTS}, bool[] needs, str backend) -> ({', '.join(['Tensor'] * 6)})",
)


def _load(backend: str) -> Any:
    """What has `forward` and `backward` of a backend; triton is imported only here."""
    if backend == "triton":
        return importlib.import_module("gtkern.ops.ragged_attention.triton")
    return Native(backend)


def _accumulation_dtype(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def _bias(
    index: Sequence[Tensor], table: Tensor | None, first_row: Sequence[int], q: Tensor
) -> Bias:
    wide = None if table is None else table.to(_accumulation_dtype(q)).contiguous()
    return Bias(index, wide, first_row)


@torch.library.impl("gtkern::ragged_attention_fwd", "CompositeExplicitAutograd")
def _forward(
    q: Tensor, k: Tensor, v: Tensor, ptr: Tensor, pair_ptr: Tensor, max_nodes: int,
    index: Sequence[Tensor], table: Tensor | None, first_row: Sequence[int],
    prefix_k: Tensor | None, prefix_v: Tensor | None, row_set: Tensor | None,
    scale: float, dropout: float, seed: Tensor | None, backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    return tuple(
        _load(backend).forward(
            q,
            k,
            v,
            Batch(ptr, pair_ptr, max_nodes),
            _bias(index, table, first_row, q),
            Prefix(prefix_k, prefix_v, row_set),
            _options(scale, dropout, seed),
        )
    )


@torch.library.impl("gtkern::ragged_attention_bwd", "CompositeExplicitAutograd")
def _backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    ptr: Tensor, pair_ptr: Tensor, max_nodes: int,
    index: Sequence[Tensor], table: Tensor | None, first_row: Sequence[int],
    prefix_k: Tensor | None, prefix_v: Tensor | None, row_set: Tensor | None,
    scale: float, dropout: float, seed: Tensor | None, needs: Sequence[bool], backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    gradients = _load(backend).backward(
        grad_out.contiguous(),
        q,
        k,
        v,
        out,
        lse,
        Batch(ptr, pair_ptr, max_nodes),
        _bias(index, table, first_row, q),
        Prefix(prefix_k, prefix_v, row_set),
        _options(scale, dropout, seed),
        Needs(*needs),
    )
    if table is not None:
        gradients = gradients._replace(table=gradients.table.to(table.dtype))
    return tuple(gradients)


@torch.library.register_fake("gtkern::ragged_attention_fwd")
def _forward_fake(
    q: Tensor, k: Tensor, v: Tensor, ptr: Tensor, pair_ptr: Tensor, max_nodes: int,
    index: Sequence[Tensor], table: Tensor | None, first_row: Sequence[int],
    prefix_k: Tensor | None, prefix_v: Tensor | None, row_set: Tensor | None,
    scale: float, dropout: float, seed: Tensor | None, backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    nodes, heads, _ = q.shape
    return (
        q.new_empty(nodes, heads, v.size(2)),
        q.new_empty(nodes, heads, dtype=_accumulation_dtype(q)),
    )


@torch.library.register_fake("gtkern::ragged_attention_bwd")
def _backward_fake(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    ptr: Tensor, pair_ptr: Tensor, max_nodes: int,
    index: Sequence[Tensor], table: Tensor | None, first_row: Sequence[int],
    prefix_k: Tensor | None, prefix_v: Tensor | None, row_set: Tensor | None,
    scale: float, dropout: float, seed: Tensor | None, needs: Sequence[bool], backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    inputs = (q, k, v, table, prefix_k, prefix_v)
    return tuple(
        torch.empty_like(tensor, memory_format=torch.contiguous_format)
        if needed and tensor is not None
        else q.new_empty(0, dtype=table.dtype if tensor is table and table is not None else q.dtype)
        for tensor, needed in zip(inputs, needs, strict=True)
    )


# where the differentiable inputs stand in the forward schema: q, k, v, table, prefix_k, prefix_v
_DIFFERENTIABLE = (0, 1, 2, 7, 9, 10)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, ptr, pair_ptr, max_nodes, index, table, first_row, *prefix = inputs[:12]
    out, lse = output
    *ctx.options, ctx.backend = inputs[12:]
    if ctx.backend == "cpu":
        # its backward reads no output; kept, it would outlive the layer that takes it
        out = out.new_empty(0)
    ctx.save_for_backward(out, lse, q, k, v, ptr, pair_ptr, table, *prefix, *index)
    ctx.max_nodes, ctx.first_row = max_nodes, first_row


def _autograd(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
    out, lse, q, k, v, ptr, pair_ptr, table, *rest = ctx.saved_tensors
    prefix, index = rest[:3], rest[3:]
    needs = [bool(ctx.needs_input_grad[at]) for at in _DIFFERENTIABLE]
    gradients = torch.ops.gtkern.ragged_attention_bwd(
        torch.zeros_like(v) if grad_out is None else grad_out,
        q,
        k,
        v,
        out,
        lse,
        ptr,
        pair_ptr,
        ctx.max_nodes,
        index,
        table,
        ctx.first_row,
        *prefix,
        *ctx.options,
        needs,
        ctx.backend,
    )
    result: list[Any] = [None] * 16
    for at, needed, gradient in zip(_DIFFERENTIABLE, needs, gradients, strict=True):
        result[at] = gradient if needed else None
    # the place of a list of tensors takes a list; an empty list of numbers passes for one too
    result[6] = [None] * len(index)
    result[8] = None if ctx.first_row else []
    return tuple(result)


torch.library.register_autograd(
    "gtkern::ragged_attention_fwd", _autograd, setup_context=_setup_context
)


def _refuse(ctx: Any, *gradients: Tensor) -> None:
    raise NotImplementedError(
        "ragged_attention's compiled backends have no second derivatives; use backend='reference'"
    )


torch.library.register_autograd("gtkern::ragged_attention_bwd", _refuse)
