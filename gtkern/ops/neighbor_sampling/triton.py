"""The triton backend: portable GPU kernels, and in Triton's interpreter the same on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from gtkern._backends import triton_interpreted
from gtkern.graph import Adjacency
from gtkern.ops._triton import power_of_two
from gtkern.ops.neighbor_sampling.table import MOST_DRAWN, num_draws, sorted_weight
from gtkern.ops.neighbor_sampling.triton_kernels import draw_kernel, race_kernel

_SHORT_TILE = 64
_FILL_TILE = 32


def forward(
    csr: Adjacency,
    weight: Tensor | None,
    prefix: Tensor | None,
    k: list[int],
    seed: int,
    epoch: int,
    method: str,
    pad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample every layer; arguments and results as in reference.py."""
    rows = csr.ptr.numel() - 1
    weight, prefix = sorted_weight(csr, weight, prefix)
    size = rows * sum(k)
    index = csr.index.new_empty(size)
    edge = csr.ptr.new_empty(size)
    kind = csr.edge_type.new_empty(size if csr.edge_type.numel() else 0)
    begin = 0
    with torch.cuda.device_of(csr.ptr):
        for layer, count in enumerate(k):
            at = layer if weight is not None and weight.size(0) > 1 else 0
            end = begin + rows * count
            if rows:
                _sample_layer(
                    csr,
                    None if weight is None else weight[at],
                    None if prefix is None else prefix[at],
                    (index[begin:end], edge[begin:end], kind[begin:end] if kind.numel() else None),
                    count,
                    (seed, layer, epoch),
                    method == "top",
                    pad,
                )
            begin = end
    return index, edge, kind


def _sample_layer(
    csr: Adjacency,
    weight: Tensor | None,
    prefix: Tensor | None,
    results: tuple[Tensor, Tensor, Tensor | None],
    count: int,
    stream: tuple[int, int, int],
    top: bool,
    pad: bool,
) -> None:
    rows = csr.ptr.numel() - 1
    edges = (
        csr.index,
        csr.edge_id if csr.edge_id.numel() else None,
        csr.edge_type if results[2] is not None else None,
    )
    interpreted = triton_interpreted()
    partial = taken = None
    if not top and count <= MOST_DRAWN:
        partial = csr.ptr.new_empty(rows * count)
        taken = csr.index.new_empty(rows)
        block_t = power_of_two(num_draws(count))
        block_r = 16 if interpreted else max(1, 128 // block_t)
        # pairs of draws that a lane compares: 32, or 64 of the largest samples
        warps = min(8, max(1, block_r * block_t**2 // 1024))
        draw_kernel[-(-rows // block_r),](
            csr.ptr, prefix, *edges, *results, partial, taken, rows, count, num_draws(count),
            *stream, BLOCK_R=block_r, BLOCK_T=block_t, num_warps=warps,
        )  # fmt: skip
    block_k = power_of_two(count) if partial is not None else 1
    long_tile = 2048 if interpreted else 256
    short_rows = 16 if interpreted else 4
    # room for the positions before a row that share its first counter
    short = _SHORT_TILE - 3
    for is_long, block_r, block_b in (
        (False, short_rows, _SHORT_TILE),
        (True, 1, long_tile),
    ):
        race_kernel[-(-rows // block_r),](
            csr.ptr, weight, prefix, *edges, *results, partial, taken, rows, count, *stream,
            TOP=top, PAD=pad, LONG=is_long, SHORT=short, BLOCK_R=block_r, BLOCK_B=block_b,
            BLOCK_K=block_k, BLOCK_F=_FILL_TILE, num_warps=4 if block_k <= 16 else 8,
        )  # fmt: skip
