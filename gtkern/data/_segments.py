"""Cuts the rows of some graphs out of arrays over all graphs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

try:
    from gtkern import _graph as _native
except ImportError:
    _native = None  # type: ignore[assignment]


class Segments:
    """The rows of some graphs, in every array of one pointer.

    Args:
        ptr: int64 [G + 1], checked.
        chosen: int64 [B], checked.
    """

    def __init__(self, ptr: Tensor, chosen: Tensor) -> None:
        self.begins = ptr.index_select(0, chosen)
        self.counts = ptr[1:].index_select(0, chosen) - self.begins
        self.total = int(self.counts.sum())
        self._positions: Tensor | None = None

    def take(self, values: Tensor) -> Tensor:
        """The rows of `values`, one graph after the other."""
        if _native is None:
            return values.index_select(0, self._all_positions())
        out = torch.empty((self.total, *values.shape[1:]), dtype=values.dtype)
        if out.numel() > 0:
            begins, counts = self.begins.numpy(), self.counts.numpy()
            _native.gather_segments(_as_bytes(values), begins, counts, _as_bytes(out))
        return out

    def spread(self, values: Tensor) -> Tensor:
        """Each graph's value, at each of its rows."""
        return torch.repeat_interleave(values, self.counts, output_size=self.total)

    def _all_positions(self) -> Tensor:
        if self._positions is None:
            shift = self.begins - (self.counts.cumsum(0) - self.counts)
            self._positions = torch.arange(self.total) + self.spread(shift)
        return self._positions


def _as_bytes(values: Tensor) -> np.ndarray:
    """uint8 [rows, bytes], the same memory."""
    array: np.ndarray = values.view(values.size(0), -1).view(torch.uint8).numpy()
    return array
