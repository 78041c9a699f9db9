"""The attention ops on plain torch and PyG: yardsticks, with the arguments the models use.

Each has the memory of the usual eager code: several tensors of E x H x D that autograd keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gtkern.graph import Graph

__all__ = ["sampled_attention", "sparse_attention_on"]


def sparse_attention_on(graph: Graph) -> Callable[..., Any]:
    """A stand-in for gtkern.ops.sparse_attention on one graph, whose edge list is made once.

    It takes scale, key_scale and bias by edge type, clamp, temperature, normalization and
    return_scores.
    """
    from torch_geometric.utils import scatter, softmax

    source, destination = graph.edge_index()
    types = graph.edge_type()
    edge_type = torch.zeros_like(source) if types is None else types.long()

    def attend(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        graph: Graph,
        *,
        scale: float | None = None,
        key_scale: Tensor | None = None,
        bias: Tensor | None = None,
        clamp: float | None = None,
        temperature: float = 1.0,
        normalization: str = "softmax",
        return_scores: bool = False,
    ) -> Any:
        key = k.index_select(0, source)
        per_score = key_scale is not None and key_scale.size(2) == 1
        if key_scale is not None and not per_score:
            key = key * key_scale.index_select(0, edge_type)
        score = (q.index_select(0, destination) * key).sum(-1)
        score = score * (q.size(2) ** -0.5 if scale is None else scale)
        if key_scale is not None and per_score:
            score = score * key_scale.squeeze(2).index_select(0, edge_type)
        if bias is not None:
            score = score + bias.index_select(0, edge_type)
        score = score / temperature
        if clamp is not None:
            score = score.clamp(-clamp, clamp)
        nodes = q.size(0)
        if normalization == "exphormer":
            weight = score.exp()
            total = scatter(weight, destination, dim=0, dim_size=nodes, reduce="sum") + 1e-6
            alpha = weight / total.index_select(0, destination)
        else:
            alpha = softmax(score, destination, num_nodes=nodes)
        message = alpha.unsqueeze(-1) * v.index_select(0, source)
        out = scatter(message, destination, dim=0, dim_size=nodes, reduce="sum")
        return (out, alpha) if return_scores else out

    return attend


def sampled_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    neighbors: Tensor,
    *,
    scale: float | None = None,
    key_scale: Tensor | None = None,
    bias: Tensor | None = None,
    edge_type: Tensor | None = None,
    clamp: float | None = None,
) -> Tensor:
    """A stand-in for gtkern.ops.sampled_attention: gather, einsum, softmax."""
    rows, places = neighbors.shape
    nodes = neighbors.clamp(min=0).flatten()
    kind = torch.zeros_like(neighbors) if edge_type is None else edge_type
    kind = kind.flatten().int()
    key = k.index_select(0, nodes)
    if key_scale is not None:
        key = key * key_scale.index_select(0, kind)
    key = key.view(rows, places, *k.shape[1:])
    score = torch.einsum("nkhd,nhd->nkh", key, q) * (q.size(2) ** -0.5 if scale is None else scale)
    if bias is not None:
        score = score + bias.index_select(0, kind).view(rows, places, -1)
    if clamp is not None:
        score = score.clamp(-clamp, clamp)
    score = score.masked_fill((neighbors < 0).unsqueeze(-1), float("-inf"))
    alpha = score.softmax(1).nan_to_num(0.0)
    value = v.index_select(0, nodes).view(rows, places, *v.shape[1:])
    return torch.einsum("nkh,nkhd->nhd", alpha, value)
