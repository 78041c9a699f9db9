"""The calls of each room: functions that take a Draw and give a Case."""

from __future__ import annotations

from collections.abc import Callable

from ..draw import Draw
from ..judge import Case
from . import (
    additive_attention,
    block_sparse_linear,
    graph,
    neighbor_sampling,
    propagation,
    ragged,
    ragged_attention,
    sampled_attention,
    sparse_attention,
    token_dropping,
    transforms,
)

__all__ = ["ROOMS"]

ROOMS: dict[str, tuple[Callable[[Draw], Case], ...]] = {
    module.__name__.rpartition(".")[2]: module.CASES
    for module in (
        additive_attention,
        block_sparse_linear,
        graph,
        neighbor_sampling,
        propagation,
        ragged,
        ragged_attention,
        sampled_attention,
        sparse_attention,
        token_dropping,
        transforms,
    )
}
