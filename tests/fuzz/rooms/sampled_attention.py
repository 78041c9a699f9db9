"""Calls of sampled_attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from gtkern import ops

from ..draw import Draw
from ..judge import Case, promise, wide
from . import attention


def case(draw: Draw) -> Case:
    num_src, num_dst, places = draw.size(), draw.size(), draw.size(7)
    heads, width, out_width = (
        draw.random.randint(1, 5),
        attention.width(draw),
        attention.width(draw),
    )
    kind = attention.dtype(draw)
    low = draw.one((-1, -1, 0 if num_src else -1))
    neighbors = torch.randint(low, max(num_src, 0), (num_dst, places), generator=draw.generator)
    arguments: dict[str, Any] = {
        "q": draw.floats(num_dst, heads, width, dtype=kind),
        "k": draw.floats(num_src, heads, width, dtype=kind),
        "v": draw.floats(num_src, heads, out_width, dtype=kind),
        "neighbors": neighbors.int(),
        **attention.score_options(draw),
    }
    typed = draw.chance(0.3)
    if typed:
        arguments["edge_type"] = draw.integers(0, 3, num_dst, places, dtype=torch.uint8)
    lead = (3,) if typed and draw.chance(0.5) else (num_dst, places)
    if draw.chance(0.3):
        arguments["key_scale"] = attention.term(draw, kind, *lead, heads, draw.one((1, width)))
    if draw.chance(0.3):
        arguments["bias"] = attention.term(draw, kind, *lead, heads)
    if draw.chance(0.3):
        attr_width = attention.width(draw)
        arguments["edge_query"] = draw.floats(num_dst, heads, attr_width, dtype=kind)
        arguments["edge_attr"] = draw.floats(num_dst, places, attr_width, dtype=kind)
    if draw.chance(0.05):
        arguments["compat"] = "spexphormer-release"
        arguments["backend"] = draw.one(("reference", "auto"))
    tensors = [name for name, value in arguments.items() if hasattr(value, "is_floating_point")]
    whole = ("seed", "neighbors", "edge_type")
    learn = tuple(name for name in tensors if name not in whole and draw.chance(0.6))
    return Case(ops.sampled_attention, draw.twist(arguments), expect, gradients=learn)


def expect(results: Any, arguments: Mapping[str, Any]) -> None:
    q, v, neighbors = arguments["q"], arguments["v"], arguments["neighbors"]
    shapes = [([q.size(0), q.size(1), v.size(2)], q.dtype)]
    if arguments.get("edge_attr") is not None:
        shapes.append(([*q.shape[:2], arguments["edge_attr"].size(2)], q.dtype))
    if arguments["return_scores"]:
        shapes.append(([*neighbors.shape, q.size(1)], wide(q.dtype)))
    results = results if isinstance(results, tuple) else (results,)
    assert len(results) == len(shapes)
    for value, (shape, dtype) in zip(results, shapes, strict=True):
        promise(value, shape, dtype)


CASES = (case,)
