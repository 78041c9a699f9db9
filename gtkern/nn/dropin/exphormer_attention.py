"""The twin of the attention of Exphormer's published code."""

from __future__ import annotations

import types
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gtkern import ops
from gtkern.nn.dropin.copies import CopiedTwin
from gtkern.nn.dropin.packed import WIDEST

__all__ = ["CopiedExphormerAttention"]


class CopiedExphormerAttention(CopiedTwin):
    """Exphormer's attention over `gtkern.ops.sparse_attention`: no message is made.

    It reads from the batch what the layer reads (x, expander_edge_index, expander_edge_attr and
    those of the virtual nodes) and writes virt_h; the parts of the computation that the layer
    leaves in the batch (Q_h, K_h, V_h, E, wV, Z) it does not.

    Attributes:
        fewest: edges times channels below which messages are as fast; edges that come for the first
            time have to be three times as many (`python -m bench.dropin --grid`).

    Reference: Shirzad et al. 2023 (Exphormer), eq. 2. `gtkern.nn.ExphormerAttention` is the layer
    for new models.
    """

    gain: ClassVar[str] = "2x on 284,000 edges of 4 x 16 channels on a CPU, a quarter of the memory"
    fewest: ClassVar[int] = 300_000

    @classmethod
    def hand_over(cls, layer: nn.Module) -> str | None:
        """See Twin."""
        settings: Any = layer
        width = settings.num_heads * settings.out_dim
        return f"calls of fewer than {-(-cls.fewest // width):,} edges"

    @classmethod
    def concerns(cls, layer: nn.Module) -> bool:
        """See Twin."""
        parts = (getattr(layer, name, None) for name in "QKEV")
        sizes = (getattr(layer, name, None) for name in ("out_dim", "num_heads"))
        known = all(isinstance(part, nn.Linear) for part in parts)
        return known and all(isinstance(size, int) for size in sizes)

    @classmethod
    def refusal(cls, layer: nn.Module) -> str | None:
        """See Twin."""
        settings: Any = layer
        return f"heads wider than {WIDEST}" if settings.out_dim > WIDEST else super().refusal(layer)

    @classmethod
    def attempt(cls, layer: nn.Module) -> Tensor:
        """See CopiedTwin."""
        settings: Any = layer
        like = settings.Q.weight
        nodes, edges, channels = 4, 9, settings.E.in_features

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape).to(like)

        batch = _Batch(
            x=normal(nodes, settings.Q.in_features),
            batch=torch.zeros(nodes, dtype=torch.int64, device=like.device),
            expander_edge_index=torch.randint(nodes, (2, edges)).to(like.device),
            expander_edge_attr=normal(edges, channels),
            virt_h=normal(1, settings.Q.in_features),
            virt_edge_index=torch.tensor([[0, nodes], [nodes, 1]], device=like.device),
            virt_edge_attr=normal(2, channels),
        )
        out: Tensor = layer(batch)
        return torch.cat((out.flatten(), batch.virt_h.flatten()))

    def forward(self, batch: Any) -> Tensor:
        """As the layer's."""
        x, edges, attr = batch.x, batch.expander_edge_index, batch.expander_edge_attr
        size = edges.size(1) * self.num_heads * self.out_dim
        if size < self.fewest or (size < 3 * self.fewest and not self.graphs.known(edges)):
            own: Tensor = super().forward(batch)
            return own
        nodes = x.size(0)
        if getattr(self, "use_virt_nodes", False):
            x = torch.cat((x, batch.virt_h))
            edges = self._with_virtual(edges, batch.virt_edge_index)
            attr = torch.cat((attr, batch.virt_edge_attr))
        shape = (-1, self.num_heads, self.out_dim)
        attended: Tensor = ops.sparse_attention(
            self.Q(x).view(shape),
            self.K(x).view(shape),
            self.V(x).view(shape),
            self.graphs.graph(edges, (x.size(0), x.size(0))),
            key_scale=self.E(attr).view(shape),
            clamp=5.0,
            normalization="exphormer",
        )
        out = attended.flatten(1)
        if getattr(self, "use_virt_nodes", False):
            batch.virt_h = out[nodes:]
        return out[:nodes]

    def _with_virtual(self, edges: Tensor, virtual: Tensor) -> Tensor:
        """Both kinds of edges, as one tensor for all layers that meet them."""
        together: Tensor = self.graphs.get(
            (edges, virtual), "virtual", lambda: torch.cat((edges, virtual), dim=1)
        )
        return together


class _Batch(types.SimpleNamespace):
    """Attributes by name, as those of a PyG batch."""
