"""Device functions and tile rules that the Triton backends of several rooms share.

Shapes in comments: E edges of a tile, H heads of a group, D the width of a head. A single row is a
tile with E = 1, so that fixed and gathered operands read and multiply alike. Addresses are int64.
"""
# mypy: disable-error-code="no-untyped-def"

from typing import NamedTuple

import triton
import triton.language as tl

from gtkern._backends import triton_interpreted

_INTERPRETED = tl.constexpr(triton_interpreted())
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def dot(a, b, PRECISION: tl.constexpr = "ieee"):
    """Matrix product, summed in fp32; fp32 operands are multiplied as such unless as "tf32"."""
    # the interpreter would multiply the bits (triton-lang/triton#11584)
    if _INTERPRETED and a.dtype == tl.bfloat16:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def load_heads(base_ptr, row, offs_h, offs_d, mask_eh, H: tl.constexpr, D: tl.constexpr):
    """Rows `row` [E] of a [*, H, D] tensor as fp32 [E, H, D]; 0 outside."""
    at = (row[:, None, None] * H + offs_h[None, :, None]) * D + offs_d[None, None, :]
    mask = mask_eh[:, :, None] & (offs_d < D)[None, None, :]
    return tl.load(base_ptr + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_heads(base_ptr, row, offs_h, offs_d, mask_eh, tile, H: tl.constexpr, D: tl.constexpr):
    """Write `tile` [E, H, D] into the rows `row` [E] of a [*, H, D] tensor."""
    at = (row[:, None, None] * H + offs_h[None, :, None]) * D + offs_d[None, None, :]
    mask = mask_eh[:, :, None] & (offs_d < D)[None, None, :]
    tl.store(base_ptr + at, tile.to(base_ptr.dtype.element_ty), mask=mask)


@triton.jit
def load_pairs(base_ptr, row, offs_h, mask_eh, H: tl.constexpr):
    """Rows `row` [E] of a [*, H] tensor as fp32 [E, H]; 0 outside."""
    at = row[:, None] * H + offs_h[None, :]
    return tl.load(base_ptr + at, mask=mask_eh, other=0.0).to(tl.float32)


@triton.jit
def store_pairs(base_ptr, row, offs_h, mask_eh, tile, H: tl.constexpr):
    """Write `tile` [E, H] into the rows `row` [E] of a [*, H] tensor."""
    tl.store(base_ptr + row[:, None] * H + offs_h[None, :], tile, mask=mask_eh)


@triton.jit
def load_edges(index_ptr, edge_id_ptr, edge_type_ptr, offs_e, mask_e):
    """The other end, the caller's number and the type of the edges at positions `offs_e`: int64;
    and `mask_e` without the positions that hold no edge."""
    other = tl.load(index_ptr + offs_e, mask=mask_e, other=-1).to(tl.int64)
    if edge_id_ptr is not None:
        edge = tl.load(edge_id_ptr + offs_e, mask=mask_e, other=0)
    else:
        edge = offs_e.to(tl.int64)
    if edge_type_ptr is not None:
        kind = tl.load(edge_type_ptr + offs_e, mask=mask_e, other=0).to(tl.int64)
    else:
        kind = tl.zeros_like(other)
    return other, edge, kind, other >= 0


@triton.jit
def scale_keys(
    tile, kind, edge, offs_h, offs_d, mask_eh, key_table_ptr, key_edge_ptr,
    H: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """`tile` [E, H, D] times the key scales of its edges; a scale that is None counts as 1."""
    if key_table_ptr is not None:
        tile *= load_heads(key_table_ptr, kind, offs_h, offs_d, mask_eh, H, D)
    if key_edge_ptr is not None:
        tile *= load_heads(key_edge_ptr, edge, offs_h, offs_d, mask_eh, H, D)
    return tile


@triton.jit
def finish_scores(
    product, kind, edge, offs_h, mask_eh, bias_table_ptr, bias_edge_ptr,
    scale, clamp, temperature, H: tl.constexpr, CLAMP: tl.constexpr,
):  # fmt: skip
    """Scores [E, H] from products, -inf outside the mask, and their slope by the bias."""
    score = scale * product
    if bias_table_ptr is not None:
        score += load_pairs(bias_table_ptr, kind, offs_h, mask_eh, H)
    if bias_edge_ptr is not None:
        score += load_pairs(bias_edge_ptr, edge, offs_h, mask_eh, H)
    score = score / temperature
    slope = tl.zeros_like(score) + 1.0 / temperature
    if CLAMP:
        slope = tl.where((score < -clamp) | (score > clamp), 0.0, slope)
        score = tl.where(score < -clamp, -clamp, tl.where(score > clamp, clamp, score))
    return tl.where(mask_eh, score, float("-inf")), slope


@triton.jit
def keep_factor(seed, item, first_head, threshold, keep_scale, BLOCK_H: tl.constexpr):
    """Dropout of `item` [E] by head, as gtkern.random.keep_mask: fp32 [E, H], keep_scale or 0."""
    low = (item & 0xFFFFFFFF).to(tl.uint32)[:, None]
    high = ((item >> 32) & 0xFFFFFFFF).to(tl.uint32)[:, None]
    if BLOCK_H >= 4:
        quad = (first_head // 4 + tl.arange(0, BLOCK_H // 4)).to(tl.uint32)[None, :]
        w0, w1, w2, w3 = tl.philox(seed, low, high, quad, tl.zeros_like(quad))
        words = tl.join(tl.join(w0, w2), tl.join(w1, w3))  # [E, H / 4, 2, 2] in the order of heads
        word = tl.reshape(words, [item.shape[0], BLOCK_H])
    else:
        head = first_head + tl.arange(0, BLOCK_H)[None, :]
        quad = (head // 4).to(tl.uint32)
        w0, w1, w2, w3 = tl.philox(seed, low, high, quad, tl.zeros_like(quad))
        lane = head % 4
        word = tl.where(lane < 2, tl.where(lane == 0, w0, w1), tl.where(lane == 2, w2, w3))
    return tl.where(word.to(tl.int64) >= threshold, keep_scale, 0.0)


@triton.jit
def merge_sum_kernel(
    ptr_ptr, heavy_ptr, partial_ptr, out_ptr,
    WIDTH: tl.constexpr, HEAVY: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """Sum the partial rows [M, WIDTH] of each heavy row, in order, into its row of out."""
    slot = tl.program_id(0).to(tl.int64)
    row = tl.maximum(tl.load(heavy_ptr + slot * 3), 0)
    begin = tl.load(ptr_ptr + row)
    # an item that is not used begins nowhere
    if tl.load(heavy_ptr + slot * 3 + 1) != begin:
        return
    stop = slot + (tl.load(ptr_ptr + row + 1) - begin + HEAVY - 1) // HEAVY
    offs_x = tl.program_id(1).to(tl.int64) * BLOCK_X + tl.arange(0, BLOCK_X)
    mask_x = offs_x < WIDTH
    total = tl.zeros([BLOCK_M, BLOCK_X], tl.float32)
    for start in range(slot, stop, BLOCK_M):
        offs_m = start + tl.arange(0, BLOCK_M)
        mask = (offs_m < stop)[:, None] & mask_x[None, :]
        total += tl.load(
            partial_ptr + offs_m[:, None] * WIDTH + offs_x[None, :], mask=mask, other=0.0
        )
    result = tl.sum(total, 0).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * WIDTH + offs_x, result, mask=mask_x)


class Tile(NamedTuple):
    """How a kernel over edges is cut.

    Attributes:
        block_r: rows of a program. block_e: edges of each of them in a tile.
        block_h: heads of a program. groups: programs for all heads.
        widths: one padded width for each head width given.
        warps: warps of a program.
    """

    block_r: int
    block_e: int
    block_h: int
    groups: int
    widths: tuple[int, ...]
    warps: int

    def programs(self, rows: int) -> int:
        """How many programs `rows` rows take."""
        return -(-rows // self.block_r)


def power_of_two(number: int) -> int:
    """The smallest power of two that is at least `number`, and at least 1."""
    return 1 << max(number - 1, 0).bit_length()


def choose_tile(
    heads: int, widths: tuple[int, ...], mean_edges: int, *,
    lane_elements: int, whole_heads: bool, interpreted: bool,
) -> Tile:  # fmt: skip
    """Cut a kernel by simple rules, so that nothing is timed (or compiled twice) at run time.

    Args:
        heads, widths: sizes of the operands; a width of 0 stands for an absent one.
        mean_edges: mean number of edges of a row.
        lane_elements: fp32 elements of one operand that a GPU lane may hold.
        whole_heads: one program must see all heads.
        interpreted: kernels run in Triton's interpreter, where only large tiles are quick.
    """
    padded = tuple(power_of_two(width) for width in widths)
    block_h = power_of_two(heads)
    if not whole_heads:
        block_h = min(block_h, max(1, 256 // max(padded)))
    elements = block_h * max(padded)
    groups = -(-heads // block_h)
    if interpreted:
        places = max(1, min(512, 2**18 // elements))
        return Tile(max(1, places // 32), min(places, 32), block_h, groups, padded, 1)
    warps = 1 if mean_edges < 32 else 2 if mean_edges < 256 else 4
    # two edges in flight at least, where a program can hold them
    while warps < 8 and 2 * elements > warps * 32 * lane_elements:
        warps *= 2
    places = max(1, warps * 32 * lane_elements // elements)
    # few distinct sizes, so that graphs of like degree share compiled kernels
    block_e = min(places, 8 if mean_edges <= 8 else 32 if mean_edges <= 32 else 128)
    # rows side by side wait for the longest of them: a few only, and of short ones
    block_r = min(4, places // block_e) if mean_edges <= 8 else 1
    return Tile(block_r, block_e, block_h, groups, padded, warps)


@triton.jit
def drop_zeros(zeros, word, COUNT: tl.constexpr):
    """`zeros` more by COUNT, and `word` without them, where its 32 bits begin with COUNT zeros."""
    low = word < 2 ** (32 - COUNT)
    return tl.where(low, zeros + COUNT, zeros), tl.where(low, word << COUNT, word)


@triton.jit
def negative_log2(word, zeros):
    """-2**32 log2((word + 1/2) / 2**(32 - zeros)) of words int64 that begin with `zeros` zeros."""
    rest = (-(word << zeros << 1) - (tl.full(word.shape, 1, tl.int64) << zeros)) & 0xFFFFFFFF
    half = rest >> 1
    log = ((half * 1116196857) >> 32) - 1313475288
    log = ((log * half) >> 32) + 974116327
    log = ((log * half) >> 32) - 157649060
    log = ((log * half) >> 32) + 208826086
    log = ((log * half) >> 32) + 188062494
    log = ((log * half) >> 32) + 258464808
    log = ((log * half) >> 32) + 387264965
    log = ((log * half) >> 32) + 774541020
    return ((rest * log) >> 30) + 1


@triton.jit
def exponential(word):
    """-2**16 log2((word + 1/2) / 2**32) of words uint32, as fp32; see gtkern/random.py."""
    word = tl.where(word == 0, 1, word.to(tl.int64))
    zeros, high = drop_zeros(tl.zeros_like(word), word, 16)
    zeros, high = drop_zeros(zeros, high, 8)
    zeros, high = drop_zeros(zeros, high, 4)
    zeros, high = drop_zeros(zeros, high, 2)
    zeros, _ = drop_zeros(zeros, high, 1)
    fraction = negative_log2(word, zeros)
    fixed = tl.where(zeros > 0, (zeros << 27) + (fraction >> 5), fraction)
    return fixed.to(tl.float32) * tl.where(zeros > 0, 2.0**-11, 2.0**-16)


@triton.jit
def gumbel(word):
    """-2**26 log(-log((word + 1/2) / 2**32)) of words uint32, as int64; see gtkern/random.py."""
    bits = exponential(word).to(tl.int32, bitcast=True).to(tl.int64)
    exponent = (bits >> 23) - 126
    mantissa = ((bits << 8) & 0xFFFFFFFF) | 2147483648
    fraction = negative_log2(mantissa, tl.zeros_like(mantissa))
    log = (fraction >> 5) - (exponent - 16) * 134217728
    return ((log * 744261118) >> 31) + 24596266
