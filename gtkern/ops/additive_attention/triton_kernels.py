"""The Triton kernels of additive_attention; triton.py launches them.

A program owns BLOCK_R rows and BLOCK_H heads, walks the rows' edges side by side in tiles of
BLOCK_R x BLOCK_E places, and alone writes its results: no atomics. Running maxima and sums are kept
for each place of a tile, and meet across places only once, after the last tile. A heavy row is one
program's too, however long it takes. Addresses are int64.
"""
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from gtkern.ops._triton import (
    LN2,
    LOG2E,
    keep_factor,
    load_edges,
    load_heads,
    load_pairs,
    store_heads,
    store_pairs,
)
from gtkern.ops._triton_attention_kernels import row_range, slots_of, sum_heads, sum_pairs

NO_ROW_IS_HEAVY = tl.constexpr(2**62)
"""Edges of a row from which on it would be somebody else's."""


@triton.jit
def _rows(first, count, ptr_ptr, H: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr):
    """Row, first and last edge and heads of the places of a tile of rows from `first` on."""
    slot = slots_of(first, BLOCK_R, BLOCK_E)
    return row_range(slot, count, ptr_ptr, 0, None, H, False, NO_ROW_IS_HEAVY)


@triton.jit
def _store_sums(
    to_ptr, tile, first, rows, offs_h, offs_d, H: tl.constexpr, D: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Sum the places [R * E, H, D] of each row, into rows of [*, H, D]."""
    row = first + tl.arange(0, BLOCK_R)
    mask = (row < rows)[:, None] & (offs_h < H)[None, :]
    tile = sum_heads(tile, BLOCK_R, BLOCK_E, BLOCK_H, BLOCK_D)
    store_heads(to_ptr, row, offs_h, offs_d, mask, tile, H, D)


@triton.jit
def _vector(attention_ptr, offs_h, offs_d, H: tl.constexpr, D: tl.constexpr):
    """The vector of a program's heads: [1, H, D]."""
    mask_h = (offs_h < H)[None, :]
    return load_heads(attention_ptr, tl.arange(0, 1), offs_h, offs_d, mask_h, H, D)


@triton.jit
def _leaky(x, slope):
    return tl.where(x > 0, x, slope * x)


@triton.jit
def _add_attr(
    x, edge_attr_ptr, edge, offs_h, offs_d, mask_eh, H: tl.constexpr, D: tl.constexpr
):  # fmt: skip
    """`x` [E, H, D], more by the edges' own rows where there are any."""
    if edge_attr_ptr is not None:
        x += load_heads(edge_attr_ptr, edge, offs_h, offs_d, mask_eh, H, D)
    return x


@triton.jit(do_not_specialize=["rows", "threshold", "seed"])
def additive_forward_kernel(
    q_ptr, k_ptr, v_ptr, attention_ptr, edge_attr_ptr, ptr_ptr, index_ptr, edge_id_ptr,
    out_ptr, lse_ptr, scores_ptr, rows, slope, threshold, keep_scale, seed,
    H: tl.constexpr, D: tl.constexpr, DROPOUT: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Attention of rows. The scores written here are not yet normalised."""
    first = tl.program_id(0).to(tl.int64) * BLOCK_R
    row, begin, end, heads = _rows(first, rows, ptr_ptr, H, BLOCK_R, BLOCK_E)
    longest = tl.max(end - begin, 0)
    lane = tl.arange(0, BLOCK_R * BLOCK_E) % BLOCK_E
    first_head = tl.program_id(1) * BLOCK_H
    offs_h, offs_d = first_head + tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_D)
    mask_h = offs_h[None, :] < heads[:, None]
    query = load_heads(q_ptr, row, offs_h, offs_d, mask_h, H, D)
    attention = _vector(attention_ptr, offs_h, offs_d, H, D)
    peak = tl.full([BLOCK_R * BLOCK_E, BLOCK_H], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_R * BLOCK_E, BLOCK_H], tl.float32)
    out = tl.zeros([BLOCK_R * BLOCK_E, BLOCK_H, BLOCK_D], tl.float32)
    for start in range(0, longest, BLOCK_E):
        offs_e = begin + start + lane
        other, edge, _, mask_e = load_edges(index_ptr, edge_id_ptr, None, offs_e, offs_e < end)
        mask_eh = mask_e[:, None] & mask_h
        value = load_heads(k_ptr, other, offs_h, offs_d, mask_eh, H, D)
        x = _add_attr(query + value, edge_attr_ptr, edge, offs_h, offs_d, mask_eh, H, D)
        if v_ptr is not None:
            value = load_heads(v_ptr, other, offs_h, offs_d, mask_eh, H, D)
        score = tl.sum(attention * _leaky(x, slope), 2)
        score = tl.where(mask_eh, score, float("-inf"))
        if scores_ptr is not None:
            store_pairs(scores_ptr, edge, offs_h, mask_eh, score, H)
        score *= LOG2E
        higher = tl.maximum(peak, score)
        # a place without weight has no largest score; any finite stand-in gives exp2(-inf) = 0
        stand = tl.where(higher == float("-inf"), 0.0, higher)
        fade = tl.exp2(peak - stand)
        weight = tl.exp2(score - stand)
        total = total * fade + weight
        if DROPOUT:
            weight *= keep_factor(seed, edge, first_head, threshold, keep_scale, BLOCK_H)
        out = out * fade[:, :, None] + weight[:, :, None] * value
        peak = higher
    peak = tl.reshape(peak, [BLOCK_R, BLOCK_E, BLOCK_H])
    top = tl.max(peak, 1)  # [R, H]
    stand = tl.where(top == float("-inf"), 0.0, top)
    fade = tl.reshape(tl.exp2(peak - stand[:, None, :]), [BLOCK_R * BLOCK_E, BLOCK_H])
    total = sum_pairs(total * fade, BLOCK_R, BLOCK_E, BLOCK_H)
    divisor = tl.where(total == 0, 1.0, total)
    lse = tl.where(total == 0, float("-inf"), (stand + tl.log2(divisor)) * LN2)
    row = first + tl.arange(0, BLOCK_R)
    mask_h = (row < rows)[:, None] & (offs_h < H)[None, :]
    store_pairs(lse_ptr, row, offs_h, mask_h, lse, H)
    out = sum_heads(out * fade[:, :, None], BLOCK_R, BLOCK_E, BLOCK_H, BLOCK_D)
    store_heads(out_ptr, row, offs_h, offs_d, mask_h, out / divisor[:, :, None], H, D)


@triton.jit(do_not_specialize=["rows"])
def additive_delta_kernel(
    grad_out_ptr, grad_scores_ptr, q_ptr, k_ptr, attention_ptr, edge_attr_ptr,
    ptr_ptr, index_ptr, edge_id_ptr, out_ptr, lse_ptr, delta_ptr, rows, slope,
    H: tl.constexpr, D: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """delta = grad_out · out + Σ p grad_scores of rows."""
    first = tl.program_id(0).to(tl.int64) * BLOCK_R
    offs_h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    offs_d = tl.arange(0, BLOCK_D)
    place = first + tl.arange(0, BLOCK_R)
    mask = (place < rows)[:, None] & (offs_h < H)[None, :]
    grad_out = load_heads(grad_out_ptr, place, offs_h, offs_d, mask, H, D)
    delta = tl.sum(grad_out * load_heads(out_ptr, place, offs_h, offs_d, mask, H, D), 2)
    if grad_scores_ptr is not None:
        row, begin, end, heads = _rows(first, rows, ptr_ptr, H, BLOCK_R, BLOCK_E)
        longest = tl.max(end - begin, 0)
        lane = tl.arange(0, BLOCK_R * BLOCK_E) % BLOCK_E
        mask_h = offs_h[None, :] < heads[:, None]
        query = load_heads(q_ptr, row, offs_h, offs_d, mask_h, H, D)
        attention = _vector(attention_ptr, offs_h, offs_d, H, D)
        lse = load_pairs(lse_ptr, row, offs_h, mask_h, H)
        lse = tl.where(lse == float("-inf"), 0.0, lse)
        extra = tl.zeros([BLOCK_R * BLOCK_E, BLOCK_H], tl.float32)
        for start in range(0, longest, BLOCK_E):
            offs_e = begin + start + lane
            other, edge, _, mask_e = load_edges(index_ptr, edge_id_ptr, None, offs_e, offs_e < end)
            mask_eh = mask_e[:, None] & mask_h
            x = query + load_heads(k_ptr, other, offs_h, offs_d, mask_eh, H, D)
            x = _add_attr(x, edge_attr_ptr, edge, offs_h, offs_d, mask_eh, H, D)
            score = tl.sum(attention * _leaky(x, slope), 2)
            score = tl.where(mask_eh, score, float("-inf"))
            grad = load_pairs(grad_scores_ptr, edge, offs_h, mask_eh, H)
            extra += tl.exp2((score - lse) * LOG2E) * grad
        delta += sum_pairs(extra, BLOCK_R, BLOCK_E, BLOCK_H)
    store_pairs(delta_ptr, place, offs_h, mask, delta, H)


@triton.jit(do_not_specialize=["rows", "threshold", "seed"])
def additive_destination_kernel(
    grad_out_ptr, grad_scores_ptr, q_ptr, k_ptr, v_ptr, attention_ptr, edge_attr_ptr,
    ptr_ptr, index_ptr, edge_id_ptr, lse_ptr, delta_ptr,
    grad_q_ptr, grad_attention_ptr, grad_edge_attr_ptr,
    rows, slope, threshold, keep_scale, seed,
    H: tl.constexpr, D: tl.constexpr, DROPOUT: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradients of q and edge_attr over every num_programs-th tile of rows.

    The program's share of the vector's gradient is stored as its own partial.
    """
    first_head = tl.program_id(1) * BLOCK_H
    offs_h, offs_d = first_head + tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_D)
    attention = _vector(attention_ptr, offs_h, offs_d, H, D)
    grad_attention = tl.zeros([BLOCK_R * BLOCK_E, BLOCK_H, BLOCK_D], tl.float32)
    program = tl.program_id(0).to(tl.int64)
    for first in range(program * BLOCK_R, rows, tl.num_programs(0) * BLOCK_R):
        row, begin, end, heads = _rows(first, rows, ptr_ptr, H, BLOCK_R, BLOCK_E)
        longest = tl.max(end - begin, 0)
        lane = tl.arange(0, BLOCK_R * BLOCK_E) % BLOCK_E
        mask_h = offs_h[None, :] < heads[:, None]
        query = load_heads(q_ptr, row, offs_h, offs_d, mask_h, H, D)
        grad_out = load_heads(grad_out_ptr, row, offs_h, offs_d, mask_h, H, D)
        lse = load_pairs(lse_ptr, row, offs_h, mask_h, H)
        # a row of weight 0 has only scores of -inf, and exp2(-inf) = 0 with any finite stand-in
        lse = tl.where(lse == float("-inf"), 0.0, lse)
        delta = load_pairs(delta_ptr, row, offs_h, mask_h, H)
        grad_q = tl.zeros([BLOCK_R * BLOCK_E, BLOCK_H, BLOCK_D], tl.float32)
        for start in range(0, longest, BLOCK_E):
            offs_e = begin + start + lane
            other, edge, _, mask_e = load_edges(index_ptr, edge_id_ptr, None, offs_e, offs_e < end)
            mask_eh = mask_e[:, None] & mask_h
            value = load_heads(k_ptr, other, offs_h, offs_d, mask_eh, H, D)
            x = _add_attr(query + value, edge_attr_ptr, edge, offs_h, offs_d, mask_eh, H, D)
            if v_ptr is not None:
                value = load_heads(v_ptr, other, offs_h, offs_d, mask_eh, H, D)
            activated = _leaky(x, slope)
            score = tl.sum(attention * activated, 2)
            score = tl.where(mask_eh, score, float("-inf"))
            grad_p = tl.sum(value * grad_out, 2)
            if DROPOUT:
                grad_p *= keep_factor(seed, edge, first_head, threshold, keep_scale, BLOCK_H)
            if grad_scores_ptr is not None:
                grad_p += load_pairs(grad_scores_ptr, edge, offs_h, mask_eh, H)
            grad_score = tl.exp2((score - lse) * LOG2E) * (grad_p - delta)
            # a dead place adds nothing, even if its row is not finite
            grad_score = tl.where(mask_eh, grad_score, 0.0)
            activated = tl.where(mask_eh[:, :, None], activated, 0.0)
            grad_attention += grad_score[:, :, None] * activated
            grad_x = grad_score[:, :, None] * attention * tl.where(x > 0, 1.0, slope)
            grad_q += grad_x
            if grad_edge_attr_ptr is not None:
                store_heads(grad_edge_attr_ptr, edge, offs_h, offs_d, mask_eh, grad_x, H, D)
        if grad_q_ptr is not None:
            _store_sums(
                grad_q_ptr, grad_q, first, rows, offs_h, offs_d, H, D,
                BLOCK_R, BLOCK_E, BLOCK_H, BLOCK_D,
            )  # fmt: skip
    block = program + tl.arange(0, 1)
    grad_attention = tl.sum(grad_attention, 0, keep_dims=True)
    mask = (offs_h < H)[None, :]
    store_heads(grad_attention_ptr, block, offs_h, offs_d, mask, grad_attention, H, D)


@triton.jit(do_not_specialize=["rows", "threshold", "seed"])
def additive_source_kernel(
    grad_out_ptr, grad_scores_ptr, q_ptr, k_ptr, v_ptr, attention_ptr, edge_attr_ptr,
    ptr_ptr, index_ptr, edge_id_ptr, lse_ptr, delta_ptr, grad_k_ptr, grad_v_ptr,
    rows, slope, threshold, keep_scale, seed,
    H: tl.constexpr, D: tl.constexpr, DROPOUT: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradients of the key and the value of a source; in one sum where they are one."""
    first = tl.program_id(0).to(tl.int64) * BLOCK_R
    row, begin, end, heads = _rows(first, rows, ptr_ptr, H, BLOCK_R, BLOCK_E)
    longest = tl.max(end - begin, 0)
    lane = tl.arange(0, BLOCK_R * BLOCK_E) % BLOCK_E
    first_head = tl.program_id(1) * BLOCK_H
    offs_h, offs_d = first_head + tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_D)
    mask_h = offs_h[None, :] < heads[:, None]
    attention = _vector(attention_ptr, offs_h, offs_d, H, D)
    key = load_heads(k_ptr, row, offs_h, offs_d, mask_h, H, D)
    value = key
    if v_ptr is not None:
        value = load_heads(v_ptr, row, offs_h, offs_d, mask_h, H, D)
    grad_k = tl.zeros([BLOCK_R * BLOCK_E, BLOCK_H, BLOCK_D], tl.float32)
    grad_v = tl.zeros([BLOCK_R * BLOCK_E, BLOCK_H, BLOCK_D], tl.float32)
    for start in range(0, longest, BLOCK_E):
        offs_e = begin + start + lane
        other, edge, _, mask_e = load_edges(index_ptr, edge_id_ptr, None, offs_e, offs_e < end)
        mask_eh = mask_e[:, None] & mask_h
        x = key + load_heads(q_ptr, other, offs_h, offs_d, mask_eh, H, D)
        x = _add_attr(x, edge_attr_ptr, edge, offs_h, offs_d, mask_eh, H, D)
        grad_out = load_heads(grad_out_ptr, other, offs_h, offs_d, mask_eh, H, D)
        lse = load_pairs(lse_ptr, other, offs_h, mask_eh, H)
        lse = tl.where(lse == float("-inf"), 0.0, lse)
        delta = load_pairs(delta_ptr, other, offs_h, mask_eh, H)
        score = tl.sum(attention * _leaky(x, slope), 2)
        score = tl.where(mask_eh, score, float("-inf"))
        p = tl.exp2((score - lse) * LOG2E)
        kept = p
        grad_p = tl.sum(value * grad_out, 2)
        if DROPOUT:
            keep = keep_factor(seed, edge, first_head, threshold, keep_scale, BLOCK_H)
            kept = p * keep
            grad_p *= keep
        if grad_scores_ptr is not None:
            grad_p += load_pairs(grad_scores_ptr, edge, offs_h, mask_eh, H)
        grad_score = tl.where(mask_eh, p * (grad_p - delta), 0.0)
        grad_k += grad_score[:, :, None] * attention * tl.where(x > 0, 1.0, slope)
        grad_v += kept[:, :, None] * grad_out
    if v_ptr is None:
        grad_k += grad_v
    if grad_k_ptr is not None:
        _store_sums(
            grad_k_ptr, grad_k, first, rows, offs_h, offs_d, H, D,
            BLOCK_R, BLOCK_E, BLOCK_H, BLOCK_D,
        )  # fmt: skip
    if grad_v_ptr is not None:
        _store_sums(
            grad_v_ptr, grad_v, first, rows, offs_h, offs_d, H, D,
            BLOCK_R, BLOCK_E, BLOCK_H, BLOCK_D,
        )  # fmt: skip
