"""The twin of PyG's TransformerConv."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.nn.conv import transformer_conv

from gtkern import ops
from gtkern.nn.dropin.message_passing import (
    WIDEST,
    MessagePassingTwin,
    plain_edges,
    plain_linear,
    widened,
)

__all__ = ["TransformerConv"]


class TransformerConv(MessagePassingTwin, transformer_conv.TransformerConv):
    """PyG's TransformerConv over `gtkern.ops.sparse_attention`, with its arguments and parameters.

    Edge features meet queries instead of keys, (q W) e in place of q (W e), and their attended sum
    meets W once for each node: no tensor of E H C, and memory kept for backward is that of nodes.

    Reference: Shi et al. 2021 (UniMP), eq. 3 to 5.
    """

    gain: ClassVar[str] = "12x on 238,000 edges, 17x on a million, of 4 x 16 channels on a CPU"

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
        if max(settings.out_channels, settings.edge_dim or 0) > WIDEST:
            return f"out_channels or edge_dim above {WIDEST}"
        return super().refusal(layer)

    def forward(
        self,
        x: Tensor | tuple[Tensor, Tensor],
        edge_index: Any,
        edge_attr: Tensor | None = None,
        return_attention_weights: bool | None = None,
    ) -> Any:
        """As PyG's; `edge_index` may also be of a graph given to `gtkern.nn.with_graph`."""
        source, target = (x, x) if isinstance(x, Tensor) else x
        wants_weights = isinstance(return_attention_weights, bool)
        if not self._takes(source, target, edge_index, edge_attr, wants_weights):
            return super().forward(x, edge_index, edge_attr, return_attention_weights)
        shape = (-1, self.heads, self.out_channels)
        projected = self._project(source, target)
        query, key, value = (part.reshape(shape) for part in projected[:3])
        graph = self.graphs.graph(edge_index, (source.size(0), target.size(0)))
        attend: dict[str, Any] = {"dropout": self.dropout if self.training else 0.0}
        weight = None
        if self.lin_edge is not None:
            assert edge_attr is not None
            weight = self.lin_edge.weight.view(*shape[1:], -1)
            edge_query = torch.einsum("nhc,hcd->nhd", query, weight.to(query.dtype))
            attend |= {"edge_query": edge_query, "edge_attr": edge_attr.to(query.dtype)}
        parts = ops.sparse_attention(
            query, key, value, graph, return_scores=wants_weights, **attend
        )
        out, *further = parts if isinstance(parts, tuple) else (parts,)
        if weight is not None:
            out = out + torch.einsum("nhd,hcd->nhc", further[0], weight.to(out.dtype))
        # on a CPU autocast leaves the sum over channels, and so the softmax, as narrow as the keys
        out = self._finish(out if source.is_cpu else widened(out, source), projected[3])
        return (out, (edge_index, further[-1])) if wants_weights else out

    def _takes(
        self, source: Any, target: Any, edges: Any, edge_attr: Tensor | None, wants_weights: bool
    ) -> bool:
        # first what small calls end with: the rest would be a share of their time
        if not isinstance(edges, Tensor) or edges.dim() != 2 or self.small(edges):
            return False
        if not (isinstance(source, Tensor) and isinstance(target, Tensor)):
            return False
        if source.dim() != 2 or target.dim() != 2 or not plain_edges(edges) or self.observed():
            return False
        if (self.lin_edge is None) != (edge_attr is None):
            return False
        if edge_attr is not None and (edge_attr.dim() != 2 or not plain_linear(self.lin_edge)):
            return False
        return not (wants_weights and edges.layout != torch.strided)

    def _project(self, source: Tensor, target: Tensor) -> tuple[Any, ...]:
        """Queries, keys, values and the root's part, or None; in one product where it can be."""
        layers = [self.lin_query, self.lin_key, self.lin_value]
        if self.root_weight:
            layers.append(self.lin_skip)
        if source is not target or not all(plain_linear(layer) for layer in layers):
            inputs = (target, source, source, target)
            parts = [layer(x) for layer, x in zip(layers, inputs, strict=False)]
        else:
            weight = torch.cat([layer.weight for layer in layers])
            biased = layers[0].bias is not None
            bias = torch.cat([layer.bias for layer in layers]) if biased else None
            sizes = [layer.weight.size(0) for layer in layers]
            parts = list(functional.linear(source, weight, bias).split(sizes, dim=1))
        return (*parts, None)[:4]

    def _finish(self, out: Tensor, root: Tensor | None) -> Any:
        """Heads together, and the root's part."""
        out = out.flatten(1) if self.concat else out.mean(dim=1)
        if root is None:
            return out
        if self.lin_beta is None:
            return out + root
        share = self.lin_beta(torch.cat([out, root, out - root], dim=-1)).sigmoid()
        return share * root + (1 - share) * out
