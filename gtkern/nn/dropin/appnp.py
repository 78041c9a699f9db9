"""The twin of PyG's APPNP."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch_geometric.nn.conv import appnp
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from gtkern import ops
from gtkern.graph import Graph
from gtkern.nn.dropin.message_passing import MessagePassingTwin

__all__ = ["APPNP"]


class APPNP(MessagePassingTwin, appnp.APPNP):
    """PyG's APPNP over `gtkern.ops.propagate`, with its arguments.

    K sweeps in one call, of which nothing is kept for backward. Where every edge goes both ways and
    has no weight of its own, no weights are read either.

    Attributes:
        fewest: E C K below which edges that come for the first time are swept by PyG, for grouping
            them takes longer than it saves (`python -m bench.dropin --grid`).

    Reference: Gasteiger et al. 2019 (APPNP), eq. 4 and 5.
    """

    gain: ClassVar[str] = "5x on 238,000 edges, 10x on a million, on a CPU"
    fewest: ClassVar[int] = 1_000_000

    @classmethod
    def refusal(cls, layer: nn.Module) -> str | None:
        """See Twin."""
        settings: Any = layer
        if settings.node_dim not in (0, -2):
            return f"node_dim={settings.node_dim}"
        if not 0 < settings.alpha < 1:
            return f"alpha={settings.alpha}; the op takes alpha between 0 and 1"
        if settings.K < 1:
            return f"K={settings.K}"
        return super().refusal(layer)

    @classmethod
    def hand_over(cls, layer: nn.Module) -> str | None:
        """See Twin."""
        settings: Any = layer
        new = f"the first of few edges (times channels below {-(-cls.fewest // settings.K):,})"
        return f"training, for its dropout of edges, and {new}" if settings.dropout > 0 else new

    def forward(self, x: Tensor, edge_index: Any, edge_weight: Tensor | None = None) -> Tensor:
        """As PyG's; `edge_index` may also be of a graph given to `gtkern.nn.with_graph`."""
        if not self._takes(x, edge_index, edge_weight):
            out: Tensor = super().forward(x, edge_index, edge_weight)
            return out
        graph, weight = self._operator(x, edge_index, edge_weight)
        swept: Tensor = ops.propagate(
            graph, x, self.alpha, weight=weight, steps=self.K, method="power"
        )
        return swept

    def _takes(self, x: Tensor, edges: Any, edge_weight: Tensor | None) -> bool:
        if x.dim() != 2 or x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
            return False
        if not isinstance(edges, Tensor) or edges.layout != torch.strided or self.observed():
            return False
        if edges.dim() != 2 or edges.is_floating_point():
            return False
        if edge_weight is not None and (edge_weight.requires_grad or edge_weight.dim() != 1):
            return False
        if self.training and self.dropout > 0:
            return False
        few = edges.size(1) * x.size(1) * self.K < self.fewest
        return self.graphs.pinned is not None or not few or self.graphs.known(edges)

    def _operator(
        self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None
    ) -> tuple[Graph, str | Tensor]:
        """The graph, and "sym" or a weight for each of its edges."""
        sizes = (x.size(0), x.size(0))
        if self.normalize and self.cached and self._cached_edge_index is not None:
            edge_index, edge_weight = self._cached_edge_index
            return self.graphs.graph(edge_index, sizes), edge_weight.to(x.dtype)
        if not self.normalize:
            graph = self.graphs.graph(edge_index, sizes)
            ones = x.new_ones(()).expand(graph.num_edges)
            return graph, ones if edge_weight is None else edge_weight.to(x.dtype)
        if self.cached or edge_weight is not None or not self.add_self_loops:
            return self._normalized(edge_index, edge_weight, x)
        graph = self.graphs.graph(edge_index, sizes)
        return (graph, "sym") if graph.is_symmetric() else self._normalized(edge_index, None, x)

    def _normalized(
        self, edge_index: Tensor, edge_weight: Tensor | None, x: Tensor
    ) -> tuple[Graph, Tensor]:
        given = edge_index.as_subclass(Tensor)

        def make() -> tuple[Tensor, Graph, Tensor]:
            edges, weight = gcn_norm(
                given, edge_weight, x.size(0), False, self.add_self_loops, dtype=x.dtype
            )
            return edges, Graph.from_edge_index(edges, x.size(0)), weight.to(x.dtype)

        source = self.graphs.source(edge_index, (x.size(0), x.size(0)))
        sources = (source,) if edge_weight is None else (source, edge_weight)
        kind = ("gcn_norm", x.size(0), self.add_self_loops, x.dtype)
        edges, graph, weight = self.graphs.get(sources, kind, make)
        if self.cached:
            # where PyG's own forward, and reset_parameters, look
            self._cached_edge_index = (edges, weight)
        return graph, weight
