"""Calls of select_tokens, gather_tokens, scatter_tokens, drop_tokens and gather_pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from gtkern import Graph, PairIndex, ops
from gtkern.ops import Selection

from ..draw import DTYPES, FLOATS, Draw
from ..judge import Case, promise
from .ragged_attention import pair_index


def select(draw: Draw) -> Case:
    ragged = draw.ragged()
    nodes = ragged.num_nodes
    arguments: dict[str, Any] = {
        "score": draw.floats(nodes, dtype=draw.one((torch.float32, *FLOATS))),
        "ragged": ragged,
        "temperature": draw.one((1.0, 0.3, 5)),
        "seed": draw.seed(),
        "noise": draw.one((None, "gumbel")),
        "backend": draw.backend(),
    }
    if draw.chance(0.5):
        arguments["ratio"] = draw.one((0.5, 1.0, 1e-9, 0.07, 1))
    elif draw.chance(0.5):
        arguments["k"] = draw.one((1, 2, 100, 2**62))
    else:
        arguments["k"] = draw.integers(0, 5, ragged.num_graphs, dtype=torch.int64)
    if draw.chance(0.3):
        kept = torch.rand(nodes, generator=draw.generator) < draw.one((0.2, 1.0))
        arguments["always_keep"] = kept
    # the gradients of gates are those of a softmax: compared by the room's own tests
    return Case(ops.select_tokens, draw.twist(arguments), expect_selection)


def expect_selection(results: Any, arguments: Mapping[str, Any]) -> None:
    ragged, score = arguments["ragged"], arguments["score"]
    assert isinstance(results, Selection)
    kept = results.num_kept
    promise(results.index, [kept], torch.int64, "index")
    promise(results.position, [ragged.num_nodes], torch.int32, "position")
    promise(results.kept_ptr, [ragged.num_graphs + 1], torch.int64, "kept_ptr")
    promise(results.gate, [kept], score.dtype, "gate")
    if score.is_meta:
        return
    assert bool((results.index.diff() > 0).all())
    assert torch.equal(results.position[results.index].long(), torch.arange(kept))
    assert int((results.position >= 0).sum()) == kept
    assert bool((results.kept.sizes() <= ragged.sizes()).all())
    other = {"cpu": "reference", "reference": "cpu"}.get(arguments["backend"], "reference")
    if arguments["noise"] is None or arguments["seed"] is not None:
        again = ops.select_tokens(**{**arguments, "backend": other})
        assert torch.equal(results.index, again.index)


def selection(draw: Draw) -> Selection:
    ragged = draw.ragged()
    score = torch.randn(ragged.num_nodes, generator=draw.generator)
    k = draw.integers(0, 5, ragged.num_graphs, dtype=torch.int64)
    return ops.select_tokens(score, ragged, k=k)


def gather(draw: Draw) -> Case:
    chosen = selection(draw)
    kind = draw.one((*FLOATS, *DTYPES))
    tail = [draw.size(20) for _ in range(draw.one((0, 1, 1, 2)))]
    arguments: dict[str, Any] = {
        "x": draw.floats(chosen.ragged.num_nodes, *tail).to(kind),
        "selection": chosen,
        "backend": draw.backend(),
    }
    if kind in FLOATS and draw.chance(0.5):
        arguments["gate"] = draw.floats(chosen.num_kept, dtype=kind)
    learn = tuple(name for name in ("x", "gate") if draw.chance(0.6))
    twisted = draw.twist(arguments)
    oracle = kind in FLOATS
    return Case(ops.gather_tokens, twisted, expect_gather, oracle=oracle, gradients=learn)


def expect_gather(results: Any, arguments: Mapping[str, Any]) -> None:
    x = arguments["x"]
    promise(results, [arguments["selection"].num_kept, *x.shape[1:]], x.dtype)


def scatter(draw: Draw) -> Case:
    chosen = selection(draw)
    kind = draw.one((*FLOATS, *DTYPES))
    tail = [draw.size(20) for _ in range(draw.one((0, 1, 1, 2)))]
    arguments: dict[str, Any] = {
        "y": draw.floats(chosen.num_kept, *tail).to(kind),
        "selection": chosen,
        "backend": draw.backend(),
    }
    if draw.chance(0.5):
        arguments["fill"] = draw.floats(chosen.ragged.num_nodes, *tail).to(kind)
    learn = tuple(name for name in ("y", "fill") if draw.chance(0.6))
    twisted = draw.twist(arguments)
    oracle = kind in FLOATS
    return Case(ops.scatter_tokens, twisted, expect_scatter, oracle=oracle, gradients=learn)


def expect_scatter(results: Any, arguments: Mapping[str, Any]) -> None:
    y = arguments["y"]
    promise(results, [arguments["selection"].ragged.num_nodes, *y.shape[1:]], y.dtype)


def drop(draw: Draw) -> Case:
    chosen = selection(draw)
    nodes = chosen.ragged.num_nodes
    edges: Any = draw.edges(nodes, nodes, draw.one((0, 1, 5, 30)))
    edges = edges.to(draw.one((torch.int32, torch.int64)))
    if draw.chance(0.4):
        kinds = draw.maybe(0.5, lambda: draw.integers(0, 3, edges.size(1), dtype=torch.uint8))
        edges = Graph.from_edge_index(edges, nodes, edge_type=kinds)
    arguments = {"edges": edges, "selection": chosen, "backend": draw.backend()}
    return Case(ops.drop_tokens, draw.twist(arguments), expect_drop, exact=True)


def expect_drop(results: Any, arguments: Mapping[str, Any]) -> None:
    edges, chosen = arguments["edges"], arguments["selection"]
    left, number = results
    if isinstance(edges, Graph):
        assert isinstance(left, Graph)
        left.validate()
        before, after = edges.edge_index(), left.edge_index()
        assert left.num_dst_nodes == left.num_src_nodes == chosen.num_kept
    else:
        before, after = edges, left
        promise(after, [2, number.numel()], edges.dtype)
    if before.is_meta:
        return
    assert torch.equal(chosen.index[after.long()], before[:, number].long())
    assert number.numel() == int((chosen.position[before.long()] >= 0).all(0).sum())


def pairs(draw: Draw) -> Case:
    chosen = selection(draw)
    arguments = {
        "pairs": pair_index(draw, chosen.ragged),
        "selection": chosen,
        "backend": draw.backend(),
    }
    return Case(ops.gather_pairs, draw.twist(arguments, 0.3), expect_pairs, exact=True)


def expect_pairs(results: Any, arguments: Mapping[str, Any]) -> None:
    given, chosen = arguments["pairs"], arguments["selection"]
    assert isinstance(results, PairIndex)
    promise(results.index, [chosen.kept.num_pairs], given.index.dtype)


CASES = (select, select, gather, scatter, drop, pairs)
