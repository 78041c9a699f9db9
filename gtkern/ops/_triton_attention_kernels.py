"""The Triton kernels of softmax attention.

A program owns BLOCK_R rows (or pieces of heavy rows: both are called slots) and a group of heads,
walks the rows' edges side by side in tiles of BLOCK_R x BLOCK_E places, and alone writes its
results: no atomics. Running maxima and sums are kept for each place of a tile, and meet across
places only once, after the last tile.

A row's edges lie between two entries of ptr, or, where ptr is None, in its own `degree` places, of
which some may hold no edge: their index is -1.
"""
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from gtkern.ops._triton import (
    LN2,
    LOG2E,
    finish_scores,
    keep_factor,
    load_edges,
    load_heads,
    load_pairs,
    scale_keys,
    store_heads,
    store_pairs,
)


@triton.jit
def row_range(
    slot, count, ptr_ptr, degree, heavy_ptr,
    H: tl.constexpr, ITEMS: tl.constexpr, HEAVY: tl.constexpr,
):  # fmt: skip
    """Row, first and last edge and heads of slots; a heavy row has none, for its pieces to do.

    A row of `degree` places is never heavy. An item with row -1 is not used.
    """
    mask = slot < count
    if ITEMS:
        row = tl.load(heavy_ptr + slot * 3, mask=mask, other=-1)
        begin = tl.load(heavy_ptr + slot * 3 + 1, mask=mask, other=0)
        end = tl.load(heavy_ptr + slot * 3 + 2, mask=mask, other=0)
        heads = tl.where(row >= 0, H, 0)
        row = tl.maximum(row, 0)
    elif ptr_ptr is None:
        row = slot
        begin = slot * degree
        end = begin + tl.where(mask, degree, 0)
        heads = tl.where(mask, H, 0)
    else:
        row = slot
        begin = tl.load(ptr_ptr + slot, mask=mask, other=0)
        end = tl.load(ptr_ptr + slot + 1, mask=mask, other=0)
        mask = mask & (end - begin <= HEAVY)
        heads = tl.where(mask, H, 0)
        end = tl.where(mask, end, begin)
    return row, begin, end, heads


@triton.jit
def slots_of(first, BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr):
    """The slot of each place of a tile of BLOCK_R rows; one entry serves all places of one row."""
    return first + (tl.arange(0, 1) if BLOCK_R == 1 else tl.arange(0, BLOCK_R * BLOCK_E) // BLOCK_E)


@triton.jit
def sum_pairs(tile, BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_H: tl.constexpr):
    """Sum the places [R * E, H] of each row: [R, H]."""
    return tl.sum(tl.reshape(tile, [BLOCK_R, BLOCK_E, BLOCK_H]), 1)


@triton.jit
def sum_heads(
    tile, BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Sum the places [R * E, H, D] of each row: [R, H, D]."""
    return tl.sum(tl.reshape(tile, [BLOCK_R, BLOCK_E, BLOCK_H, BLOCK_D]), 1)


@triton.jit(do_not_specialize=["count", "degree", "threshold", "seed"])
def forward_kernel(
    q_ptr, k_ptr, v_ptr, ptr_ptr, degree, index_ptr, edge_id_ptr, edge_type_ptr, heavy_ptr,
    key_table_ptr, bias_table_ptr, key_edge_ptr, bias_edge_ptr, edge_query_ptr, edge_attr_ptr,
    out_ptr, edge_out_ptr, lse_ptr, total_ptr, scores_ptr,
    count, scale, clamp, temperature, threshold, keep_scale, seed, log2_eps,
    H: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, DE: tl.constexpr,
    CLAMP: tl.constexpr, DROPOUT: tl.constexpr, EPS: tl.constexpr,
    ITEMS: tl.constexpr, HEAVY: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_DE: tl.constexpr,
):  # fmt: skip
    """Attention of a row; of a piece (ITEMS) the sums, with the maximum (base 2) in place of lse.

    The scores written here are not yet normalised.
    """
    first = tl.program_id(0).to(tl.int64) * BLOCK_R
    row, begin, end, heads = row_range(
        slots_of(first, BLOCK_R, BLOCK_E), count, ptr_ptr, degree, heavy_ptr, H, ITEMS, HEAVY
    )
    longest = tl.max(end - begin, 0)
    lane = tl.arange(0, BLOCK_R * BLOCK_E) % BLOCK_E
    first_head = tl.program_id(1) * BLOCK_H
    offs_h = first_head + tl.arange(0, BLOCK_H)
    offs_d, offs_dv = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    offs_de, one = tl.arange(0, BLOCK_DE), tl.arange(0, 1)
    mask_h = offs_h[None, :] < heads[:, None]
    query = load_heads(q_ptr, row, offs_h, offs_d, mask_h, H, D)
    peak = tl.full([BLOCK_R * BLOCK_E, BLOCK_H], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_R * BLOCK_E, BLOCK_H], tl.float32)
    out = tl.zeros([BLOCK_R * BLOCK_E, BLOCK_H, BLOCK_DV], tl.float32)
    if edge_query_ptr is not None:
        edge_query = load_heads(edge_query_ptr, row, offs_h, offs_de, mask_h, H, DE)
        edge_out = tl.zeros([BLOCK_R * BLOCK_E, BLOCK_H, BLOCK_DE], tl.float32)
    for start in range(0, longest, BLOCK_E):
        offs_e = begin + start + lane
        other, edge, kind, mask_e = load_edges(
            index_ptr, edge_id_ptr, edge_type_ptr, offs_e, offs_e < end
        )
        mask_eh = mask_e[:, None] & mask_h
        key = load_heads(k_ptr, other, offs_h, offs_d, mask_eh, H, D)
        value = load_heads(v_ptr, other, offs_h, offs_dv, mask_eh, H, DV)
        key = scale_keys(
            key, kind, edge, offs_h, offs_d, mask_eh, key_table_ptr, key_edge_ptr, H, D
        )
        product = tl.sum(key * query, 2)
        if edge_query_ptr is not None:
            attr = load_heads(edge_attr_ptr, edge, one, offs_de, mask_e[:, None], 1, DE)
            product += tl.sum(attr * edge_query, 2)
        score, _ = finish_scores(
            product, kind, edge, offs_h, mask_eh, bias_table_ptr, bias_edge_ptr,
            scale, clamp, temperature, H, CLAMP,
        )  # fmt: skip
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
        if edge_query_ptr is not None:
            edge_out = edge_out * fade[:, :, None] + weight[:, :, None] * attr
        peak = higher

    peak = tl.reshape(peak, [BLOCK_R, BLOCK_E, BLOCK_H])
    top = tl.max(peak, 1)  # [R, H]
    if EPS and not ITEMS:
        top = tl.maximum(top, log2_eps)
    stand = tl.where(top == float("-inf"), 0.0, top)
    fade = tl.reshape(tl.exp2(peak - stand[:, None, :]), [BLOCK_R * BLOCK_E, BLOCK_H])
    total = sum_pairs(total * fade, BLOCK_R, BLOCK_E, BLOCK_H)
    out = sum_heads(out * fade[:, :, None], BLOCK_R, BLOCK_E, BLOCK_H, BLOCK_DV)
    slot = first + tl.arange(0, BLOCK_R)
    _, _, _, heads = row_range(slot, count, ptr_ptr, degree, heavy_ptr, H, ITEMS, HEAVY)
    mask_h = offs_h[None, :] < heads[:, None]
    if ITEMS:
        store_pairs(lse_ptr, slot, offs_h, mask_h, top, H)
        store_pairs(total_ptr, slot, offs_h, mask_h, total, H)
        divisor = tl.full([BLOCK_R, BLOCK_H], 1.0, tl.float32)
    else:
        if EPS:
            total += tl.exp2(log2_eps - stand)
        divisor = tl.where(total == 0, 1.0, total)
        lse = tl.where(total == 0, float("-inf"), (stand + tl.log2(divisor)) * LN2)
        store_pairs(lse_ptr, slot, offs_h, mask_h, lse, H)
    store_heads(out_ptr, slot, offs_h, offs_dv, mask_h, out / divisor[:, :, None], H, DV)
    if edge_query_ptr is not None:
        edge_out = sum_heads(edge_out * fade[:, :, None], BLOCK_R, BLOCK_E, BLOCK_H, BLOCK_DE)
        edge_out = edge_out / divisor[:, :, None]
        store_heads(edge_out_ptr, slot, offs_h, offs_de, mask_h, edge_out, H, DE)


@triton.jit
def merge_forward_kernel(
    ptr_ptr, heavy_ptr, peaks_ptr, totals_ptr, outs_ptr, edge_outs_ptr,
    out_ptr, edge_out_ptr, lse_ptr, log2_eps,
    H: tl.constexpr, DV: tl.constexpr, DE: tl.constexpr, EPS: tl.constexpr, HEAVY: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_DE: tl.constexpr,
):  # fmt: skip
    """Join the pieces of a heavy row for one head, in order; the row's first piece does it."""
    slot = tl.program_id(0).to(tl.int64)
    row = tl.load(heavy_ptr + slot * 3)
    begin = tl.load(ptr_ptr + row)
    if tl.load(heavy_ptr + slot * 3 + 1) != begin:
        return
    stop = slot + (tl.load(ptr_ptr + row + 1) - begin + HEAVY - 1) // HEAVY
    offs_h = tl.program_id(1) + tl.arange(0, 1)
    offs_dv, offs_de = tl.arange(0, BLOCK_DV), tl.arange(0, BLOCK_DE)
    peak = tl.full([BLOCK_M, 1], float("-inf"), tl.float32)
    for start in range(slot, stop, BLOCK_M):
        offs_m = start + tl.arange(0, BLOCK_M)
        mask = (offs_m < stop)[:, None]
        piece = load_pairs(peaks_ptr, offs_m, offs_h, mask, H)
        peak = tl.maximum(peak, tl.where(mask, piece, float("-inf")))
    top = tl.max(peak, 0, keep_dims=True)
    if EPS:
        top = tl.maximum(top, log2_eps)
    stand = tl.where(top == float("-inf"), 0.0, top)
    total = tl.zeros([BLOCK_M, 1], tl.float32)
    out = tl.zeros([BLOCK_M, 1, BLOCK_DV], tl.float32)
    if edge_out_ptr is not None:
        edge_out = tl.zeros([BLOCK_M, 1, BLOCK_DE], tl.float32)
    for start in range(slot, stop, BLOCK_M):
        offs_m = start + tl.arange(0, BLOCK_M)
        mask = (offs_m < stop)[:, None]
        piece = load_pairs(peaks_ptr, offs_m, offs_h, mask, H)
        fade = tl.exp2(tl.where(mask, piece, float("-inf")) - stand)
        total += load_pairs(totals_ptr, offs_m, offs_h, mask, H) * fade
        out += load_heads(outs_ptr, offs_m, offs_h, offs_dv, mask, H, DV) * fade[:, :, None]
        if edge_out_ptr is not None:
            values = load_heads(edge_outs_ptr, offs_m, offs_h, offs_de, mask, H, DE)
            edge_out += values * fade[:, :, None]
    total = tl.sum(total, 0, keep_dims=True)
    if EPS:
        total += tl.exp2(log2_eps - stand)
    divisor = tl.where(total == 0, 1.0, total)
    lse = tl.where(total == 0, float("-inf"), (stand + tl.log2(divisor)) * LN2)
    place = row + tl.arange(0, 1)
    mask = (offs_h < H)[None, :]
    store_pairs(lse_ptr, place, offs_h, mask, lse, H)
    out = tl.sum(out, 0, keep_dims=True) / divisor[:, :, None]
    store_heads(out_ptr, place, offs_h, offs_dv, mask, out, H, DV)
    if edge_out_ptr is not None:
        edge_out = tl.sum(edge_out, 0, keep_dims=True) / divisor[:, :, None]
        store_heads(edge_out_ptr, place, offs_h, offs_de, mask, edge_out, H, DE)


@triton.jit(do_not_specialize=["count", "degree"])
def normalize_kernel(
    ptr_ptr, degree, index_ptr, edge_id_ptr, heavy_ptr, lse_ptr, scores_ptr, count,
    H: tl.constexpr, ITEMS: tl.constexpr, HEAVY: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Turn the scores of a row, or of a piece, into normalised ones, in place; 0 without edge."""
    first = tl.program_id(0).to(tl.int64) * BLOCK_R
    row, begin, end, heads = row_range(
        slots_of(first, BLOCK_R, BLOCK_E), count, ptr_ptr, degree, heavy_ptr, H, ITEMS, HEAVY
    )
    longest = tl.max(end - begin, 0)
    lane = tl.arange(0, BLOCK_R * BLOCK_E) % BLOCK_E
    offs_h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    mask_h = offs_h[None, :] < heads[:, None]
    lse = load_pairs(lse_ptr, row, offs_h, mask_h, H)
    lse = tl.where(lse == float("-inf"), 0.0, lse)
    for start in range(0, longest, BLOCK_E):
        offs_e = begin + start + lane
        _, edge, _, mask_e = load_edges(index_ptr, edge_id_ptr, None, offs_e, offs_e < end)
        mask_eh = mask_e[:, None] & mask_h
        score = load_pairs(scores_ptr, edge, offs_h, mask_eh, H)
        score = tl.where(mask_eh, tl.exp2((score - lse) * LOG2E), 0.0)
        store_pairs(scores_ptr, edge, offs_h, (offs_e < end)[:, None] & mask_h, score, H)


@triton.jit(do_not_specialize=["pairs"])
def delta_kernel(
    grad_out_ptr, out_ptr, grad_edge_out_ptr, edge_out_ptr, extra_ptr, delta_ptr, pairs,
    DV: tl.constexpr, DE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_DE: tl.constexpr,
):  # fmt: skip
    """delta = grad_out · out + grad_edge_out · edge_out + extra, for a block of (row, head)."""
    offs_p = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    mask_p = offs_p < pairs
    one = tl.arange(0, 1)
    offs_dv, offs_de = tl.arange(0, BLOCK_DV), tl.arange(0, BLOCK_DE)
    grad = load_heads(grad_out_ptr, offs_p, one, offs_dv, mask_p[:, None], 1, DV)
    value = load_heads(out_ptr, offs_p, one, offs_dv, mask_p[:, None], 1, DV)
    delta = tl.sum(grad * value, 2)
    if grad_edge_out_ptr is not None:
        grad = load_heads(grad_edge_out_ptr, offs_p, one, offs_de, mask_p[:, None], 1, DE)
        value = load_heads(edge_out_ptr, offs_p, one, offs_de, mask_p[:, None], 1, DE)
        delta += tl.sum(grad * value, 2)
    if extra_ptr is not None:
        delta += load_pairs(extra_ptr, offs_p, one, mask_p[:, None], 1)
    store_pairs(delta_ptr, offs_p, one, mask_p[:, None], delta, 1)


@triton.jit(do_not_specialize=["count", "degree"])
def score_delta_kernel(
    grad_scores_ptr, q_ptr, k_ptr, lse_ptr,
    ptr_ptr, degree, index_ptr, edge_id_ptr, edge_type_ptr, heavy_ptr,
    key_table_ptr, bias_table_ptr, key_edge_ptr, bias_edge_ptr, edge_query_ptr, edge_attr_ptr,
    extra_ptr, count, scale, clamp, temperature,
    H: tl.constexpr, D: tl.constexpr, DE: tl.constexpr,
    CLAMP: tl.constexpr, ITEMS: tl.constexpr, HEAVY: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DE: tl.constexpr,
):  # fmt: skip
    """The share of the returned scores in delta: Σ p grad_scores over a row, or over a piece."""
    first = tl.program_id(0).to(tl.int64) * BLOCK_R
    row, begin, end, heads = row_range(
        slots_of(first, BLOCK_R, BLOCK_E), count, ptr_ptr, degree, heavy_ptr, H, ITEMS, HEAVY
    )
    longest = tl.max(end - begin, 0)
    lane = tl.arange(0, BLOCK_R * BLOCK_E) % BLOCK_E
    offs_h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    offs_d, offs_de, one = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DE), tl.arange(0, 1)
    mask_h = offs_h[None, :] < heads[:, None]
    query = load_heads(q_ptr, row, offs_h, offs_d, mask_h, H, D)
    lse = load_pairs(lse_ptr, row, offs_h, mask_h, H)
    lse = tl.where(lse == float("-inf"), 0.0, lse)
    if edge_query_ptr is not None:
        edge_query = load_heads(edge_query_ptr, row, offs_h, offs_de, mask_h, H, DE)
    extra = tl.zeros([BLOCK_R * BLOCK_E, BLOCK_H], tl.float32)
    for start in range(0, longest, BLOCK_E):
        offs_e = begin + start + lane
        other, edge, kind, mask_e = load_edges(
            index_ptr, edge_id_ptr, edge_type_ptr, offs_e, offs_e < end
        )
        mask_eh = mask_e[:, None] & mask_h
        key = load_heads(k_ptr, other, offs_h, offs_d, mask_eh, H, D)
        key = scale_keys(
            key, kind, edge, offs_h, offs_d, mask_eh, key_table_ptr, key_edge_ptr, H, D
        )
        product = tl.sum(key * query, 2)
        if edge_query_ptr is not None:
            attr = load_heads(edge_attr_ptr, edge, one, offs_de, mask_e[:, None], 1, DE)
            product += tl.sum(attr * edge_query, 2)
        score, _ = finish_scores(
            product, kind, edge, offs_h, mask_eh, bias_table_ptr, bias_edge_ptr,
            scale, clamp, temperature, H, CLAMP,
        )  # fmt: skip
        grad = load_pairs(grad_scores_ptr, edge, offs_h, mask_eh, H)
        extra += tl.exp2((score - lse) * LOG2E) * grad
    slot = first + tl.arange(0, BLOCK_R)
    _, _, _, heads = row_range(slot, count, ptr_ptr, degree, heavy_ptr, H, ITEMS, HEAVY)
    mask_h = offs_h[None, :] < heads[:, None]
    extra = sum_pairs(extra, BLOCK_R, BLOCK_E, BLOCK_H)
    store_pairs(extra_ptr, slot, offs_h, mask_h, extra, H)


@triton.jit(do_not_specialize=["count", "degree", "threshold", "seed", "first_type", "first_block"])
def destination_kernel(
    grad_out_ptr, grad_edge_out_ptr, grad_scores_ptr, q_ptr, k_ptr, v_ptr, lse_ptr, delta_ptr,
    ptr_ptr, degree, index_ptr, edge_id_ptr, edge_type_ptr, heavy_ptr,
    key_table_ptr, bias_table_ptr, key_edge_ptr, bias_edge_ptr, edge_query_ptr, edge_attr_ptr,
    grad_q_ptr, grad_edge_query_ptr, grad_edge_attr_ptr, grad_key_edge_ptr, grad_bias_edge_ptr,
    grad_key_table_ptr, grad_bias_table_ptr,
    count, scale, clamp, temperature, threshold, keep_scale, seed, first_type, first_block,
    T: tl.constexpr, H: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, DE: tl.constexpr,
    CLAMP: tl.constexpr, DROPOUT: tl.constexpr, ONLY_TYPES: tl.constexpr,
    ITEMS: tl.constexpr, HEAVY: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_DE: tl.constexpr,
):  # fmt: skip
    """Gradients that belong to destinations and edges, over every num_programs-th row (or piece).

    The tables' gradients, for BLOCK_T types from first_type on, are summed over the program's rows
    and stored as its own partial; ONLY_TYPES leaves the edges of all other types unread.
    """
    first_head = tl.program_id(1) * BLOCK_H
    offs_h = first_head + tl.arange(0, BLOCK_H)
    offs_d, offs_dv = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    offs_de, one = tl.arange(0, BLOCK_DE), tl.arange(0, 1)
    types = first_type + tl.arange(0, BLOCK_T)
    if grad_key_table_ptr is not None:
        grad_key_table = tl.zeros([BLOCK_T, BLOCK_R * BLOCK_E, BLOCK_H, BLOCK_D], tl.float32)
    if grad_bias_table_ptr is not None:
        grad_bias_table = tl.zeros([BLOCK_T, BLOCK_R * BLOCK_E, BLOCK_H], tl.float32)
    program = tl.program_id(0).to(tl.int64)
    for first in range(program * BLOCK_R, count, tl.num_programs(0) * BLOCK_R):
        row, begin, end, heads = row_range(
            slots_of(first, BLOCK_R, BLOCK_E), count, ptr_ptr, degree, heavy_ptr, H, ITEMS, HEAVY
        )
        longest = tl.max(end - begin, 0)
        lane = tl.arange(0, BLOCK_R * BLOCK_E) % BLOCK_E
        mask_h = offs_h[None, :] < heads[:, None]
        query = load_heads(q_ptr, row, offs_h, offs_d, mask_h, H, D)
        grad_out = load_heads(grad_out_ptr, row, offs_h, offs_dv, mask_h, H, DV)
        lse = load_pairs(lse_ptr, row, offs_h, mask_h, H)
        # a row of weight 0 has only scores of -inf, and exp2(-inf) = 0 with any finite stand-in
        lse = tl.where(lse == float("-inf"), 0.0, lse)
        delta = load_pairs(delta_ptr, row, offs_h, mask_h, H)
        if grad_q_ptr is not None:
            grad_q = tl.zeros([BLOCK_R * BLOCK_E, BLOCK_H, BLOCK_D], tl.float32)
        if edge_query_ptr is not None:
            edge_query = load_heads(edge_query_ptr, row, offs_h, offs_de, mask_h, H, DE)
        if grad_edge_query_ptr is not None:
            grad_edge_query = tl.zeros([BLOCK_R * BLOCK_E, BLOCK_H, BLOCK_DE], tl.float32)
        if grad_edge_out_ptr is not None:
            grad_edge_out = load_heads(grad_edge_out_ptr, row, offs_h, offs_de, mask_h, H, DE)
        for start in range(0, longest, BLOCK_E):
            offs_e = begin + start + lane
            mask_e = offs_e < end
            if ONLY_TYPES:
                kind = tl.load(edge_type_ptr + offs_e, mask=mask_e, other=0).to(tl.int64)
                mask_e = mask_e & (kind >= first_type) & (kind < first_type + BLOCK_T)
            other, edge, kind, mask_e = load_edges(
                index_ptr, edge_id_ptr, edge_type_ptr, offs_e, mask_e
            )
            mask_eh = mask_e[:, None] & mask_h
            key = load_heads(k_ptr, other, offs_h, offs_d, mask_eh, H, D)
            value = load_heads(v_ptr, other, offs_h, offs_dv, mask_eh, H, DV)
            scaled = scale_keys(
                key, kind, edge, offs_h, offs_d, mask_eh, key_table_ptr, key_edge_ptr, H, D
            )
            product = tl.sum(scaled * query, 2)
            if edge_query_ptr is not None:
                attr = load_heads(edge_attr_ptr, edge, one, offs_de, mask_e[:, None], 1, DE)
                product += tl.sum(attr * edge_query, 2)
            score, slope = finish_scores(
                product, kind, edge, offs_h, mask_eh, bias_table_ptr, bias_edge_ptr,
                scale, clamp, temperature, H, CLAMP,
            )  # fmt: skip
            p = tl.exp2((score - lse) * LOG2E)
            kept = p
            grad_p = tl.sum(value * grad_out, 2)
            if grad_edge_out_ptr is not None:
                grad_p += tl.sum(attr * grad_edge_out, 2)
            if DROPOUT:
                keep = keep_factor(seed, edge, first_head, threshold, keep_scale, BLOCK_H)
                kept = p * keep
                grad_p *= keep
            if grad_scores_ptr is not None:
                grad_p += load_pairs(grad_scores_ptr, edge, offs_h, mask_eh, H)
            # a dead place adds nothing, even if its row is not finite
            grad_bias = tl.where(mask_eh, p * (grad_p - delta) * slope, 0.0)
            grad_product = scale * grad_bias
            if grad_q_ptr is not None:
                grad_q += grad_product[:, :, None] * scaled
            if grad_edge_query_ptr is not None:
                grad_edge_query += grad_product[:, :, None] * attr
            if grad_edge_attr_ptr is not None:
                grad_attr = grad_product[:, :, None] * edge_query
                if grad_edge_out_ptr is not None:
                    grad_attr += kept[:, :, None] * grad_edge_out
                grad_attr = tl.sum(grad_attr, 1, keep_dims=True)
                store_heads(
                    grad_edge_attr_ptr, edge, one, offs_de, mask_e[:, None], grad_attr, 1, DE
                )
            if grad_bias_edge_ptr is not None:
                store_pairs(grad_bias_edge_ptr, edge, offs_h, mask_eh, grad_bias, H)
            if grad_key_edge_ptr is not None:
                grad = scale_keys(
                    key, kind, edge, offs_h, offs_d, mask_eh, key_table_ptr, None, H, D
                )
                grad *= grad_product[:, :, None] * query
                store_heads(grad_key_edge_ptr, edge, offs_h, offs_d, mask_eh, grad, H, D)
            of_type = (kind[None, :] == types[:, None])[:, :, None]
            if grad_key_table_ptr is not None:
                grad = scale_keys(
                    key, kind, edge, offs_h, offs_d, mask_eh, None, key_edge_ptr, H, D
                )
                grad = tl.where(mask_eh[:, :, None], grad * query, 0.0)
                typed = tl.where(of_type, grad_product[None, :, :], 0.0)
                grad_key_table += typed[:, :, :, None] * grad[None, :, :, :]
            if grad_bias_table_ptr is not None:
                grad_bias_table += tl.where(of_type, grad_bias[None, :, :], 0.0)
        slot = first + tl.arange(0, BLOCK_R)
        _, _, _, heads = row_range(slot, count, ptr_ptr, degree, heavy_ptr, H, ITEMS, HEAVY)
        mask_h = offs_h[None, :] < heads[:, None]
        if grad_q_ptr is not None:
            grad_q = sum_heads(grad_q, BLOCK_R, BLOCK_E, BLOCK_H, BLOCK_D)
            store_heads(grad_q_ptr, slot, offs_h, offs_d, mask_h, grad_q, H, D)
        if grad_edge_query_ptr is not None:
            grad_edge_query = sum_heads(grad_edge_query, BLOCK_R, BLOCK_E, BLOCK_H, BLOCK_DE)
            store_heads(grad_edge_query_ptr, slot, offs_h, offs_de, mask_h, grad_edge_query, H, DE)
    block = (first_block + tl.program_id(0)).to(tl.int64) * T + types
    mask_t = (types < T)[:, None] & (offs_h < H)[None, :]
    if grad_key_table_ptr is not None:
        grad_key_table = tl.sum(grad_key_table, 1)
        store_heads(grad_key_table_ptr, block, offs_h, offs_d, mask_t, grad_key_table, H, D)
    if grad_bias_table_ptr is not None:
        store_pairs(grad_bias_table_ptr, block, offs_h, mask_t, tl.sum(grad_bias_table, 1), H)


@triton.jit(do_not_specialize=["count", "degree", "threshold", "seed"])
def source_kernel(
    grad_out_ptr, grad_edge_out_ptr, grad_scores_ptr, q_ptr, k_ptr, v_ptr, lse_ptr, delta_ptr,
    ptr_ptr, degree, index_ptr, edge_id_ptr, edge_type_ptr, heavy_ptr,
    key_table_ptr, bias_table_ptr, key_edge_ptr, bias_edge_ptr, edge_query_ptr, edge_attr_ptr,
    grad_k_ptr, grad_v_ptr, count, scale, clamp, temperature, threshold, keep_scale, seed,
    H: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, DE: tl.constexpr,
    CLAMP: tl.constexpr, DROPOUT: tl.constexpr, ITEMS: tl.constexpr, HEAVY: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_DE: tl.constexpr,
):  # fmt: skip
    """Gradients of the key and the value of a source, or of a piece of its edges (ITEMS)."""
    first = tl.program_id(0).to(tl.int64) * BLOCK_R
    row, begin, end, heads = row_range(
        slots_of(first, BLOCK_R, BLOCK_E), count, ptr_ptr, degree, heavy_ptr, H, ITEMS, HEAVY
    )
    longest = tl.max(end - begin, 0)
    lane = tl.arange(0, BLOCK_R * BLOCK_E) % BLOCK_E
    first_head = tl.program_id(1) * BLOCK_H
    offs_h = first_head + tl.arange(0, BLOCK_H)
    offs_d, offs_dv = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    offs_de, one = tl.arange(0, BLOCK_DE), tl.arange(0, 1)
    mask_h = offs_h[None, :] < heads[:, None]
    key = load_heads(k_ptr, row, offs_h, offs_d, mask_h, H, D)
    value = load_heads(v_ptr, row, offs_h, offs_dv, mask_h, H, DV)
    if grad_k_ptr is not None:
        grad_k = tl.zeros([BLOCK_R * BLOCK_E, BLOCK_H, BLOCK_D], tl.float32)
    if grad_v_ptr is not None:
        grad_v = tl.zeros([BLOCK_R * BLOCK_E, BLOCK_H, BLOCK_DV], tl.float32)
    for start in range(0, longest, BLOCK_E):
        offs_e = begin + start + lane
        other, edge, kind, mask_e = load_edges(
            index_ptr, edge_id_ptr, edge_type_ptr, offs_e, offs_e < end
        )
        mask_eh = mask_e[:, None] & mask_h
        query = load_heads(q_ptr, other, offs_h, offs_d, mask_eh, H, D)
        grad_out = load_heads(grad_out_ptr, other, offs_h, offs_dv, mask_eh, H, DV)
        lse = load_pairs(lse_ptr, other, offs_h, mask_eh, H)
        lse = tl.where(lse == float("-inf"), 0.0, lse)
        delta = load_pairs(delta_ptr, other, offs_h, mask_eh, H)
        scaled = scale_keys(
            query, kind, edge, offs_h, offs_d, mask_eh, key_table_ptr, key_edge_ptr, H, D
        )
        product = tl.sum(scaled * key, 2)
        if edge_query_ptr is not None:
            attr = load_heads(edge_attr_ptr, edge, one, offs_de, mask_e[:, None], 1, DE)
            edge_query = load_heads(edge_query_ptr, other, offs_h, offs_de, mask_eh, H, DE)
            product += tl.sum(attr * edge_query, 2)
        score, slope = finish_scores(
            product, kind, edge, offs_h, mask_eh, bias_table_ptr, bias_edge_ptr,
            scale, clamp, temperature, H, CLAMP,
        )  # fmt: skip
        p = tl.exp2((score - lse) * LOG2E)
        kept = p
        grad_p = tl.sum(value * grad_out, 2)
        if grad_edge_out_ptr is not None:
            grad_edge_out = load_heads(grad_edge_out_ptr, other, offs_h, offs_de, mask_eh, H, DE)
            grad_p += tl.sum(attr * grad_edge_out, 2)
        if DROPOUT:
            keep = keep_factor(seed, edge, first_head, threshold, keep_scale, BLOCK_H)
            kept = p * keep
            grad_p *= keep
        if grad_scores_ptr is not None:
            grad_p += load_pairs(grad_scores_ptr, edge, offs_h, mask_eh, H)
        if grad_v_ptr is not None:
            grad_v += kept[:, :, None] * grad_out
        if grad_k_ptr is not None:
            grad_product = tl.where(mask_eh, scale * p * (grad_p - delta) * slope, 0.0)
            grad_k += grad_product[:, :, None] * scaled
    slot = first + tl.arange(0, BLOCK_R)
    _, _, _, heads = row_range(slot, count, ptr_ptr, degree, heavy_ptr, H, ITEMS, HEAVY)
    mask_h = offs_h[None, :] < heads[:, None]
    if grad_k_ptr is not None:
        grad_k = sum_heads(grad_k, BLOCK_R, BLOCK_E, BLOCK_H, BLOCK_D)
        store_heads(grad_k_ptr, slot, offs_h, offs_d, mask_h, grad_k, H, D)
    if grad_v_ptr is not None:
        grad_v = sum_heads(grad_v, BLOCK_R, BLOCK_E, BLOCK_H, BLOCK_DV)
        store_heads(grad_v_ptr, slot, offs_h, offs_dv, mask_h, grad_v, H, DV)
