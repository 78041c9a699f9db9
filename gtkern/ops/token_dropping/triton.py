"""The triton backend: portable GPU kernels, and in Triton's interpreter the same on a CPU.

Functions as in reference.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gtkern.graph import Adjacency
from gtkern.ops._triton import power_of_two
from gtkern.ops.token_dropping.triton_kernels import (
    degree_kernel,
    dot_kernel,
    gate_kernel,
    gather_kernel,
    kept_edges_kernel,
    keys_kernel,
    pairs_kernel,
    scatter_kernel,
    select_kernel,
    write_edges_kernel,
    write_row_kernel,
)

_ROWS = 1024
_TILE = 4096
_WIDEST = 256


def select(
    score: Tensor,
    ptr: Tensor,
    kept_ptr: Tensor,
    num_kept: int,
    always_keep: Tensor | None,
    seed: int | None,
) -> tuple[Tensor, Tensor]:
    """See reference.select."""
    index = ptr.new_empty(num_kept)
    position = ptr.new_empty(score.size(0), dtype=torch.int32)
    graphs = ptr.numel() - 1
    if score.numel():
        with torch.cuda.device_of(score):
            select_kernel[graphs,](
                _keys(score, seed), _bytes(always_keep), ptr, kept_ptr, index, position,
                BLOCK=_rows_of_graph(score, graphs),
            )  # fmt: skip
    return index, position


def gate_backward(
    grad_gate: Tensor,
    score: Tensor,
    ptr: Tensor,
    position: Tensor,
    always_keep: Tensor | None,
    temperature: float,
    seed: int | None,
) -> Tensor:
    """The gradient of the scores [N], from that of the gate [M]."""
    out = torch.empty_like(score)
    graphs = ptr.numel() - 1
    if score.numel():
        with torch.cuda.device_of(score):
            gate_kernel[graphs,](
                grad_gate, _keys(score, seed), _bytes(always_keep), ptr, position, out,
                1 / temperature, BLOCK=_rows_of_graph(score, graphs),
            )  # fmt: skip
    return out


def gather(x: Tensor, gate: Tensor | None, index: Tensor, position: Tensor) -> Tensor:
    """See reference.gather."""
    out = x.new_empty(index.numel(), x.size(1))
    if out.numel():
        block, channels, columns = _tile(x.size(1))
        with torch.cuda.device_of(x):
            gather_kernel[-(-index.numel() // block), columns](
                _bytes(x), gate, index, _bytes(out), index.numel(), x.size(1),
                BLOCK=block, BLOCK_C=channels,
            )  # fmt: skip
    return out


def gather_backward(
    grad_out: Tensor,
    x: Tensor | None,
    gate: Tensor | None,
    index: Tensor,
    position: Tensor,
    needs_x: bool,
    needs_gate: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of x [N, C] and gate [M]; without elements where not needed."""
    width, kept = grad_out.size(1), index.numel()
    grad_x = grad_out.new_empty(0, width)
    grad_gate = grad_out.new_empty(kept if needs_gate else 0)
    if needs_x:
        grad_x = _scatter(grad_out, gate, None, position)
    if grad_gate.numel():
        block, channels, _ = _tile(width)
        with torch.cuda.device_of(grad_out):
            dot_kernel[-(-kept // block),](
                grad_out, x, index, grad_gate, kept, width, BLOCK=block, BLOCK_C=channels
            )
    return grad_x, grad_gate


def scatter(y: Tensor | None, fill: Tensor | None, index: Tensor, position: Tensor) -> Tensor:
    """See reference.scatter; without y, the kept rows are zeros."""
    return _scatter(y, None, fill, position)


def drop_edges(source: Tensor, destination: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    """See reference.drop_edges."""
    edges = source.numel()
    kept = torch.empty(edges, dtype=torch.int8, device=source.device)
    programs = -(-edges // _ROWS)
    with torch.cuda.device_of(source):
        if edges:
            kept_edges_kernel[programs,](source, destination, position, kept, edges, BLOCK=_ROWS)
        after = kept.cumsum(0, dtype=torch.int64)
        count = int(after[-1]) if edges else 0
        out = source.new_empty(2, count)
        edge = torch.empty(count, dtype=torch.int64, device=source.device)
        if count:
            write_edges_kernel[programs,](
                source, destination, position, kept, after, out[0], out[1], edge, edges,
                BLOCK=_ROWS,
            )  # fmt: skip
    return out, edge


def drop_rows(
    csr: Adjacency, index: Tensor, position: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See reference.drop_rows."""
    rows = index.numel()
    degree = torch.empty_like(index)
    block = 128
    with torch.cuda.device_of(index):
        if rows:
            degree_kernel[rows,](csr.ptr, csr.index, index, position, degree, BLOCK=block)
        ptr = torch.cat((degree.new_zeros(1), degree.cumsum(0)))
        count = int(ptr[-1])
        typed = csr.edge_type.numel() > 0
        source, edge = csr.index.new_empty(count), csr.ptr.new_empty(count)
        types = csr.edge_type.new_empty(count if typed else 0)
        if count:
            write_row_kernel[rows,](
                csr.ptr, csr.index, csr.edge_id if csr.edge_id.numel() else None,
                csr.edge_type if typed else None, index, position, ptr, source, edge,
                types if typed else None, BLOCK=block,
            )  # fmt: skip
    return ptr, source, edge, types


def gather_pairs(
    entry: Tensor,
    ptr: Tensor,
    pair_ptr: Tensor,
    index: Tensor,
    kept_ptr: Tensor,
    kept_pair_ptr: Tensor,
    num_pairs: int,
) -> Tensor:
    """See reference.gather_pairs."""
    out = entry.new_empty(num_pairs)
    if num_pairs:
        graphs = torch.arange(ptr.numel() - 1, device=ptr.device)
        graph = torch.repeat_interleave(graphs, kept_ptr.diff(), output_size=index.numel())
        with torch.cuda.device_of(entry):
            pairs_kernel[index.numel(),](
                entry, ptr, pair_ptr, index, graph, kept_ptr, kept_pair_ptr, out, BLOCK=64
            )
    return out


def _keys(score: Tensor, seed: int | None) -> Tensor:
    """What tokens are ranked by, float32 [N]."""
    if seed is None:
        return score.float()
    out = torch.empty_like(score, dtype=torch.float32)
    keys_kernel[-(-score.numel() // _ROWS),](score, out, score.numel(), seed, BLOCK=_ROWS)
    return out


def _scatter(
    y: Tensor | None, gate: Tensor | None, fill: Tensor | None, position: Tensor
) -> Tensor:
    like = y if y is not None else fill
    assert like is not None
    out = like.new_empty(position.numel(), like.size(1))
    if out.numel():
        block, channels, columns = _tile(like.size(1))
        # a batch that keeps nothing has no rows to point at
        y = y if y is not None and y.numel() else None
        with torch.cuda.device_of(out):
            scatter_kernel[-(-position.numel() // block), columns](
                _bytes(y), gate, _bytes(fill), position, _bytes(out), position.numel(),
                like.size(1), BLOCK=block, BLOCK_C=channels,
            )  # fmt: skip
    return out


def _bytes(tensor: Tensor | None) -> Tensor | None:
    """bool as uint8."""
    boolean = tensor is not None and tensor.dtype == torch.bool
    return tensor.view(torch.uint8) if boolean and tensor is not None else tensor


def _rows_of_graph(score: Tensor, graphs: int) -> int:
    """Rows of a graph at a time: about as many as there are in one."""
    return min(_ROWS, power_of_two(max(32, -(-score.numel() // graphs))))


def _tile(width: int) -> tuple[int, int, int]:
    """Rows and channels of a tile, and how many tiles a row makes."""
    channels = min(_WIDEST, power_of_two(max(width, 1)))
    return _TILE // channels, channels, -(-width // channels)
