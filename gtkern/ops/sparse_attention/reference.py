"""The specification of sparse_attention: plain PyTorch, differentiable by autograd, any device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gtkern.graph import Adjacency
from gtkern.ops.sparse_attention.types import Forward, Options, Prefix, Terms
from gtkern.random import keep_mask


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    csr: Adjacency,
    terms: Terms,
    prefix: Prefix | None,
    options: Options,
    return_scores: bool,
) -> Forward:
    """Attention of every destination over its row of the graph, and the prefix."""
    work = torch.float64 if q.dtype == torch.float64 else torch.float32
    num_dst, heads, _ = q.shape
    rows = torch.arange(num_dst, device=q.device)
    row = torch.repeat_interleave(rows, csr.ptr.diff(), output_size=csr.index.numel())
    col = csr.index.to(torch.int64)
    edge = csr.edge_id if csr.edge_id.numel() else torch.arange(col.numel(), device=q.device)
    kind = csr.edge_type.to(torch.int64) if csr.edge_type.numel() else torch.zeros_like(col)

    key = k.to(work)[col]
    if terms.key_table is not None:
        key = key * terms.key_table.to(work)[kind]
    if terms.key_edge is not None:
        key = key * terms.key_edge.to(work)[edge]
    product = (q.to(work)[row] * key).sum(-1)  # [E, H]
    attr = None
    if terms.edge_query is not None and terms.edge_attr is not None:
        attr = terms.edge_attr.to(work)[edge][:, None, :]  # [E, 1, De]
        product = product + (terms.edge_query.to(work)[row] * attr).sum(-1)
    score = options.scale * product
    if terms.bias_table is not None:
        score = score + terms.bias_table.to(work)[kind]
    if terms.bias_edge is not None:
        score = score + terms.bias_edge.to(work)[edge]
    value, item = v.to(work)[col], edge
    if prefix is not None:
        # every row's slots come after all edges
        slots = prefix.k.size(0)
        product = (q.to(work)[:, None] * prefix.k.to(work)).sum(-1)  # [N_dst, P, H]
        score = torch.cat((score, options.scale * product.flatten(0, 1)))
        value = torch.cat((value, prefix.v.to(work).repeat(num_dst, 1, 1)))
        row = torch.cat((row, rows.repeat_interleave(slots)))
        item = torch.cat((edge, edge.numel() + torch.arange(num_dst * slots, device=q.device)))
    score = score / options.temperature
    # torch takes no bound that the dtype has not
    if options.clamp <= torch.finfo(score.dtype).max:
        score = score.clamp(-options.clamp, options.clamp)

    def row_sum(values: Tensor) -> Tensor:
        return values.new_zeros(num_dst, *values.shape[1:]).index_add(0, row, values)

    index = row[:, None].expand(-1, heads)
    # eps weighs in as one more score; as the first peak it keeps exp(-peak) finite
    lowest = math.log(options.eps) if options.eps > 0 else float("-inf")
    peak = score.detach().new_full((num_dst, heads), lowest)
    peak = peak.scatter_reduce(0, index, score.detach(), "amax")
    # a row without weight has no largest score; any finite stand-in gives exp(-inf) = 0
    peak = torch.where(peak == float("-inf"), torch.zeros_like(peak), peak)
    weight = (score - peak[row]).exp()
    total = row_sum(weight) + (lowest - peak).exp()
    alpha = weight / torch.where(total == 0, torch.ones_like(total), total)[row]
    scale_kept = alpha
    if options.dropout > 0:
        kept = keep_mask(options.seed, item, heads, options.dropout)
        scale_kept = alpha * kept / (1 - options.dropout)

    out = row_sum(scale_kept[..., None] * value).to(q.dtype)
    edge_out = q.new_empty(0)
    if attr is not None:
        row, scale_kept = row[: edge.numel()], scale_kept[: edge.numel()]
        edge_out = row_sum(scale_kept[..., None] * attr).to(q.dtype)
    lse = total.log() + peak
    scores = lse.new_empty(0)
    if return_scores:
        scores = torch.zeros_like(alpha).index_copy(0, edge, alpha)
    return Forward(out, edge_out, lse, scores)
