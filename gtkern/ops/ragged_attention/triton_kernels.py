"""The Triton kernels of ragged_attention; triton.py launches them.

Shapes in comments: M queries of a tile, N keys of a tile, D and Dv the padded head widths. Scores
are in units of log2. Addresses are int64.

A program owns BLOCK_M rows of one graph for one head, `_place` tells which; everything it writes,
it alone writes: no atomics, and every sum is taken in one order.
"""
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from gtkern.ops._triton import LN2, LOG2E, dot

_CALL = ["above", "most", "graphs", "prefixes", "sets", "threshold", "seed"]
"""Numbers of a call that no kernel is compiled anew for."""


@triton.jit
def _place(ptr_ptr, items_ptr, above, most, BLOCK: tl.constexpr):
    """Graph, its first row, its number of rows, and the first of this program's rows in it.

    Graphs of at most `above` rows or of more than `most` belong to another launch, and an item of
    -1 to none: no rows.
    """
    graph = tl.program_id(0).to(tl.int64)
    first = tl.program_id(2) * BLOCK
    used = True
    if items_ptr is not None:
        item = graph
        graph = tl.load(items_ptr + 2 * item)
        first = tl.load(items_ptr + 2 * item + 1).to(tl.int32)
        used = graph >= 0
        graph = tl.maximum(graph, 0)
    begin = tl.load(ptr_ptr + graph)
    count = (tl.load(ptr_ptr + graph + 1) - begin).to(tl.int32)
    used = used & (count > above) & (count <= most)
    return graph, begin, tl.where(used, count, 0), first


@triton.jit
def _prefix_of(row_set_ptr, row, prefixes, sets):
    """The first slot that a row's graph sees, among those of all sets, and how many it sees."""
    number = row * 0
    seen = prefixes
    if row_set_ptr is not None:
        number = tl.load(row_set_ptr + row)
        there = (number >= 0) & (number < sets)
        number = tl.where(there, number, 0)
        seen = tl.where(there, prefixes, 0)
    return number * prefixes, seen


@triton.jit
def _prefix_item(row, slot, prefixes, pair_ptr_ptr, graphs):
    """What dropout counts slot `slot` of query `row` as: the prefix comes after all pairs."""
    return tl.load(pair_ptr_ptr + graphs) + row * prefixes + slot


@triton.jit
def _load_rows(base_ptr, row, head, mask, H: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows `row` [R] of one head of a [*, H, D] tensor: [R, BLOCK_D], 0 outside."""
    offs_d = tl.arange(0, BLOCK_D)
    at = (row * H + head)[:, None] * D + offs_d[None, :]
    return tl.load(base_ptr + at, mask=mask[:, None] & (offs_d < D)[None, :], other=0.0)


@triton.jit
def _store_rows(
    base_ptr, row, head, mask, tile, H: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Write `tile` [R, BLOCK_D] into the rows `row` [R] of one head of a [*, H, D] tensor."""
    offs_d = tl.arange(0, BLOCK_D)
    at = (row * H + head)[:, None] * D + offs_d[None, :]
    inside = mask[:, None] & (offs_d < D)[None, :]
    tl.store(base_ptr + at, tile.to(base_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _add_biases(score, pair, inside, head, indices, table_ptr, first_rows, H: tl.constexpr):
    """Scores plus the looked-up biases of the pairs, -inf where masked; and which are not."""
    live = inside
    for number in tl.static_range(len(indices)):
        entry = tl.load(indices[number] + pair, mask=inside, other=0)
        if indices[number].dtype.element_ty == tl.uint8:
            live = live & (entry != 255)
        else:
            live = live & (entry >= 0)
        at = (first_rows[number] + entry.to(tl.int64)) * H + head
        score += LOG2E * tl.load(table_ptr + at, mask=live, other=0.0)
    return tl.where(live, score, float("-inf")), live


@triton.jit
def _keep_factor(seed, item, head, threshold, keep_scale):
    """Dropout of `item` [A, B] in one head, as gtkern.random.keep_mask: fp32, keep_scale or 0."""
    low = (item & 0xFFFFFFFF).to(tl.uint32)
    high = ((item >> 32) & 0xFFFFFFFF).to(tl.uint32)
    zero = tl.zeros_like(low)
    w0, w1, w2, w3 = tl.philox(seed, low, high, zero + (head // 4).to(tl.uint32), zero)
    lane = head % 4
    word = tl.where(lane < 2, tl.where(lane == 0, w0, w1), tl.where(lane == 2, w2, w3))
    return tl.where(word.to(tl.int64) >= threshold, keep_scale, 0.0)


@triton.jit
def _fold(total, peak, acc, score, value, keep, DROPOUT: tl.constexpr):
    """One tile more for the running softmax."""
    higher = tl.maximum(peak, tl.max(score, 1))
    # a row without a key has no largest score; any finite stand-in gives exp2(-inf) = 0
    base = tl.where(higher == float("-inf"), 0.0, higher)
    weight = tl.exp2(score - base[:, None])
    rescale = tl.exp2(peak - base)
    total = total * rescale + tl.sum(weight, 1)
    acc = acc * rescale[:, None]
    if DROPOUT:
        weight *= keep
    acc += dot(weight.to(value.dtype), value)
    return total, higher, acc


@triton.jit(do_not_specialize=_CALL)
def forward_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr,
    ptr_ptr, pair_ptr_ptr, items_ptr, above, most, graphs, indices, table_ptr, first_rows,
    prefix_k_ptr, prefix_v_ptr, row_set_ptr, prefixes, sets, scale, threshold, keep_scale, seed,
    H: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, DROPOUT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """Output and log-sum-exp of BLOCK_M queries."""
    graph, begin, count, first = _place(ptr_ptr, items_ptr, above, most, BLOCK_M)
    if first >= count:
        return
    head = tl.program_id(1)
    offs_m = first + tl.arange(0, BLOCK_M)
    mask_m = offs_m < count
    row = begin + offs_m
    query = _load_rows(q_ptr, row, head, mask_m, H, D, BLOCK_D)
    total = tl.zeros([BLOCK_M], tl.float32)
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    if prefix_k_ptr is not None:
        first_slot, seen = _prefix_of(row_set_ptr, begin, prefixes, sets)
        for start in range(0, seen, BLOCK_N):
            offs_n = start + tl.arange(0, BLOCK_N)
            mask_n = offs_n < seen
            slot = offs_n.to(tl.int64)
            key = _load_rows(prefix_k_ptr, first_slot + slot, head, mask_n, H, D, BLOCK_D)
            value = _load_rows(prefix_v_ptr, first_slot + slot, head, mask_n, H, DV, BLOCK_DV)
            live = mask_m[:, None] & mask_n[None, :]
            score = tl.where(live, dot(query, tl.trans(key)) * (scale * LOG2E), float("-inf"))
            keep = 1.0
            if DROPOUT:
                item = _prefix_item(row[:, None], slot[None, :], prefixes, pair_ptr_ptr, graphs)
                keep = _keep_factor(seed, item, head, threshold, keep_scale)
            total, peak, acc = _fold(total, peak, acc, score, value, keep, DROPOUT)
    pairs = tl.load(pair_ptr_ptr + graph) + offs_m.to(tl.int64) * count
    for start in range(0, count, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        mask_n = offs_n < count
        key = _load_rows(k_ptr, begin + offs_n, head, mask_n, H, D, BLOCK_D)
        value = _load_rows(v_ptr, begin + offs_n, head, mask_n, H, DV, BLOCK_DV)
        pair = pairs[:, None] + offs_n[None, :]
        score, live = _add_biases(
            dot(query, tl.trans(key)) * (scale * LOG2E), pair,
            mask_m[:, None] & mask_n[None, :], head, indices, table_ptr,
            first_rows, H,
        )  # fmt: skip
        keep = 1.0
        if DROPOUT:
            keep = _keep_factor(seed, pair, head, threshold, keep_scale)
        total, peak, acc = _fold(total, peak, acc, score, value, keep, DROPOUT)
    some = tl.where(total == 0.0, 1.0, total)
    _store_rows(out_ptr, row, head, mask_m, acc / some[:, None], H, DV, BLOCK_DV)
    lse = tl.where(total == 0.0, float("-inf"), (peak + tl.log2(some)) * LN2)
    tl.store(lse_ptr + row * H + head, lse, mask=mask_m)


@triton.jit
def _load_softmax(lse_ptr, delta_ptr, row, head, mask, H: tl.constexpr):
    """What normalises a row [R] (inf for a row without a key: its weights are 0), and delta."""
    at = row * H + head
    lse = tl.load(lse_ptr + at, mask=mask, other=float("-inf"))
    delta = tl.load(delta_ptr + at, mask=mask, other=0.0)
    return tl.where(lse == float("-inf"), float("inf"), lse * LOG2E), delta


@triton.jit(do_not_specialize=[*_CALL, "num_pairs", "first_head"])
def query_kernel(
    grad_out_ptr, q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, delta_ptr,
    ptr_ptr, pair_ptr_ptr, items_ptr, above, most, graphs, indices, table_ptr, first_rows,
    prefix_k_ptr, prefix_v_ptr, row_set_ptr, prefixes, sets, scale, threshold, keep_scale, seed,
    grad_q_ptr, grad_score_ptr, num_pairs, first_head,
    H: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, DROPOUT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """Delta (grad_out . out) and the gradient of BLOCK_M queries, and that of their scores.

    grad_score [heads of the launch, num_pairs] has each head's pairs side by side.
    """
    graph, begin, count, first = _place(ptr_ptr, items_ptr, above, most, BLOCK_M)
    if first >= count:
        return
    head = first_head + tl.program_id(1)
    offs_m = first + tl.arange(0, BLOCK_M)
    mask_m = offs_m < count
    row = begin + offs_m
    grad_out = _load_rows(grad_out_ptr, row, head, mask_m, H, DV, BLOCK_DV)
    out = _load_rows(out_ptr, row, head, mask_m, H, DV, BLOCK_DV)
    delta = tl.sum(grad_out.to(tl.float32) * out.to(tl.float32), 1)
    tl.store(delta_ptr + row * H + head, delta, mask=mask_m)
    if grad_q_ptr is None and grad_score_ptr is None:
        return
    lse = tl.load(lse_ptr + row * H + head, mask=mask_m, other=float("-inf"))
    lse = tl.where(lse == float("-inf"), float("inf"), lse * LOG2E)
    query = _load_rows(q_ptr, row, head, mask_m, H, D, BLOCK_D)
    grad_q = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if prefix_k_ptr is not None and grad_q_ptr is not None:
        first_slot, seen = _prefix_of(row_set_ptr, begin, prefixes, sets)
        for start in range(0, seen, BLOCK_N):
            offs_n = start + tl.arange(0, BLOCK_N)
            mask_n = offs_n < seen
            slot = offs_n.to(tl.int64)
            key = _load_rows(prefix_k_ptr, first_slot + slot, head, mask_n, H, D, BLOCK_D)
            value = _load_rows(prefix_v_ptr, first_slot + slot, head, mask_n, H, DV, BLOCK_DV)
            live = mask_m[:, None] & mask_n[None, :]
            score = dot(query, tl.trans(key)) * (scale * LOG2E)
            grad_p = dot(grad_out, tl.trans(value))
            if DROPOUT:
                item = _prefix_item(row[:, None], slot[None, :], prefixes, pair_ptr_ptr, graphs)
                grad_p *= _keep_factor(seed, item, head, threshold, keep_scale)
            grad = tl.exp2(score - lse[:, None]) * (grad_p - delta[:, None])
            grad_q += dot(tl.where(live, grad, 0.0).to(key.dtype), key)
    pairs = tl.load(pair_ptr_ptr + graph) + offs_m.to(tl.int64) * count
    for start in range(0, count, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        mask_n = offs_n < count
        key = _load_rows(k_ptr, begin + offs_n, head, mask_n, H, D, BLOCK_D)
        value = _load_rows(v_ptr, begin + offs_n, head, mask_n, H, DV, BLOCK_DV)
        pair = pairs[:, None] + offs_n[None, :]
        inside = mask_m[:, None] & mask_n[None, :]
        score, live = _add_biases(
            dot(query, tl.trans(key)) * (scale * LOG2E), pair, inside, head, indices,
            table_ptr, first_rows, H,
        )  # fmt: skip
        grad_p = dot(grad_out, tl.trans(value))
        if DROPOUT:
            grad_p *= _keep_factor(seed, pair, head, threshold, keep_scale)
        grad = tl.exp2(score - lse[:, None]) * (grad_p - delta[:, None])
        grad = tl.where(live, grad, 0.0)
        if grad_score_ptr is not None:
            at = tl.program_id(1).to(tl.int64) * num_pairs + pair
            tl.store(grad_score_ptr + at, grad, mask=inside)
        if grad_q_ptr is not None:
            grad_q += dot(grad.to(key.dtype), key)
    if grad_q_ptr is not None:
        _store_rows(grad_q_ptr, row, head, mask_m, grad_q * scale, H, D, BLOCK_D)


@triton.jit(do_not_specialize=[*_CALL, "num_rows", "chunk_rows"])
def key_kernel(
    grad_out_ptr, q_ptr, k_ptr, v_ptr, lse_ptr, delta_ptr,
    ptr_ptr, pair_ptr_ptr, items_ptr, above, most, graphs, indices, table_ptr, first_rows,
    num_rows, chunk_rows, row_set_ptr, prefixes, sets, scale, threshold, keep_scale, seed,
    grad_k_ptr, grad_v_ptr,
    H: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, DROPOUT: tl.constexpr,
    PREFIX: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """Gradients of BLOCK_N keys and values of a graph from its queries.

    PREFIX: those of each set of the prefix from `chunk_rows` queries of the batch, chunk after
    chunk, as parts [chunks, S, P, H, *] to be summed.
    """
    head = tl.program_id(1)
    lane = tl.arange(0, BLOCK_N)
    if PREFIX:
        number = tl.program_id(0).to(tl.int64)
        own_set = number % sets
        begin = number // sets * chunk_rows
        count = tl.minimum(num_rows - begin, chunk_rows).to(tl.int32)
        offs_n = tl.program_id(2) * BLOCK_N + lane
        mask_n = offs_n < prefixes
        pairs = offs_n.to(tl.int64)
        key_row = own_set * prefixes + pairs
        grad_row = number * prefixes + pairs
    else:
        graph, begin, count, first = _place(ptr_ptr, items_ptr, above, most, BLOCK_N)
        if first >= count:
            return
        offs_n = first + lane
        mask_n = offs_n < count
        key_row = begin + offs_n
        grad_row = key_row
        pairs = tl.load(pair_ptr_ptr + graph) + offs_n
    key = _load_rows(k_ptr, key_row, head, mask_n, H, D, BLOCK_D)
    value = _load_rows(v_ptr, key_row, head, mask_n, H, DV, BLOCK_DV)
    grad_k = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    grad_v = tl.zeros([BLOCK_N, BLOCK_DV], tl.float32)
    for start in range(0, count, BLOCK_M):
        offs_m = start + tl.arange(0, BLOCK_M)
        mask_m = offs_m < count
        row = begin + offs_m
        if row_set_ptr is not None:
            mask_m &= tl.load(row_set_ptr + row, mask=mask_m, other=-1) == own_set
        query = _load_rows(q_ptr, row, head, mask_m, H, D, BLOCK_D)
        grad_out = _load_rows(grad_out_ptr, row, head, mask_m, H, DV, BLOCK_DV)
        lse, delta = _load_softmax(lse_ptr, delta_ptr, row, head, mask_m, H)
        live = mask_n[:, None] & mask_m[None, :]
        score = dot(key, tl.trans(query)) * (scale * LOG2E)
        if PREFIX:
            item = _prefix_item(row[None, :], pairs[:, None], prefixes, pair_ptr_ptr, graphs)
        else:
            item = pairs[:, None] + offs_m.to(tl.int64)[None, :] * count
            score, live = _add_biases(score, item, live, head, indices, table_ptr, first_rows, H)
        weight = tl.where(live, tl.exp2(score - lse[None, :]), 0.0)
        keep = 1.0
        if DROPOUT:
            keep = _keep_factor(seed, item, head, threshold, keep_scale)
        if grad_v_ptr is not None:
            grad_v += dot((weight * keep).to(grad_out.dtype), grad_out)
        if grad_k_ptr is not None:
            grad_p = dot(value, tl.trans(grad_out)) * keep
            grad = tl.where(live, weight * (grad_p - delta[None, :]), 0.0)
            grad_k += dot(grad.to(query.dtype), query)
    if grad_k_ptr is not None:
        _store_rows(grad_k_ptr, grad_row, head, mask_n, grad_k * scale, H, D, BLOCK_D)
    if grad_v_ptr is not None:
        _store_rows(grad_v_ptr, grad_row, head, mask_n, grad_v, H, DV, BLOCK_DV)


@triton.jit(do_not_specialize=["num_pairs", "chunk_pairs", "heads", "entries"])
def table_kernel(
    grad_score_ptr, index_ptr, partial_ptr, num_pairs, chunk_pairs, heads, entries,
    BLOCK_P: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Sums of the pairs of one chunk by table entry: partial [chunks, heads, entries].

    A sum by entry is the product of which pair has which entry (0 or 1, shared by all heads) with
    the gradients of the scores: a histogram without atomics, and the same in every run.
    """
    chunk = tl.program_id(0).to(tl.int64)
    offs_b = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)
    offs_h = tl.program_id(2) * BLOCK_H + tl.arange(0, BLOCK_H)
    mask_h = offs_h < heads
    begin = chunk * chunk_pairs
    end = tl.minimum(begin + chunk_pairs, num_pairs)
    total = tl.zeros([BLOCK_B, BLOCK_H], tl.float32)
    for start in range(begin, end, BLOCK_P):
        offs_p = start + tl.arange(0, BLOCK_P)
        mask_p = offs_p < end
        # a masked pair's mark may be some entry's number: its gradient is 0
        entry = tl.load(index_ptr + offs_p, mask=mask_p, other=0).to(tl.int32)
        at = offs_h.to(tl.int64)[None, :] * num_pairs + offs_p[:, None]
        mask = mask_p[:, None] & mask_h[None, :]
        grad = tl.load(grad_score_ptr + at, mask=mask, other=0.0)
        total += dot((entry[None, :] == offs_b[:, None]).to(tl.float32), grad)
    at = (chunk * heads + offs_h)[None, :] * entries + offs_b[:, None]
    tl.store(partial_ptr + at, total, mask=mask_h[None, :] & (offs_b < entries)[:, None])
