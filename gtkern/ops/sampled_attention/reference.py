"""The specification of sampled_attention: plain PyTorch, differentiable by autograd, any device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gtkern.ops._attention import Forward, Options, Terms
from gtkern.random import keep_mask


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    neighbors: Tensor,
    edge_type: Tensor,
    terms: Terms,
    options: Options,
    return_scores: bool,
    *,
    released: bool = False,
) -> Forward:
    """Attention of every destination over its neighbours.

    Args:
        released: compute the products as the released code of Spexphormer does: it reads the keys
            [K, H, D] of a destination as if they lay as [H, K, D] (README.md).
    """
    work = torch.float64 if q.dtype == torch.float64 else torch.float32
    num_dst, heads, width = q.shape
    degree = neighbors.size(1)
    real = neighbors >= 0
    col = neighbors.clamp(min=0).to(torch.int64)
    kind = edge_type.to(torch.int64) if edge_type.numel() else torch.zeros_like(col)
    if k.size(0) == 0:  # padding alone: there is no row to stand in for it
        k, v = k.new_zeros(1, heads, width), v.new_zeros(1, heads, v.size(2))

    def by_place(values: Tensor) -> Tensor:
        """[N, K, ...], with 0 at empty places, whatever they hold."""
        place = real.view(num_dst, degree, *(1,) * (values.dim() - 2))
        return torch.where(place, values.to(work), 0.0)

    key = by_place(k.to(work)[col])  # [N, K, H, D]
    if terms.key_table is not None:
        key = key * terms.key_table.to(work)[kind]
    if terms.key_edge is not None:
        key = key * by_place(terms.key_edge)
    key = by_place(key)  # once more: the query of an empty place reaches no scale's gradient
    if released:
        mixed = key.reshape(num_dst, heads, degree, width)
        product = (q.to(work)[:, :, None, :] * mixed).sum(-1).transpose(1, 2)  # [N, K, H]
    else:
        product = (q.to(work)[:, None] * key).sum(-1)  # [N, K, H]
    attr = None
    if terms.edge_query is not None and terms.edge_attr is not None:
        attr = by_place(terms.edge_attr)[:, :, None, :]  # [N, K, 1, De]
        product = product + (terms.edge_query.to(work)[:, None] * attr).sum(-1)
    score = options.scale * product
    if terms.bias_table is not None:
        score = score + terms.bias_table.to(work)[kind]
    if terms.bias_edge is not None:
        score = score + by_place(terms.bias_edge)
    score = score / options.temperature
    # torch takes no bound that the dtype has not
    if options.clamp <= torch.finfo(score.dtype).max:
        score = score.clamp(-options.clamp, options.clamp)
    score = torch.where(real[:, :, None], score, float("-inf"))

    # eps weighs in as one more score; as a candidate for the peak it keeps exp(-peak) finite
    lowest = math.log(options.eps) if options.eps > 0 else float("-inf")
    peak = torch.cat((score.detach(), score.new_full((num_dst, 1, heads), lowest)), dim=1).amax(1)
    # a row without weight has no largest score; any finite stand-in gives exp(-inf) = 0
    peak = torch.where(peak == float("-inf"), torch.zeros_like(peak), peak)
    weight = (score - peak[:, None]).exp()
    total = weight.sum(1) + (lowest - peak).exp()
    alpha = weight / torch.where(total == 0, torch.ones_like(total), total)[:, None]
    kept = alpha
    if options.dropout > 0:
        place = torch.arange(neighbors.numel(), device=q.device)
        mask = keep_mask(options.seed, place, heads, options.dropout)
        kept = alpha * mask.view(num_dst, degree, heads) / (1 - options.dropout)

    out = (kept[..., None] * by_place(v.to(work)[col])).sum(1).to(q.dtype)
    edge_out = q.new_empty(0)
    if attr is not None:
        edge_out = (kept[..., None] * attr).sum(1).to(q.dtype)
    lse = total.log() + peak
    return Forward(out, edge_out, lse, alpha if return_scores else lse.new_empty(0))
