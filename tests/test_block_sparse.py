"""BlockSparseMatrix: what it keeps, what it refuses, and that nothing is lost on the way."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gtkern import BlockSparseMatrix

SHAPE, BLOCK = (40, 50), (16, 8)


def dense(seed: int = 0) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def matrix(keep: float = 0.5) -> BlockSparseMatrix:
    return BlockSparseMatrix.from_dense(dense(), BLOCK, keep=keep)


def sums(w: Tensor) -> Tensor:
    """Σ |w| of each block of a [40, 50] matrix in blocks of 16 by 8."""
    padded = torch.zeros(48, 56).index_put((torch.arange(40)[:, None], torch.arange(50)), w.abs())
    return padded.view(3, 16, 7, 8).sum((1, 3))


def test_all_blocks_give_the_matrix_back() -> None:
    kept = BlockSparseMatrix.from_dense(dense(), BLOCK)
    kept.validate()
    assert kept.density == 1.0 and kept.grid == (3, 7) and kept.num_blocks == 21
    assert torch.equal(kept.to_dense(), dense())


def test_a_share_keeps_the_largest_blocks() -> None:
    kept = matrix(0.3)
    kept.validate()
    assert kept.num_blocks == 7
    chosen = sums(dense())[kept.mask()]
    assert chosen.min() > sums(dense())[~kept.mask()].max()
    inside = kept.mask().repeat_interleave(16, 0).repeat_interleave(8, 1)[:40, :50]
    assert torch.equal(kept.to_dense(), dense() * inside)


def test_ties_go_to_the_first_block() -> None:
    kept = BlockSparseMatrix.from_dense(torch.ones(32, 32), 8, keep=0.25)
    assert kept.mask().flatten().nonzero().flatten().tolist() == [0, 1, 2, 3]


def test_a_mask_chooses_and_rows_may_be_empty() -> None:
    mask = torch.zeros(3, 7, dtype=torch.bool)
    mask[2, 6] = mask[0, 1] = True
    kept = BlockSparseMatrix.from_dense(dense(), BLOCK, mask=mask)
    kept.validate()
    assert torch.equal(kept.mask(), mask)
    assert kept.index.row_ptr.tolist() == [0, 1, 1, 2]
    assert kept.index.col_ptr.tolist() == [0, 0, 1, 1, 1, 1, 1, 2]


def test_the_transpose_lists_blocks_by_column() -> None:
    kept = matrix()
    index = kept.index
    order = index.order.long()
    place = index.col[order].long() * 3 + index.row[order]
    assert (place.diff() > 0).all()
    counts = torch.bincount(index.col.long(), minlength=7)
    assert torch.equal(index.col_ptr.diff().long(), counts)


def test_bsr_there_and_back() -> None:
    w = torch.randn(32, 48)
    kept = BlockSparseMatrix.from_dense(w, (16, 8), keep=0.4)
    bsr = kept.to_bsr()
    assert torch.equal(bsr.to_dense(), kept.to_dense())
    again = BlockSparseMatrix.from_bsr(bsr)
    assert torch.equal(again.to_dense(), kept.to_dense())
    again.validate()


def test_saved_and_loaded(tmp_path: pathlib.Path) -> None:
    kept = matrix().to(dtype=torch.bfloat16)
    kept.save(tmp_path / "w.safetensors")
    again = BlockSparseMatrix.load(tmp_path / "w.safetensors")
    assert again.shape == SHAPE and again.block == BLOCK and again.dtype == torch.bfloat16
    assert torch.equal(again.values, kept.values)
    assert all(map(torch.equal, again.index, kept.index))


def test_pruning_keeps_the_best_of_what_is_left() -> None:
    kept, fewer = matrix(0.5), matrix(0.5).prune(0.2)
    fewer.validate()
    assert torch.equal(fewer.to_dense(), matrix(0.2).to_dense())
    score = torch.arange(kept.num_blocks).float()
    last = kept.prune(0.2, score)
    assert torch.equal(last.values, kept.values[-last.num_blocks :])


def test_regrown_blocks_are_zero_and_the_others_stay() -> None:
    kept = matrix(0.2)
    score = sums(dense())
    grown = kept.regrow(0.5, score)
    grown.validate()
    assert torch.equal(grown.mask(), matrix(0.5).mask())
    assert torch.equal(grown.to_dense(), kept.to_dense())


def test_regrowth_takes_dead_blocks_whatever_their_score() -> None:
    """Scores of -inf, such as those of blocks that are ruled out, are no sign of a stored block."""
    grown = matrix(0.2).regrow(1.0, torch.full((3, 7), -torch.inf))
    grown.validate()
    assert grown.num_blocks == 21


def test_scores() -> None:
    kept = matrix()
    assert torch.allclose(kept.score(), sums(dense())[kept.mask()])
    grad = torch.randn_like(kept.values)
    expected = (kept.values * grad).abs().sum((1, 2))
    assert torch.allclose(kept.score("taylor", grad), expected)
    learned = kept.with_values(torch.nn.Parameter(kept.values))
    learned.values.grad = grad
    assert torch.equal(learned.score("taylor"), expected)


def test_values_may_be_a_parameter_and_dense_is_differentiable() -> None:
    values = torch.nn.Parameter(matrix().values)
    kept = matrix().with_values(values)
    assert kept.values is values
    kept.to_dense().sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad, kept.inside().expand_as(values).float())


def built(**changed: Any) -> Callable[[], Any]:
    """from_blocks of two blocks of 8 by 8 in a matrix of 20 by 16, with changes."""
    right = {
        "values": torch.ones(2, 8, 8),
        "row_ptr": torch.tensor([0, 1, 1, 2]),
        "col": torch.tensor([1, 0]),
        "shape": (20, 16),
    }
    return lambda: BlockSparseMatrix.from_blocks(**{**right, **changed})


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (built(values=[1]), TypeError, r"^values must be a tensor, got list"),
        (built(values=torch.ones(2, 8)), ValueError, r"^values must have shape \[B, block_rows"),
        (built(values=torch.ones(2, 4, 8)), ValueError, r"^block must be 8 \.\. 128 each way"),
        (built(row_ptr=torch.ones(4)), TypeError, r"^row_ptr must be int32 or int64, got"),
        (built(row_ptr=torch.tensor([0, 2])), ValueError, r"^row_ptr must have shape .* = \[4\]"),
        (built(row_ptr=torch.tensor([0, 2, 1, 2])), ValueError, r"^row_ptr must rise from 0 to 2"),
        (built(row_ptr=torch.tensor([0, 1, 1, 3])), ValueError, r"^row_ptr must rise from 0 to 2"),
        (built(col=torch.tensor([2, 0])), ValueError, r"^col must be 0 \.\. 1 .*got 2"),
        (built(col=torch.tensor([-1, 0])), ValueError, r"^col must be 0 \.\. 1 .*got -1"),
        (built(col=torch.tensor([1, 0]), row_ptr=torch.tensor([0, 2, 2, 2])), ValueError,
         r"^col must rise inside each block row, got 1 then 0 in block row 0"),
        (built(col=torch.tensor([1, 1]), row_ptr=torch.tensor([0, 2, 2, 2])), ValueError,
         r"^col must rise"),
        (built(shape=(20, 16, 1)), ValueError, r"^shape must be \(C_out, C_in\)"),
        (built(shape=(20, 0)), ValueError, r"^col must be 0 \.\. -1 .*got 1"),
        (built(shape=None), TypeError, r"^shape must be \(C_out, C_in\), got NoneType"),
        (built(shape=(20, 16.5)), TypeError, r"^shape must be an integer, got float"),
        (built(shape=(20, -1)), ValueError, r"^shape must be 0 .*got -1"),
        (built(values=torch.ones(2, 8, 8).to_sparse()), TypeError, r"^values must be a dense tens"),
        (lambda: BlockSparseMatrix.from_dense(dense().to("meta"), 8), ValueError,
         r"^w must be on a device that holds values, got meta"),
        (lambda: matrix().score("taylor", matrix().values.to("meta")), ValueError,
         r"^grad must be on the device of matrix"),
        (built(col=torch.ones(2, dtype=torch.int64, device="meta")), ValueError,
         r"^col must be on the device of values"),
        (lambda: BlockSparseMatrix.from_dense(dense(), 4), ValueError, r"^block must be 8"),
        (lambda: BlockSparseMatrix.from_dense(dense(), 8.0), TypeError, r"^block must be a number"),
        (lambda: BlockSparseMatrix.from_dense(dense(), 8, keep=1.1), ValueError, r"^keep must be"),
        (lambda: BlockSparseMatrix.from_dense(dense(), 8, mask=torch.ones(5, 7)), TypeError,
         r"^mask must be bool, got"),
        (lambda: BlockSparseMatrix.from_dense(dense(), 8, mask=torch.ones(5, 6).bool()),
         ValueError, r"^mask must have shape \[block rows, block columns\] = \[5, 7\]"),
        (lambda: BlockSparseMatrix.from_dense(dense(), 8, keep=0.5, mask=torch.ones(5, 7).bool()),
         ValueError, r"^keep and mask must not be given together"),
        (lambda: BlockSparseMatrix.from_bsr(dense()), TypeError, r"^matrix must have layout"),
        (lambda: matrix().to_bsr(), ValueError, r"^shape must be a multiple of the block"),
        (lambda: matrix().with_values(torch.ones(1, 16, 8)), ValueError, r"^values must have"),
        (lambda: matrix().score("random"), ValueError, r"^by must be 'magnitude' or 'taylor'"),
        (lambda: matrix().score("taylor"), ValueError, r"^grad must be given for by='taylor'"),
        (lambda: matrix().score("magnitude", matrix().values), ValueError, r"^grad must be None"),
        (lambda: matrix().prune(0.9), ValueError, r"^keep must be at most the density"),
        (lambda: matrix().prune(0.1, torch.ones(3)), ValueError, r"^score must have shape \[B\]"),
        (lambda: matrix().regrow(0.1, torch.ones(3, 7)), ValueError, r"^keep must be at least"),
        (lambda: matrix().regrow(0.9, torch.ones(7, 3)), ValueError, r"^score must have shape"),
        (lambda: matrix(1).with_values(torch.ones(21, 16, 8)).validate(), ValueError,
         r"^values must be 0 outside the matrix, got others in block"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(make: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make()


def test_other_files_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError):
        BlockSparseMatrix.load(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors here")
    with pytest.raises(ValueError, match="must be a safetensors file"):
        BlockSparseMatrix.load(tmp_path / "text.safetensors")
