"""Attention layers as their authors' code computes them, under the names that users have."""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor, nn


class ExphormerAttention(nn.Module):
    """Attention over the edges of a batch (Shirzad et al. 2023), by messages."""

    def __init__(
        self, in_dim: int, out_dim: int, num_heads: int, use_bias: bool, use_virt_nodes: bool
    ) -> None:
        super().__init__()
        self.out_dim, self.num_heads = out_dim // num_heads, num_heads
        self.use_virt_nodes = use_virt_nodes
        self.Q, self.K, self.E, self.V = (
            nn.Linear(in_dim, out_dim, bias=use_bias) for _ in range(4)
        )

    def forward(self, batch: Any) -> Tensor:
        x, edges, attr = batch.x, batch.expander_edge_index, batch.expander_edge_attr
        if self.use_virt_nodes:
            x = torch.cat((x, batch.virt_h))
            edges = torch.cat((edges, batch.virt_edge_index), dim=1)
            attr = torch.cat((attr, batch.virt_edge_attr))
        shape = (-1, self.num_heads, self.out_dim)
        q, k, e, v = (
            layer(part).view(shape)
            for layer, part in zip((self.Q, self.K, self.E, self.V), (x, x, attr, x), strict=True)
        )
        product = k[edges[0]] * q[edges[1]] / self.out_dim**0.5 * e
        weight = product.sum(-1, keepdim=True).clamp(-5, 5).exp()
        total = torch.zeros_like(v).index_add(0, edges[1], v[edges[0]] * weight)
        norm = v.new_zeros(len(v), self.num_heads, 1).index_add(0, edges[1], weight)
        out = (total / (norm + 1e-6)).flatten(1)
        if self.use_virt_nodes:
            batch.virt_h = out[len(batch.x) :]
        return out[: len(batch.x)]


class Exphormer(nn.Module):
    """The layer, called with tensors in place of a batch."""

    def __init__(self, layer: nn.Module, edges: Tensor, virtual: Tensor) -> None:
        super().__init__()
        self.layer, self.edges, self.virtual = layer, edges, virtual

    def forward(self, x: Tensor, attr: Tensor, virt_h: Tensor, virt_attr: Tensor) -> Any:
        batch = types.SimpleNamespace(
            x=x,
            batch=torch.zeros(len(x), dtype=torch.int64),
            expander_edge_index=self.edges,
            expander_edge_attr=attr,
            virt_h=virt_h,
            virt_edge_index=self.virtual,
            virt_edge_attr=virt_attr,
        )
        return self.layer(batch), batch.virt_h


class GraphormerMultiheadAttention(nn.Module):
    """Self-attention with a bias for each pair (Ying et al. 2021), x [T, B, C]."""

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.head_dim = embed_dim // num_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout_module = nn.Dropout(dropout)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(embed_dim, embed_dim) for _ in range(4)
        )

    def forward(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        attn_bias: Tensor | None,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        before_softmax: bool = False,
        need_head_weights: bool = False,
    ) -> Any:
        length, count, width = query.shape
        shape = (length, count * self.num_heads, self.head_dim)
        q = (self.q_proj(query) * self.scaling).view(shape).transpose(0, 1)
        k, v = (layer(query).view(shape).transpose(0, 1) for layer in (self.k_proj, self.v_proj))
        score = q @ k.transpose(1, 2)
        if attn_bias is not None:
            score = score + attn_bias.view(count * self.num_heads, length, length)
        if attn_mask is not None:
            score = score + attn_mask
        if key_padding_mask is not None:
            score = score.view(count, self.num_heads, length, length)
            score = score.masked_fill(key_padding_mask[:, None, None], -torch.inf)
            score = score.view(count * self.num_heads, length, length)
        if before_softmax:
            return score, v
        weights = score.softmax(-1)
        out = (self.attention_dropout_module(weights) @ v).transpose(0, 1)
        out = self.out_proj(out.reshape(length, count, width))
        return out, weights.view(count, -1, length, length) if need_weights else None


class Graphormer(nn.Module):
    """The layer, and its rows that are no padding."""

    def __init__(self, layer: nn.Module, padding: Tensor) -> None:
        super().__init__()
        self.layer, self.padding = layer, padding

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        out = self.layer(x, x, x, bias, key_padding_mask=self.padding, need_weights=False)[0]
        real: Tensor = out.transpose(0, 1)[~self.padding]
        return real
