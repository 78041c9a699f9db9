"""Exphormer and the two networks of Spexphormer: one skeleton, three attention layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gtkern import _processes, ops
from gtkern.graph import Graph
from gtkern.models.batches import each_with_prompt
from gtkern.nn import (
    BatchNorm,
    EdgeTypeTerms,
    ExphormerAttention,
    NarrowAttention,
    Prompt,
    SampledAttention,
    TransformerBlock,
    dropout,
    make_norm,
)
from gtkern.transforms import expander_edges

__all__ = [
    "EDGE_TYPES",
    "VIRTUAL_EDGE_TYPES",
    "Exphormer",
    "SampledExphormer",
    "ScoreEstimator",
    "augment",
    "with_virtual_nodes",
]

EDGE_TYPES = ("graph", "expander", "self loop")
"""What the edge types 0, 1, 2 of an augmented graph mean."""

VIRTUAL_EDGE_TYPES = ("to virtual node", "from virtual node")
"""What the edge types 3 and 4 mean where there are virtual nodes."""


def augment(
    edge_index: Tensor,
    num_nodes: int,
    *,
    expander_degree: int = 15,
    algorithm: str = "hamiltonian",
    seed: int = 0,
) -> Graph:
    """Add a random expander and a self loop for every node to a graph.

    The edges are numbered by destination, then type, then as they came: the graph's own order, so
    that kernels need no permutation.

    Args:
        edge_index: int [2, E]; the graph's edges, type 0, sources in row 0.
        num_nodes: N.
        expander_degree: d; the expander (type 1) gives every node 2 d edges in and out; 0: none.
        algorithm: "hamiltonian" (d random cycles), "random_d" or "random_d_2"; see
            gtkern.transforms.expander_edges.
        seed: of the expander.

    Returns:
        Graph of N nodes with the edge types of EDGE_TYPES.

    Reference: Shirzad et al. 2023 (Exphormer), section 3.
    """
    num_edges = edge_index.size(1)
    if num_edges and edge_index.dtype != torch.int32:
        low, high = (int(value) for value in torch.aminmax(edge_index))
        if low < 0 or high >= num_nodes:
            wrong = low if low < 0 else high
            raise ValueError(
                f"edge_index must be 0 .. {num_nodes - 1} (num_nodes - 1), got {wrong}"
            )
    # int32 from the start, and one part after the other: with 64-bit copies of all of them the
    # largest graphs would need several times the memory that they keep
    expander = torch.empty(2, 0, dtype=torch.int32)
    if expander_degree:
        expander = expander_edges(num_nodes, expander_degree, algorithm=algorithm, seed=seed)
    sizes = (num_edges, expander.size(1), num_nodes)
    edges = torch.empty(2, sum(sizes), dtype=torch.int32)
    first, second, third = edges.split(sizes, dim=1)
    second.copy_(expander)
    del expander
    first.copy_(edge_index)
    third.copy_(torch.arange(num_nodes, dtype=torch.int32).expand(2, -1))
    edge_type = torch.empty(sum(sizes), dtype=torch.uint8)
    for kind, part in enumerate(edge_type.split(sizes)):
        part.fill_(kind)
    grouped = Graph.from_edge_index(edges, num_nodes, edge_type=edge_type).csr
    return Graph.from_csr(grouped.ptr, grouped.index, num_nodes, edge_type=grouped.edge_type)


def with_virtual_nodes(graph: Graph, count: int) -> Graph:
    """Add virtual nodes, each joined to every node in both directions and with a self loop.

    Args:
        graph: as `augment` gives it, of N nodes.
        count: V; they are the nodes N .. N + V.

    Returns:
        Graph of N + V nodes; new edges have the types of VIRTUAL_EDGE_TYPES, and self loops type 2.

    Reference: Shirzad et al. 2023 (Exphormer), section 3.
    """
    nodes = graph.num_dst_nodes
    kinds = graph.edge_type()
    assert kinds is not None
    virtual = torch.arange(nodes, nodes + count, dtype=torch.int32)
    near = torch.arange(nodes, dtype=torch.int32).repeat(count)
    far = virtual.repeat_interleave(nodes)
    edges = torch.cat(
        (
            graph.edge_index().to(torch.int32),
            torch.stack((near, far)),
            torch.stack((far, near)),
            virtual.expand(2, -1),
        ),
        dim=1,
    )
    new = torch.tensor([3, 4], dtype=torch.uint8).repeat_interleave(near.numel())
    loops = torch.full((count,), 2, dtype=torch.uint8)
    return Graph.from_edge_index(
        edges, nodes + count, edge_type=torch.cat((kinds.to(torch.uint8), new, loops))
    )


class _Hidden(nn.Module):
    """Linear, BatchNorm, ReLU, then every row scaled to length 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width, bias=False)
        self.norm = BatchNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """From x [N, C]; gives [N, C]."""
        return functional.normalize(functional.relu(self.norm(self.linear(x))), dim=1)


class _Network(nn.Module):
    """Input layers, one attention layer and one block per depth, output layers.

    Args:
        in_features, out_features: of the nodes; classes.
        width: C.
        attention: the attention layers, in order.
        norm, dropout: of the blocks.
        pre_layers: layers (linear, BatchNorm, ReLU, rows scaled to length 1) between the input
            layer and the blocks.
        post_layers: layers after the blocks; all but the last, a linear one, as pre_layers.
        num_edge_types: T.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        width: int,
        attention: Sequence[nn.Module],
        *,
        norm: str,
        dropout: float,
        pre_layers: int,
        post_layers: int,
        num_edge_types: int,
    ) -> None:
        super().__init__()
        for name, value in (
            ("in_features", in_features),
            ("out_features", out_features),
            ("layers", len(attention)),
            ("post_layers", post_layers),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.encoder = nn.Sequential(
            nn.Linear(in_features, width), *(_Hidden(width) for _ in range(pre_layers))
        )
        self.type_embedding = nn.Embedding(num_edge_types, width)
        self.attention = nn.ModuleList(attention)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, norm=norm, dropout=dropout) for _ in attention
        )
        self.head = nn.Sequential(
            *(_Hidden(width) for _ in range(post_layers - 1)), nn.Linear(width, out_features)
        )


class Exphormer(_Network):
    """Exphormer for node tasks: attention over an augmented graph, maybe with local layers.

    With local layers a block adds up attention and a graph convolution, each with its own residual
    and norm, before its feed-forward part, as GraphGPS does::

        y   = norm1(x + dropout(conv(x))) + norm2(x + dropout(attended))
        out = norm3(y + dropout(W2 dropout(relu(W1 y))))

    Deviations from the paper: edge types in place of edge features.

    Args:
        in_features, out_features: of the nodes; classes.
        width: C.
        heads: H.
        layers: L.
        norm, dropout, pre_layers, post_layers, num_edge_types: see TransformerBlock and augment.
        virtual_nodes: V; learned nodes joined to all others, which `forward` adds to the features.
        local: None; or makes the graph convolution of a block from C: it is called with x [N, C]
            and the graph's own edges.
        attend: sparse_attention, or a function of the same arguments.

    Reference: Shirzad et al. 2023 (Exphormer); Rampášek et al. 2022 (GraphGPS) for local layers.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        width: int = 64,
        heads: int = 2,
        layers: int = 4,
        norm: str = "batch",
        dropout: float = 0.0,
        pre_layers: int = 1,
        post_layers: int = 1,
        num_edge_types: int = len(EDGE_TYPES),
        virtual_nodes: int = 0,
        local: Callable[[int], nn.Module] | None = None,
        attend: Callable[..., Any] = ops.sparse_attention,
    ) -> None:
        super().__init__(
            in_features,
            out_features,
            width,
            [ExphormerAttention(width, heads, attend=attend) for _ in range(layers)],
            norm=norm,
            dropout=dropout,
            pre_layers=pre_layers,
            post_layers=post_layers,
            num_edge_types=num_edge_types,
        )
        self.virtual = nn.Embedding(virtual_nodes, width) if virtual_nodes else None
        self.local = None if local is None else nn.ModuleList(local(width) for _ in range(layers))
        self.local_norms = None
        if local is not None:
            norms = (make_norm(norm, width) for _ in range(layers))
            self.local_norms = nn.ModuleList(norms)

    def embed(
        self,
        x: Tensor,
        graph: Graph,
        edges: Any = None,
        prompts: Sequence[Prompt | None] | None = None,
    ) -> Tensor:
        """What the output layers read of the nodes.

        Args:
            x: [N, F].
            graph: the augmented graph, of N + V nodes.
            edges: of the graph itself, as the local layers take them.
            prompts: for every layer, what a method adds to it: a vector to what attention reads,
                and keys and values that every node sees. None: nothing.

        Returns:
            [N, C].
        """
        nodes = x.size(0)
        x = self.encoder(x)
        if self.virtual is not None:
            x = torch.cat((x, self.virtual.weight))
        types = self.type_embedding.weight
        layers = zip(each_with_prompt(self.attention, prompts), self.blocks, strict=True)
        for depth, ((attention, prompt), block) in enumerate(layers):
            beside = None
            if self.local is not None and self.local_norms is not None:
                assert isinstance(block, TransformerBlock)
                near = self.local[depth](x, edges)
                beside = self.local_norms[depth](x + dropout(near, block.dropout, self.training))
            given = Prompt() if prompt is None else prompt
            attended = attention(given.added_to(x), graph, types, given.prefix_k, given.prefix_v)
            x = block(x, attended, beside)
        return x[:nodes]

    def forward(self, x: Tensor, graph: Graph, edges: Any = None) -> Tensor:
        """Logits [N, classes] of the nodes; see `embed`."""
        logits: Tensor = self.head(self.embed(x, graph, edges))
        return logits


class ScoreEstimator(_Network):
    """Spexphormer's first network: narrow, over all edges, for the sake of its attention scores.

    Args:
        in_features, out_features: of the nodes; classes.
        width: C, 4 or 8 in the paper.
        layers: L.
        norm, pre_layers, post_layers, num_edge_types: see TransformerBlock and augment.
        graph_bias: what is added to the scores of graph edges (type 0) before training, so that
            they outweigh the random ones exp(graph_bias) to 1 until the data say otherwise. 0: the
            biases start at random.
        normalize_values: see NarrowAttention.
        attend: sparse_attention, or a function of the same arguments.

    Reference: Shirzad et al. 2024 (Spexphormer), section 4.1.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        width: int = 4,
        layers: int = 4,
        norm: str = "graph",
        pre_layers: int = 1,
        post_layers: int = 1,
        graph_bias: float = 0.0,
        normalize_values: bool = True,
        num_edge_types: int = len(EDGE_TYPES),
        attend: Callable[..., Any] = ops.sparse_attention,
    ) -> None:
        super().__init__(
            in_features,
            out_features,
            width,
            [
                NarrowAttention(width, normalize_values=normalize_values, attend=attend)
                for _ in range(layers)
            ],
            norm=norm,
            dropout=0.0,
            pre_layers=pre_layers,
            post_layers=post_layers,
            num_edge_types=num_edge_types,
        )
        if graph_bias:
            types = self.type_embedding.weight.detach()
            wanted = torch.zeros(num_edge_types, 1)
            wanted[0] = graph_bias
            weight = torch.linalg.lstsq(types, wanted).solution.T
            for module in self.modules():
                if isinstance(module, EdgeTypeTerms):
                    module.bias.weight.data.copy_(weight)
                    module.bias.bias.data.zero_()

    def forward(self, x: Tensor, graph: Graph, temperature: float = 1.0) -> Tensor:
        """From features [N, F] and the augmented graph; gives logits [N, classes]."""
        x = self.encoder(x)
        types = self.type_embedding.weight
        for attention, block in zip(self.attention, self.blocks, strict=True):
            x = block(x, attention(x, graph, types, temperature))
        logits: Tensor = self.head(x)
        return logits

    def scores(self, x: Tensor, graph: Graph, temperature: float = 1.0) -> Iterator[Tensor]:
        """The normalised attention scores [E] of every layer, in the order of the graph's edges.

        One layer after the other is computed when its scores are asked for, and none is kept.
        """
        x = self.encoder(x)
        types = self.type_embedding.weight
        for attention, block in zip(self.attention, self.blocks, strict=True):
            attended, score = attention(x, graph, types, temperature, return_scores=True)
            x = block(x, attended)
            del attended
            yield score.squeeze(1)


class SampledExphormer(_Network):
    """Spexphormer's second network: wide, over a few sampled edges of every node and layer.

    Args:
        in_features, out_features: of the nodes; classes.
        width: C.
        heads: H.
        layers: L.
        norm, dropout, pre_layers, post_layers, num_edge_types: see TransformerBlock and augment.
        attend: sampled_attention, or a function of the same arguments.

    Reference: Shirzad et al. 2024 (Spexphormer), section 4.2.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        width: int = 64,
        heads: int = 1,
        layers: int = 4,
        norm: str = "batch",
        dropout: float = 0.0,
        pre_layers: int = 1,
        post_layers: int = 1,
        num_edge_types: int = len(EDGE_TYPES),
        attend: Callable[..., Any] = ops.sampled_attention,
    ) -> None:
        super().__init__(
            in_features,
            out_features,
            width,
            [SampledAttention(width, heads, attend=attend) for _ in range(layers)],
            norm=norm,
            dropout=dropout,
            pre_layers=pre_layers,
            post_layers=post_layers,
            num_edge_types=num_edge_types,
        )

    def forward(self, x: Tensor, layers: Sequence[ops.LayerBatch]) -> Tensor:
        """Logits of the target nodes.

        Args:
            x: [N_0, F], features of the first layer's sources; the targets come first.
            layers: the sampled edges of each layer, as gtkern.ops.layer_batches gives them.

        Returns:
            [targets, classes].
        """
        x = self.encoder(x)
        types = self.type_embedding.weight
        for attention, block, edges in zip(self.attention, self.blocks, layers, strict=True):
            x = block(x, attention(x, edges, types))
        logits: Tensor = self.head(x)
        return logits

    def everywhere(
        self, x: Tensor, neighbors: Sequence[ops.Neighbors], rows: slice, at_once: int
    ) -> Tensor:
        """Logits of the nodes `rows`, each layer computed once for every node.

        In evaluation the same as `forward` on batches, but no node's layer is computed twice. It
        holds four arrays [N, C] at a time.

        Args:
            x: [N, F]; may be a memory map, which is read once and in order.
            neighbors: of each layer, as gtkern.ops.sample_neighbors gives them for all N nodes.
            rows: this process's nodes; those of all processes, by rank, are the N nodes.
            at_once: nodes at a time, where a block's hidden layers would take memory.

        Returns:
            [rows, classes].
        """
        own = torch.cat([self.encoder(part) for part in x[rows].split(at_once)])
        types = self.type_embedding.weight
        for attention, block, layer in zip(self.attention, self.blocks, neighbors, strict=True):
            assert isinstance(attention, SampledAttention)
            keys, values = (_processes.gather_rows(y) for y in attention.keys_and_values(own))
            index = layer.index[rows].split(at_once)
            kinds = [None] * len(index) if layer.type is None else layer.type[rows].split(at_once)
            out = torch.empty_like(own)
            for into, part, neighbor, kind in zip(
                out.split(at_once), own.split(at_once), index, kinds, strict=True
            ):
                attended = attention.attended(part, keys, values, neighbor, kind, types)
                into.copy_(block(part, attended))
            own = out
        logits: Tensor = self.head(own)
        return logits
