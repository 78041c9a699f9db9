"""The triton backend: portable GPU kernels, and in Triton's interpreter on a CPU."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gtkern.ops._triton import power_of_two
from gtkern.ops.block_sparse_linear.call import Forward, Gradients, Needs, Weight
from gtkern.ops.block_sparse_linear.triton_kernels import (
    product_kernel,
    pull_back_kernel,
    weight_kernel,
)

_FULL = 256
"""Programs that fill a GPU; sums over rows are cut until there are about so many."""

_CHUNK_ROWS, _PART_ELEMENTS = 512, 2**24
"""A part of the gradient of the values sums at least so many rows, and all parts together have at
most so many elements."""

_BIAS_ROWS = 128
"""Rows that a part of the gradient of the bias sums."""


class _Tile(NamedTuple):
    """How a product is cut: rows of x, columns of a strip, live columns, and how it runs."""

    precision: str
    block_m: int
    block_n: int
    block_k: int
    warps: int

    def launch(self) -> dict[str, int | str]:
        """Keyword arguments of a kernel."""
        return {
            "PRECISION": self.precision,
            "BLOCK_M": self.block_m,
            "BLOCK_N": self.block_n,
            "BLOCK_K": self.block_k,
            "num_warps": self.warps,
            "num_stages": 3,
        }


def _precision(dtype: torch.dtype) -> str:
    """How operands are multiplied: fp32 ones exactly, unless torch's own products may use tf32."""
    tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if dtype == torch.float32 and tf32 else "ieee"


def _padded(size: int) -> int:
    """What a side of a block takes in a tile."""
    return max(16, power_of_two(size))


def _product_tile(dtype: torch.dtype, size_n: int) -> _Tile:
    """Depends on the sizes of blocks alone, never on the rows: a row has the same bits in any
    batch."""
    block_n, precision = _padded(size_n), _precision(dtype)
    warps = 8 if block_n == 128 else 4
    if dtype != torch.float32:
        return _Tile(precision, 128, block_n, 64 if block_n < 128 else 32, warps)
    if precision == "tf32":
        return _Tile(precision, 128, block_n, 32, warps)
    # plain multiplications hold whole rows of a tile in registers
    return _Tile(precision, 64, block_n, 16, warps)


def _weight_tile(dtype: torch.dtype, size_n: int) -> _Tile:
    block_n, precision = _padded(size_n), _precision(dtype)
    warps = 8 if block_n == 128 else 4
    if dtype == torch.float32:
        return _Tile(precision, 32 if precision == "tf32" else 16, block_n, 64, warps)
    return _Tile(precision, 64, block_n, 64, warps)


def _multiply(
    x: Tensor,
    weight: Weight,
    turned: bool,
    bias: Tensor | None,
    out: Tensor,
    kept: Tensor | None,
    activation: str,
) -> None:
    """Fill out: x by the transpose of the weight, or with `turned` by the weight."""
    blocks, sizes = weight.blocks, weight.values.shape[1:]
    order = blocks.order if turned else None
    strips, across = (blocks.col_ptr, blocks.row) if turned else (blocks.row_ptr, blocks.col)
    size_n, size_k = reversed(sizes) if turned else sizes
    rows, count = x.size(0), strips.numel() - 1
    tile = _product_tile(x.dtype, size_n)
    programs = -(-rows // tile.block_m) * count
    if programs == 0:
        return
    product_kernel[(programs,)](
        x, weight.values, strips, order, across, bias, out, kept,
        rows, count, x.size(1), out.size(1),
        SIZE_N=size_n, SIZE_K=size_k, ACTIVATION=activation, **tile.launch(),
    )  # fmt: skip


def forward(x: Tensor, weight: Weight, bias: Tensor | None, activation: str, keep: bool) -> Forward:
    """See Forward."""
    out = x.new_empty(x.size(0), weight.out_features)
    keep = keep and activation in ("gelu", "silu")
    kept = torch.empty_like(out) if keep else x.new_empty(0)
    with torch.cuda.device_of(x):
        _multiply(x, weight, False, bias, out, kept if keep else None, activation)
    return Forward(out, kept)


def backward(
    grad_out: Tensor, x: Tensor, weight: Weight, kept: Tensor, activation: str, needs: Needs
) -> Gradients:
    """Every gradient that is needed."""
    grad_x = torch.empty_like(x) if needs.x else x.new_empty(0)
    grad_values = torch.empty_like(weight.values) if needs.values else x.new_empty(0)
    with torch.cuda.device_of(x):
        grad_z, grad_bias = _pull_back(grad_out, kept, activation, needs)
        if needs.x:
            _multiply(grad_z, weight, True, None, grad_x, None, "none")
        if grad_values.numel():
            _fill_values(grad_z, x, weight, grad_values)
    return Gradients(grad_x, grad_values, grad_bias)


def _pull_back(
    grad_out: Tensor, kept: Tensor, activation: str, needs: Needs
) -> tuple[Tensor, Tensor]:
    """The gradients before the activation and of the bias."""
    rows, width = grad_out.shape
    grad_bias = grad_out.new_empty(width if needs.bias else 0)
    grad_z = None
    if activation != "none" and (needs.x or needs.values):
        grad_z = torch.empty_like(grad_out)
    chunks = -(-rows // _BIAS_ROWS)
    part = grad_out.new_empty(chunks, width, dtype=torch.float32) if needs.bias else None
    if chunks and width and not (part is None and grad_z is None):
        block_n = min(128, power_of_two(width))
        pull_back_kernel[chunks, -(-width // block_n)](
            grad_out, kept, grad_z, part, rows, _BIAS_ROWS, width,
            ACTIVATION=activation, BLOCK_M=1024 // block_n, BLOCK_N=block_n, num_warps=4,
        )  # fmt: skip
    if part is not None:
        grad_bias.copy_(part.sum(0))
    return grad_out if grad_z is None else grad_z, grad_bias


def _fill_values(grad_z: Tensor, x: Tensor, weight: Weight, grad_values: Tensor) -> None:
    """Write the gradient of the live blocks: parts by chunks of rows, then their sum."""
    blocks, size_n, size_k = grad_values.shape
    rows, strips = x.size(0), weight.blocks.row_ptr.numel() - 1
    tile = _weight_tile(x.dtype, size_n)
    # depends on sizes alone: the sums are the same from run to run
    live = -(-blocks * size_k // tile.block_k)
    most = min(-(-_FULL // live), max(1, _PART_ELEMENTS // grad_values.numel()))
    chunk = max(1, -(-rows // max(1, min(-(-rows // _CHUNK_ROWS), most))))
    chunks = max(1, -(-rows // chunk))
    parts = grad_values
    if chunks > 1:
        parts = grad_values.new_empty(chunks, *grad_values.shape, dtype=torch.float32)
    # as many tiles as a full block row has
    tiles = -(-(-(-x.size(1) // size_k) * size_k) // tile.block_k)
    weight_kernel[strips, tiles, chunks](
        grad_z, x, weight.blocks.row_ptr, weight.blocks.col, parts,
        rows, chunk, blocks, x.size(1), grad_z.size(1),
        SIZE_N=size_n, SIZE_K=size_k, **tile.launch(),
    )  # fmt: skip
    if chunks > 1:
        grad_values.copy_(parts.sum(0))
