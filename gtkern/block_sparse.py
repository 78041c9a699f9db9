"""BlockSparseMatrix: the weight of a linear layer of which only some blocks are kept."""

from __future__ import annotations

import json
import math
import os
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gtkern import _check

__all__ = ["BlockIndex", "BlockSparseMatrix"]

_SMALLEST, _LARGEST = 8, 128
_MOST_FEATURES = 2**31 - 1
_FORMAT = "gtkern.BlockSparseMatrix"


class BlockIndex(NamedTuple):
    """Which blocks are kept; B of them, of a grid of R block rows and S block columns.

    Attributes:
        row_ptr: int32 [R + 1]; block row r has the blocks row_ptr[r] .. row_ptr[r + 1].
        row: int32 [B]: the block row of each block, never falling.
        col: int32 [B]: the block column of each block, rising inside a block row.
        col_ptr: int32 [S + 1]; block column s has the blocks order[col_ptr[s] .. col_ptr[s + 1]].
        order: int32 [B]: the blocks by column, and inside a column by row.
    """

    row_ptr: Tensor
    row: Tensor
    col: Tensor
    col_ptr: Tensor
    order: Tensor


class BlockSparseMatrix:
    """A matrix [C_out, C_in] cut into a grid of blocks, of which some are stored, the rest are 0.

    It is laid out as the weight of torch.nn.Linear. The blocks of the last block row and column may
    reach past the matrix; what lies outside is stored as 0, and ops neither read it nor give it a
    gradient. A block row may be empty. The structure never changes; `values` may be a Parameter.

    Make one with `from_dense`, `from_blocks`, `from_bsr` or `load`.

    Attributes:
        values: [B, block_rows, block_cols]: the stored blocks, block row by block row.
        index: which blocks they are.
        shape: (C_out, C_in).
        block: (block_rows, block_cols), 8 .. 128 each.
    """

    def __init__(self, values: Tensor, index: BlockIndex, shape: tuple[int, int]) -> None:
        self.values, self.index, self.shape = values, index, shape
        self.block = (values.size(1), values.size(2))

    @classmethod
    def from_blocks(
        cls, values: Tensor, row_ptr: Tensor, col: Tensor, shape: tuple[int, int]
    ) -> BlockSparseMatrix:
        """From stored blocks and where they are, checked.

        Args:
            values: [B, block_rows, block_cols]; kept as it is, so a Parameter stays one.
            row_ptr: int32 or int64 [R + 1], R = ceil(C_out / block_rows), from 0 to B.
            col: int32 or int64 [B]: block columns, rising inside each block row.
            shape: (C_out, C_in).

        Raises:
            TypeError, ValueError: an argument of another kind, dtype, shape, range or device.
        """
        _check.floating("values", values)
        _check.rank("values", values, "B, block_rows, block_cols")
        shape = _check_shape(shape)
        rows, cols = _grid(shape, _check_block((values.size(1), values.size(2))))
        for name, tensor in (("row_ptr", row_ptr), ("col", col)):
            _check.tensor(name, tensor)
            if tensor.dtype not in (torch.int32, torch.int64):
                raise TypeError(f"{name} must be int32 or int64, got {tensor.dtype}")
        _check.shape("row_ptr", row_ptr, "block rows + 1", (rows + 1,))
        _check.shape("col", col, "B", (values.size(0),))
        _check.same_device(values=values, row_ptr=row_ptr, col=col)
        _check.has_values("values", values)
        counts = row_ptr.diff()
        first, end = int(row_ptr[0]), int(row_ptr[-1])
        if first != 0 or end != values.size(0) or bool(_check.falls(row_ptr).any()):
            raise ValueError(
                f"row_ptr must rise from 0 to {values.size(0)} (the number of blocks), "
                f"got {row_ptr.tolist() if rows < 16 else [first, '...', end]}"
            )
        low, high = (int(col.min()), int(col.max())) if col.numel() else (0, -1)
        if low < 0 or high >= cols:
            raise ValueError(
                f"col must be 0 .. {cols - 1} (block columns - 1), got {low if low < 0 else high}"
            )
        row = torch.arange(rows, device=col.device).repeat_interleave(counts)
        place = row * cols + col
        if bool((place.diff() <= 0).any()):
            at = int((place.diff() <= 0).nonzero()[0])
            raise ValueError(
                f"col must rise inside each block row, got {int(col[at])} then "
                f"{int(col[at + 1])} in block row {int(row[at])}"
            )
        return cls(values, _index(row, col, rows, cols), shape)

    @classmethod
    def from_dense(
        cls,
        w: Tensor,
        block: tuple[int, int] | int,
        *,
        keep: float | None = None,
        mask: Tensor | None = None,
    ) -> BlockSparseMatrix:
        """The blocks of a dense matrix, all of them or those with the largest sum of |w|.

        Args:
            w: [C_out, C_in].
            block: (block_rows, block_cols), or one number for both; 8 .. 128.
            keep: share of the blocks of the grid to keep, in [0, 1]: ceil(keep * R * S) of them,
                ties to the block that comes first.
            mask: bool [R, S]: the blocks to keep. Not together with keep.

        Raises:
            TypeError, ValueError: an argument of another kind, shape or range.
        """
        _check.floating("w", w)
        _check.rank("w", w, "C_out, C_in")
        _check.has_values("w", w)
        block = _check_block((block, block) if isinstance(block, int) else block)
        shape = (w.size(0), w.size(1))
        rows, cols = _grid(shape, block)
        if keep is not None and mask is not None:
            raise ValueError("keep and mask must not be given together")
        padded = torch.nn.functional.pad(
            w.detach(), (0, cols * block[1] - shape[1], 0, rows * block[0] - shape[0])
        )
        tiles = padded.view(rows, block[0], cols, block[1]).transpose(1, 2)
        if mask is not None:
            _check.tensor("mask", mask)
            if mask.dtype != torch.bool:
                raise TypeError(f"mask must be bool, got {mask.dtype}")
            _check.shape("mask", mask, "block rows, block columns", (rows, cols))
            _check.same_device(w=w, mask=mask)
        elif keep is not None:
            count = math.ceil(_check.number("keep", keep, 0, 1) * rows * cols)
            mask = _best(_work(tiles).abs().sum((2, 3)).flatten(), count).view(rows, cols)
        else:
            mask = torch.ones(rows, cols, dtype=torch.bool, device=w.device)
        row, col = mask.nonzero(as_tuple=True)
        return cls(tiles[row, col].contiguous(), _index(row, col, rows, cols), shape)

    @classmethod
    def from_bsr(cls, matrix: Tensor) -> BlockSparseMatrix:
        """From a torch.sparse_bsr tensor of two dimensions.

        Raises:
            TypeError, ValueError: no such tensor, or blocks outside 8 .. 128.
        """
        if not isinstance(matrix, Tensor):
            raise TypeError(f"matrix must be a tensor, got {type(matrix).__name__}")
        if matrix.layout != torch.sparse_bsr:
            raise TypeError(f"matrix must have layout torch.sparse_bsr, got {matrix.layout}")
        _check.rank("matrix", matrix, "C_out, C_in")
        return cls.from_blocks(
            matrix.values(),
            matrix.crow_indices(),
            matrix.col_indices(),
            (matrix.size(0), matrix.size(1)),
        )

    @property
    def num_blocks(self) -> int:
        """B."""
        return self.values.size(0)

    @property
    def grid(self) -> tuple[int, int]:
        """(R, S): the numbers of block rows and of block columns."""
        return _grid(self.shape, self.block)

    @property
    def density(self) -> float:
        """B / (R * S); 1 for a matrix without blocks to keep."""
        places = math.prod(self.grid)
        return self.num_blocks / places if places else 1.0

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
        return self.values.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the values."""
        return self.values.dtype

    def mask(self) -> Tensor:
        """bool [R, S]: whether a block is kept."""
        mask = torch.zeros(self.grid, dtype=torch.bool, device=self.device)
        mask[self.index.row.long(), self.index.col.long()] = True
        return mask

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> BlockSparseMatrix:
        """The same on another device or in another dtype; gradients flow through."""
        values = self.values.to(device=device, dtype=dtype)
        if values is self.values:
            return self
        index = BlockIndex(*(part.to(values.device) for part in self.index))
        return BlockSparseMatrix(values, index, self.shape)

    def with_values(self, values: Tensor) -> BlockSparseMatrix:
        """The same structure with other values [B, block_rows, block_cols].

        Raises:
            TypeError, ValueError: values of another shape or device, or not floating.
        """
        _check.floating("values", values)
        _check.shape("values", values, "B, block_rows, block_cols", (self.num_blocks, *self.block))
        _check.same_device(matrix=self.index.row_ptr, values=values)
        return BlockSparseMatrix(values, self.index, self.shape)

    def to_dense(self) -> Tensor:
        """[C_out, C_in], differentiable with respect to the values."""
        (rows, cols), (height, width) = self.grid, self.block
        place = self.index.row.long() * cols + self.index.col.long()
        tiles = self.values.new_zeros(rows * cols, height, width).index_copy(0, place, self.values)
        dense = tiles.view(rows, cols, height, width).transpose(1, 2)
        return dense.reshape(rows * height, cols * width)[: self.shape[0], : self.shape[1]]

    def to_bsr(self) -> Tensor:
        """As a torch.sparse_bsr tensor, sharing the values.

        Raises:
            ValueError: the block does not divide the shape, which torch asks for.
        """
        if self.shape[0] % self.block[0] or self.shape[1] % self.block[1]:
            raise ValueError(
                f"shape must be a multiple of the block {list(self.block)} for torch.sparse_bsr, "
                f"got {list(self.shape)}"
            )
        return torch.sparse_bsr_tensor(
            self.index.row_ptr,
            self.index.col,
            self.values.detach(),
            self.shape,
            check_invariants=True,
        )

    def validate(self) -> None:
        """Check what the constructor takes on trust: the structure, and the zeros past the matrix.

        Raises:
            ValueError: says what is wrong.
        """
        checked = self.from_blocks(self.values, self.index.row_ptr, self.index.col, self.shape)
        for name, mine, right in zip(BlockIndex._fields, self.index, checked.index, strict=True):
            if mine.dtype != torch.int32 or not torch.equal(mine, right):
                raise ValueError(f"index.{name} must be {right}, got {mine}")
        stray = self.values.detach().masked_fill(self.inside(), 0) != 0
        if bool(stray.any()):
            at = int(stray.flatten(1).any(1).nonzero()[0])
            raise ValueError(f"values must be 0 outside the matrix, got others in block {at}")

    def inside(self) -> Tensor:
        """bool, broadcastable to the values: whether an entry lies inside the matrix."""
        (height, width), device = self.block, self.device
        rows = self.index.row[:, None] * height + torch.arange(height, device=device)
        cols = self.index.col[:, None] * width + torch.arange(width, device=device)
        return (rows < self.shape[0])[:, :, None] & (cols < self.shape[1])[:, None, :]

    def score(self, by: str = "magnitude", grad: Tensor | None = None) -> Tensor:
        """How much each stored block matters.

        Args:
            by: "magnitude": Σ |w| over the block. "taylor": Σ |w · grad|, the first-order change of
                the loss from each weight's removal.
            grad: of the values, [B, block_rows, block_cols]; for "taylor" only. Default: that of
                the Parameter that the values are.

        Returns:
            [B], float32 (float64 for such values).

        Raises:
            TypeError, ValueError: an unknown rule, or a gradient missing or of another shape.

        Reference: Molchanov et al. 2017, eq. 7, with the sum of absolute values for groups.
        """
        if by not in ("magnitude", "taylor"):
            raise ValueError(f"by must be 'magnitude' or 'taylor', got {by!r}")
        values = _work(self.values.detach())
        if by == "magnitude":
            if grad is not None:
                raise ValueError("grad must be None for by='magnitude'")
            return values.abs().sum((1, 2))
        grad = self.values.grad if grad is None and self.values.is_leaf else grad
        if grad is None:
            raise ValueError("grad must be given for by='taylor', or be that of the values")
        _check.floating("grad", grad)
        _check.shape("grad", grad, "B, block_rows, block_cols", self.values.shape)
        _check.same_device(matrix=self.values, grad=grad)
        return (values * grad.detach().to(values.dtype)).abs().sum((1, 2))

    def prune(self, keep: float, score: Tensor | None = None) -> BlockSparseMatrix:
        """Keep the blocks with the highest scores, as a new matrix; nothing leaves the device.

        Args:
            keep: share of the blocks of the grid that stay, in [0, density]: ceil(keep * R * S),
                ties to the block that comes first.
            score: [B]; default: by magnitude.

        Raises:
            TypeError, ValueError: an argument of another kind, shape or range.
        """
        count = self._count(keep)
        if count > self.num_blocks:
            raise ValueError(
                f"keep must be at most the density {self.density:g}, got {keep:g}; "
                "regrow adds blocks"
            )
        if score is None:
            score = self.score()
        _check.floating("score", score)
        _check.shape("score", score, "B", (self.num_blocks,))
        _check.same_device(matrix=self.values, score=score)
        # a fixed number of them: no wait for the device
        chosen = _best_places(score.detach(), count)
        rows, cols = self.grid
        row, col = self.index.row[chosen].long(), self.index.col[chosen].long()
        values = self.values.detach()[chosen]
        return BlockSparseMatrix(values, _index(row, col, rows, cols), self.shape)

    def regrow(self, keep: float, score: Tensor) -> BlockSparseMatrix:
        """Add the dead blocks with the highest scores, filled with zeros, as a new matrix.

        Args:
            keep: share of the blocks of the grid in the result, in [density, 1].
            score: [R, S], such as the sums of |gradient| of a dense weight; entries of stored
                blocks are not read.

        Raises:
            TypeError, ValueError: an argument of another kind, shape or range.

        Reference: Evci et al. 2020 (RigL), section 3, with blocks for weights.
        """
        count = self._count(keep)
        if count < self.num_blocks:
            raise ValueError(
                f"keep must be at least the density {self.density:g}, got {keep:g}; "
                "prune removes blocks"
            )
        rows, cols = self.grid
        _check.floating("score", score)
        _check.shape("score", score, "block rows, block columns", (rows, cols))
        _check.same_device(matrix=self.values, score=score)
        mine = self.index.row.long() * cols + self.index.col.long()
        # how many places are dead is known: finding them waits for no device
        stored = torch.zeros(rows * cols, dtype=torch.uint8, device=mine.device)
        order = stored.index_fill(0, mine, 1).argsort(stable=True)
        dead = order[: rows * cols - self.num_blocks]
        chosen = _best_places(_work(score.detach()).flatten()[dead], count - self.num_blocks)
        more = dead[chosen]
        place = torch.cat((mine, more)).sort().values
        at = torch.searchsorted(place, mine)
        values = self.values.detach()
        grown = values.new_zeros(count, *self.block).index_copy(0, at, values)
        index = _index(place // max(cols, 1), place % max(cols, 1), rows, cols)
        return BlockSparseMatrix(grown, index, self.shape)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file that `load` reads."""
        metadata = {"format": _FORMAT, "shape": json.dumps(list(self.shape))}
        tensors = {
            "values": self.values.detach().contiguous(),
            "row_ptr": self.index.row_ptr,
            "col": self.index.col,
        }
        save_file(tensors, path, metadata)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], device: torch.device | str = "cpu"
    ) -> BlockSparseMatrix:
        """Read a file that `save` wrote, checked.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: another kind of file, or a damaged one.
        """
        try:
            with safe_open(path, "pt", str(device)) as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise ValueError(f"{path} must hold a {_FORMAT}, got {metadata or 'no format'}")
                rows, cols = json.loads(metadata["shape"])
                values, row_ptr, col = (
                    file.get_tensor(name) for name in ("values", "row_ptr", "col")
                )
        except SafetensorError as error:
            raise ValueError(f"{path} must be a safetensors file: {error}") from error
        return cls.from_blocks(values, row_ptr, col, (rows, cols))

    def _count(self, keep: float) -> int:
        return math.ceil(_check.number("keep", keep, 0, 1) * math.prod(self.grid))

    def __repr__(self) -> str:
        return (
            f"BlockSparseMatrix(shape={self.shape}, block={self.block}, "
            f"num_blocks={self.num_blocks}, density={self.density:.3g}, dtype={self.dtype}, "
            f"device={self.device})"
        )


def _check_block(block: tuple[int, int]) -> tuple[int, int]:
    if not isinstance(block, (tuple, list)) or len(block) != 2:
        raise TypeError(f"block must be a number or a pair of them, got {block!r:.80}")
    for size in block:
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"block must be of integers, got {type(size).__name__}")
        if not _SMALLEST <= size <= _LARGEST:
            raise ValueError(
                f"block must be {_SMALLEST} .. {_LARGEST} each way, got {_check.short(size)}"
            )
    return block[0], block[1]


def _check_shape(shape: tuple[int, int]) -> tuple[int, int]:
    if not isinstance(shape, (tuple, list)):
        raise TypeError(f"shape must be (C_out, C_in), got {type(shape).__name__}")
    if len(shape) != 2:
        raise ValueError(f"shape must be (C_out, C_in), got {len(shape)} numbers")
    rows, cols = (_check.integer("shape", size, 0, _MOST_FEATURES) for size in shape)
    return rows, cols


def _grid(shape: tuple[int, int], block: tuple[int, int]) -> tuple[int, int]:
    return -(-shape[0] // block[0]), -(-shape[1] // block[1])


def _work(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _best_places(score: Tensor, count: int) -> Tensor:
    """int64 [count], rising: where the highest scores are; ties to the first."""
    return score.argsort(descending=True, stable=True)[:count].sort().values


def _best(score: Tensor, count: int) -> Tensor:
    mask = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
    return mask.index_fill(0, _best_places(score, count), True)


def _index(row: Tensor, col: Tensor, rows: int, cols: int) -> BlockIndex:
    """From the sorted places of the blocks; waits for no device."""
    row, col = row.long(), col.long()

    def begins(sorted_values: Tensor, count: int) -> Tensor:
        ends = torch.arange(count + 1, device=row.device)
        return torch.searchsorted(sorted_values.contiguous(), ends).int()

    order = col.argsort(stable=True)
    return BlockIndex(
        begins(row, rows), row.int(), col.int(), begins(col[order], cols), order.int()
    )
