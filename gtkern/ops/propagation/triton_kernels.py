"""The Triton kernels of propagate; triton.py launches them.

Iterates are fp32 [N, W]. Addresses are int64. Every row has one owner and every sum one order.
"""
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

_CALL = ["nodes", "channels", "first"]
"""Numbers of a call that no kernel is compiled anew for."""


@triton.jit
def _sum_rows(
    now_ptr, index_ptr, weight_ptr, begin, end, offs_w, W,
    BLOCK_E: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Weighted sums of the rows index[begin .. end) of `now`, side by side: fp32 [R, BLOCK_W]."""
    total = tl.zeros([begin.shape[0], BLOCK_W], tl.float32)
    for start in range(0, tl.max(end - begin, 0), BLOCK_E):
        offs_e = begin[:, None] + start + tl.arange(0, BLOCK_E)[None, :]  # [R, E]
        mask_e = offs_e < end[:, None]
        row = tl.load(index_ptr + offs_e, mask=mask_e, other=0).to(tl.int64)
        at = row[:, :, None] * W + offs_w[None, None, :]
        mask = mask_e[:, :, None] & (offs_w < W)[None, None, :]
        value = tl.load(now_ptr + at, mask=mask, other=0.0)
        if weight_ptr is not None:
            value *= tl.load(weight_ptr + offs_e, mask=mask_e, other=0.0)[:, :, None]
        total += tl.sum(value, 1)
    return total


@triton.jit(do_not_specialize=["pieces"])
def heavy_sum_kernel(
    heavy_ptr, index_ptr, weight_ptr, now_ptr, partial_ptr, pieces,
    W: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """One program for BLOCK_R pieces of heavy rows and BLOCK_W channels: writes their sums."""
    slot = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    offs_w = tl.program_id(1).to(tl.int64) * BLOCK_W + tl.arange(0, BLOCK_W)
    live = slot < pieces
    begin = tl.load(heavy_ptr + slot * 3 + 1, mask=live, other=0)
    end = tl.load(heavy_ptr + slot * 3 + 2, mask=live, other=0)
    total = _sum_rows(now_ptr, index_ptr, weight_ptr, begin, end, offs_w, W, BLOCK_E, BLOCK_W)
    mask = live[:, None] & (offs_w < W)[None, :]
    tl.store(partial_ptr + slot[:, None] * W + offs_w[None, :], total, mask=mask)


@triton.jit(do_not_specialize=_CALL)
def sweep_kernel(
    ptr_ptr, index_ptr, weight_ptr, scale_ptr, own_ptr, item_ptr, partial_ptr,
    x_ptr, now_ptr, before_ptr, next_ptr, unit_ptr, squares_ptr,
    nodes, channels, first, alpha, damping, omega,
    W: tl.constexpr, HEAVY: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """One program for BLOCK_R rows and BLOCK_W channels: writes them, and its sum of squares."""
    program = tl.program_id(0).to(tl.int64)
    row = program * BLOCK_R + tl.arange(0, BLOCK_R)
    offs_w = tl.program_id(1).to(tl.int64) * BLOCK_W + tl.arange(0, BLOCK_W)
    live, inside = row < nodes, offs_w < W
    mask = live[:, None] & inside[None, :]
    begin = tl.load(ptr_ptr + row, mask=live, other=0)
    end = tl.load(ptr_ptr + row + 1, mask=live, other=0)
    if item_ptr is not None:
        # a heavy row adds up its pieces in place of its edges
        count = tl.where(end - begin > HEAVY, (end - begin + HEAVY - 1) // HEAVY, 0)
        slot = tl.load(item_ptr + row, mask=live, other=0).to(tl.int64)
        end = tl.where(count > 0, begin, end)
    total = _sum_rows(now_ptr, index_ptr, weight_ptr, begin, end, offs_w, W, BLOCK_E, BLOCK_W)
    if item_ptr is not None:
        for piece in range(0, tl.max(count, 0)):
            at = (slot + piece)[:, None] * W + offs_w[None, :]
            there = (piece < count)[:, None] & inside[None, :]
            total += tl.load(partial_ptr + at, mask=there, other=0.0)
    at = row[:, None] * W + offs_w[None, :]
    mine = tl.load(now_ptr + at, mask=mask, other=0.0)
    from_x = row[:, None] * channels + first + offs_w[None, :]
    there = live[:, None] & (first + offs_w < channels)[None, :]
    source = alpha * tl.load(x_ptr + from_x, mask=there, other=0.0).to(tl.float32)
    if scale_ptr is not None:
        scale = tl.load(scale_ptr + row, mask=live, other=1.0)[:, None]
        own = tl.load(own_ptr + row, mask=live, other=0.0)[:, None]
        moved = damping * scale * scale * (total + own * mine) + scale * source
        gap = (moved - mine) / scale
    else:
        moved = damping * total + source
        gap = moved - mine
    if unit_ptr is not None:
        gap *= tl.load(unit_ptr + offs_w, mask=inside, other=0.0)[None, :]
        squares = tl.sum(tl.where(mask, gap * gap, 0.0), 0)
        tl.store(squares_ptr + program * W + offs_w, squares, mask=inside)
    before = tl.load(before_ptr + at, mask=mask, other=0.0)
    tl.store(next_ptr + at, omega * moved + (1.0 - omega) * before, mask=mask)
