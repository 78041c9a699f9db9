"""Attention of a Hugging Face encoder over texts one after the other, without padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gtkern import ops
from gtkern.methods.leading._libraries import import_transformers
from gtkern.ragged import Ragged

__all__ = ["PACKED_ATTENTION", "can_pack", "encode_packed", "use_packed_attention"]

PACKED_ATTENTION = "gtkern_ragged"
"""Its name among the attentions of transformers."""


def can_pack(encoder: Any) -> bool:
    """Whether transformers lets one choose an encoder's attention."""
    return bool(encoder._can_set_attn_implementation())


def use_packed_attention(encoder: Any) -> None:
    """Let an encoder attend by `gtkern.ops.ragged_attention`.

    Args:
        encoder: changed; from now on called by `encode_packed` alone.

    Raises:
        ValueError: its attention cannot be chosen (transformers' AttentionInterface).
    """
    transformers = import_transformers()
    if not can_pack(encoder):
        raise ValueError(
            "packed needs a model whose attention transformers lets one choose (BERT, RoBERTa, "
            f"DistilBERT, ELECTRA and others), got {encoder.config.model_type}"
        )
    transformers.AttentionInterface.register(PACKED_ATTENTION, _attention)
    encoder.set_attn_implementation(PACKED_ATTENTION)


def encode_packed(encoder: Any, input_ids: Tensor, ptr: Tensor, first_position: int = 0) -> Tensor:
    """The last hidden state of every token.

    Args:
        encoder: after `use_packed_attention`.
        input_ids: int64 [T], the texts one after the other.
        ptr: int64 [b + 1] on the CPU: where each begins.
        first_position: number of a text's first position.

    Returns:
        [T, width].
    """
    lengths = ptr.diff()
    start = torch.repeat_interleave(ptr[:-1], lengths)
    position = torch.arange(input_ids.numel()) - start + first_position
    device = input_ids.device
    hidden: Tensor = encoder(
        input_ids=input_ids[None],
        position_ids=position.to(device)[None],
        ragged=Ragged.from_host(ptr, ptr.to(device)),
    ).last_hidden_state
    return hidden[0]


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    ragged: Ragged | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What transformers calls with [1, H, T, D]; returns [1, T, H, D]."""
    if ragged is None or attention_mask is not None:
        raise ValueError(
            f"packed needs a model that hands its arguments on to its attention, "
            f"{type(module).__name__} does not"
        )
    q, k, v = (rows[0].transpose(0, 1) for rows in (query, key, value))
    out = ops.ragged_attention(q, k, v, ragged, scale=scaling, dropout=dropout)
    return out[None], None
