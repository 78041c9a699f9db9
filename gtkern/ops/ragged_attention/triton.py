"""The triton backend: portable GPU kernels, and in Triton's interpreter on a CPU."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gtkern.ops._triton import power_of_two
from gtkern.ops.ragged_attention.call import (
    Batch,
    Bias,
    Forward,
    Gradients,
    Needs,
    Options,
    Prefix,
)
from gtkern.ops.ragged_attention.triton_kernels import (
    forward_kernel,
    key_kernel,
    query_kernel,
    table_kernel,
)
from gtkern.random import dropout_threshold

_SCORE_ELEMENTS = 2**26
"""Gradients of scores that are held at a time, for the tables: as many heads as fit, at least
one. They are four bytes a pair and head, where the indices are one or two a pair."""

_PREFIX_CHUNKS, _PREFIX_CHUNK_ROWS = 64, 256
_TABLE_CHUNKS, _TABLE_CHUNK_PAIRS, _TABLE_ELEMENTS = 256, 1024, 2**24
"""Gradients of what the whole batch shares come as parts, one for each chunk of queries or pairs,
which are then added in order. Chunks are of at least so many rows, and there are at most so many:
enough to fill a GPU, whatever the batch, and few enough that their sum costs little."""


class _Tile(NamedTuple):
    """Rows of a tile on either side, the padded head widths, and the warps of a program."""

    block: int
    width: int
    width_v: int
    warps: int

    @property
    def blocks(self) -> dict[str, int]:
        """The block sizes of a kernel."""
        return {
            "BLOCK_M": self.block,
            "BLOCK_N": self.block,
            "BLOCK_D": self.width,
            "BLOCK_DV": self.width_v,
            "num_warps": self.warps,
            "num_stages": 2,
        }


def _tile(q: Tensor, v: Tensor, batch: Batch) -> _Tile:
    """Tiles as large as an average graph, so that a molecule is one, and registers hold them."""
    width, width_v = (max(16, power_of_two(tensor.size(2))) for tensor in (q, v))
    graphs = max(1, batch.ptr.numel() - 1)
    mean = q.size(0) // graphs
    block = 16 if mean <= 16 else 32 if mean <= 48 else 64
    elements = 4096 if q.element_size() == 2 else 2048
    while block > 16 and block * max(width, width_v) > elements:
        block //= 2
    # 8 elements of a tile for each lane: with more, kernels spill
    return _Tile(block, width, width_v, min(8, block * max(block, width, width_v) // 256))


class _Grid(NamedTuple):
    """Which programs there are: for each graph as many as the largest one takes; or, where most of
    them would find nothing, one for each of `items` int64 [M, 2] (graph, first row), -1 unused."""

    programs: int
    per_program: int
    items: Tensor | None

    def of(self, heads: int) -> tuple[int, int, int]:
        """The grid of a launch."""
        return self.programs, heads, self.per_program


def _grid(batch: Batch, rows: int, block: int) -> _Grid:
    graphs = batch.ptr.numel() - 1
    tiles = -(-batch.max_nodes // block)
    most = rows // block + graphs
    if graphs * tiles <= 4 * most:
        return _Grid(graphs, tiles, None)
    # made on the device, without waiting for it
    tiles_of = (batch.ptr.diff() + (block - 1)) // block
    after = tiles_of.cumsum(0)
    number = torch.arange(most, device=batch.ptr.device)
    graph = torch.searchsorted(after, number, right=True)
    used = graph < graphs
    first = (number - (after - tiles_of)[graph.clamp(max=graphs - 1)]) * block
    return _Grid(most, 1, torch.stack((torch.where(used, graph, -1), first), 1).contiguous())


def _structure(batch: Batch, grid: _Grid, bias: Bias) -> tuple[object, ...]:
    """What every kernel reads of the batch and the biases."""
    return (
        batch.ptr,
        batch.pair_ptr,
        grid.items,
        batch.ptr.numel() - 1,
        tuple(bias.indices),
        bias.table,
        tuple(bias.first_row),
    )


def _numbers(prefix: Prefix, options: Options) -> tuple[float, ...]:
    """P, scale, threshold, keep_scale, seed."""
    return (
        0 if prefix.k is None else prefix.k.size(0),
        options.scale,
        dropout_threshold(options.dropout),
        1 / (1 - options.dropout),
        options.seed,
    )


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    batch: Batch,
    bias: Bias,
    prefix: Prefix,
    options: Options,
) -> Forward:
    """See Forward."""
    rows, heads, width = q.shape
    out = q.new_empty(rows, heads, v.size(2))
    lse = q.new_empty(rows, heads, dtype=torch.float32)
    if rows:
        tile = _tile(q, v, batch)
        with torch.cuda.device_of(q):
            grid = _grid(batch, rows, tile.block)
            forward_kernel[grid.of(heads)](
                q, k, v, out, lse, *_structure(batch, grid, bias), *prefix,
                *_numbers(prefix, options),
                heads, width, v.size(2), DROPOUT=options.dropout > 0, **tile.blocks,
            )  # fmt: skip
    return Forward(out, lse)


def backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    batch: Batch,
    bias: Bias,
    prefix: Prefix,
    options: Options,
    needs: Needs,
) -> Gradients:
    """Every gradient that is needed."""
    inputs = (q, k, v, bias.table, prefix.k, prefix.v)
    gradients = Gradients(
        *(
            torch.empty_like(tensor) if needed and tensor is not None else q.new_empty(0)
            for tensor, needed in zip(inputs, needs, strict=True)
        )
    )
    rows, heads, width = q.shape
    if rows == 0:
        for gradient in gradients:
            gradient.zero_()
        return gradients
    tile = _tile(q, v, batch)
    sizes = {"H": heads, "D": width, "DV": v.size(2), "DROPOUT": options.dropout > 0}
    delta = torch.empty_like(lse)
    with torch.cuda.device_of(q):
        grid = _grid(batch, rows, tile.block)
        structure = _structure(batch, grid, bias)
        pairs = bias.indices[0].numel() if bias.indices else 0
        at_once = heads
        if needs.table:
            at_once = min(heads, max(1, _SCORE_ELEMENTS // max(pairs, 1)))
        for first_head in range(0, heads, at_once):
            heads_now = min(at_once, heads - first_head)
            scores = None
            if needs.table:
                scores = torch.empty(heads_now, pairs, dtype=torch.float32, device=q.device)
            query_kernel[grid.of(heads_now)](
                grad_out, q, k, v, out, lse, delta, *structure, *prefix,
                *_numbers(prefix, options), gradients.q if needs.q else None, scores,
                pairs, first_head, **sizes, **tile.blocks,
            )  # fmt: skip
            if scores is not None:
                _fill_table(scores, bias, gradients.table, first_head)
        if needs.k or needs.v:
            key_kernel[grid.of(heads)](
                grad_out, q, k, v, lse, delta, *structure, rows, rows, *_numbers(prefix, options),
                gradients.k if needs.k else None, gradients.v if needs.v else None,
                **sizes, PREFIX=False, **tile.blocks,
            )  # fmt: skip
        if prefix.k is not None and prefix.v is not None and (needs.prefix_k or needs.prefix_v):
            chunk = max(_PREFIX_CHUNK_ROWS, -(-rows // _PREFIX_CHUNKS))
            chunks, slots = -(-rows // chunk), prefix.k.size(0)
            parts = [
                q.new_empty((chunks, *gradient.shape), dtype=torch.float32) if needed else None
                for gradient, needed in (
                    (gradients.prefix_k, needs.prefix_k),
                    (gradients.prefix_v, needs.prefix_v),
                )
            ]
            if slots:
                key_kernel[chunks, heads, -(-slots // tile.block)](
                    grad_out, q, *prefix, lse, delta, *structure, rows, chunk,
                    *_numbers(prefix, options), *parts, **sizes, PREFIX=True, **tile.blocks,
                )  # fmt: skip
            for part, gradient in zip(parts, gradients[4:], strict=True):
                if part is not None:
                    gradient.copy_(part.sum(0))
    return gradients


def _fill_table(scores: Tensor, bias: Bias, gradient: Tensor, first_head: int) -> None:
    """Sum the gradients of scores [heads, pairs] into their heads of the rows of all tables."""
    heads, pairs = scores.shape
    ends = [*bias.first_row[1:], gradient.size(0)]
    for index, begin, end in zip(bias.indices, bias.first_row, ends, strict=True):
        entries = end - begin
        limit = min(_TABLE_CHUNKS, max(1, _TABLE_ELEMENTS // (entries * heads)))
        chunk = max(_TABLE_CHUNK_PAIRS, -(-pairs // limit))
        chunks = -(-pairs // chunk)
        block_b = min(64, max(16, power_of_two(entries)))
        parts = scores.new_empty(chunks, heads, entries)
        if chunks:
            table_kernel[chunks, -(-entries // block_b), -(-heads // 16)](
                scores, index, parts, pairs, chunk, heads, entries,
                BLOCK_P=64, BLOCK_B=block_b, BLOCK_H=16, num_warps=4,
            )  # fmt: skip
        gradient[begin:end, first_head : first_head + heads] = parts.sum(0).t()
