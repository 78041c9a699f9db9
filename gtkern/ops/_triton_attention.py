"""Softmax attention in Triton: portable GPU kernels, and in Triton's interpreter on a CPU."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gtkern._backends import triton_interpreted
from gtkern.graph import HEAVY_ROW_EDGES, Adjacency
from gtkern.ops._attention import Forward, Gradients, Needs, Options, Terms
from gtkern.ops._triton import Tile, choose_tile, merge_sum_kernel, power_of_two
from gtkern.ops._triton_attention_kernels import (
    delta_kernel,
    destination_kernel,
    forward_kernel,
    merge_forward_kernel,
    normalize_kernel,
    score_delta_kernel,
    source_kernel,
)
from gtkern.random import dropout_threshold

_TYPES_AT_ONCE = 4
_TABLE_BLOCKS = 1024
_TABLE_ELEMENTS = 2**24
_MERGE_PIECES = 16
_LANE_ELEMENTS = 16


class Rows(NamedTuple):
    """One grouping of the edges, by destination or by source, as kernels take it.

    Attributes:
        num_rows: how many rows.
        ptr: int64 [num_rows + 1]; None: every row has `degree` places.
        degree: places of a row; 0 with a ptr.
        index: int32; the other end of each edge, -1 for a place without one.
        edge_id, edge_type: as in Adjacency; None for the identity, and for a single type.
        heavy: int64 [M, 3], as in Adjacency; (-1, -1, -1) is an item that is not used.
    """

    num_rows: int
    ptr: Tensor | None
    degree: int
    index: Tensor  # type: ignore[assignment]  # shadows tuple.index, which nobody calls here
    edge_id: Tensor | None
    edge_type: Tensor | None
    heavy: Tensor

    @classmethod
    def of_adjacency(cls, adjacency: Adjacency) -> Rows:
        """Rows of any length."""
        ptr, index, edge_id, edge_type, heavy = adjacency
        return cls(
            ptr.numel() - 1,
            ptr,
            0,
            index,
            edge_id if edge_id.numel() else None,
            edge_type if edge_type.numel() else None,
            heavy,
        )

    @classmethod
    def of_places(cls, neighbors: Tensor, edge_type: Tensor) -> Rows:
        """A row for each row of `neighbors` [N_dst, K]; an edge's number is its place."""
        return cls(
            neighbors.size(0),
            None,
            neighbors.size(1),
            neighbors,
            None,
            edge_type if edge_type.numel() else None,
            neighbors.new_empty((0, 3), dtype=torch.int64),
        )

    @property
    def edges(self) -> tuple[Tensor | int | None, ...]:
        """What kernels over edges take."""
        return self[1:]


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    csr: Rows,
    terms: Terms,
    options: Options,
    scores_shape: tuple[int, ...] | None,
) -> Forward:
    """Attention of every destination.

    Args:
        csr: the edges by destination.
        scores_shape: of the returned scores, [E, H] or with several dimensions for E; None: they
            are not wanted.
    """
    num_dst, heads, width = q.shape
    width_v, width_e = v.size(2), _edge_width(terms)
    pieces = csr.heavy.size(0)
    out = q.new_empty(num_dst, heads, width_v)
    edge_out = q.new_empty(num_dst, heads, width_e) if width_e else q.new_empty(0)
    lse = q.new_empty(num_dst, heads, dtype=torch.float32)
    scores = _fp32(q, 0) if scores_shape is None else _fp32(q, *scores_shape)
    numbers = _numbers(options)
    log2_eps = math.log2(options.eps) if options.eps > 0 else -math.inf
    has_eps = options.eps > 0

    def launch(rows: int, items: bool, results: tuple[Tensor | None, ...]) -> None:
        tile = _tile(heads, (width, width_v, width_e), csr, items)
        forward_kernel[tile.programs(rows), tile.groups](
            q, k, v, *csr.edges, *terms, *results, None if scores_shape is None else scores,
            rows, *numbers, log2_eps, heads, width, width_v, width_e,
            **_flags(options), EPS=has_eps, ITEMS=items, **_blocks(tile),
        )  # fmt: skip

    with torch.cuda.device_of(q):
        if num_dst:
            launch(num_dst, False, (out, edge_out, lse, None))
        if pieces:
            outs = _fp32(q, pieces, heads, width_v)
            edge_outs = _fp32(q, pieces, heads, width_e)
            peaks, totals = _fp32(q, pieces, heads), _fp32(q, pieces, heads)
            launch(pieces, True, (outs, edge_outs, peaks, totals))
            tile = _tile(1, (width_v, width_e), csr, True)
            merge_forward_kernel[pieces, heads](
                csr.ptr, csr.heavy, peaks, totals, outs, edge_outs,
                out, edge_out if width_e else None, lse, log2_eps,
                heads, width_v, width_e, EPS=has_eps, HEAVY=HEAVY_ROW_EDGES, BLOCK_M=_MERGE_PIECES,
                BLOCK_DV=tile.widths[0], BLOCK_DE=tile.widths[1], num_warps=4,
            )  # fmt: skip
        if scores_shape is not None:
            for rows, items in ((num_dst, False), (pieces, True)):
                if rows:
                    tile = _tile(heads, (1,), csr, items)
                    normalize_kernel[tile.programs(rows), tile.groups](
                        csr.ptr, csr.degree, csr.index, csr.edge_id, csr.heavy, lse, scores,
                        rows, heads,
                        ITEMS=items, HEAVY=HEAVY_ROW_EDGES, BLOCK_R=tile.block_r,
                        BLOCK_E=tile.block_e, BLOCK_H=tile.block_h, num_warps=tile.warps,
                    )  # fmt: skip
    return Forward(out, edge_out, lse, scores)


class _Shared(NamedTuple):
    """What every backward kernel reads; delta is the row sum of score times its gradient."""

    grad_out: Tensor
    grad_edge_out: Tensor | None
    grad_scores: Tensor | None
    q: Tensor
    k: Tensor
    v: Tensor
    lse: Tensor
    delta: Tensor


def backward(
    grad_out: Tensor,
    grad_edge_out: Tensor | None,
    grad_scores: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    edge_out: Tensor,
    lse: Tensor,
    csr: Rows,
    csc: Rows | None,
    terms: Terms,
    options: Options,
    needs: Needs,
) -> Gradients:
    """Every gradient that is needed; `csc` may be None where those of k and v are not."""
    gradients = Gradients(
        *(
            torch.empty_like(tensor) if needed and tensor is not None else q.new_empty(0)
            for tensor, needed in zip((q, k, v, *terms), needs, strict=True)
        )
    )
    if csr.ptr is None:
        # places without an edge are not visited
        for by_place in (gradients.key_edge, gradients.bias_edge, gradients.edge_attr):
            by_place.zero_()
    delta = torch.empty_like(lse)
    shared = _Shared(grad_out, grad_edge_out, grad_scores, q, k, v, lse, delta)
    with torch.cuda.device_of(q):
        _fill_delta(shared, out, edge_out, csr, terms, options)
        if csc is not None and (needs.k or needs.v):
            _fill_sources(shared, csc, terms, options, needs, gradients)
        if any(needs._replace(k=False, v=False)):
            _fill_destinations(shared, csr, terms, options, needs, gradients)
    return gradients


def _fill_delta(
    shared: _Shared,
    out: Tensor,
    edge_out: Tensor,
    csr: Rows,
    terms: Terms,
    options: Options,
) -> None:
    num_dst, heads, width = shared.q.shape
    width_v, width_e = out.size(2), _edge_width(terms)
    if not num_dst:
        return
    extra = None
    if shared.grad_scores is not None:
        extra = torch.empty_like(shared.lse)
        for rows, items, (result,) in _passes(csr, extra):
            tile = _tile(heads, (width, 1, width_e), csr, items)
            score_delta_kernel[tile.programs(rows), tile.groups](
                shared.grad_scores, shared.q, shared.k, shared.lse,
                *csr.edges, *terms, result, rows, *_numbers(options)[:3], heads, width, width_e,
                CLAMP=options.clamp != math.inf, ITEMS=items, HEAVY=HEAVY_ROW_EDGES,
                BLOCK_R=tile.block_r, BLOCK_E=tile.block_e, BLOCK_H=tile.block_h,
                BLOCK_D=tile.widths[0], BLOCK_DE=tile.widths[2], num_warps=tile.warps,
            )  # fmt: skip
            if items:
                _merge_sum(csr, result, extra)
    pairs = num_dst * heads
    block_dv, block_de = power_of_two(width_v), power_of_two(width_e)
    block_p = max(1, 2048 // max(block_dv, block_de))
    delta_kernel[(-(-pairs // block_p),)](
        shared.grad_out, out, shared.grad_edge_out, edge_out, extra, shared.delta, pairs,
        width_v, width_e, BLOCK_P=block_p, BLOCK_DV=block_dv, BLOCK_DE=block_de, num_warps=4,
    )  # fmt: skip


def _fill_sources(
    shared: _Shared,
    csc: Rows,
    terms: Terms,
    options: Options,
    needs: Needs,
    gradients: Gradients,
) -> None:
    """Write the gradients of k and v."""
    heads, width, width_v = shared.q.size(1), shared.q.size(2), shared.v.size(2)
    width_e = _edge_width(terms)
    full = [gradients.k if needs.k else None, gradients.v if needs.v else None]
    for rows, items, results in _passes(csc, *full):
        tile = _tile(heads, (width, width_v, width_e), csc, items)
        source_kernel[tile.programs(rows), tile.groups](
            *shared, *csc.edges, *terms, *results, rows, *_numbers(options),
            heads, width, width_v, width_e, **_flags(options), ITEMS=items, **_blocks(tile),
        )  # fmt: skip
        if items:
            for partial, result in zip(results, full, strict=True):
                _merge_sum(csc, partial, result)


def _fill_destinations(
    shared: _Shared,
    csr: Rows,
    terms: Terms,
    options: Options,
    needs: Needs,
    gradients: Gradients,
) -> None:
    """Write the gradients of all but k and v."""
    heads, width, width_v = shared.q.size(1), shared.q.size(2), shared.v.size(2)
    width_e = _edge_width(terms)
    of_rows = [
        gradients.q if needs.q else None,
        gradients.edge_query if needs.edge_query else None,
    ]
    of_edges = [
        gradients.edge_attr if needs.edge_attr else None,
        gradients.key_edge if needs.key_edge else None,
        gradients.bias_edge if needs.bias_edge else None,
    ]
    of_types = [
        gradients.key_table if needs.key_table else None,
        gradients.bias_table if needs.bias_table else None,
    ]
    num_types = max((len(table) for table in of_types if table is not None), default=0)
    types_at_once = min(_TYPES_AT_ONCE, power_of_two(num_types))
    launches = [
        (
            rows,
            items,
            results,
            _tile(
                heads,
                (width, width_v, width_e),
                csr,
                items,
                lane_elements=_LANE_ELEMENTS // (2 if num_types else 1),
                whole_heads=needs.edge_attr,
            ),
        )
        for rows, items, results in _passes(csr, *of_rows)
    ]
    programs = [tile.programs(rows) for rows, _, _, tile in launches]
    if num_types:
        # a program that sums tables walks many rows: few programs keep their partials small
        limit = min(_TABLE_BLOCKS, _TABLE_ELEMENTS // (num_types * heads * width))
        programs = [min(count, max(64, limit)) for count in programs]
    partials = [
        None if table is None else _fp32(table, sum(programs), *table.shape) for table in of_types
    ]
    for first_type in range(0, max(1, num_types), types_at_once):
        again = first_type > 0
        first_block = 0
        for (rows, items, results, tile), blocks in zip(launches, programs, strict=True):
            only_types = again and csr.edge_type is not None
            destination_kernel[blocks, tile.groups](
                *shared, *csr.edges, *terms,
                *([None] * 5 if again else [*results, *of_edges]), *partials,
                rows, *_numbers(options), first_type, first_block,
                num_types, heads, width, width_v, width_e,
                **_flags(options), ONLY_TYPES=only_types, ITEMS=items,
                BLOCK_T=types_at_once, **_blocks(tile),
            )  # fmt: skip
            first_block += blocks
            if items and not again:
                for partial, result in zip(results, of_rows, strict=True):
                    _merge_sum(csr, partial, result)
    for partial, table in zip(partials, of_types, strict=True):
        if partial is not None and table is not None:
            torch.sum(partial, 0, out=table)


def _passes(rows: Rows, *results: Tensor | None) -> list[tuple[int, bool, list[Tensor | None]]]:
    """The launches over rows, then pieces of heavy rows: (count, is of pieces, what to write)."""
    pieces = len(rows.heavy)
    passes = []
    if rows.num_rows:
        passes.append((rows.num_rows, False, list(results)))
    if pieces:
        partials = [
            None if result is None else _fp32(result, pieces, *result.shape[1:])
            for result in results
        ]
        passes.append((pieces, True, partials))
    return passes


def _merge_sum(rows: Rows, partial: Tensor | None, result: Tensor | None) -> None:
    """Sum the pieces of every heavy row into its row of `result`."""
    if partial is None or result is None:
        return
    width = result[0].numel()
    block_x = min(256, power_of_two(width))
    merge_sum_kernel[len(partial), -(-width // block_x)](
        rows.ptr, rows.heavy, partial, result, width, HEAVY_ROW_EDGES,
        BLOCK_M=_MERGE_PIECES, BLOCK_X=block_x, num_warps=4,
    )  # fmt: skip


def _fp32(like: Tensor, *sizes: int) -> Tensor:
    return torch.empty(sizes, dtype=torch.float32, device=like.device)


def _edge_width(terms: Terms) -> int:
    return 0 if terms.edge_attr is None else terms.edge_attr.size(-1)


def _numbers(options: Options) -> tuple[float, ...]:
    """scale, clamp, temperature, threshold, keep_scale, seed."""
    return (
        options.scale,
        options.clamp,
        options.temperature,
        dropout_threshold(options.dropout),
        1 / (1 - options.dropout),
        options.seed,
    )


def _flags(options: Options) -> dict[str, int]:
    return {
        "CLAMP": options.clamp != math.inf,
        "DROPOUT": options.dropout > 0,
        "HEAVY": HEAVY_ROW_EDGES,
    }


def _tile(
    heads: int,
    widths: tuple[int, ...],
    rows: Rows,
    items: bool,
    lane_elements: int = _LANE_ELEMENTS,
    whole_heads: bool = False,
) -> Tile:
    return choose_tile(
        heads,
        widths,
        HEAVY_ROW_EDGES if items else rows.index.numel() // max(1, rows.num_rows),
        lane_elements=lane_elements,
        whole_heads=whole_heads,
        interpreted=triton_interpreted(),
    )


def _blocks(tile: Tile) -> dict[str, int]:
    """The block sizes of a kernel over operands of the widths D, Dv and De."""
    return {
        "BLOCK_R": tile.block_r,
        "BLOCK_E": tile.block_e,
        "BLOCK_H": tile.block_h,
        "BLOCK_D": tile.widths[0],
        "BLOCK_DV": tile.widths[1],
        "BLOCK_DE": tile.widths[2],
        "num_warps": tile.warps,
    }
