"""Graphormer as it is usually run: graphs padded to the largest, biases as a dense tensor.

The yardstick of gtkern.models.Graphormer, in plain PyTorch, with the parameter names and the data
layout of Microsoft's checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gtkern.models import GraphormerSettings
from gtkern.transforms import hop_distances, shortest_path_edges

__all__ = ["FullTokenGraphormer", "PaddedBatch", "PaddedGraphormer", "padded"]

_COLUMN_ROWS = 512
_ROWS = 512
_UNREACHABLE = 510


@dataclass(frozen=True)
class PaddedBatch:
    """G graphs of up to n nodes; entries of 0 are padding.

    Attributes:
        x: int64 [G, n, columns]; rows of the atom table.
        degree: int64 [G, n]; 1 + degree.
        spatial: int64 [G, n, n]; 1 + distance.
        edges: int64 [G, n, n, K, columns]; rows of the edge table along a path.
    """

    x: Tensor
    degree: Tensor
    spatial: Tensor
    edges: Tensor


def padded(packed: Any, chosen: list[int], path_length: int, device: torch.device) -> PaddedBatch:
    """Cut a batch of graphs with integer features from a PackedGraphs, and pad it.

    Args:
        packed: a PackedGraphs.
        chosen: numbers of graphs.
        path_length: K.
        device: where the batch goes.
    """
    graphs = [packed.batch([number]) for number in chosen]
    count, most = len(graphs), max(graph.x.size(0) for graph in graphs)
    columns, kinds = packed.num_features, packed.num_edge_features
    x = torch.zeros(count, most, columns, dtype=torch.int64)
    degree = torch.zeros(count, most, dtype=torch.int64)
    spatial = torch.zeros(count, most, most, dtype=torch.int64)
    edges = torch.zeros(count, most, most, path_length, kinds, dtype=torch.int64)
    for row, graph in enumerate(graphs):
        n = graph.x.size(0)
        x[row, :n] = graph.x + 2 + _COLUMN_ROWS * torch.arange(columns)
        degree[row, :n] = 1 + torch.bincount(graph.edge_index[0], minlength=n)
        distance = hop_distances(graph.edge_index, graph.ptr, _UNREACHABLE - 1).view(n, n)
        spatial[row, :n, :n] = distance.long() + 1
        path = shortest_path_edges(graph.edge_index, graph.ptr, path_length).view(n, n, -1).long()
        feature = graph.edge_attr + 3 + _COLUMN_ROWS * torch.arange(kinds)
        if feature.size(0):
            along = feature[path.clamp(min=0)]
            edges[row, :n, :n] = torch.where(path[..., None] < 0, 0, along)
    return PaddedBatch(*(value.to(device) for value in (x, degree, spatial, edges)))


class PaddedGraphormer(nn.Module):
    """Graphormer on padded batches; see gtkern.models.Graphormer for the equations.

    Args:
        columns, edge_columns: of the integer features of nodes and edges.
        num_tasks: outputs for each graph.
        settings: as of the other; its norm must be "post", and no pair be hidden.
    """

    def __init__(
        self, columns: int, edge_columns: int, num_tasks: int, settings: GraphormerSettings
    ) -> None:
        super().__init__()
        if settings.norm != "post" or settings.attend_within is not None:
            raise ValueError("settings must have norm 'post' and attend_within None")
        self.encoder = _Encoder(columns, edge_columns, num_tasks, settings)

    def forward(self, batch: PaddedBatch) -> Tensor:
        """The outputs [G, num_tasks]."""
        out: Tensor = self.encoder(batch)
        return out


class FullTokenGraphormer(nn.Module):
    """DeepGPT as its released code computes it: prefix tokens are rows of the padded sequences.

    They take part in all of a layer, and what becomes of them there is cut off behind it.

    Args:
        network: frozen but for the weights of its head.
        prefix: [L, P, C], tokens of each prompted layer.
        vector: [L, C], added to the rows that each of them reads.
        first: the first layer with prompts; the others follow.

    Reference: Shirkavand and Huang 2023 (DeepGPT).
    """

    def __init__(
        self, network: PaddedGraphormer, prefix: Tensor, vector: Tensor, *, first: int = 0
    ) -> None:
        super().__init__()
        self.first = first
        self.network = network.requires_grad_(False)
        network.encoder.embed_out.requires_grad_(True)
        self.prefix, self.vector = nn.Parameter(prefix), nn.Parameter(vector)

    def forward(self, batch: PaddedBatch) -> Tensor:
        """The outputs [G, num_tasks]."""
        encoder, tokens = self.network.encoder, self.prefix.size(1)
        x, bias = encoder.graph_encoder.begin(batch)
        layers = list(encoder.graph_encoder.layers)
        for layer in layers[: self.first]:
            x = layer(x, bias)
        bias = functional.pad(bias, (tokens, 0, tokens, 0))
        for layer, prefix, vector in zip(
            layers[self.first :], self.prefix, self.vector, strict=True
        ):
            rows = torch.cat((prefix.expand(x.size(0), -1, -1), x + vector), dim=1)
            x = layer(rows, bias)[:, tokens:]
        return encoder.read(x[:, 0])


class _Encoder(nn.Module):
    def __init__(self, columns: int, kinds: int, tasks: int, settings: GraphormerSettings) -> None:
        super().__init__()
        width = settings.width
        self.graph_encoder = _GraphEncoder(columns, kinds, settings)
        self.lm_head_transform_weight = nn.Linear(width, width)
        self.layer_norm = nn.LayerNorm(width)
        self.embed_out = nn.Linear(width, tasks, bias=False)
        self.lm_output_learned_bias = nn.Parameter(torch.zeros(1))

    def forward(self, batch: PaddedBatch) -> Tensor:
        return self.read(self.graph_encoder(batch)[:, 0])

    def read(self, token: Tensor) -> Tensor:
        """The outputs from what the layers made of the token [G, C]."""
        hidden = self.layer_norm(functional.gelu(self.lm_head_transform_weight(token)))
        out: Tensor = self.embed_out(hidden) + self.lm_output_learned_bias
        return out


class _GraphEncoder(nn.Module):
    def __init__(self, columns: int, kinds: int, settings: GraphormerSettings) -> None:
        super().__init__()
        self.dropout = settings.dropout
        self.graph_node_feature = _NodeFeature(columns, settings.width)
        self.graph_attn_bias = _AttentionBias(kinds, settings)
        self.emb_layer_norm = nn.LayerNorm(settings.width)
        self.layers = nn.ModuleList(_Layer(settings) for _ in range(settings.layers))

    def forward(self, batch: PaddedBatch) -> Tensor:
        x, bias = self.begin(batch)
        for layer in self.layers:
            x = layer(x, bias)
        return x

    def begin(self, batch: PaddedBatch) -> tuple[Tensor, Tensor]:
        """What the first layer reads [G, 1 + n, C], and the bias of all layers."""
        # the token, before the nodes, is never padding
        padding = functional.pad(batch.x[..., 0] == 0, (1, 0), value=False)
        bias = self.graph_attn_bias(batch).masked_fill(padding[:, None, None], -torch.inf)
        x = self.emb_layer_norm(self.graph_node_feature(batch))
        return functional.dropout(x, self.dropout, self.training), bias


class _NodeFeature(nn.Module):
    def __init__(self, columns: int, width: int) -> None:
        super().__init__()
        self.atom_encoder = nn.Embedding(columns * _COLUMN_ROWS + 1, width, padding_idx=0)
        self.in_degree_encoder = nn.Embedding(_ROWS, width, padding_idx=0)
        self.out_degree_encoder = nn.Embedding(_ROWS, width, padding_idx=0)
        self.graph_token = nn.Embedding(1, width)

    def forward(self, batch: PaddedBatch) -> Tensor:
        x = self.atom_encoder(batch.x).sum(2)
        x = x + self.in_degree_encoder(batch.degree) + self.out_degree_encoder(batch.degree)
        return torch.cat((self.graph_token.weight.expand(x.size(0), 1, -1), x), dim=1)


class _AttentionBias(nn.Module):
    def __init__(self, kinds: int, settings: GraphormerSettings) -> None:
        super().__init__()
        heads, self.path_length = settings.heads, settings.path_length
        self.heads = heads
        self.edge_encoder = nn.Embedding(kinds * _COLUMN_ROWS + 1, heads, padding_idx=0)
        self.edge_dis_encoder = nn.Embedding(settings.path_length * heads * heads, 1)
        self.spatial_pos_encoder = nn.Embedding(_ROWS, heads, padding_idx=0)
        self.graph_token_virtual_distance = nn.Embedding(1, heads)

    def forward(self, batch: PaddedBatch) -> Tensor:
        mixing = self.edge_dis_encoder.weight.view(-1, self.heads, self.heads)
        edges = self.edge_encoder(batch.edges).mean(-2)
        along = torch.einsum("gijkh,khf->gijf", edges, mixing)
        length = (batch.spatial - 1).clamp(1, self.path_length)[..., None]
        bias = (self.spatial_pos_encoder(batch.spatial) + along / length).permute(0, 3, 1, 2)
        graphs, heads, n, _ = bias.shape
        token = self.graph_token_virtual_distance.weight.view(1, heads, 1, 1)
        column = token.expand(graphs, heads, n, 1)
        row = token.expand(graphs, heads, 1, n + 1)
        return torch.cat((row, torch.cat((column, bias), dim=3)), dim=2)


class _Attention(nn.Module):
    def __init__(self, settings: GraphormerSettings) -> None:
        super().__init__()
        width = settings.width
        self.heads, self.dropout = settings.heads, settings.attention_dropout
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (
            part(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        score = (q * q.size(-1) ** -0.5) @ k.transpose(2, 3) + bias
        share = functional.dropout(score.softmax(-1), self.dropout, self.training)
        out: Tensor = self.out_proj((share @ v).transpose(1, 2).flatten(2))
        return out


class _Layer(nn.Module):
    def __init__(self, settings: GraphormerSettings) -> None:
        super().__init__()
        width = settings.width
        self.dropout, self.inner_dropout = settings.dropout, settings.activation_dropout
        self.self_attn = _Attention(settings)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, settings.feedforward)
        self.fc2 = nn.Linear(settings.feedforward, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        attended = functional.dropout(self.self_attn(x, bias), self.dropout, self.training)
        x = self.self_attn_layer_norm(x + attended)
        hidden = functional.dropout(functional.gelu(self.fc1(x)), self.inner_dropout, self.training)
        narrow = functional.dropout(self.fc2(hidden), self.dropout, self.training)
        out: Tensor = self.final_layer_norm(x + narrow)
        return out
