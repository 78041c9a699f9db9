"""Sources that every row sees besides its edges: dense products, merged with the kernels' results.

Two softmaxes over parts of a row make the one over all of it: with lse = log(exp(lse_1) +
exp(lse_2)), out = exp(lse_1 - lse) out_1 + exp(lse_2 - lse) out_2. The edges' part is a backend's,
whichever it is; this file has the other. README.md derives the backward pass.

Rows are taken in chunks: temporaries stay small, and matrix products always have the same sizes,
with zeros in place of the last chunk's missing rows, so that a row's bits do not depend on how many
others there are. A chunk's matrices have the heads first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from gtkern.ops._attention import accumulation_dtype
from gtkern.ops.sparse_attention.types import Forward, Options, Prefix
from gtkern.random import keep_mask

__all__ = ["PrefixGradients", "backward", "merge"]

_CHUNK_ELEMENTS = {"cpu": 2**18, "cuda": 2**22}
"""Elements of a chunk's largest matrix: what stays in a CPU's near caches, and what keeps a GPU
busy."""
_FEWEST_ROWS = 64


class PrefixGradients(NamedTuple):
    """In the shapes of the prefix; None where not wanted."""

    k: Tensor | None
    v: Tensor | None


class _Chunk(NamedTuple):
    """Some rows' scores with the prefix.

    Attributes:
        begin: its first row.
        query: [H, R, D], accumulation dtype.
        score: [H, R, P], clamped.
        open: bool [H, R, P], where the clamp has a gradient; None: everywhere.
        keep: [H, R, P], what dropout multiplies with; None: 1.
    """

    begin: int
    query: Tensor
    score: Tensor
    open: Tensor | None
    keep: Tensor | None

    def of(self, full: Tensor) -> Tensor:
        """Its R rows of a tensor, in the accumulation dtype; zeros where there are none left."""
        return _rows(full, self.begin, self.query.size(1)).to(self.query.dtype)

    def write(self, full: Tensor, rows: Tensor) -> None:
        """Put its rows into a tensor."""
        part = full[self.begin : self.begin + rows.size(0)]
        part.copy_(rows[: part.size(0)])


def merge(edges: Forward, q: Tensor, prefix: Prefix, num_edges: int, options: Options) -> Forward:
    """What the whole rows get, from what their edges gave; written into the tensors of `edges`."""
    values = prefix.v.to(accumulation_dtype(q)).transpose(0, 1)  # [H, P, Dv]
    with torch.autocast(q.device.type, enabled=False):
        for chunk in _chunks(q, prefix, num_edges, options):
            lse = chunk.of(edges.lse)
            whole = torch.logaddexp(lse, chunk.score.logsumexp(2).t())
            base = _finite(whole)
            share = (lse - base).exp()[..., None]
            weight = (chunk.score - base.t()[..., None]).exp_()
            if chunk.keep is not None:
                weight *= chunk.keep
            found = torch.bmm(weight, values).transpose(0, 1)
            chunk.write(edges.out, torch.addcmul(found, chunk.of(edges.out), share))
            if edges.edge_out.numel():
                chunk.write(edges.edge_out, chunk.of(edges.edge_out) * share)
            chunk.write(edges.lse, whole)
    return edges


def backward(
    grad_out: Tensor,
    grad_edge_out: Tensor | None,
    q: Tensor,
    out: Tensor,
    edge_out: Tensor,
    lse: Tensor,
    prefix: Prefix,
    num_edges: int,
    options: Options,
    grad_q: Tensor | None,
    needs: tuple[bool, bool],
) -> PrefixGradients:
    """The gradients of the prefix; and its part of q's gradient, which is added to grad_q.

    Args:
        out, edge_out, lse: of whole rows.
        grad_q: the gradient from the edges; None: not wanted.
        needs: whether those of prefix.k and prefix.v are.
    """
    work = accumulation_dtype(q)
    keys, values = (part.to(work).transpose(0, 1) for part in prefix)
    grad_k, grad_v = (
        torch.zeros_like(part, memory_format=torch.contiguous_format) if needed else None
        for part, needed in zip((keys, values), needs, strict=True)
    )
    factor = options.scale / options.temperature
    with torch.autocast(q.device.type, enabled=False):
        for chunk in _chunks(q, prefix, num_edges, options):
            given = chunk.of(grad_out)
            weight = (chunk.score - _finite(chunk.of(lse)).t()[..., None]).exp_()
            if grad_v is not None:
                kept = weight if chunk.keep is None else weight * chunk.keep
                grad_v.baddbmm_(kept.transpose(1, 2), given.transpose(0, 1))
            if grad_k is None and grad_q is None:
                continue
            delta = (given * chunk.of(out)).sum(2)
            if grad_edge_out is not None:
                delta += (chunk.of(grad_edge_out) * chunk.of(edge_out)).sum(2)
            grad = torch.bmm(given.transpose(0, 1), values.transpose(1, 2))
            if chunk.keep is not None:
                grad *= chunk.keep
            grad -= delta.t()[..., None]
            grad *= weight
            if chunk.open is not None:
                grad *= chunk.open
            if grad_q is not None:
                found = torch.bmm(grad, keys).transpose(0, 1)
                chunk.write(grad_q, torch.add(chunk.of(grad_q), found, alpha=factor))
            if grad_k is not None:
                grad_k.baddbmm_(grad.transpose(1, 2), chunk.query, alpha=factor)
    return PrefixGradients(
        *(
            None if full is None else full.transpose(0, 1).to(part.dtype).contiguous()
            for full, part in zip((grad_k, grad_v), prefix, strict=True)
        )
    )


def _chunks(q: Tensor, prefix: Prefix, num_edges: int, options: Options) -> Iterator[_Chunk]:
    num_dst, heads, width = q.shape
    slots, value_width = prefix.k.size(0), prefix.v.size(2)
    work = accumulation_dtype(q)
    turned = prefix.k.to(work).permute(1, 2, 0) * (options.scale / options.temperature)
    fitting = _CHUNK_ELEMENTS[q.device.type] // (heads * max(slots, width, value_width))
    count = max(1, fitting // _FEWEST_ROWS) * _FEWEST_ROWS
    for begin in range(0, num_dst, count):
        query = _rows(q, begin, count).to(work).transpose(0, 1)
        score, opened = torch.bmm(query, turned), None
        # torch takes no bound that the dtype has not
        if options.clamp <= torch.finfo(score.dtype).max:
            opened = score.abs() <= options.clamp
            score.clamp_(-options.clamp, options.clamp)
        keep = None
        if options.dropout > 0:
            # slot p of row i is item num_edges + i P + p
            item = torch.arange(begin * slots, (begin + count) * slots, device=q.device)
            mask = keep_mask(options.seed, item + num_edges, heads, options.dropout)
            mask = mask.view(count, slots, heads).permute(2, 0, 1)
            keep = mask.to(work) / (1 - options.dropout)
        yield _Chunk(begin, query, score, opened, keep)


def _rows(full: Tensor, begin: int, count: int) -> Tensor:
    part = full[begin : begin + count]
    if part.size(0) == count:
        return part
    padded = full.new_zeros(count, *full.shape[1:])
    padded[: part.size(0)] = part
    return padded


def _finite(lse: Tensor) -> Tensor:
    """lse, and 0 where it is -inf: exp(-inf - 0) = 0."""
    return torch.where(lse == float("-inf"), torch.zeros_like(lse), lse)
