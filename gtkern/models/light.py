"""LiGhT: a transformer over the line graph of a molecule, KPGT's backbone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gtkern import ops
from gtkern.models import batches, light_encoding
from gtkern.nn import (
    FeatureEncoder,
    Prompt,
    TransformerLayer,
    initialize_as_bert,
    pair_biases,
    pool,
    with_tokens,
)
from gtkern.ragged import PairIndex, Ragged

__all__ = ["LiGhT", "LiGhTSettings", "TripletBias", "TripletEncoder"]


@dataclass(frozen=True, kw_only=True)
class LiGhTSettings:
    """The sizes of a LiGhT network; the defaults are those of KPGT's base network.

    Attributes:
        width: C.
        heads: H; divides width.
        layers: L.
        path_length: triplets on the longest path between two that attend, at least 2.
        path_width: channels of a path.
        head_width: of the output layers.
        fingerprint_features: of a molecule's fingerprint, which becomes a virtual node; 0: none.
        descriptor_features: the same of its descriptors.
        dropout: of what residuals add, and in the head.
        attention_dropout: of the attention weights.
        initial_std: standard deviation of the weights before training. The released code's 0.02 is
            for wide networks that are pretrained long; width ** -0.5 lets small ones learn soon.
    """

    width: int = 768
    heads: int = 12
    layers: int = 12
    path_length: int = 5
    path_width: int = 64
    head_width: int = 256
    fingerprint_features: int = 0
    descriptor_features: int = 0
    dropout: float = 0.1
    attention_dropout: float = 0.1
    initial_std: float = 0.02

    def __post_init__(self) -> None:
        batches.head_width(self.width, self.heads)
        for name, low in (
            ("layers", 1),
            ("path_length", 2),
            ("path_width", 1),
            ("head_width", 1),
            ("fingerprint_features", 0),
            ("descriptor_features", 0),
        ):
            batches.at_least(name, getattr(self, name), low)
        batches.share("dropout", self.dropout)
        batches.share("attention_dropout", self.attention_dropout)
        batches.above_zero("initial_std", self.initial_std)

    @property
    def virtual(self) -> dict[str, int]:
        """The virtual nodes in their order: the array of the data and its columns."""
        sizes = {
            "fingerprint": self.fingerprint_features,
            "descriptors": self.descriptor_features,
        }
        return {name: size for name, size in sizes.items() if size}


def _mlp(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.GELU(), nn.Linear(outputs, outputs))


class TripletEncoder(nn.Module):
    """Channels of the triplets: a bond and its two atoms, or an atom without a bond.

    Formula, with learned vectors in place of the atom or bond that is not there::

        triplet = W2 gelu(W1 [atom(a) + atom(b), bond])

    Args:
        node_features, edge_features: see gtkern.nn.FeatureEncoder.
        width: C.

    Reference: Li et al. 2023 (KPGT), section 4.1.
    """

    def __init__(
        self,
        node_features: int | Sequence[int],
        edge_features: int | Sequence[int] | None,
        width: int,
    ) -> None:
        super().__init__()
        self.node_encoder = FeatureEncoder(node_features, width)
        self.edge_encoder = FeatureEncoder(edge_features, width)
        self.virtual_atom = nn.Parameter(torch.empty(1, width))
        self.virtual_bond = nn.Parameter(torch.empty(1, width))
        self.mix = _mlp(2 * width, width)

    def forward(self, data: Any, nodes: Ragged, triplets: Ragged) -> Tensor:
        """From a batch with what LiGhT.encode adds; gives [T, C]."""
        count = triplets.num_nodes
        atoms = batches.encoding(data, light_encoding.ATOMS, count, "LiGhT", 2).long()
        bond = batches.encoding(data, light_encoding.BOND, count, "LiGhT").long()
        graph = triplets.batch()
        x = self.node_encoder(data.x, nodes.num_nodes, "data.x")
        first, second = (x.index_select(0, nodes.ptr[graph] + at.clamp(min=0)) for at in atoms.T)
        alone = (bond < 0)[:, None]
        node = first + torch.where(alone, self.virtual_atom, second)
        edge_attr = getattr(data, "edge_attr", None)
        edges = torch.bincount(nodes.batch()[data.edge_index[0]], minlength=nodes.num_graphs)
        if self.edge_encoder.features is not None and edge_attr is not None:
            at = (edges.cumsum(0) - edges)[graph] + bond.clamp(min=0)
            # a graph without edges, last in its batch, has none to read for its atoms
            padded = (
                edge_attr if edge_attr.size(0) else edge_attr.new_zeros(1, *edge_attr.shape[1:])
            )
            edge_attr = padded.index_select(0, at.clamp(max=padded.size(0) - 1))
        edge = self.edge_encoder(edge_attr, count, "data.edge_attr")
        edge = torch.where(alone, self.virtual_bond, edge)
        out: Tensor = self.mix(torch.cat((node, edge), dim=1))
        return out


class TripletBias(nn.Module):
    """The bias of two triplets that attend, from the path between them.

    Formula, for the m triplets t_1 (the key's) .. t_m (the query's) on the path, at the places
    1 .. m - 1 and L, and its kind (a self loop, m, or a virtual node)::

        bias = D2 gelu(D1 distance[kind]) + P2 gelu(P1 Σ_k place_k(t_k) / m)

    where each place_k is an MLP. A self loop is a path of its triplet twice.

    Args:
        settings: see LiGhTSettings.

    Reference: Li et al. 2023 (KPGT), section 4.1.
    """

    def __init__(self, settings: LiGhTSettings) -> None:
        super().__init__()
        width, heads, length = settings.width, settings.heads, settings.path_length
        self.path_length = length
        # a virtual node's kind only where there is one
        self.kinds = length + (1 if settings.virtual else 0)
        self.distance = nn.Embedding(self.kinds, width)
        self.by_distance = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Linear(width, heads)
        )
        self.places = nn.ModuleList(_mlp(width, settings.path_width) for _ in range(length))
        self.by_path = nn.Sequential(
            nn.Linear(settings.path_width, settings.path_width),
            nn.GELU(),
            nn.Linear(settings.path_width, heads),
        )

    def forward(self, data: Any, x: Tensor, ragged: Ragged) -> list[tuple[PairIndex, Tensor]]:
        """The bias of a batch, for ragged_attention.

        Args:
            data: with what LiGhT.encode adds.
            x: [M, C]; triplets and virtual nodes, as they are before the first layer.
            ragged: of the rows of x.
        """
        attends = batches.encoding(data, light_encoding.PAIRS, ragged.num_pairs, "LiGhT")
        running = attends.cumsum(0)
        entry = torch.where(attends, running - 1, -1)
        ends = functional.pad(running, (1, 0))[ragged.pair_ptr]
        paths = int(ends[-1])
        path = batches.encoding(data, light_encoding.PATHS, paths, "LiGhT", self.path_length)
        kind = batches.encoding(data, light_encoding.KIND, paths, "LiGhT").long()
        begin = torch.repeat_interleave(ragged.ptr[:-1], ends.diff(), output_size=paths)
        table = self.by_distance(self.distance.weight).index_select(0, kind)
        return pair_biases(entry, table + self._by_path(x, path.long(), begin), ragged)

    def _by_path(self, x: Tensor, path: Tensor, begin: Tensor) -> Tensor:
        """[P, H], of paths [P, L] whose triplets are numbered from `begin` [P] on."""
        rows = x.size(0)
        placed = torch.cat([place(x) for place in self.places])
        none = path < 0
        at = path + begin[:, None] + torch.arange(self.path_length, device=x.device) * rows
        # one further row, of zeros, stands for what is not on a path
        at = at.masked_fill_(none, self.path_length * rows)
        total = functional.embedding_bag(at, functional.pad(placed, (0, 0, 0, 1)), mode="sum")
        length = (~none).sum(1, keepdim=True)
        out: Tensor = self.by_path(total / length)
        return out

    def extra_repr(self) -> str:
        """The sizes."""
        return f"path_length={self.path_length}"


class LiGhT(nn.Module):
    """LiGhT for tasks of whole molecules.

    The rows that attend are triplets: bonds with their atoms. Two attend where a path of
    path_length triplets at most joins them. A molecule's fingerprint and descriptors, if given, are
    virtual nodes that attend with all its triplets. Scores are scaled by C ** -0.5, not by the
    width of a head.

    Deviations from the released code: of several shortest paths the one of shortest_path_edges is
    taken; no dropout of the inputs, which the released network has at 0.

    Args:
        node_features, edge_features: of the data; see gtkern.nn.FeatureEncoder.
        num_tasks: outputs for each graph.
        settings: see LiGhTSettings.
        attend: ragged_attention, or a function of the same arguments.

    Attributes:
        layers: the transformer's layers, in order.

    Reference: Li et al. 2023, "A knowledge-guided pre-training framework for improving molecular
        representation learning" (KPGT).
    """

    def __init__(
        self,
        node_features: int | Sequence[int],
        num_tasks: int,
        settings: LiGhTSettings = LiGhTSettings(),
        *,
        edge_features: int | Sequence[int] | None = None,
        attend: Callable[..., Tensor] = ops.ragged_attention,
    ) -> None:
        super().__init__()
        self.settings = settings
        width = settings.width
        self.triplets = TripletEncoder(node_features, edge_features, width)
        self.virtual = nn.ModuleDict(
            {name: _mlp(size, width) for name, size in settings.virtual.items()}
        )
        self.bias = TripletBias(settings)
        self.layers = nn.ModuleList(
            TransformerLayer(
                width,
                settings.heads,
                4 * width,
                norm="pre",
                dropout=settings.dropout,
                attention_dropout=settings.attention_dropout,
                activation="gelu",
                scale=width**-0.5,
                attend=attend,
            )
            for _ in range(settings.layers)
        )
        self.head = nn.Sequential(
            nn.Linear(width * (1 + len(settings.virtual)), settings.head_width),
            nn.Dropout(settings.dropout),
            nn.GELU(),
            nn.Linear(settings.head_width, num_tasks),
        )
        initialize_as_bert(self, settings.initial_std)  # as the released code
        nn.init.normal_(self.triplets.virtual_atom, std=settings.initial_std)
        nn.init.normal_(self.triplets.virtual_bond, std=settings.initial_std)

    @staticmethod
    def encodings(settings: LiGhTSettings) -> tuple[str, ...]:
        """The names of the arrays that `encode` adds."""
        return light_encoding.NAMES

    @staticmethod
    def encode(packed: Any, settings: LiGhTSettings) -> None:
        """Add to a gtkern.data.PackedGraphs what the network needs: its line graphs.

        See gtkern.models.light_encoding for the arrays. `fingerprint` [G, F] and `descriptors`
        [G, D] are the caller's to add, where the settings ask for them.

        Raises:
            ValueError: an edge from a node to itself.
        """
        light_encoding.encode(
            packed, path_length=settings.path_length, virtual_nodes=len(settings.virtual)
        )

    def embed(self, data: Any, prompts: Sequence[Prompt | None] | None = None) -> Tensor:
        """One vector for each graph: of its virtual nodes, then the mean over its triplets.

        Args:
            data: as PyG batches graphs: x, edge_index, ptr, edge_attr where the model was made for
                it, and what `encode` adds.
            prompts: for every layer, what a method adds to it; None: nothing.

        Returns:
            [G, C (1 + virtual nodes)].

        Raises:
            TypeError, ValueError: something is missing, or of another kind or size.
        """
        nodes = batches.graphs_of(data)
        count = batches.encoding(data, light_encoding.COUNT, nodes.num_graphs, "LiGhT")
        triplets = Ragged.from_ptr(functional.pad(count.long().cumsum(0), (1, 0)))
        x = self.triplets(data, nodes, triplets)
        tokens = x.new_zeros(nodes.num_graphs, len(self.virtual), self.settings.width)
        if self.virtual:
            graphs = nodes.num_graphs
            found = [self._virtual(data, name, graphs).to(x.dtype) for name in self.virtual]
            tokens = torch.stack(found, dim=1)
        packed = with_tokens(x, triplets, tokens, first=False)
        bias = self.bias(data, packed.x, packed.ragged)
        x = packed.x
        for layer, prompt in batches.each_with_prompt(self.layers, prompts):
            x = layer(x, packed.ragged, bias, prompt)
        mean = pool(x.index_select(0, packed.nodes), triplets, "mean")
        return torch.cat((x[packed.tokens].flatten(1), mean), dim=1)

    def _virtual(self, data: Any, name: str, graphs: int) -> Tensor:
        value, shape = getattr(data, name, None), [graphs, self.settings.virtual[name]]
        if value is None:
            raise ValueError(
                f"data.{name} must be given, got None; "
                f'packed.add("{name}", values, torch.arange(len(packed) + 1)) adds it'
            )
        if list(value.shape) != shape:
            raise ValueError(
                f"data.{name} must have shape [graphs, features] = {shape}, got {list(value.shape)}"
            )
        out: Tensor = self.virtual[name](value.to(self.head[0].weight.dtype))
        return out

    def forward(self, data: Any) -> Tensor:
        """The outputs [G, num_tasks] of the graphs; see `embed`."""
        out: Tensor = self.head(self.embed(data))
        return out
