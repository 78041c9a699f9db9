"""What twins of PyG's message passing layers share."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch_geometric.nn.dense.linear import Linear

from gtkern.nn.dropin.twin import Twin

__all__ = ["MessagePassingTwin"]

_STAGES = ("propagate", "message", "aggregate", "message_and_aggregate", "edge_update")
WIDEST = 256
"""Channels of a head that the kernels take."""


class MessagePassingTwin(Twin):
    """A twin that computes messages, their weights and sums in one op.

    Attributes:
        overhead: what an edge costs PyG beside its channels, in channels.
        fewest: the size of the smallest call that attention is computed for, E (H C + overhead):
            below it, PyG's own forward was as fast or faster (`python -m bench.dropin --grid`).
        fewest_new: the same where the edges come for the first time and have to be grouped.
    """

    takes_graph = True
    overhead: ClassVar[int] = 32
    fewest: ClassVar[int] = 1_000_000
    fewest_new: ClassVar[int] = 0

    @classmethod
    def refusal(cls, layer: nn.Module) -> str | None:
        """See Twin."""
        settings: Any = layer
        if settings.aggr not in ("add", "sum"):
            return f"aggr={settings.aggr!r}; the op adds up"
        if settings.flow != "source_to_target":
            return f"flow={settings.flow!r}; only 'source_to_target' is computed"
        if settings.decomposed_layers > 1:
            return f"decomposed_layers={settings.decomposed_layers}"
        return None

    def _set_jittable_templates(self, raise_on_error: bool = False) -> None:
        """Write no methods into the class of the twin: PyG would read them off the twin's forward,
        where there are no messages. The layer's own are inherited.
        """

    def observed(self) -> bool:
        """Whether somebody wants to see messages: an explainer, or hooks on the stages."""
        layer: Any = self
        return bool(layer.explain) or any(
            getattr(layer, f"_{stage}_forward{when}_hooks")
            for stage in _STAGES
            for when in ("", "_pre")
        )

    def small(self, edges: Tensor) -> bool:
        """Whether the layer's own forward is faster; never with a graph given by with_graph."""
        layer: Any = self
        if self.graphs.pinned is not None:
            return False
        count = edges.size(1) if edges.layout == torch.strided else edges._nnz()
        size = count * (layer.heads * layer.out_channels + self.overhead)
        if size < self.fewest:
            return True
        return size < self.fewest_new and not self.graphs.known(edges)


def plain_edges(edges: Any) -> bool:
    """Whether edges are an edge_index, or a sparse matrix without channels for each edge."""
    if not isinstance(edges, Tensor):
        return False
    if edges.layout == torch.strided:
        return edges.dim() == 2 and not edges.is_floating_point()
    if edges.layout == torch.sparse_coo:
        return edges.is_coalesced() and edges.dense_dim() == 0
    return edges.layout == torch.sparse_csr and edges.dense_dim() == 0


def plain_linear(layer: nn.Module) -> bool:
    """Whether a linear layer's weight says all: it is there, and no hook waits for a call."""
    lazy = nn.parameter.UninitializedParameter
    return (
        type(layer) in (Linear, nn.Linear)
        and not isinstance(layer.weight, lazy)
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
    )


def widened(out: Tensor, x: Tensor) -> Tensor:
    """The result in the dtype that PyG gives it where its scores are float32 under autocast."""
    if torch.is_autocast_enabled(x.device.type) and out.dtype != torch.float64:
        return out.float()
    return out
