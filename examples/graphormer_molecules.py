"""Classify molecules with a Graphormer on padded batches. Two lines, marked, make it faster.

python examples/graphormer_molecules.py [--epochs 5] [--plain] [--data-root FOLDER]

Its attention has the layout that Microsoft and Hugging Face published, by which `accelerate` knows
it. The graphs are those of examples/gps_conv_molecules.py.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric.utils import to_dense_batch

import gtkern  # 1 of 2
from gtkern.data import PackedGraphs, load_graphs, motifs
from gtkern.transforms import hop_distances

FARTHEST = 20
"""Distances above it share a bias."""


class GraphormerMultiheadAttention(nn.Module):
    """Self-attention with a bias for each pair of nodes; x is [nodes, graphs, channels]."""

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.head_dim = embed_dim // num_heads
        self.attention_dropout_module = nn.Dropout(dropout)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(embed_dim, embed_dim) for _ in range(4)
        )

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_bias: Tensor,
        key_padding_mask: Tensor,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        before_softmax: bool = False,
        need_head_weights: bool = False,
    ) -> Any:
        nodes, graphs, width = query.shape
        shape = (nodes, graphs, self.num_heads, self.head_dim)
        q, k, v = (
            layer(x).view(shape).permute(1, 2, 0, 3)
            for layer, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        score = q @ k.transpose(2, 3) * self.head_dim**-0.5 + attn_bias
        score = score.masked_fill(key_padding_mask[:, None, None], -torch.inf)
        weights = self.attention_dropout_module(score.softmax(-1))
        out = (weights @ v).permute(2, 0, 1, 3).reshape(nodes, graphs, width)
        return self.out_proj(out), weights if need_weights else None


class Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = GraphormerMultiheadAttention(width, heads)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.feed_forward = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)
        )

    def forward(self, x: Tensor, bias: Tensor, padding: Tensor) -> Tensor:
        y = self.norms[0](x)
        x = x + self.attention(y, y, y, bias, key_padding_mask=padding, need_weights=False)[0]
        out: Tensor = x + self.feed_forward(self.norms[1](x))
        return out


class Batch(NamedTuple):
    """Padded graphs: atoms and degrees [G, n], distances [G, n, n], where there is only padding."""

    atom: Tensor
    degree: Tensor
    distance: Tensor
    padding: Tensor
    y: Tensor


class Network(nn.Module):
    def __init__(self, categories: int, classes: int, width: int = 64, heads: int = 8) -> None:
        super().__init__()
        self.atoms, self.degrees = nn.Embedding(categories, width), nn.Embedding(64, width)
        self.distances = nn.Embedding(FARTHEST + 1, heads)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(3))
        self.head = nn.Linear(width, classes)

    def forward(self, batch: Batch) -> Tensor:
        x = (self.atoms(batch.atom) + self.degrees(batch.degree)).transpose(0, 1)
        bias = self.distances(batch.distance).permute(0, 3, 1, 2).contiguous()
        for layer in self.layers:
            x = layer(x, bias, batch.padding)
        # what stands in the padding is not read
        total = x.transpose(0, 1).masked_fill(batch.padding[..., None], 0).sum(1)
        out: Tensor = self.head(total)
        return out


def padded(graphs: PackedGraphs, chosen: Tensor) -> Batch:
    batch = graphs.batch(chosen)
    sizes = batch.ptr.diff()
    graph = torch.arange(len(sizes)).repeat_interleave(sizes)
    atom, real = to_dense_batch(batch.x[:, 0], graph)
    degree, _ = to_dense_batch(batch.edge_index[1].bincount(minlength=len(graph)), graph)
    distance = torch.zeros(*real.shape, real.size(1), dtype=torch.int64)
    pairs = hop_distances(batch.edge_index, batch.ptr, FARTHEST - 1)
    distance[real[:, :, None] & real[:, None]] = pairs.long().clamp(max=FARTHEST)
    return Batch(atom, degree.clamp(max=63), distance, ~real, batch.y)


def main(arguments: Sequence[str] | None = None) -> float:
    """Train; returns the share of test graphs whose class is found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--graphs", type=int, default=1000, help="generated ones")
    parser.add_argument("--data-root", help="take NCI1 from this folder")
    parser.add_argument("--plain", action="store_true", help="leave the model as it is")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    root = options.data_root
    graphs = motifs(graphs=options.graphs) if root is None else load_graphs("nci1", root).graphs
    order = torch.randperm(len(graphs))
    test, train = order[: len(order) // 5], order[len(order) // 5 :]
    whole = graphs.batch(order)
    model = Network(int(whole.x.max()) + 1, int(whole.y.max()) + 1)
    if not options.plain:
        print(gtkern.accelerate(model, ignore_padding=True))  # 2 of 2
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    begin = time.perf_counter()
    for _ in range(options.epochs):
        for chosen in train[torch.randperm(len(train))].split(128):
            batch = padded(graphs, chosen)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch), batch.y).backward()
            optimizer.step()
    seconds = time.perf_counter() - begin
    model.eval()
    with torch.no_grad():
        batch = padded(graphs, test)
        share = float((model(batch).argmax(1) == batch.y).float().mean())
    print(f"test accuracy {share:.3f} after {options.epochs} epochs in {seconds:.1f} s")
    return share


if __name__ == "__main__":
    main()
