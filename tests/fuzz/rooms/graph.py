"""Calls of what makes a Graph, and of its methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from gtkern import Graph

from ..draw import Draw
from ..judge import Case

MOST_NODES = 2**20
"""More of them are only made where memory is limited."""


def kinds(draw: Draw, edges: int) -> dict[str, Any]:
    if draw.chance(0.6):
        return {}
    integer = draw.one((torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64))
    return {"edge_type": draw.integers(0, draw.one((1, 3, 100)), edges, dtype=integer)}


def tamed(draw: Draw, arguments: dict[str, Any]) -> dict[str, Any]:
    """Without the numbers of nodes and indices for which arrays would be made in earnest."""
    twisted = draw.twist(arguments)
    if draw.enormous:
        return twisted
    for name, value in twisted.items():
        if isinstance(value, int) and MOST_NODES < value < 2**31:
            twisted[name] = 2**31
        if isinstance(value, tuple) and any(
            isinstance(each, int) and MOST_NODES < each < 2**31 for each in value
        ):
            twisted[name] = (2**31, 2**31)
        if isinstance(value, torch.Tensor) and not value.is_meta and "num_nodes" not in twisted:
            dense = value.to_dense() if value.layout != torch.strided else value
            if dense.dtype in (torch.int32, torch.int64) and bool((dense > MOST_NODES).any()):
                twisted["num_nodes"] = 5
    return twisted


def from_edge_index(draw: Draw) -> Case:
    num_src = draw.size()
    num_dst = num_src if draw.chance(0.5) else draw.size()
    edges = draw.edges(num_src, num_dst, draw.one((0, 1, 7, 40)))
    arguments = {
        "edge_index": edges.to(draw.one((torch.int32, torch.int64))),
        **kinds(draw, edges.size(1)),
    }
    if draw.chance(0.8):
        both = (num_src, num_dst)
        arguments["num_nodes"] = num_src if num_src == num_dst and draw.chance(0.5) else both
    return Case(Graph.from_edge_index, tamed(draw, arguments), expect_edges, backends=False)


def expect_edges(results: Any, arguments: Mapping[str, Any]) -> None:
    assert isinstance(results, Graph)
    edges = arguments["edge_index"]
    assert torch.equal(results.edge_index(), edges.long())
    given = arguments.get("edge_type")
    if given is None:
        assert results.edge_type() is None
    else:
        found = results.edge_type()
        assert found is not None and torch.equal(found.long(), given.long())
    whole(results)


def whole(graph: Graph) -> None:
    """Everything that is made on first use."""
    graph.validate()
    assert graph.csc.ptr.numel() == graph.num_src_nodes + 1
    assert graph.csc.index.numel() == graph.num_edges
    assert int(graph.degree().sum()) == graph.num_edges
    if graph.num_src_nodes == graph.num_dst_nodes:
        graph.is_symmetric()
        assert bool(graph.gcn_norm().scale.isfinite().all())
    repr(graph)


def from_csr(draw: Draw) -> Case:
    made = draw.graph()
    kind = draw.one((torch.int32, torch.int64))
    arguments = {
        "row_ptr": made.csr.ptr.to(kind),
        "col": made.csr.index.to(draw.one((torch.int32, torch.int64))),
        "num_src_nodes": made.num_src_nodes,
        **kinds(draw, made.num_edges),
    }
    return Case(Graph.from_csr, tamed(draw, arguments), expect_graph, backends=False)


def expect_graph(results: Any, arguments: Mapping[str, Any]) -> None:
    assert isinstance(results, Graph)
    whole(results)


def from_any(draw: Draw) -> Case:
    made = draw.graph()
    edges: Any = made.edge_index()
    form = draw.one(("list", "csr", "sparse", "graph", "edges"))
    arguments: dict[str, Any] = {}
    if form in ("list", "csr"):
        pair = (made.csr.ptr, made.csr.index)
        edges = [*pair] if form == "list" else pair
        arguments["num_nodes"] = (made.num_src_nodes, made.num_dst_nodes)
    elif form == "sparse":
        size = (made.num_dst_nodes, made.num_src_nodes)
        edges = torch.sparse_coo_tensor(edges.flip(0), torch.ones(edges.size(1)), size)
        if draw.chance(0.5):
            edges = edges.to_sparse_csr()
    elif form == "graph":
        edges = made
    else:
        arguments["num_nodes"] = (made.num_src_nodes, made.num_dst_nodes)
    arguments["edges"] = edges
    # pairs are read as (row_ptr, col), and messages name those
    names = ("edges", "num_nodes", "edge_type", "row_ptr", "col", "num_src_nodes", "edge_index")
    twisted = tamed(draw, arguments) if form != "sparse" else draw.twist(arguments, 0.4)
    return Case(Graph.from_any, twisted, expect_graph, backends=False, names=names)


CASES = (from_edge_index, from_csr, from_any)
