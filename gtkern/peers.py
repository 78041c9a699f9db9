"""The ops on plain torch, PyG and NumPy: yardsticks, with the arguments the models use.

Attention has the memory of the usual eager code: several tensors of E x H x D that autograd keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gtkern import ops
from gtkern.graph import Graph

__all__ = ["sample_neighbors", "sample_rows", "sampled_attention", "sparse_attention_on"]

_Array = np.ndarray[Any, np.dtype[Any]]


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


def sample_neighbors(
    graph: Graph,
    weight: Tensor | None,
    k: Sequence[int],
    *,
    seed: int,
    epoch: int = 0,
    method: str = "weighted",
) -> list[ops.Neighbors]:
    """A stand-in for gtkern.ops.sample_neighbors: a loop over the nodes in NumPy; other draws.

    Args:
        graph: on the CPU.
        weight: [L, E], or None for "uniform".
        k: for each layer.
        seed, epoch: of NumPy's generator.
        method: "weighted", "uniform" or "top".
    """
    csr = graph.csr
    order = csr.edge_id if csr.edge_id.numel() else torch.arange(graph.num_edges)
    ptr, rng = csr.ptr.tolist(), np.random.default_rng((seed, epoch))
    layers = []
    for layer, count in enumerate(k):
        weights = np.ones(graph.num_edges)
        if weight is not None and method != "uniform":
            weights = weight[layer][order].double().numpy()
        place = torch.from_numpy(sample_rows(ptr, weights, count, None if method == "top" else rng))
        missing, place = place < 0, place.clamp(min=0)
        index = csr.index[place].masked_fill(missing, -1)
        types = csr.edge_type[place] if csr.edge_type.numel() else None
        layers.append(ops.Neighbors(index, order[place].masked_fill(missing, -1), types))
    return layers


def sample_rows(
    ptr: Sequence[int], weight: _Array, k: int, rng: np.random.Generator | None
) -> _Array:
    """The places of k edges of each row, by argpartition of exponential keys.

    Args:
        ptr: rows + 1 places.
        weight: float64 [E], positive.
        k: shorter rows are filled with weighted draws; without a generator repeated.
        rng: None: the edges of largest weight.

    Returns:
        int64 [rows, k]; -1 in rows without edges.
    """
    picked = np.full((len(ptr) - 1, k), -1, dtype=np.int64)
    for row in range(len(ptr) - 1):
        begin, end = ptr[row], ptr[row + 1]
        degree = end - begin
        if degree > k:
            noise = 1.0 if rng is None else rng.exponential(size=degree)
            picked[row] = begin + np.argpartition(noise / weight[begin:end], k)[:k]
        elif degree > 0:
            chance = weight[begin:end] / weight[begin:end].sum()
            places = np.arange(k) % degree
            if rng is not None:
                places[degree:] = rng.choice(degree, k - degree, p=chance)
            picked[row] = begin + places
    return picked
