"""The twin of PyG's TopKPooling."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch_geometric.nn.pool import topk_pool

from gtkern import ops
from gtkern.nn.dropin.packed import watched
from gtkern.nn.dropin.twin import Twin
from gtkern.ops.token_dropping import Selection
from gtkern.ragged import Ragged

__all__ = ["TopKPooling"]


class TopKPooling(Twin, topk_pool.TopKPooling):
    """PyG's TopKPooling over `gtkern.ops.select_tokens`, with its arguments and parameters.

    Only what is kept is sorted; rows, their factor and their gradients are one pass, and so are the
    edges. Of equal scores the nodes that come first are kept, which PyG leaves open.

    Attributes:
        fewest: nodes times channels below which PyG is as fast (`python -m bench.dropin --grid`).

    Reference: Gao and Ji 2019 (Graph U-Nets), eq. 2.
    """

    gain: ClassVar[str] = "1.4x on 1,024 molecules on a CPU"
    owns: ClassVar[tuple[str, ...]] = ("select", "connect")
    fewest: ClassVar[int] = 300_000

    @classmethod
    def refusal(cls, layer: nn.Module) -> str | None:
        """See Twin."""
        settings: Any = layer
        if settings.min_score is not None:
            return "min_score; the op keeps a share or a number"
        return None

    @classmethod
    def hand_over(cls, layer: nn.Module) -> str | None:
        """See Twin."""
        settings: Any = layer
        return f"calls of fewer than {-(-cls.fewest // settings.in_channels):,} nodes"

    def forward(
        self,
        x: Tensor,
        edge_index: Any,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
        attn: Tensor | None = None,
    ) -> Any:
        """As PyG's."""
        selected = None
        if self._takes(x, edge_index):
            selected = self._select(x, x if attn is None else attn, batch)
        if selected is None:
            return super().forward(x, edge_index, edge_attr, batch, attn)
        selection, score = selected
        rows = ops.gather_tokens(x, selection, score)
        rows = self.multiplier * rows if self.multiplier != 1 else rows
        edges, kept = ops.drop_tokens(edge_index, selection)
        attr = None if edge_attr is None else edge_attr.index_select(0, kept)
        perm = selection.index
        graph = edge_index.new_zeros(len(perm)) if batch is None else batch.index_select(0, perm)
        return rows, edges, attr, graph, perm, score

    def _takes(self, x: Tensor, edges: Any) -> bool:
        if not isinstance(edges, Tensor) or edges.layout != torch.strided or edges.dim() != 2:
            return False
        if edges.dtype not in (torch.int32, torch.int64) or watched(self.select):
            return False
        return x.dim() == 2 and x.numel() >= max(self.fewest, 1) and not watched(self.connect)

    def _select(
        self, x: Tensor, attn: Tensor, batch: Tensor | None
    ) -> tuple[Selection, Tensor] | None:
        """What is kept, the best first, with its scores; None: PyG's own forward does it."""
        ragged = self._ragged(x, batch)
        attn = attn.view(-1, 1) if attn.dim() == 1 else attn
        weight = self.select.weight
        score = self.select.act((attn * weight).sum(dim=-1) / weight.norm(p=2, dim=-1))
        plain = score.detach()
        if ragged is None or score.dtype != x.dtype or bool(plain.isnan().any()):
            return None
        found = ops.select_tokens(plain, ragged, k=self._counts(ragged, x.dtype))
        # PyG's order: by graph, and in it from the best down
        kept = plain.index_select(0, found.index)
        best = kept.argsort(descending=True, stable=True)
        order = best[found.kept.batch()[best].argsort(stable=True)]
        index = found.index[order]
        position = torch.full_like(found.position, -1)
        position[index] = torch.arange(len(index), device=x.device, dtype=position.dtype)
        # neither rows nor an edge_index ask for the order of what is kept
        selection = replace(found, index=index, position=position)
        return selection, score.index_select(0, index)

    def _counts(self, ragged: Ragged, dtype: torch.dtype) -> Tensor:
        """How many of each graph are kept, rounded as PyG rounds."""
        sizes = ragged.host_ptr.diff()
        if self.ratio >= 1:
            return sizes.new_full(sizes.shape, int(self.ratio))
        return (float(self.ratio) * sizes.to(dtype)).ceil().to(torch.int64)

    def _ragged(self, x: Tensor, batch: Tensor | None) -> Ragged | None:
        """The graphs of a batch vector; None where it is not sorted."""
        if batch is None:
            return Ragged.from_ptr(torch.tensor([0, x.size(0)]).to(x.device))
        given = batch

        def make() -> Ragged | None:
            sorted_ = bool((given.diff() >= 0).all())
            return Ragged.from_batch(given) if sorted_ else None

        ragged: Ragged | None = self.graphs.get((batch,), "sorted", make)
        return ragged
