"""The twin of PyG's GPSConv."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.nn.conv import gps_conv

from gtkern.nn.dropin.packed import attend, attention_refusal, watched
from gtkern.nn.dropin.twin import Twin
from gtkern.ragged import Ragged

__all__ = ["GPSConv"]


class GPSConv(Twin, gps_conv.GPSConv):
    """PyG's GPSConv, which attends inside each graph without padding.

    Its local layer is called as it is; `accelerate` replaces it too where it has a twin. The batch
    vector has to be sorted, as in every PyG batch.

    Attributes:
        fewest: nodes below which torch's attention is as fast (`python -m bench.dropin --grid`).

    Reference: Rampášek et al. 2022 (GraphGPS), eq. 1 to 5.
    """

    gain: ClassVar[str] = "2x on 128 molecules on a CPU; the more, the more their sizes differ"
    owns: ClassVar[tuple[str, ...]] = ("attn",)
    fewest: ClassVar[int] = 64

    @classmethod
    def refusal(cls, layer: nn.Module) -> str | None:
        """See Twin."""
        return attention_refusal(layer.get_submodule("attn"))

    @classmethod
    def hand_over(cls, layer: nn.Module) -> str | None:
        """See Twin."""
        return f"calls of fewer than {cls.fewest} nodes"

    def forward(
        self, x: Tensor, edge_index: Any, batch: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """As PyG's."""
        if x.dim() != 2 or x.size(0) < max(self.fewest, 1) or watched(self.attn):
            out: Tensor = super().forward(x, edge_index, batch, **kwargs)
            return out
        attended = attend(self.attn, x, self._ragged(x, batch))
        total = self._after(self.norm2, attended, x, batch)
        if self.conv is not None:
            local = self._after(self.norm1, self.conv(x, edge_index, **kwargs), x, batch)
            total = local + total
        return self._normed(self.norm3, total + self.mlp(total), batch)

    def _ragged(self, x: Tensor, batch: Tensor | None) -> Ragged:
        if batch is None:
            return Ragged.from_ptr(torch.tensor([0, x.size(0)]).to(x.device))
        return self.graphs.ragged(batch)

    def _after(
        self, norm: nn.Module | None, out: Tensor, x: Tensor, batch: Tensor | None
    ) -> Tensor:
        """Dropout, the residual and its norm."""
        dropped = functional.dropout(out, p=self.dropout, training=self.training)
        return self._normed(norm, dropped + x, batch)

    def _normed(self, norm: Any, x: Tensor, batch: Tensor | None) -> Tensor:
        if norm is None:
            return x
        out: Tensor = norm(x, batch=batch) if self.norm_with_batch else norm(x)
        return out
