"""The twin of torch.nn.MultiheadAttention."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from gtkern.nn.dropin.packed import attend, attention_refusal, pack
from gtkern.nn.dropin.twin import Twin

__all__ = ["MultiheadAttention"]


class MultiheadAttention(Twin, nn.MultiheadAttention):
    """torch.nn.MultiheadAttention over `gtkern.ops.ragged_attention`: padding is not computed.

    That is for self-attention with a key_padding_mask, without attn_mask and need_weights; other
    calls are the layer's own. Rows of padding come out as 0, where the layer gives them the
    attention that they would pay to the others: nothing may read them.

    Attributes:
        fewest: rows of a batch, padding among them, below which torch is as fast
            (`python -m bench.dropin --grid`).

    Reference: Vaswani et al. 2017, section 3.2.2.
    """

    gain: ClassVar[str] = "the more, the more padding"
    drops_padding = True
    fewest: ClassVar[int] = 512

    @classmethod
    def refusal(cls, layer: nn.Module) -> str | None:
        """See Twin."""
        return attention_refusal(layer)

    @classmethod
    def hand_over(cls, layer: nn.Module) -> str | None:
        """See Twin."""
        return f"batches of fewer than {cls.fewest} rows"

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> Any:
        """As torch's."""
        packed = None
        own = query is key and key is value and query.dim() == 3 and not query.is_nested
        own = own and query.size(0) * query.size(1) >= self.fewest
        if own and key_padding_mask is not None and attn_mask is None and not need_weights:
            packed = pack(query, key_padding_mask, batch_first=self.batch_first)
        if packed is None or is_causal:
            return super().forward(
                query,
                key,
                value,
                key_padding_mask,
                need_weights,
                attn_mask,
                average_attn_weights,
                is_causal,
            )
        return packed.padded(attend(self, packed.x, packed.ragged)), None
