"""Calls of sparse_attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gtkern import ops

from ..draw import Draw
from ..judge import Case, promise, wide
from . import attention


def case(draw: Draw) -> Case:
    graph = draw.graph()
    heads, width, out_width = (
        draw.random.randint(1, 5),
        attention.width(draw),
        attention.width(draw),
    )
    kind = attention.dtype(draw)
    num_src, num_dst, edges = graph.num_src_nodes, graph.num_dst_nodes, graph.num_edges
    arguments: dict[str, Any] = {
        "q": draw.floats(num_dst, heads, width, dtype=kind),
        "k": draw.floats(num_src, heads, width, dtype=kind),
        "v": draw.floats(num_src, heads, out_width, dtype=kind),
        "graph": graph,
        **attention.score_options(draw),
    }
    rows = graph.num_edge_types if graph.has_edge_types and draw.chance(0.7) else edges
    if draw.chance(0.3):
        arguments["key_scale"] = attention.term(draw, kind, rows, heads, draw.one((1, width)))
    if draw.chance(0.3):
        arguments["bias"] = attention.term(draw, kind, rows, heads)
    if draw.chance(0.3):
        attr_width = attention.width(draw)
        arguments["edge_query"] = draw.floats(num_dst, heads, attr_width, dtype=kind)
        arguments["edge_attr"] = draw.floats(edges, attr_width, dtype=kind)
    if draw.chance(0.3) and not arguments["return_scores"]:
        slots = draw.size(3)
        arguments["prefix_k"] = draw.floats(slots, heads, width, dtype=kind)
        arguments["prefix_v"] = draw.floats(slots, heads, out_width, dtype=kind)
    if draw.chance(0.1) and width == out_width:
        arguments["k"] = arguments["v"] = draw.floats(num_src, heads, width, dtype=kind)
    tensors = [name for name, value in arguments.items() if hasattr(value, "is_floating_point")]
    learn = tuple(name for name in tensors if name != "seed" and draw.chance(0.6))
    return Case(ops.sparse_attention, draw.twist(arguments), expect, gradients=learn)


def expect(results: Any, arguments: Mapping[str, Any]) -> None:
    q, v, graph = arguments["q"], arguments["v"], arguments["graph"]
    shapes = [([q.size(0), q.size(1), v.size(2)], q.dtype)]
    if arguments.get("edge_attr") is not None:
        shapes.append(([*q.shape[:2], arguments["edge_attr"].size(1)], q.dtype))
    if arguments["return_scores"]:
        shapes.append(([graph.num_edges, q.size(1)], wide(q.dtype)))
    results = results if isinstance(results, tuple) else (results,)
    assert len(results) == len(shapes)
    for value, (shape, dtype) in zip(results, shapes, strict=True):
        promise(value, shape, dtype)


CASES = (case,)
