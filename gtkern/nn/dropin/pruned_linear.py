"""The twin of torch.nn.Linear whose weight is pruned in blocks."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from gtkern import ops
from gtkern.block_sparse import BlockSparseMatrix
from gtkern.nn.dropin.twin import Twin

__all__ = ["PrunedLinear"]

BLOCKS = (64, 32, 16)
"""Sizes that are looked for, the best first."""
DENSEST = 0.5
"""Share of the blocks that may be left: above it the dense product is near."""
FEWEST_CHANNELS, FEWEST_ROWS = 256, 1024
"""Below these the dense product is as fast."""


class _Layout(NamedTuple):
    """Where the blocks are.

    Attributes:
        matrix: of the right structure; its values are not used.
        place: int64 [blocks, rows, columns]; of the values in the flat weight.
    """

    matrix: BlockSparseMatrix
    place: Tensor


class PrunedLinear(Twin, nn.Linear):
    """torch.nn.Linear with a pruned weight, whose empty blocks are not computed.

    Under torch.nn.utils.prune the weight stays the dense parameter that it is, `weight_orig` with
    its mask; its kept blocks are gathered in each call. Without a mask the zeros of the weight are
    its pattern, as long as nothing trains it. Calls of few rows are the layer's own.
    """

    gain: ClassVar[str] = "3x with a quarter of the blocks on a CPU; the more, the fewer are left"
    listed = False

    @classmethod
    def concerns(cls, layer: nn.Module) -> bool:
        """See Twin."""
        if isinstance(getattr(layer, "weight_mask", None), Tensor):
            return True
        settings: Any = layer
        lazy = isinstance(settings.weight, nn.parameter.UninitializedParameter)
        return not lazy and float((settings.weight != 0).float().mean()) <= DENSEST

    @classmethod
    def refusal(cls, layer: nn.Module) -> str | None:
        """See Twin."""
        settings: Any = layer
        mask = getattr(layer, "weight_mask", settings.weight.detach())
        if mask.device.type != "cpu":
            return f"on {mask.device}; measured on a CPU only"
        if min(mask.shape) < FEWEST_CHANNELS:
            return f"fewer than {FEWEST_CHANNELS} channels, where the dense product is as fast"
        block = _block(mask)
        if block is None:
            return (
                f"its zeros leave more than {DENSEST:.0%} of the blocks of "
                f"{' or '.join(str(size) for size in reversed(BLOCKS))}; prune whole blocks"
            )
        return None

    @classmethod
    def hand_over(cls, layer: nn.Module) -> str | None:
        """See Twin."""
        few = f"calls of fewer than {FEWEST_ROWS} rows"
        return few if hasattr(layer, "weight_mask") else f"training, and {few}"

    def forward(self, input: Tensor) -> Tensor:
        """As torch's."""
        rows = input.numel() // max(input.size(-1), 1)
        plain = input.dtype == self.weight.dtype and input.device.type == "cpu"
        if rows < FEWEST_ROWS or not plain or torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        matrix = self._matrix()
        if matrix is None:
            return super().forward(input)
        return ops.block_sparse_linear(input, matrix, self.bias)

    def _matrix(self) -> BlockSparseMatrix | None:
        """The kept blocks; None: there are too many, or any of the zeros may train away."""
        weight = self.weight
        mask = getattr(self, "weight_mask", None)
        if mask is None and weight.requires_grad and torch.is_grad_enabled():
            return None
        pattern = weight if mask is None else mask
        layout = self.graphs.get((pattern,), "blocks", lambda: _layout(pattern.detach()))
        if layout is None:
            return None

        def gathered() -> BlockSparseMatrix:
            values = weight.flatten().index_select(0, layout.place.flatten())
            matrix: BlockSparseMatrix = layout.matrix.with_values(values.view(layout.place.shape))
            return matrix

        if mask is not None:
            return gathered()
        matrix: BlockSparseMatrix = self.graphs.get((weight,), "values", gathered)
        return matrix


def _block(mask: Tensor) -> int | None:
    """The size of blocks of which few enough are left; None: there is none."""
    for size in BLOCKS:
        if not any(count % size for count in mask.shape) and _kept(mask, size) <= DENSEST:
            return size
    return None


def _tiles(mask: Tensor, size: int) -> Tensor:
    return mask.view(mask.size(0) // size, size, mask.size(1) // size, size).transpose(1, 2)


def _kept(mask: Tensor, size: int) -> float:
    return float((_tiles(mask, size) != 0).flatten(2).any(2).float().mean())


def _layout(mask: Tensor) -> _Layout | None:
    size = _block(mask)
    if size is None:
        return None
    kept = (_tiles(mask, size) != 0).flatten(2).any(2)
    place = torch.arange(mask.numel()).view(mask.shape)
    row, col = kept.nonzero(as_tuple=True)
    matrix = BlockSparseMatrix.from_dense(torch.zeros(mask.shape), size, mask=kept)
    return _Layout(matrix, _tiles(place, size)[row, col].contiguous())
