"""GraphGPS: message passing and attention side by side in every layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from gtkern import ops
from gtkern.models import batches
from gtkern.nn import FeatureEncoder, Prompt, RaggedMultiheadAttention, dropout, make_norm, pool
from gtkern.nn.local import LOCAL, GatedGCN, IsomorphismNetwork
from gtkern.ragged import Ragged
from gtkern.transforms import random_walk_encoding

__all__ = ["GPSLayer", "GraphGPS", "GraphGPSSettings"]


@dataclass(frozen=True, kw_only=True)
class GraphGPSSettings:
    """The sizes of a GraphGPS network; the defaults are those of GTSP's base network.

    Attributes:
        width: C.
        heads: H; divides width.
        layers: L.
        local: message passing of every layer: "gin" (ignores features of edges), "gine" or
            "gated_gcn".
        walk_steps: S, the columns of the random-walk encoding; 0: none.
        dropout: of what residuals add, and inside the feed-forward part.
        attention_dropout: of the attention weights.
        norm: "batch" or "none".
        pooling: "add" or "mean" over the nodes of a graph.
    """

    width: int = 64
    heads: int = 4
    layers: int = 4
    local: str = "gin"
    walk_steps: int = 20
    dropout: float = 0.0
    attention_dropout: float = 0.5
    norm: str = "batch"
    pooling: str = "add"

    def __post_init__(self) -> None:
        batches.head_width(self.width, self.heads)
        batches.at_least("layers", self.layers, 1)
        batches.at_least("walk_steps", self.walk_steps, 0)
        batches.one_of("local", self.local, LOCAL)
        batches.one_of("norm", self.norm, ("batch", "none"))
        batches.one_of("pooling", self.pooling, ("add", "mean"))
        batches.share("dropout", self.dropout)
        batches.share("attention_dropout", self.attention_dropout)


class GPSLayer(nn.Module):
    """Message passing along the edges, attention inside each graph, and a feed-forward part.

    Formula, where `local` has its own residual::

        y   = norm(local(x)) + norm(x + drop(attend(x)))
        out = norm(y + drop(W2 drop(relu(W1 y))))

    A prompt's vector is added to what the attention reads, not to its residual.

    Args:
        settings: see GraphGPSSettings.
        last: whether it is the last layer, which leaves the edges as they are.
        attend: ragged_attention, or a function of the same arguments.

    Attributes:
        attention: a RaggedMultiheadAttention, or a module of the same call; None: attend(..) is 0.

    Reference: Rampášek et al. 2022 (GraphGPS), eq. 4 to 7.
    """

    def __init__(
        self,
        settings: GraphGPSSettings,
        *,
        last: bool = False,
        attend: Callable[..., Tensor] = ops.ragged_attention,
    ) -> None:
        super().__init__()
        width = settings.width
        self.dropout = settings.dropout
        self.local: nn.Module = (
            GatedGCN(width, settings.dropout, carry=not last)
            if settings.local == "gated_gcn"
            else IsomorphismNetwork(width, settings.dropout, edges=settings.local == "gine")
        )
        self.attention: nn.Module | None = RaggedMultiheadAttention(
            width, settings.heads, dropout=settings.attention_dropout, attend=attend
        )
        self.local_norm = make_norm(settings.norm, width)
        self.attention_norm = make_norm(settings.norm, width)
        self.widen = nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)
        self.output_norm = make_norm(settings.norm, width)

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge: Tensor | None,
        ragged: Ragged,
        prompt: Prompt | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """One layer.

        Args:
            x: [N, C].
            edge_index: int64 [2, E], sources and targets.
            edge: [E, C]; None for message passing without edge features.
            ragged: the graphs.
            prompt: a vector for the rows that attend, and keys and values that they see besides
                their graph.

        Returns:
            x and edge, new; of a last layer's edge, nothing is to be read.
        """
        near, edge = self.local(x, edge_index, edge)
        far = x
        if self.attention is not None:
            given = Prompt() if prompt is None else prompt
            read = given.added_to(x, ragged)
            far = x + self._drop(self.attention(read, ragged, (), *given.prefix()))
        y = self.local_norm(near) + self.attention_norm(far)
        hidden = self._drop(self.widen(y).relu_())
        return self.output_norm(y + self._drop(self.narrow(hidden))), edge

    def prefix(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values [P, H, D] of tokens [P, C] that are read like rows of x.

        Raises:
            ValueError: the layer has no attention.
        """
        attention: Any = self.attention
        if attention is None:
            raise ValueError("prefix() needs attention, and the layer has none")
        both: tuple[Tensor, Tensor] = attention.keys_and_values(tokens)
        return both

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout, self.training)

    def extra_repr(self) -> str:
        """The sizes."""
        return f"dropout={self.dropout}"


class GraphGPS(nn.Module):
    """GraphGPS for tasks of whole graphs.

    Deviations from the paper, as in GTSP's base network, whose baseline it is: the random-walk
    encoding is added through a linear layer without a norm of its own, and the head is one linear
    layer. In evaluation a graph's output does not depend on the others in its batch; in training
    it does, through BatchNorm.

    Args:
        node_features, edge_features: of the data; see gtkern.nn.FeatureEncoder. Without features,
            the edges of "gine" and "gated_gcn" all carry one learned vector.
        num_tasks: outputs for each graph.
        settings: see GraphGPSSettings.
        attend: ragged_attention, or a function of the same arguments.

    Attributes:
        layers: the GPSLayers, in order.

    Reference: Rampášek et al. 2022 (GraphGPS); Liu et al. 2023 (GTSP), section 5.1.
    """

    def __init__(
        self,
        node_features: int | Sequence[int],
        num_tasks: int,
        settings: GraphGPSSettings = GraphGPSSettings(),
        *,
        edge_features: int | Sequence[int] | None = None,
        attend: Callable[..., Tensor] = ops.ragged_attention,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.node_encoder = FeatureEncoder(node_features, settings.width)
        self.edge_encoder = (
            None if settings.local == "gin" else FeatureEncoder(edge_features, settings.width)
        )
        steps = settings.walk_steps
        self.walk_encoder = nn.Linear(steps, settings.width) if steps else None
        self.layers = nn.ModuleList(
            GPSLayer(settings, last=depth == settings.layers - 1, attend=attend)
            for depth in range(settings.layers)
        )
        self.head = nn.Linear(settings.width, num_tasks)

    @staticmethod
    def encodings(settings: GraphGPSSettings) -> tuple[str, ...]:
        """The names of the arrays that `encode` adds."""
        return ("random_walk",) if settings.walk_steps else ()

    @staticmethod
    def encode(packed: Any, settings: GraphGPSSettings) -> None:
        """Add to a gtkern.data.PackedGraphs what the network needs: `random_walk` [N, S]."""
        if settings.walk_steps:
            walk = random_walk_encoding(packed.edge_index, packed.node_ptr, settings.walk_steps)
            packed.add("random_walk", walk, packed.node_ptr)

    def embed(self, data: Any, prompts: Sequence[Prompt | None] | None = None) -> Tensor:
        """One vector for each graph.

        Args:
            data: as PyG batches graphs: x, edge_index, ptr, edge_attr where the model was made for
                it, and random_walk.
            prompts: for every layer, what a method adds to it; None: nothing.

        Returns:
            [G, C].

        Raises:
            TypeError, ValueError: something is missing, or of another kind or size.
        """
        ragged = batches.graphs_of(data)
        x = self.node_encoder(data.x, ragged.num_nodes, "data.x")
        if self.walk_encoder is not None:
            walk = batches.encoding(
                data, "random_walk", ragged.num_nodes, "GraphGPS", self.settings.walk_steps
            )
            x = x + self.walk_encoder(walk.to(x.dtype))
        edge = None
        if self.edge_encoder is not None:
            edges = data.edge_index.size(1)
            edge = self.edge_encoder(getattr(data, "edge_attr", None), edges, "data.edge_attr")
        for layer, prompt in batches.each_with_prompt(self.layers, prompts):
            x, edge = layer(x, data.edge_index, edge, ragged, prompt)
        return pool(x, ragged, self.settings.pooling)

    def forward(self, data: Any) -> Tensor:
        """The outputs [G, num_tasks] of the graphs; see `embed`."""
        out: Tensor = self.head(self.embed(data))
        return out
