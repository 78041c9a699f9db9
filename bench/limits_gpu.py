"""The gather limit of a GPU: a Triton kernel that reads random rows and writes their sums."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

__all__ = ["read_rows"]

_ROWS = 64


@triton.jit
def _read_rows(
    table_ptr: Any,
    index_ptr: Any,
    out_ptr: Any,
    count: Any,
    width: Any,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    # One program reads ROWS rows and is the only writer of its sum: no atomics.
    program = tl.program_id(0).to(tl.int64)
    offs_row = program * ROWS + tl.arange(0, ROWS)
    row = tl.load(index_ptr + offs_row, mask=offs_row < count, other=0).to(tl.int64)
    total = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
    for start in range(0, width, WIDTH):
        offs_column = start + tl.arange(0, WIDTH)
        mask = (offs_row < count)[:, None] & (offs_column < width)[None, :]
        total += tl.load(
            table_ptr + row[:, None] * width + offs_column[None, :], mask=mask, other=0.0
        )
    tl.store(out_ptr + program, tl.sum(total))


def read_rows(table: Tensor, index: Tensor) -> Tensor:
    """Sums of the rows `index` (int32 [E]) of `table` (float32 [N, C]) over blocks of 64 rows."""
    count, width = index.numel(), table.size(1)
    out = table.new_empty(triton.cdiv(count, _ROWS))
    block = min(64, triton.next_power_of_2(width))
    _read_rows[(out.numel(),)](table, index, out, count, width, ROWS=_ROWS, WIDTH=block)
    return out
