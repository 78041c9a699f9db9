"""The twin of Graphormer's attention, as Microsoft and Hugging Face published it."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from gtkern import ops
from gtkern.graph import Graph
from gtkern.nn.dropin.copies import CopiedTwin
from gtkern.nn.dropin.packed import WIDEST, watched
from gtkern.ragged import Ragged

__all__ = ["CopiedGraphormerAttention"]


class _Pairs(NamedTuple):
    """The pairs of nodes of a padded batch that are no padding.

    Attributes:
        graph: whose edges are the pairs.
        rows: int64 [N]; where the nodes are among the rows of the batch, of [T, B].
        place: int64 [E]; where the pairs are in [B, T, T].
    """

    graph: Graph
    rows: Tensor
    place: Tensor


class CopiedGraphormerAttention(CopiedTwin):
    """Graphormer's biased self-attention without padding, over `gtkern.ops.sparse_attention`.

    That is for calls with a key_padding_mask whose weights nobody wants. The bias is what the model
    made, one number for each pair and head; only that of real pairs is read. Rows of padding come
    out as 0: nothing may read them.

    Attributes:
        fewest: pairs of a batch, padding among them, below which padding is as fast
            (`python -m bench.dropin --grid`).
        fullest: share of the pairs that are no padding, above which it is.

    Reference: Ying et al. 2021 (Graphormer), eq. 5 to 7. `gtkern.models.Graphormer` looks biases up
    and never makes them, which is faster still.
    """

    gain: ClassVar[str] = "6x on 128 molecules on a CPU; the more, the more padding"
    drops_padding = True
    fewest: ClassVar[int] = 200_000
    fullest: ClassVar[float] = 0.65
    of_any_size: ClassVar[dict[str, Any]] = {"fewest": 0, "fullest": 1.0}

    @classmethod
    def hand_over(cls, layer: nn.Module) -> str | None:
        """See Twin."""
        return f"batches of fewer than {cls.fewest:,} pairs or with little padding"

    @classmethod
    def concerns(cls, layer: nn.Module) -> bool:
        """See Twin."""
        parts = (getattr(layer, f"{name}_proj", None) for name in ("q", "k", "v", "out"))
        if not all(isinstance(part, nn.Linear) for part in parts):
            return False
        sizes = (getattr(layer, name, None) for name in ("num_heads", "head_dim", "embed_dim"))
        wanted = {"query", "attn_bias", "key_padding_mask", "need_weights", "before_softmax"}
        known = wanted <= inspect.signature(type(layer).forward).parameters.keys()
        return known and all(isinstance(size, int) for size in sizes)

    @classmethod
    def refusal(cls, layer: nn.Module) -> str | None:
        """See Twin."""
        settings: Any = layer
        if _dropout(layer) is None:
            return "its dropout is no module of a known name"
        return (
            f"heads wider than {WIDEST}" if settings.head_dim > WIDEST else super().refusal(layer)
        )

    @classmethod
    def attempt(cls, layer: nn.Module) -> Tensor:
        """See CopiedTwin."""
        settings: Any = layer
        like = settings.q_proj.weight
        padding = torch.tensor([[False, False, False], [False, False, True]], device=like.device)
        x = torch.randn(3, 2, settings.embed_dim).to(like)
        bias = torch.randn(2, settings.num_heads, 3, 3).to(like)
        out = layer(x, x, x, bias, key_padding_mask=padding, need_weights=False)[0]
        real: Tensor = out.transpose(0, 1)[~padding]
        return real

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        attn_bias: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        before_softmax: bool = False,
        need_head_weights: bool = False,
    ) -> Any:
        """As the layer's: x [T, B, C], attn_bias [B, H, T, T], key_padding_mask [B, T]."""
        own = (key is query or key is None) and (value is query or value is None)
        extra = need_weights or before_softmax or need_head_weights or attn_mask is not None
        pairs = None
        if own and not extra and key_padding_mask is not None and not watched(self):
            pairs = self._worthwhile(key_padding_mask)
        if pairs is None:
            return super().forward(
                query,
                key,
                value,
                attn_bias,
                key_padding_mask,
                need_weights,
                attn_mask,
                before_softmax,
                need_head_weights,
            )
        length, count, width = query.shape
        x = query.flatten(0, 1).index_select(0, pairs.rows)
        q, k, v = (
            layer(x).view(-1, self.num_heads, self.head_dim)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        bias = None
        if attn_bias is not None:
            by_pair = attn_bias.view(count, self.num_heads, length, length).permute(0, 2, 3, 1)
            bias = by_pair.flatten(0, 2).index_select(0, pairs.place)
        out = ops.sparse_attention(q, k, v, pairs.graph, bias=bias, dropout=_dropout(self) or 0.0)
        rows = self.out_proj(out.flatten(1))
        padded = rows.new_zeros(length * count, rows.size(1)).index_copy(0, pairs.rows, rows)
        return padded.view(length, count, width), None

    def _worthwhile(self, padding: Tensor) -> _Pairs | None:
        """The pairs that are no padding; None: leaving padding out would not be faster."""
        every = padding.numel() * padding.size(1)
        # numbers in place of a mask: their inverse is another thing
        if every < self.fewest or padding.dtype != torch.bool:
            return None

        def make() -> _Pairs | None:
            real = int((~padding).sum(1).square().sum())
            return _pairs(padding) if 0 < real <= self.fullest * every else None

        pairs: _Pairs | None = self.graphs.get((padding,), "pairs", make)
        return pairs


def _dropout(layer: nn.Module) -> float | None:
    """Of the attention weights, now; None: not found."""
    for name in ("dropout_module", "attention_dropout_module"):
        module = getattr(layer, name, None)
        rate = getattr(module, "p", None)
        if isinstance(module, nn.Module) and isinstance(rate, float | int):
            return float(rate) if module.training else 0.0
    return None


def _pairs(padding: Tensor) -> _Pairs:
    """The pairs of a mask [B, T], True where there is no node."""
    count, length = padding.shape
    real = ~padding
    ends = real.sum(1).cumsum(0)
    ragged = Ragged.from_ptr(torch.cat((ends.new_zeros(1), ends)))
    sequence, position = real.nonzero(as_tuple=True)
    query, key = ragged.pairs()
    degree = ragged.sizes()[ragged.batch()]
    graph = Graph.from_csr(torch.cat((ends.new_zeros(1), degree.cumsum(0))), key)
    place = (sequence[query] * length + position[query]) * length + position[key]
    return _Pairs(graph, position * count + sequence, place)
