"""What twins of PyG's two graph attention layers share: the calls they take, and self loops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.utils import add_self_loops, remove_self_loops

from gtkern.graph import Graph
from gtkern.nn.dropin.message_passing import WIDEST, MessagePassingTwin

__all__ = ["SelfLoopTwin"]


class SelfLoopTwin(MessagePassingTwin):
    """A twin of a layer that may add a self loop to every node."""

    @classmethod
    def hand_over(cls, layer: nn.Module) -> str | None:
        """See Twin."""
        settings: Any = layer
        width = settings.heads * settings.out_channels + cls.overhead
        return f"calls of fewer than {-(-cls.fewest // width):,} edges"

    @classmethod
    def refusal(cls, layer: nn.Module) -> str | None:
        """See Twin."""
        settings: Any = layer
        if settings.out_channels > WIDEST:
            return f"out_channels above {WIDEST}"
        return super().refusal(layer)

    def takes(self, x: Any, edges: Any, wants_weights: Any) -> bool:
        """Whether a call can be computed here, and not slower."""
        # first what small calls end with: the rest would be a share of their time
        if not isinstance(edges, Tensor) or edges.dim() != 2 or self.small(edges):
            return False
        pair = (x, x) if isinstance(x, Tensor) else tuple(x)
        if not all(isinstance(part, Tensor) and part.dim() == 2 for part in pair):
            return False
        if edges.layout != torch.strided or edges.is_floating_point() or edges.size(1) == 0:
            return False
        # PyG returns weights behind their dropout, the op before it
        return not (self.observed() or (wants_weights and self.training and self.dropout > 0))

    def looped(
        self, edge_index: Tensor, edge_attr: Tensor | None, sizes: tuple[int, int]
    ) -> tuple[Tensor, Tensor | None, Graph]:
        """The edges with self loops, where they are wanted, their features and their graph."""
        plain = type(edge_index) is Tensor
        given = edge_index if plain else edge_index.as_subclass(Tensor)
        if not self.add_self_loops:
            return given, edge_attr, self.graphs.graph(edge_index, sizes)

        def make() -> tuple[Tensor, Graph]:
            edges, _ = self._with_loops(given, None, min(sizes))
            return edges, Graph.from_edge_index(edges, sizes)

        source = self.graphs.source(edge_index, sizes)
        made: tuple[Tensor, Graph] = self.graphs.get((source,), ("loops", sizes), make)
        if edge_attr is not None:
            _, edge_attr = self._with_loops(given, edge_attr, min(sizes))
        return made[0], edge_attr, made[1]

    def _with_loops(self, edges: Tensor, attr: Tensor | None, nodes: int) -> Any:
        edges, attr = remove_self_loops(edges, attr)
        return add_self_loops(edges, attr, fill_value=self.fill_value, num_nodes=nodes)
