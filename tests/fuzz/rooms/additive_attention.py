"""Calls of additive_attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gtkern import ops

from ..draw import Draw
from ..judge import Case, promise, wide
from . import attention


def case(draw: Draw) -> Case:
    graph = draw.graph()
    heads, width = draw.random.randint(1, 9), attention.width(draw)
    kind = attention.dtype(draw)
    arguments: dict[str, Any] = {
        "q": draw.floats(graph.num_dst_nodes, heads, width, dtype=kind),
        "k": draw.floats(graph.num_src_nodes, heads, width, dtype=kind),
        "v": None,
        "graph": graph,
        # for scores of unit size, by which gradients that cancel grow
        "attention": draw.floats(heads, width, dtype=kind) / width**0.5,
        "negative_slope": draw.one((0.2, 0.0, 1, -0.5)),
        "dropout": draw.one((0.0, 0.0, 0.5, 0.9)),
        "seed": draw.seed(),
        "return_scores": draw.chance(0.4),
        "backend": draw.backend(),
    }
    if draw.chance(0.4):
        arguments["v"] = draw.floats(graph.num_src_nodes, heads, width, dtype=kind)
    if draw.chance(0.4):
        arguments["edge_attr"] = draw.floats(graph.num_edges, heads, width, dtype=kind)
    tensors = [name for name, value in arguments.items() if hasattr(value, "is_floating_point")]
    learn = tuple(name for name in tensors if name != "seed" and draw.chance(0.6))
    return Case(ops.additive_attention, draw.twist(arguments), expect, gradients=learn)


def expect(results: Any, arguments: Mapping[str, Any]) -> None:
    q, graph = arguments["q"], arguments["graph"]
    shapes = [([*q.shape], q.dtype)]
    if arguments["return_scores"]:
        shapes.append(([graph.num_edges, q.size(1)], wide(q.dtype)))
    results = results if isinstance(results, tuple) else (results,)
    assert len(results) == len(shapes)
    for value, (shape, dtype) in zip(results, shapes, strict=True):
        promise(value, shape, dtype)


CASES = (case,)
