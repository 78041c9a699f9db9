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

_SMALL_BLOCK, _LARGE_BLOCK, _FEW_ROWS = 32, 64, 64
"""Rows of the tiles of graphs of at most _FEW_ROWS, and of larger ones."""

_SCORE_ELEMENTS = 2**26
"""Gradients of scores that are held at a time, for the tables: as many heads as fit, at least
one. They are four bytes a pair and head, where the indices are one or two a pair."""

_PREFIX_CHUNKS, _LEAST_PREFIX_CHUNKS, _PREFIX_CHUNK_ROWS, _PREFIX_ELEMENTS = 64, 8, 256, 2**24
_TABLE_CHUNKS, _TABLE_CHUNK_PAIRS, _TABLE_ELEMENTS = 256, 1024, 2**24
"""Gradients of what the whole batch shares come as parts, one for each chunk of queries or pairs,
which are then added in order. Chunks are of at least so many rows, and there are at most so many:
enough to fill a GPU, whatever the batch, and few enough that their sum costs little."""


class _Pass(NamedTuple):
    """One launch over the graphs of some sizes.

    Attributes:
        block: rows of a program, and in forward of the tiles it walks along.
        narrow: rows of the tiles that a program of a backward pass walks along.
        widths: the padded head widths.
        above, most: its graphs have more rows than `above` and at most `most`.
        programs, tiles: for each graph as many programs as the largest one takes; or, where most of
            them would find nothing, one for each of `items`.
        items: int64 [M, 2] (graph, first row), -1 where there is none; None: not needed.
    """

    block: int
    narrow: int
    widths: tuple[int, int]
    above: int
    most: int
    programs: int
    tiles: int
    items: Tensor | None

    def blocks(self, queries: int, keys: int) -> dict[str, int]:
        """The block sizes of a kernel."""
        return {
            "BLOCK_M": queries,
            "BLOCK_N": keys,
            "BLOCK_D": self.widths[0],
            "BLOCK_DV": self.widths[1],
            # 8 elements of a tile for each lane: with more, kernels spill
            "num_warps": min(8, self.block * max(self.block, *self.widths) // 256),
            "num_stages": 2,
        }

    def structure(self, batch: Batch, bias: Bias) -> tuple[object, ...]:
        """What every kernel reads of the batch and the biases."""
        return (
            batch.ptr,
            batch.pair_ptr,
            self.items,
            self.above,
            self.most,
            batch.ptr.numel() - 1,
            tuple(bias.indices),
            bias.table,
            tuple(bias.first_row),
        )


def _passes(q: Tensor, v: Tensor, batch: Batch) -> list[_Pass]:
    """Small tiles for graphs of few nodes, large ones for the others.

    A graph's tiles depend on the graph alone, and so does the order of its sums: it gets the same
    bits in every batch.
    """
    rows, graphs, largest = q.size(0), batch.ptr.numel() - 1, batch.max_nodes
    widths = (max(16, power_of_two(q.size(2))), max(16, power_of_two(v.size(2))))
    # what the registers of 8 warps hold
    fitting = (4096 if q.element_size() == 2 else 2048) // max(widths)
    small, large = (max(16, min(block, fitting)) for block in (_SMALL_BLOCK, _LARGE_BLOCK))
    most = _FEW_ROWS if large > small else largest
    passes = []
    for block, above, until in ((small, 0, min(most, largest)), (large, most, largest)):
        if until <= above:
            continue
        tiles = -(-until // block)
        most_items = rows // block + min(graphs, rows // (above + 1))
        if graphs * tiles <= 4 * most_items:
            programs, items = graphs, None
        else:
            programs, tiles = most_items, 1
            items = _items(batch.ptr, block, above, until, most_items)
        narrow = min(block, small)
        passes.append(_Pass(block, narrow, widths, above, until, programs, tiles, items))
    return passes


def _items(ptr: Tensor, block: int, above: int, until: int, most: int) -> Tensor:
    """The tiles of the graphs of more than `above` rows and at most `until`; there are at most
    `most`. Made on the device, without waiting for it."""
    count, graphs = ptr.diff(), ptr.numel() - 1
    tiles = torch.where((count > above) & (count <= until), (count + (block - 1)) // block, 0)
    after = tiles.cumsum(0)
    number = torch.arange(most, device=ptr.device)
    graph = torch.searchsorted(after, number, right=True)
    first = (number - (after - tiles)[graph.clamp(max=graphs - 1)]) * block
    return torch.stack((torch.where(graph < graphs, graph, -1), first), 1).contiguous()


def _numbers(prefix: Prefix, options: Options) -> tuple[float, ...]:
    """P, S, scale, threshold, keep_scale, seed."""
    return (
        prefix.slots,
        prefix.sets,
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
    with torch.cuda.device_of(q):
        for each in _passes(q, v, batch):
            forward_kernel[each.programs, heads, each.tiles](
                q, k, v, out, lse, *each.structure(batch, bias), *prefix,
                *_numbers(prefix, options),
                heads, width, v.size(2), DROPOUT=options.dropout > 0,
                **each.blocks(each.block, each.block),
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
    delta = torch.empty_like(lse)
    with torch.cuda.device_of(q):
        passes = _passes(q, v, batch)
        shared = _Shared(grad_out, q, k, v, out, lse, delta, batch, bias, prefix, options, passes)
        _fill_queries(shared, gradients, needs)
        if needs.k or needs.v:
            _fill_keys(shared, gradients, needs)
        if prefix.k is not None and (needs.prefix_k or needs.prefix_v):
            _fill_prefix(shared, gradients, needs)
    return gradients


class _Shared(NamedTuple):
    """What the backward passes read; delta, grad_out . out of each row, is written by the first."""

    grad_out: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    lse: Tensor
    delta: Tensor
    batch: Batch
    bias: Bias
    prefix: Prefix
    options: Options
    passes: list[_Pass]

    @property
    def sizes(self) -> dict[str, int]:
        """Compile-time sizes of a backward kernel."""
        (_, heads, width), width_v = self.q.shape, self.v.size(2)
        return {"H": heads, "D": width, "DV": width_v, "DROPOUT": self.options.dropout > 0}


def _fill_queries(shared: _Shared, gradients: Gradients, needs: Needs) -> None:
    """Write delta and the gradients of q and of the tables."""
    grad_out, q, k, v, out, lse, delta, batch, bias, prefix, options, passes = shared
    heads = q.size(1)
    pairs = bias.indices[0].numel() if needs.table else 0
    at_once = min(heads, max(1, _SCORE_ELEMENTS // max(pairs, 1))) if needs.table else heads
    for first_head in range(0, heads, at_once):
        now = min(at_once, heads - first_head)
        scores = lse.new_empty(now, pairs) if needs.table else None
        for each in passes:
            query_kernel[each.programs, now, each.tiles](
                grad_out, q, k, v, out, lse, delta, *each.structure(batch, bias), *prefix,
                *_numbers(prefix, options), gradients.q if needs.q else None, scores,
                pairs, first_head, **shared.sizes, **each.blocks(each.block, each.narrow),
            )  # fmt: skip
        if scores is not None:
            _fill_table(scores, bias, gradients.table, first_head)


def _fill_keys(shared: _Shared, gradients: Gradients, needs: Needs) -> None:
    """Write the gradients of k and v."""
    grad_out, q, k, v, _, lse, delta, batch, bias, prefix, options, passes = shared
    for each in passes:
        key_kernel[each.programs, q.size(1), each.tiles](
            grad_out, q, k, v, lse, delta, *each.structure(batch, bias), 0, 0, None,
            *_numbers(prefix, options),
            gradients.k if needs.k else None, gradients.v if needs.v else None,
            **shared.sizes, PREFIX=False, **each.blocks(each.narrow, each.block),
        )  # fmt: skip


def _fill_prefix(shared: _Shared, gradients: Gradients, needs: Needs) -> None:
    """Write the gradients of the prefix: parts by chunks of queries, then their sum."""
    grad_out, q, _, _, _, lse, delta, batch, bias, prefix, options, passes = shared
    rows, heads, _ = q.shape
    most = max(gradients.prefix_k.numel(), gradients.prefix_v.numel(), 1)
    limit = max(_LEAST_PREFIX_CHUNKS, min(_PREFIX_CHUNKS, _PREFIX_ELEMENTS // most))
    chunk = max(_PREFIX_CHUNK_ROWS, -(-rows // limit))
    chunks = -(-rows // chunk)
    wanted = [(gradients.prefix_k, needs.prefix_k), (gradients.prefix_v, needs.prefix_v)]
    parts = [lse.new_empty(chunks, *full.shape) if needed else None for full, needed in wanted]
    if chunks and prefix.slots:
        last = passes[-1]
        key_kernel[chunks * prefix.sets, heads, -(-prefix.slots // last.block)](
            grad_out, q, prefix.k, prefix.v, lse, delta, *last.structure(batch, bias), rows, chunk,
            prefix.row_set, *_numbers(prefix, options), *parts, **shared.sizes, PREFIX=True,
            **last.blocks(last.narrow, last.block),
        )  # fmt: skip
    for part, (full, _) in zip(parts, wanted, strict=True):
        if part is not None:
            full.copy_(part.sum(0))


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
