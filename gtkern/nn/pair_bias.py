"""Biases of attention that are looked up by pair: distinct rows, and tables of any length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gtkern.ragged import PairIndex, Ragged

__all__ = ["distinct_rows", "pair_biases"]

_UINT8_ROWS, _INT16_ROWS = 255, 32767
"""The longest table that an index of each dtype reaches; see PairIndex."""


def distinct_rows(rows: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The different rows of a table of small integers.

    Args:
        rows: integers [R, K], column k in 0 .. sizes[k] - 1.
        sizes: K numbers.

    Returns:
        int64 [D]: for each different row, where in `rows` one stands, ordered by the rows; and
        int64 [R], the number of each row among the different ones.
    """
    count = rows.size(0)
    key, span = torch.zeros(count, dtype=torch.int64, device=rows.device), 1
    for column, size in enumerate(sizes):
        if span * size >= 2**63:
            # the keys so far, numbered through: there are no more of them than rows
            key = torch.unique(key, return_inverse=True)[1]
            span = max(count, 1)
        key = key * size + rows[:, column]
        span *= size
    values, number = torch.unique(key, return_inverse=True)
    # of several candidates any will do, for the rows are equal
    at = torch.empty_like(values).scatter_(0, number, torch.arange(count, device=rows.device))
    return at, number


def pair_biases(entry: Tensor, table: Tensor, ragged: Ragged) -> list[tuple[PairIndex, Tensor]]:
    """A bias for ragged_attention from a table of any length.

    A table with more rows than an index can number is cut; each piece has one more row, of zeros,
    for the pairs whose entries lie in other pieces.

    Args:
        entry: int64 [num_pairs], 0 .. B - 1; -1 masks a pair.
        table: [B, H].
        ragged: whose pairs these are.
    """
    rows = table.size(0)
    if rows <= _UINT8_ROWS:
        # -1 becomes 255, the mask
        index = PairIndex.from_tensor(entry.to(torch.uint8), ragged, max(rows, 1))
        return [(index, table if rows else table.new_zeros(1, table.size(1)))]
    if rows <= _INT16_ROWS:
        return [(PairIndex.from_tensor(entry.to(torch.int16), ragged, rows), table)]
    biases, step = [], _INT16_ROWS - 1
    for begin in range(0, rows, step):
        end = min(begin + step, rows)
        own = torch.where((entry >= begin) & (entry < end), entry - (begin - 1), 0)
        own = torch.where(entry < 0, -1, own).to(torch.int16)
        piece = torch.cat((table.new_zeros(1, table.size(1)), table[begin:end]))
        biases.append((PairIndex.from_tensor(own, ragged, end - begin + 1), piece))
    return biases
