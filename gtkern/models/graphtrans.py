"""GraphTrans: a stack of message-passing layers, then a transformer with a CLS token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.nn.conv import GINEConv

from gtkern import ops
from gtkern.models import batches
from gtkern.nn import (
    BatchNorm,
    FeatureEncoder,
    Prompt,
    TransformerLayer,
    dropout,
    pool,
    with_tokens,
)
from gtkern.nn.local import GraphConvolution
from gtkern.ragged import Ragged

__all__ = ["GraphTrans", "GraphTransSettings", "MessagePassingStack"]


@dataclass(frozen=True, kw_only=True)
class GraphTransSettings:
    """The sizes of a GraphTrans network; the defaults are those of its GIN network for NCI1.

    Attributes:
        local: message passing: "gin" or "gcn", as OGB has them.
        local_layers: of message passing.
        local_width: channels of message passing.
        local_dropout: after each of its layers.
        virtual_node: message passing has a node beside each graph that hears all of its nodes, and
            that they all hear, from layer to layer.
        jumping: what the transformer gets: "last", the last message-passing layer; or "cat", that
            beside the features as its first layer gets them.
        width: C, of the transformer.
        heads: H; divides width.
        layers: L, of the transformer.
        feedforward: width inside its feed-forward parts.
        norm: "post" or "pre"; see gtkern.nn.TransformerLayer.
        norm_input: a LayerNorm before the transformer.
        activation: "relu" or "gelu".
        dropout: everywhere in the transformer.
    """

    local: str = "gin"
    local_layers: int = 5
    local_width: int = 128
    local_dropout: float = 0.1
    virtual_node: bool = False
    jumping: str = "last"
    width: int = 128
    heads: int = 4
    layers: int = 4
    feedforward: int = 256
    norm: str = "post"
    norm_input: bool = True
    activation: str = "relu"
    dropout: float = 0.1

    def __post_init__(self) -> None:
        batches.head_width(self.width, self.heads)
        for name in ("local_layers", "local_width", "layers", "feedforward"):
            batches.at_least(name, getattr(self, name), 1)
        batches.one_of("local", self.local, ("gcn", "gin"))
        batches.one_of("jumping", self.jumping, ("cat", "last"))
        batches.one_of("norm", self.norm, ("post", "pre"))
        batches.one_of("activation", self.activation, ("gelu", "relu"))
        batches.share("local_dropout", self.local_dropout)
        batches.share("dropout", self.dropout)


class MessagePassingStack(nn.Module):
    """OGB's stack of GIN or GCN layers.

    Formula, for layer l of L, with no relu in the last::

        x^l = drop(relu(BatchNorm(convolution^l(x^(l-1), encoded features of edges))))

    With a virtual node of state u, which begins as a learned vector, x^(l-1) + u^(l-1) of the own
    graph takes the place of x^(l-1), and for l < L::

        u^l = drop(MLP^l(u^(l-1) + the sum of x^(l-1) + u^(l-1) over the nodes of the graph))

    Args:
        settings: see GraphTransSettings.
        edge_features: see gtkern.nn.FeatureEncoder; None: edges add nothing to the messages.

    Reference: Hu et al. 2020 (OGB), appendix; Xu et al. 2019 (GIN); Kipf and Welling 2017 (GCN);
        Gilmer et al. 2017, section 5.2, for the virtual node.
    """

    def __init__(
        self, settings: GraphTransSettings, edge_features: int | Sequence[int] | None
    ) -> None:
        super().__init__()
        self.dropout = settings.local_dropout
        width, depth = settings.local_width, settings.local_layers
        self.convolutions = nn.ModuleList(_convolution(settings) for _ in range(depth))
        self.norms = nn.ModuleList(BatchNorm(width) for _ in range(depth))
        self.edge_encoders = None
        if edge_features is not None:
            self.edge_encoders = nn.ModuleList(
                FeatureEncoder(edge_features, width) for _ in range(depth)
            )
        self.virtual_node: nn.Parameter | None = None
        self.virtual_layers = nn.ModuleList()
        if settings.virtual_node:
            self.virtual_node = nn.Parameter(torch.zeros(1, width))  # as OGB's
            self.virtual_layers.extend(_virtual_layer(width) for _ in range(depth - 1))

    def forward(
        self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None, ragged: Ragged
    ) -> tuple[Tensor, Tensor]:
        """One pass.

        Args:
            x: [N, C].
            edge_index: int64 [2, E], sources and targets.
            edge_attr: features of the edges; None without.
            ragged: the graphs.

        Returns:
            [N, C] each: what the first layer gets, and what the last gives.
        """
        edges = edge_index.size(1)
        edge = x.new_zeros(1, 1).expand(edges, x.size(1))
        last = len(self.norms) - 1
        virtual = graph = None
        if self.virtual_node is not None:
            virtual = self.virtual_node.expand(ragged.num_graphs, -1)
            graph = ragged.batch()
        first = x
        for depth, norm in enumerate(self.norms):
            if virtual is not None and graph is not None:
                x = x + virtual.index_select(0, graph)
            first = x if depth == 0 else first
            if self.edge_encoders is not None:
                edge = self.edge_encoders[depth](edge_attr, edges, "data.edge_attr")
            y = norm(self.convolutions[depth](x, edge_index, edge))
            if virtual is not None and depth < last:
                virtual = self.virtual_layers[depth](pool(x, ragged) + virtual)
                virtual = dropout(virtual, self.dropout, self.training)
            x = dropout(y if depth == last else functional.relu(y), self.dropout, self.training)
        return first, x


def _virtual_layer(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(width, 2 * width),
        BatchNorm(2 * width),
        nn.ReLU(),
        nn.Linear(2 * width, width),
        BatchNorm(width),
        nn.ReLU(),
    )


def _convolution(settings: GraphTransSettings) -> nn.Module:
    width = settings.local_width
    if settings.local == "gcn":
        return GraphConvolution(width)
    layers = nn.Sequential(
        nn.Linear(width, 2 * width), BatchNorm(2 * width), nn.ReLU(), nn.Linear(2 * width, width)
    )
    convolution: nn.Module = GINEConv(layers, train_eps=True)
    return convolution


class GraphTrans(nn.Module):
    """GraphTrans for tasks of whole graphs.

    A token CLS, last in each graph, attends with the nodes; its output is the graph's.

    Deviation from the paper: no graph is cut at 1,000 nodes, for nothing is padded.

    Args:
        node_features, edge_features: of the data; see gtkern.nn.FeatureEncoder. None: edges add
            nothing to the messages.
        num_tasks: outputs for each graph.
        settings: see GraphTransSettings.
        attend: ragged_attention, or a function of the same arguments.

    Attributes:
        layers: the transformer's layers, in order.

    Reference: Wu et al. 2021 (GraphTrans), section 4.
    """

    def __init__(
        self,
        node_features: int | Sequence[int],
        num_tasks: int,
        settings: GraphTransSettings = GraphTransSettings(),
        *,
        edge_features: int | Sequence[int] | None = None,
        attend: Callable[..., Tensor] = ops.ragged_attention,
    ) -> None:
        super().__init__()
        self.settings = settings
        width, local_width = settings.width, settings.local_width
        self.node_encoder = FeatureEncoder(node_features, local_width)
        self.local = MessagePassingStack(settings, edge_features)
        both = settings.jumping == "cat"
        self.to_transformer = nn.Linear(local_width * (2 if both else 1), width)
        self.token = nn.Parameter(torch.randn(1, width))
        self.input_norm = nn.LayerNorm(width) if settings.norm_input else None
        self.layers = nn.ModuleList(
            TransformerLayer(
                width,
                settings.heads,
                settings.feedforward,
                norm=settings.norm,
                dropout=settings.dropout,
                attention_dropout=settings.dropout,
                activation_dropout=settings.dropout,
                activation=settings.activation,
                attend=attend,
            )
            for _ in range(settings.layers)
        )
        self.output_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_tasks)

    @staticmethod
    def encodings(settings: GraphTransSettings) -> tuple[str, ...]:
        """The names of the arrays that `encode` adds: none."""
        return ()

    @staticmethod
    def encode(packed: Any, settings: GraphTransSettings) -> None:
        """Add to a gtkern.data.PackedGraphs what the network needs: nothing."""

    def embed(self, data: Any, prompts: Sequence[Prompt | None] | None = None) -> Tensor:
        """One vector for each graph: its CLS token's.

        Args:
            data: as PyG batches graphs: x, edge_index, ptr, and edge_attr where the model was made
                for it.
            prompts: for every layer, what a method adds to it; None: nothing.

        Returns:
            [G, C].

        Raises:
            TypeError, ValueError: something is missing, or of another kind or size.
        """
        ragged = batches.graphs_of(data)
        encoded = self.node_encoder(data.x, ragged.num_nodes, "data.x")
        edge_attr = getattr(data, "edge_attr", None)
        first, x = self.local(encoded, data.edge_index, edge_attr, ragged)
        if self.settings.jumping == "cat":
            x = torch.cat((first, x), dim=1)
        packed = with_tokens(self.to_transformer(x), ragged, self.token, first=False)
        x = packed.x if self.input_norm is None else self.input_norm(packed.x)
        for layer, prompt in batches.each_with_prompt(self.layers, prompts):
            x = layer(x, packed.ragged, (), prompt)
        out: Tensor = self.output_norm(x.index_select(0, packed.tokens[:, 0]))
        return out

    def forward(self, data: Any) -> Tensor:
        """The outputs [G, num_tasks] of the graphs; see `embed`."""
        out: Tensor = self.head(self.embed(data))
        return out
