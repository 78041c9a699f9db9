"""The specification of additive_attention: plain PyTorch, any device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from gtkern.graph import Adjacency
from gtkern.ops.additive_attention.types import Forward, Inputs, Options
from gtkern.random import keep_mask


def forward(inputs: Inputs, csr: Adjacency, options: Options, return_scores: bool) -> Forward:
    """Attention of every destination over its row of the graph."""
    q = inputs.q
    work = torch.float64 if q.dtype == torch.float64 else torch.float32
    num_dst, heads, _ = q.shape
    rows = torch.arange(num_dst, device=q.device)
    row = torch.repeat_interleave(rows, csr.ptr.diff(), output_size=csr.index.numel())
    col = csr.index.to(torch.int64)
    edge = csr.edge_id if csr.edge_id.numel() else torch.arange(col.numel(), device=q.device)

    added = q.to(work)[row] + inputs.k.to(work)[col]  # [E, H, D]
    if inputs.edge_attr is not None:
        added = added + inputs.edge_attr.to(work)[edge]
    activated = functional.leaky_relu(added, options.negative_slope)
    score = (inputs.attention.to(work) * activated).sum(-1)  # [E, H]

    def row_sum(values: Tensor) -> Tensor:
        return values.new_zeros(num_dst, *values.shape[1:]).index_add(0, row, values)

    index = row[:, None].expand(-1, heads)
    peak = score.detach().new_full((num_dst, heads), float("-inf"))
    peak = peak.scatter_reduce(0, index, score.detach(), "amax")
    # a row without weight has no largest score; any finite stand-in gives exp(-inf) = 0
    peak = torch.where(peak == float("-inf"), torch.zeros_like(peak), peak)
    weight = (score - peak[row]).exp()
    total = row_sum(weight)
    alpha = weight / torch.where(total == 0, torch.ones_like(total), total)[row]
    kept = alpha
    if options.dropout > 0:
        mask = keep_mask(options.seed, edge, heads, options.dropout)
        kept = alpha * mask / (1 - options.dropout)

    value = (inputs.k if inputs.v is None else inputs.v).to(work)[col]
    out = row_sum(kept[..., None] * value).to(q.dtype)
    scores = alpha.new_empty(0)
    if return_scores:
        scores = torch.zeros_like(alpha).index_copy(0, edge, alpha)
    return Forward(out, total.log() + peak, scores)
