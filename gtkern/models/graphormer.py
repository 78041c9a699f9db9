"""Graphormer: a transformer whose attention is told of degrees, distances and paths."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gtkern import ops
from gtkern.models import batches, graphormer_encoding
from gtkern.nn import (
    FeatureEncoder,
    Prompt,
    TransformerLayer,
    distinct_rows,
    dropout,
    initialize_as_bert,
    pair_biases,
    with_tokens,
)
from gtkern.ragged import PairIndex, Ragged

__all__ = ["Graphormer", "GraphormerSettings", "PathBias"]


@dataclass(frozen=True, kw_only=True)
class GraphormerSettings:
    """The sizes of a Graphormer network; the defaults are those of Graphormer-slim.

    Attributes:
        width: C.
        heads: H; divides width.
        layers: L.
        feedforward: width inside the feed-forward parts.
        max_degree: the largest degree of a node that has a vector of its own; none may be larger.
        max_distance: the largest distance that has a bias of its own; pairs further apart share
            that of pairs without a path.
        path_length: edges of a path, from the query on, that the bias sees; 0: none.
        attend_within: pairs at this distance or further do not attend; None: all do. Hugging
            Face's collator has 19 unless told otherwise.
        norm: "post" or "pre"; see gtkern.nn.TransformerLayer.
        norm_input: a LayerNorm before the first layer.
        activation: "gelu" or "relu".
        dropout, attention_dropout, activation_dropout: see gtkern.nn.TransformerLayer.
        initial_std: standard deviation of the weights before training. The released code's 0.02 is
            for wide networks that are trained long; width ** -0.5 lets small ones learn soon.
        initial_bias_std: the same of the biases of distance and path. With 1 every head looks at
            distances of its own from the start.
    """

    width: int = 80
    heads: int = 8
    layers: int = 12
    feedforward: int = 80
    max_degree: int = 510
    max_distance: int = 509
    path_length: int = 5
    attend_within: int | None = None
    norm: str = "post"
    norm_input: bool = True
    activation: str = "gelu"
    dropout: float = 0.0
    attention_dropout: float = 0.1
    activation_dropout: float = 0.1
    initial_std: float = 0.02
    initial_bias_std: float = 0.02

    def __post_init__(self) -> None:
        batches.head_width(self.width, self.heads)
        for name, low in (
            ("layers", 1),
            ("feedforward", 1),
            ("max_degree", 0),
            ("path_length", 0),
            ("max_distance", max(self.path_length, 1)),
        ):
            batches.at_least(name, getattr(self, name), low)
        if self.attend_within is not None:
            batches.at_least("attend_within", self.attend_within, 1)
        batches.one_of("norm", self.norm, ("post", "pre"))
        batches.one_of("activation", self.activation, ("gelu", "relu"))
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            batches.share(name, getattr(self, name))
        for name in ("initial_std", "initial_bias_std"):
            batches.above_zero(name, getattr(self, name))

    @classmethod
    def base(cls) -> GraphormerSettings:
        """Graphormer-base: 12 layers, 768 channels, 32 heads."""
        return cls(width=768, heads=32, feedforward=768)


class PathBias(nn.Module):
    """The bias of each pair of nodes, from their distance and the edges of a path between them.

    Formula, for a query and a key at distance d with the edges e_1 .. e_m between them, the first
    one the query's, m = min(d, K)::

        bias = distance[d] + Σ_k mean over columns c of edge_c[e_k] @ hop_k / m

    and `virtual_distance` for pairs with the graph's token. All pairs of a batch that see the same
    distance and edges share one row of a table, which is made once for all layers.

    Args:
        heads: H.
        max_distance: D.
        path_length: K.
        edge_features: the number of values of each column of the edges' features; None: edges have
            none, and the bias is that of the distance alone.
        initial_std: standard deviation of the parameters before training.

    Reference: Ying et al. 2021 (Graphormer), eq. 6 and 7, with the heads mixed by hop_k [H, H] as
        in the released code.
    """

    edge_row: Tensor

    def __init__(
        self,
        heads: int,
        max_distance: int,
        path_length: int,
        edge_features: Sequence[int] | None,
        initial_std: float = 0.02,
    ) -> None:
        super().__init__()
        self.heads, self.max_distance = heads, max_distance
        self.edge_features = tuple(edge_features or ())
        self.path_length = path_length if edge_features else 0
        self.virtual_distance = nn.Parameter(torch.empty(1, heads))
        self.distance = nn.Parameter(torch.empty(max_distance + 2, heads))
        self.edge: nn.Parameter | None = None
        self.hop: nn.Parameter | None = None
        self.codes = 0
        if edge_features and path_length:
            self.edge = nn.Parameter(torch.empty(sum(edge_features), heads))
            self.hop = nn.Parameter(torch.empty(path_length, heads, heads))
            self.codes = math.prod(edge_features)
            self.register_buffer(
                "edge_row", graphormer_encoding.rows_of_codes(edge_features), persistent=False
            )
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=initial_std)

    def forward(self, data: Any, ragged: Ragged) -> list[tuple[PairIndex, Tensor]]:
        """The bias of a batch, for ragged_attention.

        Args:
            data: with what Graphormer.encode adds.
            ragged: of the nodes and the tokens, one in each graph and first there.
        """
        names = graphormer_encoding
        count = batches.encoding(data, names.PATH_COUNT, ragged.num_graphs, "Graphormer").long()
        rows = batches.encoding(
            data, names.PATHS, int(count.sum()), "Graphormer", 1 + self.path_length
        ).long()
        pairs = batches.encoding(data, names.PAIRS, ragged.num_pairs, "Graphormer")
        sizes = [self.max_distance + 3, *[self.codes + 1] * self.path_length]
        _check_paths(rows, sizes)
        at, number = distinct_rows(rows, sizes)
        first = torch.repeat_interleave(
            count.cumsum(0) - count, ragged.sizes().square(), output_size=ragged.num_pairs
        )
        masked = pairs < 0
        entry = number[(first + pairs).masked_fill_(masked, 0)].masked_fill_(masked, -1)
        return pair_biases(entry, self.table(rows[at]), ragged)

    def table(self, rows: Tensor) -> Tensor:
        """The biases [D, H] of rows [D, 1 + K]: 0 (the token) or 1 + distance, and 1 + codes."""
        distances = torch.cat((self.virtual_distance, self.distance))
        table = distances[rows[:, 0]]
        if self.edge is None or self.hop is None:
            return table
        by_code = functional.embedding_bag(self.edge_row, self.edge, mode="mean")
        by_hop = (by_code @ self.hop).to(by_code.dtype)
        # 0 is no edge: a row of zeros before those of the codes
        by_hop = functional.pad(by_hop, (0, 0, 1, 0)).flatten(0, 1)
        hops = torch.arange(self.path_length, device=rows.device) * (self.codes + 1)
        along = functional.embedding_bag(rows[:, 1:] + hops, by_hop, mode="sum")
        length = (rows[:, :1] - 1).clamp(1, self.path_length)
        return table + along / length

    def extra_repr(self) -> str:
        """The sizes."""
        return f"heads={self.heads}, {self.max_distance}, path_length={self.path_length}"


def _check_paths(rows: Tensor, sizes: Sequence[int]) -> None:
    """Raise ValueError where a row was encoded for other settings; on a CPU, where that is free."""
    if rows.device.type != "cpu" or rows.numel() == 0:
        return
    high = rows.amax(0)
    wrong = (high >= torch.tensor(sizes)).nonzero()
    if wrong.numel():
        column = int(wrong[0])
        raise ValueError(
            f"data.{graphormer_encoding.PATHS} must be 0 .. {sizes[column] - 1} in column "
            f"{column}, got {int(high[column])}; Graphormer.encode(packed, settings) adds it, for "
            "the network's settings and edge_features"
        )


class Graphormer(nn.Module):
    """Graphormer for tasks of whole graphs.

    A token, first in each graph, attends with the nodes; its output is the graph's. Nodes carry
    their degrees, pairs of nodes biases of distance and path.

    Deviations from the released code: the head has a bias for each task, not one for all; of
    several shortest paths the one of shortest_path_edges is taken.

    Args:
        node_features: of the data; see gtkern.nn.FeatureEncoder.
        num_tasks: outputs for each graph.
        settings: see GraphormerSettings.
        edge_features: the number of values of each column of the edges' integer features; or F,
            where edges have one-hot rows of F floats; None: paths without features.
        attend: ragged_attention, or a function of the same arguments.

    Attributes:
        layers: the transformer's layers, in order.

    Reference: Ying et al. 2021 (Graphormer); Microsoft's released code for the sizes.
    """

    def __init__(
        self,
        node_features: int | Sequence[int],
        num_tasks: int,
        settings: GraphormerSettings = GraphormerSettings(),
        *,
        edge_features: int | Sequence[int] | None = None,
        attend: Callable[..., Tensor] = ops.ragged_attention,
    ) -> None:
        super().__init__()
        self.settings = settings
        width = settings.width
        columns = (edge_features,) if isinstance(edge_features, int) else edge_features
        self.node_encoder = FeatureEncoder(node_features, width)
        self.in_degree = nn.Embedding(settings.max_degree + 1, width)
        self.out_degree = nn.Embedding(settings.max_degree + 1, width)
        self.token = nn.Parameter(torch.empty(1, width))
        self.bias = PathBias(
            settings.heads,
            settings.max_distance,
            settings.path_length,
            columns,
            settings.initial_bias_std,
        )
        self.input_norm = nn.LayerNorm(width) if settings.norm_input else None
        self.layers = nn.ModuleList(
            TransformerLayer(
                width,
                settings.heads,
                settings.feedforward,
                norm=settings.norm,
                dropout=settings.dropout,
                attention_dropout=settings.attention_dropout,
                activation_dropout=settings.activation_dropout,
                activation=settings.activation,
                attend=attend,
            )
            for _ in range(settings.layers)
        )
        self.transform = nn.Linear(width, width)
        self.transform_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_tasks)
        initialize_as_bert(self, settings.initial_std)  # as the released code
        nn.init.normal_(self.token, std=settings.initial_std)

    @staticmethod
    def encodings(settings: GraphormerSettings) -> tuple[str, ...]:
        """The names of the arrays that `encode` adds."""
        return graphormer_encoding.NAMES

    @staticmethod
    def encode(packed: Any, settings: GraphormerSettings) -> None:
        """Add to a gtkern.data.PackedGraphs what the network needs.

        They are in_degree, out_degree [N]; graphormer_paths [P, 1 + K], for every graph the
        different distances and paths of its pairs; graphormer_path_count [G], how many; and
        graphormer_pairs [Σ (n_g + 1)²], which of them each pair has.

        Raises:
            ValueError: a degree is too large, or edges have features that are no categories.
        """
        graphormer_encoding.encode(
            packed,
            max_degree=settings.max_degree,
            max_distance=settings.max_distance,
            path_length=settings.path_length,
            attend_within=settings.attend_within,
        )

    def embed(self, data: Any, prompts: Sequence[Prompt | None] | None = None) -> Tensor:
        """One vector for each graph: that of its token.

        Args:
            data: as PyG batches graphs: x, ptr, and what `encode` adds.
            prompts: for every layer, what a method adds to it; None: nothing.

        Returns:
            [G, C].

        Raises:
            TypeError, ValueError: something is missing, or of another kind or size.
        """
        ragged = batches.graphs_of(data)
        x = self.node_encoder(data.x, ragged.num_nodes, "data.x")
        for name, table in (("in_degree", self.in_degree), ("out_degree", self.out_degree)):
            x = x + table(batches.encoding(data, name, ragged.num_nodes, "Graphormer"))
        packed = with_tokens(x, ragged, self.token, first=True)
        bias = self.bias(data, packed.ragged)
        x = packed.x if self.input_norm is None else self.input_norm(packed.x)
        x = dropout(x, self.settings.dropout, self.training)
        for layer, prompt in batches.each_with_prompt(self.layers, prompts):
            x = layer(x, packed.ragged, bias, prompt)
        x = self.transform(x.index_select(0, packed.tokens[:, 0]))
        act = functional.gelu if self.settings.activation == "gelu" else functional.relu
        out: Tensor = self.transform_norm(act(x))
        return out

    def forward(self, data: Any) -> Tensor:
        """The outputs [G, num_tasks] of the graphs; see `embed`."""
        out: Tensor = self.head(self.embed(data))
        return out
