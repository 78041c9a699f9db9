"""DeepGPT's layers as the paper and its released code have them, graph by graph, slow.

Prefix tokens are rows of the sequence: they ask, are read, go through residuals and feed-forward
parts, and are cut off behind each layer. What gtkern computes instead must equal this.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gtkern.models import GraphGPS
from gtkern.ragged import PairIndex, Ragged


def output(model: Any, layers: Sequence[int], prefix: Tensor, vector: Tensor, data: Any) -> Tensor:
    """The network's outputs with tokens prefix [L, P, C] and vectors [L, C] in some layers."""
    slow = copy.copy(model)
    slow._modules = dict(model._modules)
    kind = _GPSLayer if isinstance(model, GraphGPS) else _TransformerLayer
    every = list(model.layers)
    for at, number in enumerate(layers):
        every[number] = kind(every[number], prefix[at], vector[at])
    slow._modules["layers"] = nn.ModuleList(every)
    out: Tensor = slow(data)
    return out


def _attention(attention: Any, x: Tensor, bias: Tensor) -> Tensor:
    """Of all rows of one sequence x [n, C], with bias [H, n, n]."""
    heads, width = attention.num_heads, attention.head_dim
    q, k, v = (
        part.view(-1, heads, width).transpose(0, 1)
        for part in (x @ attention.in_proj_weight.T + attention.in_proj_bias).chunk(3, dim=1)
    )
    scale = width**-0.5 if attention.scale is None else attention.scale
    share = (q @ k.transpose(1, 2) * scale + bias).softmax(-1)
    out: Tensor = attention.out_proj((share @ v).transpose(0, 1).flatten(1))
    return out


def _dense(
    bias: Sequence[tuple[PairIndex, Tensor]], ragged: Ragged, graph: int, tokens: int, like: Any
) -> Tensor:
    """The bias [H, P + n, P + n] of one graph: 0 wherever a token takes part."""
    size = int(ragged.sizes()[graph])
    pairs = slice(int(ragged.pair_ptr[graph]), int(ragged.pair_ptr[graph + 1]))
    total = like.in_proj_weight.new_zeros(like.num_heads, size, size)
    for index, table in bias:
        entry = index.index[pairs].long()
        hidden = entry == PairIndex.MASKED[index.index.dtype]
        value = table[entry.masked_fill(hidden, 0)].masked_fill(hidden[:, None], -torch.inf)
        total = total + value.T.reshape(-1, size, size)
    return functional.pad(total, (tokens, 0, tokens, 0))


class _Slow(nn.Module):
    def __init__(self, layer: Any, tokens: Tensor, vector: Tensor) -> None:
        super().__init__()
        self.layer, self.tokens, self.vector = layer, tokens, vector

    def graphs(self, ragged: Ragged) -> list[tuple[int, slice]]:
        ends = ragged.ptr.tolist()
        return [(graph, slice(*ends[graph : graph + 2])) for graph in range(ragged.num_graphs)]


class _TransformerLayer(_Slow):
    def forward(self, x: Tensor, ragged: Ragged, bias: Any = (), prompt: Any = None) -> Tensor:
        layer, tokens = self.layer, self.tokens.size(0)
        pre = layer.norm == "pre"
        act = functional.gelu if layer.activation == "gelu" else functional.relu
        out = []
        for graph, rows in self.graphs(ragged):
            y = torch.cat((self.tokens, x[rows] + self.vector))
            dense = _dense(bias, ragged, graph, tokens, layer.attention)
            y = y + _attention(layer.attention, layer.attention_norm(y) if pre else y, dense)
            y = y if pre else layer.attention_norm(y)
            y = y + layer.narrow(act(layer.widen(layer.output_norm(y) if pre else y)))
            out.append((y if pre else layer.output_norm(y))[tokens:])
        return torch.cat(out)


class _GPSLayer(_Slow):
    def forward(
        self, x: Tensor, edge_index: Tensor, edge: Any, ragged: Ragged, prompt: Any = None
    ) -> tuple[Tensor, Any]:
        layer, tokens = self.layer, self.tokens.size(0)
        near, edge = layer.local(x, edge_index, edge)
        attended = []
        for graph, rows in self.graphs(ragged):
            y = torch.cat((self.tokens, x[rows] + self.vector))
            dense = _dense((), ragged, graph, tokens, layer.attention)
            attended.append(_attention(layer.attention, y, dense)[tokens:])
        y = layer.local_norm(near) + layer.attention_norm(x + torch.cat(attended))
        return layer.output_norm(y + layer.narrow(functional.relu(layer.widen(y)))), edge
