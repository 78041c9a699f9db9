"""Calls of sample_neighbors, sampling_table and layer_batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gtkern import Graph, ops
from gtkern.ops import LayerBatch, Neighbors, SamplingTable

from ..draw import FLOATS, Draw
from ..judge import Case, promise


def weights(draw: Draw, graph: Graph, layers: int | None) -> Tensor:
    """Some of them 0, tiny or enormous."""
    shape = (graph.num_edges,) if layers is None else (layers, graph.num_edges)
    values = torch.rand(shape, generator=draw.generator)
    for filling in (0.0, 2.0**-100, 2.0**100, 1e-44):
        if draw.chance(0.2):
            values[torch.rand(shape, generator=draw.generator) < 0.4] = filling
    kind = draw.one((torch.float32, torch.float32, *FLOATS))
    return values.clamp(max=min(torch.finfo(kind).max, 2.0**100)).to(kind)


def sample(draw: Draw) -> Case:
    graph = draw.graph()
    method = draw.one(("weighted", "weighted", "uniform", "top"))
    layers = draw.one((None, 1, 2, 3))
    k: Any = draw.one((1, 2, 5, 70))
    if draw.chance(0.4):
        k = [draw.one((1, 3, 12)) for _ in range(layers or draw.random.randint(1, 3))]
    weight: Any = None
    if method != "uniform":
        weight = weights(draw, graph, layers)
        if draw.chance(0.3):
            weight = ops.sampling_table(graph, weight)
    arguments = {
        "graph": graph,
        "weight": weight,
        "k": k,
        "seed": draw.seed(),
        "epoch": draw.one((0, 1, 2**32 - 1)),
        "method": method,
        "fill": draw.one(("replacement", "pad")),
        "backend": draw.backend(),
    }
    twisted = draw.twist(arguments)
    if isinstance(twisted["k"], int) and twisted["k"] > 2**16 and not draw.enormous:
        twisted["k"] = 2**31
    if isinstance(twisted["weight"], SamplingTable) and draw.chance(0.1):
        draw.twists.append("weight: a table of another graph")
        other = draw.graph()
        twisted["weight"] = ops.sampling_table(other, weights(draw, other, layers))
    return Case(ops.sample_neighbors, twisted, expect_sample, exact=True)


def expect_sample(results: Any, arguments: Mapping[str, Any]) -> None:
    graph, k = arguments["graph"], arguments["k"]
    nodes = graph.num_dst_nodes
    assert isinstance(results, tuple) and results
    if not isinstance(k, int):
        assert len(results) == len(k)
    source, destination = graph.edge_index()
    for layer, drawn in enumerate(results):
        assert isinstance(drawn, Neighbors)
        shape = [nodes, k if isinstance(k, int) else k[layer]]
        promise(drawn.index, shape, torch.int32, "index")
        promise(drawn.edge, shape, torch.int64, "edge")
        assert (drawn.type is not None) == graph.has_edge_types
        if drawn.type is not None:
            promise(drawn.type, shape, torch.uint8, "type")
        assert torch.equal(drawn.index < 0, drawn.edge < 0)
        real = drawn.edge >= 0
        assert torch.equal(source[drawn.edge[real]], drawn.index[real].long())
        rows = torch.arange(nodes)[:, None].expand(shape)
        assert torch.equal(destination[drawn.edge[real]], rows[real])


def table(draw: Draw) -> Case:
    graph = draw.graph()
    layers = draw.one((None, 1, 2))
    arguments = {"graph": graph, "weight": weights(draw, graph, layers)}
    return Case(ops.sampling_table, draw.twist(arguments), expect_table, backends=False)


def expect_table(results: Any, arguments: Mapping[str, Any]) -> None:
    graph, weight = arguments["graph"], arguments["weight"]
    assert isinstance(results, SamplingTable)
    shape = [*weight.shape] if weight.dim() == 2 else [1, *weight.shape]
    promise(results.row_ptr, [graph.num_dst_nodes + 1], torch.int64, "row_ptr")
    promise(results.weight, shape, torch.float32, "weight")
    promise(results.prefix, shape, torch.uint32, "prefix")


def batches(draw: Draw) -> Case:
    graph = draw.graph(square=True)
    nodes = graph.num_dst_nodes
    counts = [draw.one((1, 3)) for _ in range(draw.random.randint(1, 3))]
    neighbors = ops.sample_neighbors(
        graph, None, counts, seed=1, method="uniform", fill=draw.one(("pad", "replacement"))
    )
    order = torch.randperm(nodes, generator=draw.generator)[: draw.size()]
    targets = order.to(draw.one((torch.int32, torch.int64)))
    twisted = draw.twist({"targets": targets, "neighbors": neighbors}, 0.4)
    if draw.chance(0.3) and isinstance(twisted["neighbors"], tuple):
        layer = draw.random.randrange(len(neighbors))
        parts = draw.twist(neighbors[layer]._asdict(), 1.0)
        twisted["neighbors"] = tuple(
            Neighbors(**parts) if at == layer else each for at, each in enumerate(neighbors)
        )
    names = ("targets", "neighbors")
    return Case(ops.layer_batches, twisted, expect_batches, backends=False, names=names)


def expect_batches(results: Any, arguments: Mapping[str, Any]) -> None:
    targets, neighbors = arguments["targets"], arguments["neighbors"]
    assert isinstance(results, tuple) and len(results) == len(neighbors)
    after = targets.long()
    for batch, drawn in zip(reversed(results), reversed(neighbors), strict=True):
        assert isinstance(batch, LayerBatch)
        shape = [after.numel(), drawn.index.size(1)]
        promise(batch.index, shape, torch.int32, "index")
        promise(batch.edge, shape, torch.int64, "edge")
        assert torch.equal(batch.nodes[: after.numel()], after)
        wanted, got = drawn.index[after].long(), batch.index.long()
        assert torch.equal(got < 0, wanted < 0)
        assert torch.equal(batch.nodes[got[got >= 0]], wanted[wanted >= 0])
        after = batch.nodes


CASES = (sample, sample, sample, table, batches)
