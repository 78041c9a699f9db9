"""The kernels of the triton backend; README.md defines every bit of what they compute.

Shapes in comments: R rows of a program, T draws, B edges of a tile, K drawn edges. Draws of a row
are compared all with all; the race finds its k-th smallest key four bits at a time, by counting.
"""
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from gtkern.ops._triton import exponential

DRAW_STREAM = tl.constexpr(1 << 30)
FILL_STREAM = tl.constexpr(1 << 31)
INFINITY = tl.constexpr(0x7F800000)
MASK = tl.constexpr(0xFFFFFFFF)


@triton.jit
def philox_words(seed, c0, c1, layer, stream: tl.constexpr, epoch):
    """The four words of counters (c0, c1, layer + stream, epoch), in order along the last axis."""
    c0, c1 = tl.broadcast(c0.to(tl.uint32), c1.to(tl.uint32))
    zero = tl.zeros(c0.shape, tl.int64)
    c2, c3 = (zero + stream + layer).to(tl.uint32), (zero + epoch).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, c0, c1, c2, c3)
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    return tl.reshape(words, [c0.shape[0], 4 * c0.shape[1]])


@triton.jit
def hits(prefix_ptr, begin, edges, word, mask):
    """Places in their rows [R, X] int64 of the edges that words hit; rows begin, edges [R, 1]."""
    if prefix_ptr is None:
        found = (word.to(tl.int64) * edges) >> 32
    else:
        total = tl.load(prefix_ptr + begin + edges - 1, mask=edges > 0, other=0).to(tl.uint64)
        target = ((word.to(tl.uint64) * total) >> 32).to(tl.int64)
        place = tl.zeros_like(target)
        left = edges
        while tl.max(left) > 1:
            half = tl.where(left > 1, left // 2, 0)
            at = prefix_ptr + begin + place + half - 1
            sums = tl.load(at, mask=mask & (half > 0), other=MASK).to(tl.int64)
            place += tl.where(sums <= target, half, 0)
            left -= half
        at = prefix_ptr + begin + place
        sums = tl.load(at, mask=mask & (edges > 0), other=MASK).to(tl.int64)
        found = place + tl.where(sums <= target, 1, 0)
    return found


@triton.jit
def store_edges(
    at, position, mask, col_ptr, edge_id_ptr, edge_type_ptr, out_index_ptr, out_edge_ptr,
    out_type_ptr,
):  # fmt: skip
    """Write what stands at positions of the CSR order, for -1 nothing."""
    real = mask & (position >= 0)
    tl.store(out_index_ptr + at, tl.load(col_ptr + position, mask=real, other=-1), mask=mask)
    edge = position
    if edge_id_ptr is not None:
        edge = tl.load(edge_id_ptr + position, mask=real, other=-1)
    tl.store(out_edge_ptr + at, edge, mask=mask)
    if edge_type_ptr is not None:
        tl.store(
            out_type_ptr + at, tl.load(edge_type_ptr + position, mask=real, other=0), mask=mask
        )


@triton.jit
def draw_kernel(
    ptr_ptr, prefix_ptr, col_ptr, edge_id_ptr, edge_type_ptr, out_index_ptr, out_edge_ptr,
    out_type_ptr, partial_ptr, taken_ptr, rows, k, draws, seed, layer, epoch,
    BLOCK_R: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Draw from BLOCK_R rows. Rows with k different edges are written; those of others are kept
    as positions in partial [N, k], and how many there are in taken [N].
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    begin = tl.load(ptr_ptr + row, mask=row < rows, other=0)
    edges = tl.load(ptr_ptr + row + 1, mask=row < rows, other=0) - begin
    drawn = (edges >= 2 * k) & (edges > k) & (edges < 2147483648)
    if prefix_ptr is not None:
        total = tl.load(prefix_ptr + begin + edges - 1, mask=drawn, other=0)
        drawn = drawn & (total.to(tl.int64) > 0)
    edges = tl.where(drawn, edges, 0)
    draw = tl.arange(0, BLOCK_T)[None, :]
    quad = tl.arange(0, BLOCK_T // 4)[None, :]
    word = philox_words(seed, row, quad, layer, DRAW_STREAM, epoch)
    valid = drawn & (draw < draws)
    place = hits(prefix_ptr, begin, edges, word, valid).to(tl.int32)

    other = place[:, None, :]
    earlier = (draw[:, None, :] < draw[:, :, None]) & (other == place[:, :, None])
    new = valid & (tl.sum(earlier.to(tl.int32), 2) == 0)
    take = new & (tl.cumsum(new.to(tl.int32), 1) <= k)
    taken = tl.sum(take.to(tl.int32), 1)[:, None]
    smaller = take[:, None, :] & (other < place[:, :, None])
    at = row * k + tl.sum(smaller.to(tl.int32), 2)

    position = begin + place
    tl.store(partial_ptr + at, position, mask=take & (taken < k))
    store_edges(
        at, position, take & (taken == k), col_ptr, edge_id_ptr, edge_type_ptr, out_index_ptr,
        out_edge_ptr, out_type_ptr,
    )  # fmt: skip
    tl.store(taken_ptr + row, taken, mask=row < rows)


@triton.jit
def race_keys(
    offs, mask, weight_ptr, partial, seed, layer, epoch, TOP: tl.constexpr, BLOCK_B: tl.constexpr
):
    """Bits of the keys of positions offs [R, B], offs[:, 0] a multiple of 4: int64.

    INFINITY for what is no candidate, 0 for the positions in partial [R, K].
    """
    weight = tl.full(offs.shape, 1.0, tl.float32)
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + offs, mask=mask, other=0.0)
    candidate = mask & (weight >= 2.0**-100) & (weight <= 2.0**100)
    weight = tl.where(candidate, weight, 1.0)
    if TOP:
        key = INFINITY - weight.to(tl.int32, bitcast=True)
    else:
        first = tl.min(offs, 1)[:, None] >> 2
        quad = first + tl.arange(0, BLOCK_B // 4)[None, :]
        word = philox_words(seed, quad & MASK, (quad >> 32) & MASK, layer, 0, epoch)
        key = exponential(word) * tl.math.div_rn(tl.full(weight.shape, 1.0, tl.float32), weight)
        key = key.to(tl.int32, bitcast=True)
    key = tl.where(candidate, key.to(tl.int64), INFINITY)
    if partial is not None:
        found = tl.sum((offs[:, :, None] == partial[:, None, :]).to(tl.int32), 2) > 0
        key = tl.where(found, 0, key)
    return key


@triton.jit
def count_below(key, limit):
    """How many keys [R, B] are below each limit [R, X]."""
    return tl.sum((key[:, :, None] < limit[:, None, :]).to(tl.int32), 1)


@triton.jit
def store_smallest(
    key, offs, row, k, largest, ties, done, done_ties, col_ptr, edge_id_ptr, edge_type_ptr,
    out_index_ptr, out_edge_ptr, out_type_ptr,
):  # fmt: skip
    """Write the edges with keys below `largest` and the first `ties` with that key, behind `done`
    others; `done_ties` keys of that size came before. Returns both numbers after this tile.
    """
    equal = ((key == largest) & (key < INFINITY)).to(tl.int32)
    rank = done_ties + tl.cumsum(equal, 1) - equal
    take = (key < largest) | ((equal > 0) & (rank < ties))
    count = take.to(tl.int32)
    at = row * k + done + tl.cumsum(count, 1) - count
    store_edges(
        at, offs, take, col_ptr, edge_id_ptr, edge_type_ptr, out_index_ptr, out_edge_ptr,
        out_type_ptr,
    )  # fmt: skip
    return done + tl.sum(count, 1)[:, None], done_ties + tl.sum(equal, 1)[:, None]


@triton.jit
def race_kernel(
    ptr_ptr, weight_ptr, prefix_ptr, col_ptr, edge_id_ptr, edge_type_ptr, out_index_ptr,
    out_edge_ptr, out_type_ptr, partial_ptr, taken_ptr, rows, k, seed, layer, epoch,
    TOP: tl.constexpr, PAD: tl.constexpr, LONG: tl.constexpr, SHORT: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """Write the rows that draw_kernel left: what it drew, the smallest keys, draws to fill up.

    LONG: one row of more than SHORT edges, tile after tile; else BLOCK_R rows of at most SHORT,
    in a single tile.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    begin = tl.load(ptr_ptr + row, mask=row < rows, other=0)
    end = tl.load(ptr_ptr + row + 1, mask=row < rows, other=0)
    live = (row < rows) & ((end - begin > SHORT) == LONG)
    partial = None
    if partial_ptr is not None:
        drawn = tl.load(taken_ptr + row, mask=live, other=0)
        live = live & (drawn < k)
        offs_k = tl.arange(0, BLOCK_K)[None, :]
        partial = tl.load(partial_ptr + row * k + offs_k, mask=live & (offs_k < drawn), other=-1)
    if tl.max(live.to(tl.int32)) == 0:
        return

    end = tl.where(live, end, begin)
    first = begin // 4 * 4 + tl.arange(0, BLOCK_B)[None, :]
    step = tl.arange(0, 16).to(tl.int64)[None, :]
    whole = tl.full([BLOCK_R, 1], INFINITY, tl.int64)
    candidates = tl.zeros([BLOCK_R, 1], tl.int32)
    span = tl.max(end - begin // 4 * 4)
    key = tl.zeros([BLOCK_R, BLOCK_B], tl.int64)
    if LONG:
        for start in range(0, span, BLOCK_B):
            offs = first + start
            mask = (offs >= begin) & (offs < end)
            tile = race_keys(offs, mask, weight_ptr, partial, seed, layer, epoch, TOP, BLOCK_B)
            candidates += count_below(tile, whole)
    else:
        inside = (first >= begin) & (first < end)
        key = race_keys(first, inside, weight_ptr, partial, seed, layer, epoch, TOP, BLOCK_B)
        candidates = count_below(key, whole)
    taken = tl.minimum(candidates, k)

    wanted = tl.maximum(taken, 1)
    largest = tl.zeros([BLOCK_R, 1], tl.int64)
    below = tl.zeros([BLOCK_R, 1], tl.int32)
    for digit in tl.static_range(8):
        limit = largest + (step << (28 - 4 * digit))
        counts = tl.zeros([BLOCK_R, 16], tl.int32)
        if LONG:
            for start in range(0, span, BLOCK_B):
                offs = first + start
                mask = (offs >= begin) & (offs < end)
                tile = race_keys(offs, mask, weight_ptr, partial, seed, layer, epoch, TOP, BLOCK_B)
                counts += count_below(tile, limit)
        else:
            counts = count_below(key, limit)
        low = counts < wanted
        below = tl.max(tl.where(low, counts, 0), 1)[:, None]
        largest += (tl.sum(low.to(tl.int64), 1)[:, None] - 1) << (28 - 4 * digit)

    ties = taken - below
    done = tl.zeros([BLOCK_R, 1], tl.int32)
    done_ties = tl.zeros([BLOCK_R, 1], tl.int32)
    if LONG:
        for start in range(0, span, BLOCK_B):
            offs = first + start
            mask = (offs >= begin) & (offs < end)
            tile = race_keys(offs, mask, weight_ptr, partial, seed, layer, epoch, TOP, BLOCK_B)
            done, done_ties = store_smallest(
                tile, offs, row, k, largest, ties, done, done_ties, col_ptr, edge_id_ptr,
                edge_type_ptr, out_index_ptr, out_edge_ptr, out_type_ptr,
            )  # fmt: skip
    else:
        store_smallest(
            key, first, row, k, largest, ties, done, done_ties, col_ptr, edge_id_ptr,
            edge_type_ptr, out_index_ptr, out_edge_ptr, out_type_ptr,
        )  # fmt: skip

    if tl.min(tl.where(live, taken, k)) == k:
        return
    for start in range(0, k, BLOCK_F):
        place = start + tl.arange(0, BLOCK_F)[None, :]
        left = live & (place >= taken) & (place < k)
        position = tl.full([BLOCK_R, BLOCK_F], -1, tl.int64)
        if not PAD:
            draw = tl.maximum(place - taken, 0)
            words = philox_words(
                seed,
                tl.reshape(tl.broadcast_to(row, [BLOCK_R, BLOCK_F]), [BLOCK_R * BLOCK_F, 1]),
                tl.reshape(draw // 4, [BLOCK_R * BLOCK_F, 1]),
                layer,
                FILL_STREAM,
                epoch,
            )
            words = tl.reshape(words, [BLOCK_R, BLOCK_F, 4])
            lane = (draw % 4)[:, :, None] == tl.arange(0, 4)[None, None, :]
            word = tl.sum(tl.where(lane, words.to(tl.int64), 0), 2)
            filled = left & (taken > 0)
            edges = tl.where(live & (taken > 0), end - begin, 0)
            place_in_row = hits(prefix_ptr, begin, edges, word, filled)
            position = tl.where(filled, begin + place_in_row, -1)
        store_edges(
            row * k + place, position, left, col_ptr, edge_id_ptr, edge_type_ptr, out_index_ptr,
            out_edge_ptr, out_type_ptr,
        )  # fmt: skip
