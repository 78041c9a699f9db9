"""Calls of ragged_attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from gtkern import PairIndex, Ragged, ops

from ..draw import Draw
from ..judge import Case, promise
from . import attention


def pair_index(draw: Draw, ragged: Ragged) -> PairIndex:
    """An index of every pair, some of which are masked."""
    entries = draw.random.randint(1, 6)
    kind = draw.one((torch.uint8, torch.int16))
    index = draw.integers(0, entries, ragged.num_pairs, dtype=kind)
    if draw.chance(0.4):
        masked = torch.rand(index.shape, generator=draw.generator) < draw.one((0.3, 1.0))
        index[masked] = PairIndex.MASKED[kind]
    return PairIndex.from_tensor(index, ragged, entries)


def case(draw: Draw) -> Case:
    ragged = draw.ragged()
    heads, width, out_width = (
        draw.random.randint(1, 5),
        attention.width(draw),
        attention.width(draw),
    )
    kind, nodes = attention.dtype(draw), ragged.num_nodes
    arguments: dict[str, Any] = {
        "q": draw.floats(nodes, heads, width, dtype=kind),
        "k": draw.floats(nodes, heads, width, dtype=kind),
        "v": draw.floats(nodes, heads, out_width, dtype=kind),
        "ragged": ragged,
        **attention.options(draw),
        "backend": draw.backend(),
    }
    if draw.chance(0.2):
        parts = draw.floats(nodes, 3, heads, width, dtype=kind).unbind(1)
        arguments.update(zip("qkv", parts, strict=True))
        out_width = width
    if draw.chance(0.5):
        table = draw.one((kind, torch.float32))
        pairs = []
        for _ in range(draw.random.randint(0, 3)):
            index = pair_index(draw, ragged)
            rows = index.num_entries + draw.one((0, 0, 2))
            pairs.append((index, draw.floats(rows, heads, dtype=table)))
        arguments["bias"] = pairs if draw.chance(0.5) else tuple(pairs)
    if draw.chance(0.4):
        slots, sets = draw.size(3), draw.random.randint(1, 3)
        lead = (slots,)
        if draw.chance(0.5):
            lead = (sets, slots)
            arguments["prefix_set"] = draw.integers(-1, sets, ragged.num_graphs, dtype=torch.int64)
        arguments["prefix_k"] = draw.floats(*lead, heads, width, dtype=kind)
        arguments["prefix_v"] = draw.floats(*lead, heads, out_width, dtype=kind)
    names = ("q", "k", "v", "prefix_k", "prefix_v")
    learn = tuple(name for name in names if name in arguments and draw.chance(0.6))
    return Case(ops.ragged_attention, draw.twist(arguments), expect, gradients=learn)


def expect(results: Any, arguments: Mapping[str, Any]) -> None:
    q, v = arguments["q"], arguments["v"]
    promise(results, [q.size(0), q.size(1), v.size(2)], q.dtype)


CASES = (case,)
