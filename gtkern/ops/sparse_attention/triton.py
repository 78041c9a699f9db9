"""The triton backend: portable GPU kernels, and in Triton's interpreter the same on a CPU."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gtkern._backends import triton_interpreted
from gtkern.graph import HEAVY_ROW_EDGES, Adjacency
from gtkern.ops._triton import Tile, choose_tile, merge_sum_kernel, power_of_two
from gtkern.ops.sparse_attention.triton_kernels import (
    delta_kernel,
    destination_kernel,
    forward_kernel,
    merge_forward_kernel,
    normalize_kernel,
    score_delta_kernel,
    source_kernel,
)
from gtkern.ops.sparse_attention.types import Forward, Gradients, Needs, Options, Terms
from gtkern.random import dropout_threshold

_TYPES_AT_ONCE = 4
_TABLE_BLOCKS = 1024
_TABLE_ELEMENTS = 2**24
_MERGE_PIECES = 16
_LANE_ELEMENTS = 16


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    csr: Adjacency,
    terms: Terms,
    options: Options,
    return_scores: bool,
) -> Forward:
    """See types.Forward."""
    num_dst, heads, width = q.shape
    width_v, width_e = v.size(2), _edge_width(terms)
    pieces = csr.heavy.size(0)
    out = q.new_empty(num_dst, heads, width_v)
    edge_out = q.new_empty(num_dst, heads, width_e) if width_e else q.new_empty(0)
    lse = q.new_empty(num_dst, heads, dtype=torch.float32)
    scores = _fp32(q, csr.index.numel(), heads) if return_scores else _fp32(q, 0)
    edges, numbers = _edges(csr), _numbers(options)
    log2_eps = math.log2(options.eps) if options.eps > 0 else -math.inf
    has_eps = options.eps > 0

    def launch(rows: int, items: bool, results: tuple[Tensor | None, ...]) -> None:
        tile = _tile(heads, (width, width_v, width_e), csr, items)
        forward_kernel[tile.programs(rows), tile.groups](
            q, k, v, *edges, *terms, *results, scores if return_scores else None,
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
        if return_scores:
            for rows, items in ((num_dst, False), (pieces, True)):
                if rows:
                    tile = _tile(heads, (1,), csr, items)
                    normalize_kernel[tile.programs(rows), tile.groups](
                        csr.ptr, edges[2], csr.heavy, lse, scores, rows, heads,
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
    csr: Adjacency,
    csc: Adjacency,
    terms: Terms,
    options: Options,
    needs: Needs,
) -> Gradients:
    """See types.Gradients."""
    empty = q.new_empty(0)
    gradients = Gradients(
        *(
            torch.empty_like(tensor) if needed and tensor is not None else empty
            for tensor, needed in zip((q, k, v, *terms), needs, strict=True)
        )
    )
    delta = torch.empty_like(lse)
    shared = _Shared(grad_out, grad_edge_out, grad_scores, q, k, v, lse, delta)
    with torch.cuda.device_of(q):
        _fill_delta(shared, out, edge_out, csr, terms, options)
        if needs.k or needs.v:
            _fill_sources(shared, csc, terms, options, needs, gradients)
        if any(needs._replace(k=False, v=False)):
            _fill_destinations(shared, csr, terms, options, needs, gradients)
    return gradients


def _fill_delta(
    shared: _Shared,
    out: Tensor,
    edge_out: Tensor,
    csr: Adjacency,
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
                *_edges(csr), *terms, result, rows, *_numbers(options)[:3], heads, width, width_e,
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
    csc: Adjacency,
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
            *shared, *_edges(csc), *terms, *results, rows, *_numbers(options),
            heads, width, width_v, width_e, **_flags(options), ITEMS=items, **_blocks(tile),
        )  # fmt: skip
        if items:
            for partial, result in zip(results, full, strict=True):
                _merge_sum(csc, partial, result)


def _fill_destinations(
    shared: _Shared,
    csr: Adjacency,
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
            only_types = again and csr.edge_type.numel() > 0
            destination_kernel[blocks, tile.groups](
                *shared, *_edges(csr), *terms,
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


def _passes(
    adjacency: Adjacency, *results: Tensor | None
) -> list[tuple[int, bool, list[Tensor | None]]]:
    """The launches over rows, then pieces of heavy rows: (count, is of pieces, what to write)."""
    rows, pieces = adjacency.ptr.numel() - 1, len(adjacency.heavy)
    passes = []
    if rows:
        passes.append((rows, False, list(results)))
    if pieces:
        partials = [
            None if result is None else _fp32(result, pieces, *result.shape[1:])
            for result in results
        ]
        passes.append((pieces, True, partials))
    return passes


def _merge_sum(adjacency: Adjacency, partial: Tensor | None, result: Tensor | None) -> None:
    """Sum the pieces of every heavy row into its row of `result`."""
    if partial is None or result is None:
        return
    width = result[0].numel()
    block_x = min(256, power_of_two(width))
    merge_sum_kernel[len(partial), -(-width // block_x)](
        adjacency.ptr, adjacency.heavy, partial, result, width, HEAVY_ROW_EDGES,
        BLOCK_M=_MERGE_PIECES, BLOCK_X=block_x, num_warps=4,
    )  # fmt: skip


def _fp32(like: Tensor, *sizes: int) -> Tensor:
    return torch.empty(sizes, dtype=torch.float32, device=like.device)


def _edge_width(terms: Terms) -> int:
    return 0 if terms.edge_attr is None else terms.edge_attr.size(1)


def _edges(adjacency: Adjacency) -> tuple[Tensor | None, ...]:
    """The adjacency as kernels take it: None for the identity, and for a single type."""
    ptr, index, edge_id, edge_type, heavy = adjacency
    return (
        ptr,
        index,
        edge_id if edge_id.numel() else None,
        edge_type if edge_type.numel() else None,
        heavy,
    )


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
    adjacency: Adjacency,
    items: bool,
    lane_elements: int = _LANE_ELEMENTS,
    whole_heads: bool = False,
) -> Tile:
    rows = max(1, adjacency.ptr.numel() - 1)
    return choose_tile(
        heads,
        widths,
        HEAVY_ROW_EDGES if items else adjacency.index.numel() // rows,
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
