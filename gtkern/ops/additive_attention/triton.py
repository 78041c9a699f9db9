"""The triton backend: portable GPU kernels, and in Triton's interpreter on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gtkern._backends import triton_interpreted
from gtkern.graph import Adjacency
from gtkern.ops._triton import Tile, choose_tile
from gtkern.ops._triton_attention_kernels import normalize_kernel
from gtkern.ops.additive_attention.triton_kernels import (
    NO_ROW_IS_HEAVY,
    additive_delta_kernel,
    additive_destination_kernel,
    additive_forward_kernel,
    additive_source_kernel,
)
from gtkern.ops.additive_attention.types import Forward, Gradients, Inputs, Needs, Options
from gtkern.random import dropout_threshold

_FORWARD_ELEMENTS, _BACKWARD_ELEMENTS = 16, 8
"""Of a tile [E, H, D] that a lane holds; backward has more such tiles."""
_MOST_PARTIALS = 1024


def forward(inputs: Inputs, csr: Adjacency, options: Options, return_scores: bool) -> Forward:
    """See types.Forward."""
    q = inputs.q
    num_dst, heads, width = q.shape
    out = torch.empty_like(q)
    lse = q.new_empty(num_dst, heads, dtype=torch.float32)
    shape = (csr.index.numel(), heads) if return_scores else (0,)
    scores = q.new_empty(shape, dtype=torch.float32)
    tile = _tile(inputs, csr, _FORWARD_ELEMENTS)
    with torch.cuda.device_of(q):
        if num_dst:
            additive_forward_kernel[tile.programs(num_dst), tile.groups](
                *inputs, *_edges(csr), out, lse, scores if return_scores else None, num_dst,
                *_numbers(options), heads, width, DROPOUT=options.dropout > 0, **_blocks(tile),
            )  # fmt: skip
        if num_dst and return_scores:
            tile = _tile(inputs, csr, _FORWARD_ELEMENTS, width=1)
            normalize_kernel[tile.programs(num_dst), tile.groups](
                csr.ptr, 0, *_edges(csr)[1:], csr.heavy, lse, scores, num_dst, heads,
                ITEMS=False, HEAVY=NO_ROW_IS_HEAVY.value, BLOCK_R=tile.block_r,
                BLOCK_E=tile.block_e, BLOCK_H=tile.block_h, num_warps=tile.warps,
            )  # fmt: skip
    return Forward(out, lse, scores)


def backward(
    grad_out: Tensor,
    grad_scores: Tensor | None,
    inputs: Inputs,
    out: Tensor,
    lse: Tensor,
    csr: Adjacency,
    csc: Adjacency,
    options: Options,
    needs: Needs,
) -> Gradients:
    """See types.Gradients."""
    q = inputs.q
    num_dst, heads, width = q.shape
    gradients = Gradients(
        *(
            torch.empty_like(tensor) if needed and tensor is not None else q.new_empty(0)
            for tensor, needed in zip(inputs, needs, strict=True)
        )
    )
    grad_q, grad_k, grad_v, _, grad_attr = (
        result if needed and tensor is not None else None
        for result, tensor, needed in zip(gradients, inputs, needs, strict=True)
    )
    tile = _tile(inputs, csr, _BACKWARD_ELEMENTS)
    programs = min(tile.programs(num_dst), _MOST_PARTIALS)
    partials = q.new_empty(programs, heads, width, dtype=torch.float32)
    delta = torch.empty_like(lse)
    call = (*_numbers(options), heads, width)
    with torch.cuda.device_of(q):
        if num_dst:
            additive_delta_kernel[tile.programs(num_dst), tile.groups](
                grad_out, grad_scores, q, inputs.k, inputs.attention, inputs.edge_attr,
                *_edges(csr), out, lse, delta, num_dst, options.negative_slope, heads, width,
                **_blocks(tile),
            )  # fmt: skip
            if needs.q or needs.attention or needs.edge_attr:
                additive_destination_kernel[programs, tile.groups](
                    grad_out, grad_scores, *inputs, *_edges(csr), lse, delta,
                    grad_q, partials, grad_attr,
                    num_dst, *call, DROPOUT=options.dropout > 0, **_blocks(tile),
                )  # fmt: skip
        num_src = csc.ptr.numel() - 1
        if num_src > 0 and (needs.k or needs.v):
            tile = _tile(inputs, csc, _BACKWARD_ELEMENTS)
            additive_source_kernel[tile.programs(num_src), tile.groups](
                grad_out, grad_scores, *inputs, *_edges(csc), lse, delta, grad_k, grad_v,
                num_src, *call, DROPOUT=options.dropout > 0, **_blocks(tile),
            )  # fmt: skip
    if needs.attention:
        gradients.attention.copy_(partials.sum(0))
    return gradients


def _edges(adjacency: Adjacency) -> tuple[Tensor | None, ...]:
    """What kernels over edges take: ptr, index, and the numbers unless they are the identity."""
    edge_id = adjacency.edge_id
    return adjacency.ptr, adjacency.index, edge_id if edge_id.numel() else None


def _numbers(options: Options) -> tuple[float, ...]:
    """slope, threshold, keep_scale, seed."""
    threshold = dropout_threshold(options.dropout)
    return options.negative_slope, threshold, 1 / (1 - options.dropout), options.seed


def _tile(inputs: Inputs, rows: Adjacency, lane_elements: int, width: int = 0) -> Tile:
    return choose_tile(
        inputs.q.size(1),
        (width or inputs.q.size(2),),
        rows.index.numel() // max(1, rows.ptr.numel() - 1),
        lane_elements=lane_elements,
        whole_heads=False,
        interpreted=triton_interpreted(),
    )


def _blocks(tile: Tile) -> dict[str, Any]:
    return {
        "BLOCK_R": tile.block_r,
        "BLOCK_E": tile.block_e,
        "BLOCK_H": tile.block_h,
        "BLOCK_D": tile.widths[0],
        "num_warps": tile.warps,
    }
