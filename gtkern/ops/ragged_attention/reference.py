"""The specification of ragged_attention: plain PyTorch, differentiable by autograd, any device."""

from __future__ import annotations

import torch
from torch import Tensor

from gtkern.ops.ragged_attention.call import Bias, Forward, Options, Prefix
from gtkern.ragged import PairIndex, Ragged
from gtkern.random import keep_mask


def forward(
    q: Tensor, k: Tensor, v: Tensor, ragged: Ragged, bias: Bias, prefix: Prefix, options: Options
) -> Forward:
    """Attention of every query over the keys of its graph and the prefix, as a list of pairs."""
    work = torch.float64 if q.dtype == torch.float64 else torch.float32
    nodes, heads, _ = q.shape
    query, key = ragged.pairs()
    real = torch.ones_like(query, dtype=torch.bool)
    structural = torch.zeros((), dtype=work, device=q.device)
    for index, first in zip(bias.indices, bias.first_row, strict=True):
        here = index != PairIndex.MASKED[index.dtype]
        row = first + torch.where(here, index, 0).long()
        assert bias.table is not None
        structural = structural + bias.table.to(work)[row]  # [pairs, H]
        real = real & here
    if prefix.k is not None and prefix.v is not None:
        # the slots of a query's set, which are keys after those of the batch
        slots = prefix.slots
        every = torch.arange(nodes, device=q.device)
        number = torch.zeros_like(every) if prefix.row_set is None else prefix.row_set
        sees = (number >= 0) & (number < prefix.sets)
        slot = nodes + number[:, None] * slots + torch.arange(slots, device=q.device)
        # of a query without a set the pairs stay, with itself and masked: a pair's place is its
        # number in the dropout mask
        slot = torch.where(sees[:, None], slot, every[:, None])
        query = torch.cat((query, every.repeat_interleave(slots)))
        key = torch.cat((key, slot.flatten()))
        k = torch.cat((k, prefix.k.flatten(0, -3)))
        v = torch.cat((v, prefix.v.flatten(0, -3)))
        real = torch.cat((real, sees.repeat_interleave(slots)))
        if bias.indices:
            structural = torch.cat((structural, structural.new_zeros(nodes * slots, heads)))

    score = options.scale * (q.to(work)[query] * k.to(work)[key]).sum(-1) + structural
    score = torch.where(real[:, None], score, float("-inf"))  # [pairs, H]

    lowest = score.new_full((nodes, heads), float("-inf"))
    peak = lowest.scatter_reduce(0, query[:, None].expand_as(score), score.detach(), "amax")
    # a query without keys has no largest score; any finite stand-in gives exp(-inf) = 0
    peak = torch.where(peak == float("-inf"), torch.zeros_like(peak), peak)
    weight = (score - peak[query]).exp()
    total = torch.zeros_like(peak).index_add(0, query, weight)
    alpha = weight / torch.where(total == 0, torch.ones_like(total), total)[query]
    if options.dropout > 0:
        pair = torch.arange(query.numel(), device=q.device)
        mask = keep_mask(options.seed, pair, heads, options.dropout)
        alpha = alpha * mask / (1 - options.dropout)

    out = v.new_zeros((nodes, heads, v.size(2)), dtype=work)
    out = out.index_add(0, query, alpha[:, :, None] * v.to(work)[key])
    return Forward(out.to(q.dtype), total.log() + peak)
