"""Selection: which tokens of a batch are kept."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gtkern import _check
from gtkern.ragged import Ragged

__all__ = ["Selection", "check_selection"]


@dataclass(frozen=True, eq=False)
class Selection:
    """The tokens kept of each graph of a batch; `select_tokens` makes one.

    Attributes:
        index: int64 [M]; the rows kept, ascending.
        position: int32 [N]; where each row stands among the kept; -1: dropped.
        ragged: the batch that was chosen from.
        kept_ptr: int64 [G + 1]; graph g keeps index[kept_ptr[g]] .. index[kept_ptr[g + 1] - 1].
        host_kept_ptr: the same on the CPU.
        gate: [M], dtype of the scores; 1 throughout. Rows multiplied by it hand their gradients
            on to the scores.
    """

    index: Tensor
    position: Tensor
    ragged: Ragged
    kept_ptr: Tensor
    host_kept_ptr: Tensor
    gate: Tensor

    @functools.cached_property
    def kept(self) -> Ragged:
        """The batch of the kept tokens."""
        return Ragged.from_host(self.host_kept_ptr, self.kept_ptr)

    @property
    def num_kept(self) -> int:
        """M."""
        return self.index.size(0)

    def to(self, device: torch.device | str) -> Selection:
        """The same on another device."""
        return replace(
            self,
            index=self.index.to(device),
            position=self.position.to(device),
            ragged=self.ragged.to(device),
            kept_ptr=self.kept_ptr.to(device),
            gate=self.gate.to(device),
        )

    def __repr__(self) -> str:
        return f"Selection(num_kept={self.num_kept}, ragged={self.ragged})"


def check_selection(selection: Selection) -> None:
    """Raise TypeError unless `selection` is one."""
    if not isinstance(selection, Selection):
        raise TypeError(
            f"selection must be a Selection (select_tokens makes one), "
            f"got {type(selection).__name__}"
        )


def check_rows(name: str, value: Tensor, letter: str, rows: int, selection: Selection) -> None:
    """Raise unless `value` is a tensor [letter, ...] of so many rows on the selection's device."""
    _check.tensor(name, value)
    if value.dim() == 0 or value.size(0) != rows:
        raise ValueError(
            f"{name} must have shape [{letter}, ...] with {letter} = {rows}, "
            f"got {list(value.shape)}"
        )
    _check.same_device(selection=selection.index, **{name: value})
