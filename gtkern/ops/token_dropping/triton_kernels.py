"""The kernels of the triton backend; reference.py says what each computes.

Shapes in comments: B rows, edges or pairs of a tile, C channels of one.
"""
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from gtkern.ops._triton import gumbel

HIGHEST = tl.constexpr(0xFFFFFFFF)


@triton.jit
def keys_kernel(score_ptr, out_ptr, rows, seed, BLOCK: tl.constexpr):
    """The keys, fp32, of BLOCK rows with noise: score + noise."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    quad = row >> 2
    low, high = quad.to(tl.uint32), (quad >> 32).to(tl.uint32)
    zero = low * 0
    w0, w1, w2, w3 = tl.philox(seed, low, high, zero, zero + 1)
    odd, high_half = (row & 1) != 0, (row & 2) != 0
    word = tl.where(odd, tl.where(high_half, w3, w1), tl.where(high_half, w2, w0))
    score = tl.load(score_ptr + row, mask=row < rows, other=0.0).to(tl.float32)
    # the product is exact, so that it does not matter whether it is fused
    key = score + gumbel(word).to(tl.float32) * 2.0**-26
    tl.store(out_ptr + row, key, mask=row < rows)


@triton.jit
def rising_bits(key_ptr, always_ptr, row, mask):
    """int64 [B] that rise with the keys: NaN 0, always kept the highest; -1 outside."""
    key = tl.load(key_ptr + row, mask=mask, other=0.0) + 0.0
    bits = key.to(tl.int32, bitcast=True).to(tl.int64) & HIGHEST
    rising = tl.where(bits >= 2147483648, HIGHEST - bits, bits + 2147483648)
    rising = tl.where(key == key, rising, 0)
    if always_ptr is not None:
        rising = tl.where(tl.load(always_ptr + row, mask=mask, other=0) != 0, HIGHEST, rising)
    return tl.where(mask, rising, -1)


@triton.jit
def select_kernel(
    key_ptr, always_ptr, ptr_ptr, kept_ptr_ptr, index_ptr, position_ptr, BLOCK: tl.constexpr
):
    """One graph: the k-th largest bits, one bit after the other; then its rows in order."""
    graph = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(ptr_ptr + graph), tl.load(ptr_ptr + graph + 1)
    first = tl.load(kept_ptr_ptr + graph)
    k = tl.load(kept_ptr_ptr + graph + 1) - first
    offs = tl.arange(0, BLOCK)
    limit = tl.full((), 0, tl.int64)
    for bit in range(32):
        candidate = limit + (tl.full((), 2147483648, tl.int64) >> bit)
        count = tl.full((), 0, tl.int64)
        for at in range(begin, end, BLOCK):
            rising = rising_bits(key_ptr, always_ptr, at + offs, at + offs < end)
            count += tl.sum((rising >= candidate).to(tl.int64))
        limit = tl.where(count >= k, candidate, limit)
    larger = tl.full((), 0, tl.int64)
    for at in range(begin, end, BLOCK):
        rising = rising_bits(key_ptr, always_ptr, at + offs, at + offs < end)
        larger += tl.sum((rising > limit).to(tl.int64))
    # of those at the limit, so many are kept, from the first on
    left = k - larger
    place = first
    for at in range(begin, end, BLOCK):
        row = at + offs
        mask = row < end
        rising = rising_bits(key_ptr, always_ptr, row, mask)
        tied = (mask & (rising == limit)).to(tl.int64)
        kept = (rising > limit) | ((tied > 0) & (tl.cumsum(tied, 0) <= left))
        kept = mask & kept
        to = place + tl.cumsum(kept.to(tl.int64), 0) - 1
        tl.store(position_ptr + row, tl.where(kept, to, -1).to(tl.int32), mask=mask)
        tl.store(index_ptr + to, row, mask=kept)
        left -= tl.sum(tied)
        place += tl.sum(kept.to(tl.int64))


@triton.jit
def scaled_keys(key_ptr, always_ptr, row, mask, factor):
    """Keys [B] over the temperature; -inf for rows that are not chosen from."""
    z = tl.load(key_ptr + row, mask=mask, other=float("-inf")) * factor
    if always_ptr is not None:
        z = tl.where(tl.load(always_ptr + row, mask=mask, other=0) != 0, float("-inf"), z)
    return z


@triton.jit
def gate_gradient(grad_gate_ptr, position_ptr, row, mask):
    """The gradients [B] of the gates of rows; 0 for dropped ones."""
    at = tl.load(position_ptr + row, mask=mask, other=-1)
    return tl.load(grad_gate_ptr + at, mask=at >= 0, other=0.0).to(tl.float32)


@triton.jit
def gate_kernel(
    grad_gate_ptr, key_ptr, always_ptr, ptr_ptr, position_ptr, out_ptr, factor, BLOCK: tl.constexpr
):
    """One graph: the gradient of its scores."""
    graph = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(ptr_ptr + graph), tl.load(ptr_ptr + graph + 1)
    offs = tl.arange(0, BLOCK)
    peak = tl.full((), float("-inf"), tl.float32)
    for at in range(begin, end, BLOCK):
        z = scaled_keys(key_ptr, always_ptr, at + offs, at + offs < end, factor)
        peak = tl.maximum(peak, tl.max(z))
    # nothing to choose from: any finite stand-in gives exp(-inf) = 0
    peak = tl.where(peak == float("-inf"), 0.0, peak)
    totals = tl.zeros((BLOCK,), tl.float32)
    dots = tl.zeros((BLOCK,), tl.float32)
    for at in range(begin, end, BLOCK):
        row, mask = at + offs, at + offs < end
        weight = tl.exp(scaled_keys(key_ptr, always_ptr, row, mask, factor) - peak)
        totals += weight
        dots += weight * gate_gradient(grad_gate_ptr, position_ptr, row, mask)
    total = tl.sum(totals)
    total = tl.where(total == 0.0, 1.0, total)
    mean = tl.sum(dots) / total
    for at in range(begin, end, BLOCK):
        row, mask = at + offs, at + offs < end
        weight = tl.exp(scaled_keys(key_ptr, always_ptr, row, mask, factor) - peak)
        gradient = gate_gradient(grad_gate_ptr, position_ptr, row, mask)
        value = weight / total * (gradient - mean) * factor
        tl.store(out_ptr + row, value.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def gather_kernel(
    x_ptr, gate_ptr, index_ptr, out_ptr, rows, width, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr
):
    """BLOCK rows of the result, BLOCK_C channels: each is read from its place."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (row < rows)[:, None] & (channel < width)[None, :]
    source = tl.load(index_ptr + row, mask=row < rows, other=0)
    value = tl.load(x_ptr + source[:, None] * width + channel[None, :], mask=mask, other=0)
    if gate_ptr is not None:
        gate = tl.load(gate_ptr + row, mask=row < rows, other=0.0).to(tl.float32)
        value = (value.to(tl.float32) * gate[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row[:, None] * width + channel[None, :], value, mask=mask)


@triton.jit
def scatter_kernel(
    y_ptr, gate_ptr, fill_ptr, position_ptr, out_ptr, rows, width,
    BLOCK: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """BLOCK rows of the result, BLOCK_C channels: from their places, from fill, or zeros."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (row < rows)[:, None] & (channel < width)[None, :]
    at = tl.load(position_ptr + row, mask=row < rows, other=-1).to(tl.int64)
    kept = inside & (at >= 0)[:, None]
    to = row[:, None] * width + channel[None, :]
    value = tl.zeros((BLOCK, BLOCK_C), out_ptr.dtype.element_ty)
    if y_ptr is not None:
        value = tl.load(y_ptr + at[:, None] * width + channel[None, :], mask=kept, other=0)
        if gate_ptr is not None:
            gate = tl.load(gate_ptr + at, mask=at >= 0, other=0.0).to(tl.float32)
            value = (value.to(tl.float32) * gate[:, None]).to(out_ptr.dtype.element_ty)
    if fill_ptr is not None:
        dropped = inside & (at < 0)[:, None]
        value = tl.where(dropped, tl.load(fill_ptr + to, mask=dropped, other=0), value)
    tl.store(out_ptr + to, value, mask=inside)


@triton.jit
def dot_kernel(
    a_ptr, x_ptr, index_ptr, out_ptr, rows, width, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr
):
    """BLOCK sums of products of rows of a with those of x that they came from."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    source = tl.load(index_ptr + row, mask=row < rows, other=0)
    total = tl.zeros((BLOCK, BLOCK_C), tl.float32)
    for first in range(0, width, BLOCK_C):
        channel = first + tl.arange(0, BLOCK_C)
        mask = (row < rows)[:, None] & (channel < width)[None, :]
        a = tl.load(a_ptr + row[:, None] * width + channel[None, :], mask=mask, other=0.0)
        x = tl.load(x_ptr + source[:, None] * width + channel[None, :], mask=mask, other=0.0)
        total += a.to(tl.float32) * x.to(tl.float32)
    value = tl.sum(total, 1).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row, value, mask=row < rows)


@triton.jit
def kept_edges_kernel(
    source_ptr, destination_ptr, position_ptr, out_ptr, edges, BLOCK: tl.constexpr
):
    """Whether each of BLOCK edges is kept."""
    edge = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = edge < edges
    a = tl.load(position_ptr + tl.load(source_ptr + edge, mask=mask, other=0), mask=mask, other=-1)
    at = tl.load(destination_ptr + edge, mask=mask, other=0)
    b = tl.load(position_ptr + at, mask=mask, other=-1)
    tl.store(out_ptr + edge, ((a >= 0) & (b >= 0)).to(tl.int8), mask=mask)


@triton.jit
def write_edges_kernel(
    source_ptr, destination_ptr, position_ptr, kept_ptr, after_ptr, out_source_ptr,
    out_destination_ptr, out_edge_ptr, edges, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK edges; those kept go to their places, one before their running sum."""
    edge = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    kept = tl.load(kept_ptr + edge, mask=edge < edges, other=0) != 0
    to = tl.load(after_ptr + edge, mask=kept, other=1) - 1
    a = tl.load(position_ptr + tl.load(source_ptr + edge, mask=kept, other=0), mask=kept, other=0)
    at = tl.load(destination_ptr + edge, mask=kept, other=0)
    b = tl.load(position_ptr + at, mask=kept, other=0)
    tl.store(out_source_ptr + to, a.to(out_source_ptr.dtype.element_ty), mask=kept)
    tl.store(out_destination_ptr + to, b.to(out_source_ptr.dtype.element_ty), mask=kept)
    tl.store(out_edge_ptr + to, edge, mask=kept)


@triton.jit
def degree_kernel(ptr_ptr, col_ptr, index_ptr, position_ptr, out_ptr, BLOCK: tl.constexpr):
    """One kept row: how many of its sources are kept."""
    place = tl.program_id(0).to(tl.int64)
    row = tl.load(index_ptr + place)
    begin, end = tl.load(ptr_ptr + row), tl.load(ptr_ptr + row + 1)
    count = tl.full((), 0, tl.int64)
    for at in range(begin, end, BLOCK):
        edge = at + tl.arange(0, BLOCK)
        source = tl.load(col_ptr + edge, mask=edge < end, other=0)
        kept = tl.load(position_ptr + source, mask=edge < end, other=-1) >= 0
        count += tl.sum(kept.to(tl.int64))
    tl.store(out_ptr + place, count)


@triton.jit
def write_row_kernel(
    ptr_ptr, col_ptr, edge_id_ptr, edge_type_ptr, index_ptr, position_ptr, kept_ptr_ptr,
    out_col_ptr, out_edge_ptr, out_type_ptr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One kept row: its edges from kept sources, in order."""
    place = tl.program_id(0).to(tl.int64)
    row = tl.load(index_ptr + place)
    begin, end = tl.load(ptr_ptr + row), tl.load(ptr_ptr + row + 1)
    first = tl.load(kept_ptr_ptr + place)
    for at in range(begin, end, BLOCK):
        edge = at + tl.arange(0, BLOCK)
        col = tl.load(col_ptr + edge, mask=edge < end, other=0)
        source = tl.load(position_ptr + col, mask=edge < end, other=-1)
        kept = source >= 0
        to = first + tl.cumsum(kept.to(tl.int64), 0) - 1
        tl.store(out_col_ptr + to, source, mask=kept)
        number = edge
        if edge_id_ptr is not None:
            number = tl.load(edge_id_ptr + edge, mask=kept, other=0)
        tl.store(out_edge_ptr + to, number, mask=kept)
        if edge_type_ptr is not None:
            tl.store(
                out_type_ptr + to, tl.load(edge_type_ptr + edge, mask=kept, other=0), mask=kept
            )
        first += tl.sum(kept.to(tl.int64))


@triton.jit
def pairs_kernel(
    entry_ptr, ptr_ptr, pair_ptr_ptr, index_ptr, graph_ptr, kept_ptr_ptr, kept_pair_ptr_ptr,
    out_ptr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One kept query: the entries of its pairs with the kept keys of its graph."""
    place = tl.program_id(0).to(tl.int64)
    graph = tl.load(graph_ptr + place)
    begin = tl.load(ptr_ptr + graph)
    size = tl.load(ptr_ptr + graph + 1) - begin
    first = tl.load(kept_ptr_ptr + graph)
    kept = tl.load(kept_ptr_ptr + graph + 1) - first
    query = tl.load(index_ptr + place) - begin
    source_ptr = entry_ptr + tl.load(pair_ptr_ptr + graph) + query * size
    to_ptr = out_ptr + tl.load(kept_pair_ptr_ptr + graph) + (place - first) * kept
    for at in range(0, kept, BLOCK):
        offs = at + tl.arange(0, BLOCK)
        key = tl.load(index_ptr + first + offs, mask=offs < kept, other=0) - begin
        tl.store(
            to_ptr + offs, tl.load(source_ptr + key, mask=offs < kept, other=0), mask=offs < kept
        )
