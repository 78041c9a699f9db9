"""Attention of torch.nn.MultiheadAttention inside each graph of packed rows, and padding undone."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from gtkern import ops
from gtkern.ragged import Ragged

__all__ = ["Packed", "attend", "attention_refusal", "pack", "watched"]

WIDEST = 256
"""Channels of a head that the kernels take."""


def attention_refusal(layer: nn.Module) -> str | None:
    """Why an attention layer does not attend as `attend` does; None: it does."""
    if type(layer).__name__ != "MultiheadAttention":
        return f"its attention is a {type(layer).__name__}"
    settings: Any = layer
    if not settings._qkv_same_embed_dim:
        return "kdim or vdim differ from embed_dim"
    if settings.bias_k is not None or settings.add_zero_attn:
        return "add_bias_kv or add_zero_attn"
    if settings.head_dim > WIDEST:
        return f"heads wider than {WIDEST}"
    return None


def watched(layer: nn.Module) -> bool:
    """Whether hooks wait for a call of a layer that would not come."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks)


def attend(layer: Any, x: Tensor, ragged: Ragged) -> Tensor:
    """Self-attention inside each graph, with the parameters of a torch.nn.MultiheadAttention.

    Args:
        layer: of which `attention_refusal` says nothing.
        x: [N, C].
        ragged: the graphs.
    """
    projected = functional.linear(x, layer.in_proj_weight, layer.in_proj_bias)
    q, k, v = projected.view(x.size(0), 3, layer.num_heads, layer.head_dim).unbind(1)
    out = ops.ragged_attention(q, k, v, ragged, dropout=layer.dropout if layer.training else 0.0)
    return functional.linear(out.flatten(1), layer.out_proj.weight, layer.out_proj.bias)


class Packed(NamedTuple):
    """Rows of a padded batch without the padding.

    Attributes:
        x: [N, C].
        ragged: one graph for each sequence.
        place: int64 [N]; where the rows were among those of the batch.
        shape: of the batch: (sequences, length, C), or (length, sequences, C).
        batch_first: which of the two.
    """

    x: Tensor
    ragged: Ragged
    place: Tensor
    shape: torch.Size
    batch_first: bool

    def padded(self, rows: Tensor) -> Tensor:
        """Rows [N, C] at their places, and 0 in the padding."""
        zeros = rows.new_zeros(self.shape[0] * self.shape[1], rows.size(1))
        return zeros.index_copy(0, self.place, rows).view(*self.shape[:2], -1)


def pack(x: Tensor, padding: Tensor, *, batch_first: bool) -> Packed | None:
    """Take the padding out of a batch; None where `padding` is no mask but a bias.

    Args:
        x: [G, n, C], or [n, G, C] unless batch_first.
        padding: [G, n]; True, or -inf, where there is none but padding; else False, or 0.
        batch_first: see x.
    """
    real = padding.logical_not()
    if padding.is_floating_point() and not bool((real | (padding == -torch.inf)).all()):
        return None
    ends = real.sum(1).cumsum(0)
    ragged = Ragged.from_ptr(torch.cat((ends.new_zeros(1), ends)))
    place = real.flatten().nonzero().squeeze(1)
    if not batch_first:
        sequence, position = place // real.size(1), place % real.size(1)
        place = position * real.size(0) + sequence
    return Packed(x.flatten(0, 1).index_select(0, place), ragged, place, x.shape, batch_first)
