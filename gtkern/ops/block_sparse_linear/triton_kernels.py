"""The Triton kernels of block_sparse_linear; triton.py launches them.

A strip is a block row of the weight, or in the gradient of x a block column. Its blocks are walked
as if they lay side by side: place p of a strip is row or column p % size of its block p // size, so
that a tile takes in several small blocks or a part of a large one. Addresses are int64.

Every tile of a result has one owner and every sum one order: no atomics.
"""
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from gtkern.ops._triton import dot

_CALL = ["rows", "chunk"]
"""Numbers of a call that no kernel is compiled anew for."""


@triton.jit
def _activate(z, ACTIVATION: tl.constexpr):
    """The activation of fp32 z."""
    if ACTIVATION == "relu":
        # a NaN stays one
        z = tl.where(z < 0, 0.0, z)
    elif ACTIVATION == "gelu":
        z = z * (0.5 + 0.5 * tl.erf(z * 0.7071067811865476))
    elif ACTIVATION == "silu":
        z = z / (1 + tl.exp(-z))
    return z


@triton.jit
def _pull_back(grad, kept, ACTIVATION: tl.constexpr):
    """grad times the activation's slope, from relu's result or what gelu and silu were given."""
    if ACTIVATION == "relu":
        grad = tl.where(kept <= 0, 0.0, grad)
    elif ACTIVATION == "gelu":
        below = 0.5 + 0.5 * tl.erf(kept * 0.7071067811865476)
        grad *= below + kept * 0.3989422804014327 * tl.exp(-0.5 * kept * kept)
    elif ACTIVATION == "silu":
        gate = 1 / (1 + tl.exp(-kept))
        grad *= gate * (1 + kept * (1 - gate))
    return grad


@triton.jit
def _places(order_ptr, index_ptr, begin, end, first, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Places first .. first + BLOCK of a strip: their block, the row or column inside it, that of
    the whole matrix, and which places there are."""
    place = first + tl.arange(0, BLOCK)
    live = place < (end - begin) * SIZE
    block, within = begin + place // SIZE, place % SIZE
    if order_ptr is not None:
        block = tl.load(order_ptr + block, mask=live, other=0)
    column = tl.load(index_ptr + block, mask=live, other=0) * SIZE + within
    return block.to(tl.int64), within, column, live


@triton.jit(do_not_specialize=_CALL)
def product_kernel(
    x_ptr, values_ptr, ptr_ptr, order_ptr, index_ptr, bias_ptr, out_ptr, kept_ptr,
    rows, strips, width, out_width,
    SIZE_N: tl.constexpr, SIZE_K: tl.constexpr, ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """BLOCK_M rows of one strip of out [rows, out_width]: x [rows, width] by its live blocks.

    With order_ptr, which names the blocks of a strip, strips are block columns and blocks
    [SIZE_K, SIZE_N]; without, block rows, whose blocks [SIZE_N, SIZE_K] lie one after the other.
    """
    program = tl.program_id(0).to(tl.int64)
    strip = program % strips
    row = program // strips * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    inside = row < rows
    begin = tl.load(ptr_ptr + strip)
    end = tl.load(ptr_ptr + strip + 1)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, (end - begin) * SIZE_K, BLOCK_K):
        block, within, column, live = _places(
            order_ptr, index_ptr, begin, end, first, SIZE_K, BLOCK_K
        )
        # what reaches past the matrix is not read, on either side
        live = live & (column < width)
        if order_ptr is not None:
            offs_kn = within[:, None] * SIZE_N + offs_n[None, :]
        else:
            offs_kn = within[:, None] + offs_n[None, :] * SIZE_K
        at = block[:, None] * (SIZE_N * SIZE_K) + offs_kn
        mask = live[:, None] & (offs_n < SIZE_N)[None, :]
        weight = tl.load(values_ptr + at, mask=mask, other=0.0)
        mask = inside[:, None] & live[None, :]
        tile = tl.load(x_ptr + row[:, None] * width + column[None, :], mask=mask, other=0.0)
        total += dot(tile, weight, PRECISION)
    column = strip * SIZE_N + offs_n
    used = (offs_n < SIZE_N) & (column < out_width)
    if bias_ptr is not None:
        total += tl.load(bias_ptr + column, mask=used, other=0.0).to(tl.float32)[None, :]
    at = row[:, None] * out_width + column[None, :]
    mask = inside[:, None] & used[None, :]
    if kept_ptr is not None:
        tl.store(kept_ptr + at, total.to(kept_ptr.dtype.element_ty), mask=mask)
    total = _activate(total, ACTIVATION)
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=_CALL)
def pull_back_kernel(
    grad_ptr, kept_ptr, grad_z_ptr, part_ptr, rows, chunk, width,
    ACTIVATION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """`chunk` rows of some columns: the gradient before the activation [rows, width], and its sum
    over the chunk in a row of part [chunks, width]; either may be None."""
    number = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    begin = number * chunk
    end = tl.minimum(begin + chunk, rows)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(begin, end, BLOCK_M):
        row = first + tl.arange(0, BLOCK_M)
        at = row[:, None] * width + column[None, :]
        mask = (row < end)[:, None] & (column < width)[None, :]
        grad = tl.load(grad_ptr + at, mask=mask, other=0.0).to(tl.float32)
        if ACTIVATION != "none":
            kept = tl.load(kept_ptr + at, mask=mask, other=0.0).to(tl.float32)
            grad = _pull_back(grad, kept, ACTIVATION)
        if grad_z_ptr is not None:
            tl.store(grad_z_ptr + at, grad.to(grad_z_ptr.dtype.element_ty), mask=mask)
        total += grad
    if part_ptr is not None:
        tl.store(part_ptr + number * width + column, tl.sum(total, 0), mask=column < width)


@triton.jit(do_not_specialize=_CALL)
def weight_kernel(
    grad_ptr, x_ptr, row_ptr_ptr, col_ptr, out_ptr, rows, chunk, blocks, width, out_width,
    SIZE_N: tl.constexpr, SIZE_K: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """BLOCK_K places of one block row of the gradient of the values, summed over `chunk` rows
    of grad [rows, out_width] and x [rows, width], into out [chunks, blocks, SIZE_N, SIZE_K]."""
    strip = tl.program_id(0)
    begin = tl.load(row_ptr_ptr + strip)
    end = tl.load(row_ptr_ptr + strip + 1)
    first = tl.program_id(1) * BLOCK_K
    # the grid has programs for full block rows
    if first >= (end - begin) * SIZE_K:
        return
    number = tl.program_id(2).to(tl.int64)
    row_begin = number * chunk
    row_end = tl.minimum(row_begin + chunk, rows)
    block, within, column, live = _places(None, col_ptr, begin, end, first, SIZE_K, BLOCK_K)
    used = live & (column < width)
    offs_n = tl.arange(0, BLOCK_N)
    column_n = strip * SIZE_N + offs_n
    used_n = (offs_n < SIZE_N) & (column_n < out_width)
    total = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for first_row in range(row_begin, row_end, BLOCK_M):
        row = first_row + tl.arange(0, BLOCK_M)
        inside = (row < row_end)[:, None]
        grad = tl.load(
            grad_ptr + row[:, None] * out_width + column_n[None, :],
            mask=inside & used_n[None, :],
            other=0.0,
        )
        tile = tl.load(
            x_ptr + row[:, None] * width + column[None, :], mask=inside & used[None, :], other=0.0
        )
        total += dot(tl.trans(grad), tile, PRECISION)
    # 0 where a block reaches over the edge, also beside a NaN
    total = tl.where(used_n[:, None] & used[None, :], total, 0.0)
    at = (number * blocks + block)[None, :] * (SIZE_N * SIZE_K) + (
        offs_n[:, None] * SIZE_K + within[None, :]
    )
    mask = (offs_n < SIZE_N)[:, None] & live[None, :]
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=mask)
