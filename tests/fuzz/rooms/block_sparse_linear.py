"""Calls of block_sparse_linear and of what makes and changes a BlockSparseMatrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from gtkern import BlockSparseMatrix, ops

from ..draw import FLOATS, Draw
from ..judge import Case, promise


def matrix(draw: Draw, dtype: torch.dtype = torch.float32) -> BlockSparseMatrix:
    rows, cols = draw.one((0, 1, 8, 13, 40)), draw.one((0, 1, 8, 19, 33))
    block: Any = draw.one((8, (8, 16), (9, 11), 16))
    dense = draw.floats(rows, cols, dtype=dtype)
    return BlockSparseMatrix.from_dense(dense, block, keep=draw.one((0.0, 0.3, 0.7, 1.0)))


def linear(draw: Draw) -> Case:
    kind = draw.one((torch.float32, *FLOATS))
    weight = matrix(draw, kind)
    lead = [draw.size(20) for _ in range(draw.one((0, 1, 1, 1, 2)))]
    arguments: dict[str, Any] = {
        "x": draw.floats(*lead, weight.shape[1], dtype=kind),
        "weight": weight,
        "bias": draw.maybe(0.5, lambda: draw.floats(weight.shape[0], dtype=kind)),
        "activation": draw.one((None, "relu", "gelu", "silu")),
        "backend": draw.backend(),
    }
    learn = tuple(name for name in ("x", "bias") if draw.chance(0.6))
    # relu has a corner, where rounding decides between two gradients
    smooth = arguments["activation"] != "relu"
    return Case(ops.block_sparse_linear, draw.twist(arguments), expect, False, smooth, learn)


def expect(results: Any, arguments: Mapping[str, Any]) -> None:
    x, weight = arguments["x"], arguments["weight"]
    promise(results, [*x.shape[:-1], weight.shape[0]], x.dtype)


def from_dense(draw: Draw) -> Case:
    rows, cols = draw.one((0, 1, 8, 30)), draw.one((0, 1, 16, 19))
    arguments: dict[str, Any] = {
        "w": draw.floats(rows, cols, dtype=draw.one(FLOATS)),
        "block": draw.one((8, (8, 16), [9, 10], 128)),
    }
    if draw.chance(0.5):
        arguments["keep"] = draw.one((0, 0.5, 1.0, 0.01))
    elif draw.chance(0.5) and arguments["block"] == 8:
        grid = (-(-rows // 8), -(-cols // 8))
        arguments["mask"] = torch.rand(grid, generator=draw.generator) < 0.5
    twisted = draw.twist(arguments)
    return Case(BlockSparseMatrix.from_dense, twisted, expect_matrix, backends=False)


def expect_matrix(results: Any, arguments: Mapping[str, Any]) -> None:
    assert isinstance(results, BlockSparseMatrix)
    if "w" in arguments:
        w = arguments["w"]
        assert results.shape == tuple(w.shape)
        dense, mask = results.to_dense(), results.mask()
        promise(dense, [*w.shape], w.dtype)
        height, width = results.block
        stored = mask.repeat_interleave(height, 0).repeat_interleave(width, 1)
        stored = stored[: w.size(0), : w.size(1)]
        assert torch.equal(dense.nan_to_num(), torch.where(stored, w, 0).nan_to_num())
    results.validate()


def from_blocks(draw: Draw) -> Case:
    made = matrix(draw, draw.one(FLOATS))
    kind = draw.one((torch.int32, torch.int64))
    arguments: dict[str, Any] = {
        "values": made.values,
        "row_ptr": made.index.row_ptr.to(kind),
        "col": made.index.col.to(kind),
        "shape": made.shape,
    }
    twisted = draw.twist(arguments)
    names = (*arguments, "block")
    return Case(
        BlockSparseMatrix.from_blocks, twisted, expect_structure, backends=False, names=names
    )


def expect_structure(results: Any, arguments: Mapping[str, Any]) -> None:
    assert isinstance(results, BlockSparseMatrix)
    assert results.shape == tuple(arguments["shape"])
    assert results.to_dense().shape == results.shape


def changed(draw: Draw) -> Case:
    """Methods of a matrix."""
    made = matrix(draw, draw.one(FLOATS))
    density = made.density
    grid = made.grid
    if draw.chance(0.3):
        arguments: dict[str, Any] = {"keep": density * draw.one((0.0, 0.5, 1.0))}
        if draw.chance(0.5):
            arguments["score"] = draw.floats(made.num_blocks)
        return Case(made.prune, draw.twist(arguments), expect_matrix, backends=False)
    if draw.chance(0.4):
        arguments = {"keep": density + (1 - density) * draw.one((0.0, 0.5, 1.0))}
        arguments["keep"] = min(arguments["keep"], 1.0)
        arguments["score"] = draw.floats(*grid)
        return Case(made.regrow, draw.twist(arguments), expect_matrix, backends=False)
    if draw.chance(0.5):
        arguments = {"by": "taylor", "grad": draw.floats(*made.values.shape)}
        return Case(made.score, draw.twist(arguments), expect_score, backends=False)
    arguments = {"values": draw.floats(*made.values.shape, dtype=draw.one(FLOATS))}
    return Case(made.with_values, draw.twist(arguments), expect_given, backends=False)


def expect_score(results: Any, arguments: Mapping[str, Any]) -> None:
    assert results.dim() == 1 and results.dtype in (torch.float32, torch.float64)


def expect_given(results: Any, arguments: Mapping[str, Any]) -> None:
    assert isinstance(results, BlockSparseMatrix)
    assert results.values is arguments["values"]


CASES = (linear, linear, linear, from_dense, from_blocks, changed)
