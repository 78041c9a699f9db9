"""sparse_attention as a room: calls to try, and bad ones."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from room import (
    BadInput,
    Call,
    Room,
    Sample,
    graph_edges,
    graph_join,
    graph_relabel,
    graph_structure,
)
from torch import Tensor

from gtkern import Graph, ops
from gtkern.testing import random_graph


def edge_list(*edges: tuple[int, int], nodes: int | tuple[int, int], types: int = 0) -> Graph:
    """A graph from (source, destination) pairs; types go round."""
    index = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T
    kind = torch.arange(len(edges)) % types if types else None
    return Graph.from_edge_index(index, nodes, edge_type=kind)


def make(
    graph: Graph,
    *,
    heads: int = 2,
    width: int = 8,
    value_width: int | None = None,
    key_scale: str | None = None,
    bias: str | None = None,
    masked: str | None = None,
    edge_width: int | None = None,
    prefix: int | None = None,
    values: int = 0,
    **options: Any,
) -> Call:
    """A call on `graph` with unit-sized random arguments.

    Args:
        key_scale: "type", "edge", "type by head" or "edge by head" (the last axis 1).
        bias: "type" or "edge".
        masked: "some": every third edge's bias is -inf; "row": all those into node 0 too.
        edge_width: De of edge_query and edge_attr; None: without them.
        prefix: P; None: without.
        values: seed of the arguments.
        options: of the op.
    """
    generator = torch.Generator().manual_seed(values)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    num_src, num_dst = graph.num_src_nodes, graph.num_dst_nodes
    rows = {"type": graph.num_edge_types, "edge": graph.num_edges}
    tensors = {
        "q": normal(num_dst, heads, width),
        "k": normal(num_src, heads, width),
        "v": normal(num_src, heads, width if value_width is None else value_width),
    }
    axes = {"q": "dst", "k": "src", "v": "src"}
    if key_scale:
        axes["key_scale"] = key_scale.split()[0]
        last = 1 if key_scale.endswith("by head") else width
        tensors["key_scale"] = normal(rows[axes["key_scale"]], heads, last)
    if bias:
        axes["bias"] = bias
        tensors["bias"] = normal(rows[bias], heads)
    if masked:
        tensors["bias"][::3] = -math.inf
    if masked == "row":
        tensors["bias"][graph.edge_index()[1] == 0] = -math.inf
    if edge_width is not None:
        axes |= {"edge_query": "dst", "edge_attr": "edge"}
        tensors["edge_query"] = normal(num_dst, heads, edge_width)
        tensors["edge_attr"] = normal(graph.num_edges, edge_width)
    if prefix is not None:
        axes |= {"prefix_k": "type", "prefix_v": "type"}
        tensors["prefix_k"] = normal(prefix, heads, width)
        tensors["prefix_v"] = normal(prefix, heads, tensors["v"].size(2))
    return Call(tensors, axes, {"graph": graph, **options})


def results(call: Call) -> list[tuple[str, str]]:
    """What the op returns for a call."""
    named = [("out", "dst")]
    if "edge_attr" in call.tensors:
        named.append(("edge_out", "dst"))
    if call.others.get("return_scores"):
        named.append(("scores", "edge"))
    return named


def saved_bytes(call: Call) -> int:
    """8 bytes for each destination and head."""
    num_dst, heads, _ = call.tensors["q"].shape
    return 8 * num_dst * heads


def sample(name: str, graph: Any, size: str = "small", **options: Any) -> Sample:
    """A sample whose graph is made when it is built."""
    return Sample(name, lambda: make(graph(), **options), size)


def law(name: str, nodes: int | tuple[int, int], edges: int, types: int = 0) -> Any:
    """A random graph, made when asked for."""
    return functools.partial(random_graph, name, nodes, edges, num_edge_types=types, seed=3)


def tiny(types: int = 0) -> Any:
    """Five sources, four destinations: a duplicate edge, a self loop, node 3 without edges."""
    return lambda: edge_list(
        (0, 0), (1, 0), (1, 0), (4, 0), (2, 1), (3, 1), (0, 2), (4, 2), nodes=(5, 4), types=types
    )


SAMPLES = (
    sample("plain", tiny(), "tiny", width=3),
    sample(
        "every_option_by_type", tiny(2), "tiny",
        width=3, value_width=2, key_scale="type", bias="type", edge_width=2, scale=0.7,
        temperature=1.3, dropout=0.3, seed=11, normalization="exphormer", return_scores=True,
    ),
    sample(
        "every_option_by_edge", tiny(), "tiny",
        width=2, value_width=3, key_scale="edge", bias="edge", edge_width=3, clamp=1.0,
        dropout=0.4, seed=-5, return_scores=True,
    ),
    sample("scaled_by_head", tiny(3), "tiny", key_scale="edge by head", bias="edge", width=2),
    sample(
        "prefix_and_every_option_by_type", tiny(2), "tiny",
        width=3, value_width=2, key_scale="type", bias="type", edge_width=2, prefix=2, scale=0.7,
        temperature=1.3, dropout=0.3, seed=11, normalization="exphormer",
    ),
    sample("prefix", tiny(), "tiny", width=2, value_width=3, bias="edge", prefix=3, clamp=1.0),
    sample("one_head", law("uniform", 12, 60), heads=1, width=4),
    sample("odd_heads_and_widths", law("power_law", 10, 60), heads=3, width=7, value_width=5),
    sample("type_table_by_head", law("uniform", 9, 40, 4), key_scale="type by head", bias="type"),
    sample("scores", law("uniform", 12, 50), return_scores=True),
    sample("dropout", law("power_law", 12, 60), dropout=0.5, seed=2**62 + 3),
    sample("prefix_of_a_narrow_head", law("uniform", 12, 60), heads=1, width=4, prefix=5),
    sample("prefix_and_a_hub", law("hub", 40, 2_200), "long", heads=1, width=4, prefix=2),
    sample("prefix_without_edges", lambda: edge_list(nodes=4), prefix=3),
    sample("prefix_and_a_masked_row", law("uniform", 12, 50), bias="edge", masked="row", prefix=1,
           normalization="exphormer"),
    sample("prefix_of_no_rows", lambda: edge_list(nodes=(3, 0)), prefix=2),
    sample("empty_prefix", law("uniform", 9, 40), prefix=0),
    sample("clamp", law("uniform", 12, 50), clamp=0.5, bias="edge"),
    sample("temperature", law("uniform", 12, 50), temperature=0.25, clamp=5.0),
    sample("negative_scale", law("uniform", 12, 50), scale=-0.5),
    sample("exphormer", law("uniform", 12, 50, 3), clamp=5.0, key_scale="type", bias="type",
           normalization="exphormer"),
    sample("masked_edges", law("uniform", 12, 50), bias="edge", masked="some"),
    sample("masked_row", law("uniform", 12, 50), bias="edge", masked="row", return_scores=True),
    sample("masked_row_exphormer", law("uniform", 8, 30), bias="edge", masked="row",
           normalization="exphormer", return_scores=True),
    sample("edge_attributes", law("uniform", 10, 50), edge_width=5, value_width=6),
    sample("bipartite_few_sources", law("uniform", (3, 20), 50, 2), bias="type"),
    sample("bipartite_few_destinations", law("uniform", (20, 3), 50)),
    sample("zero_edges", lambda: edge_list(nodes=4), bias="edge", edge_width=2, return_scores=True),
    sample("zero_edges_with_types", law("uniform", 4, 0, 2), return_scores=True),
    sample("empty_batch", lambda: edge_list(nodes=0), return_scores=True),
    sample("no_destinations", lambda: edge_list(nodes=(3, 0))),
    sample("no_sources", lambda: edge_list(nodes=(0, 3))),
    sample("isolated_nodes", lambda: edge_list((2, 5), (5, 2), (6, 2), nodes=9)),
    sample("one_node", lambda: edge_list(nodes=1)),
    sample("one_node_with_a_loop", lambda: edge_list((0, 0), nodes=1), edge_width=2),
    sample("self_loops_only", lambda: edge_list(*((i, i) for i in range(6)), nodes=6)),
    sample("duplicate_edges", lambda: edge_list(*((0, 1), (2, 1)) * 6, nodes=3), bias="edge",
           key_scale="edge", return_scores=True),
    sample("row_of_32_edges", lambda: edge_list(*((i, 0) for i in range(32)), nodes=33)),
    sample("row_of_33_edges", lambda: edge_list(*((i, 0) for i in range(33)), nodes=33)),
    sample("split_hub", law("hub", 40, 4_400, 2), "long", heads=1, width=4, bias="type",
           key_scale="type", return_scores=True),
    sample("split_hub_with_dropout", law("hub", 40, 2_200), "long", heads=1, width=4, edge_width=2,
           dropout=0.2, seed=8),
    sample("hub_of_ten_thousand", law("hub", 3_000, 20_000, 3), "broad", heads=4, width=8,
           bias="type", key_scale="type", edge_width=3, return_scores=True),
    sample("power_law_thousands", law("power_law", 2_000, 30_000), "broad", heads=4, width=16,
           dropout=0.1, seed=4),
    sample("width_28", law("power_law", 600, 6_000), "broad", heads=2, width=28),
    sample("width_48", law("uniform", 300, 3_000), "broad", heads=3, width=48, value_width=40),
    sample("width_64", law("power_law", 400, 6_000), "broad", heads=4, width=64),
    sample("width_96_by_edge", law("uniform", 60, 600), "broad", width=96, key_scale="edge",
           bias="edge"),
    sample("width_256", law("power_law", 50, 600, 2), "broad", heads=2, width=256, key_scale="type",
           edge_width=256),
    sample("width_1", law("uniform", 60, 600), "broad", heads=5, width=1),
    sample("sixteen_heads", law("uniform", 100, 1_500, 5), "broad", heads=16, width=8, bias="type"),
    sample("many_heads", law("uniform", 40, 300), "broad", heads=37, width=3, return_scores=True),
    sample("prefix_of_thousands", law("power_law", 3_000, 30_000, 3), "broad", heads=4, width=32,
           key_scale="type", prefix=20, normalization="exphormer", clamp=5.0),
    sample("many_types", law("uniform", 200, 4_000, 256), "broad", key_scale="type", bias="type"),
)  # fmt: skip


def change(**arguments: Any) -> Any:
    """Replace arguments by values, or by functions of the right arguments."""
    return lambda right: {
        name: value(right) if callable(value) and not isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }


def typed(right: Any) -> Graph:
    """The same edges with two types."""
    graph = right["graph"]
    types = torch.arange(graph.num_edges) % 2
    sizes = (graph.num_src_nodes, graph.num_dst_nodes)
    return Graph.from_edge_index(graph.edge_index(), sizes, edge_type=types)


def meta(name: str) -> Any:
    """The argument on another device."""
    return lambda right: right[name].to("meta")


BAD = (
    BadInput("q_sparse", change(q=lambda a: a["q"].to_sparse()), TypeError,
             r"^q must be a dense tensor, got layout torch.sparse_coo"),
    BadInput("scale_beyond_floats", change(scale=-(10**400)), ValueError,
             r"^scale must be in \[-1.79769e\+308, 1.79769e\+308\], got -inf"),
    BadInput("temperature_beyond_floats", change(temperature=10**400), ValueError,
             r"^temperature must be in \(0, 1.79769e\+308\], got inf"),
    BadInput("normalization_list", change(normalization=["softmax"]), ValueError,
             r"^normalization must be 'softmax' or 'exphormer', got \['softmax'\]"),
    BadInput("return_scores_word", change(return_scores="yes"), TypeError,
             r"^return_scores must be True or False, got str"),
    BadInput("q_no_tensor", change(q=[1.0]), TypeError, r"^q must be a tensor, got list"),
    BadInput("q_integer", change(q=lambda a: a["q"].long()), TypeError,
             r"^q must be float32, bfloat16, float16 or float64, got torch.int64"),
    BadInput("v_complex", change(v=lambda a: a["v"].to(torch.complex64)), TypeError,
             r"^v must be float32, .* got torch.complex64"),
    BadInput("q_rank", change(q=lambda a: a["q"][0]), ValueError,
             r"^q must have shape \[N_dst, H, D\], got \[2, 3\]"),
    BadInput("q_rows", change(q=lambda a: a["q"][1:]), ValueError,
             r"^q must have shape \[N_dst, H, D\] = \[4, 2, 3\], got \[3, 2, 3\]"),
    BadInput("k_rows", change(k=lambda a: a["k"][1:]), ValueError,
             r"^k must have shape \[N_src, H, D\] = \[5, 2, 3\], got \[4, 2, 3\]"),
    BadInput("k_heads", change(k=lambda a: a["k"][:, :1]), ValueError,
             r"^k must have shape \[N_src, H, D\] = \[5, 2, 3\], got \[5, 1, 3\]"),
    BadInput("k_width", change(k=lambda a: a["k"][..., :2]), ValueError, r"^k must have shape .*"),
    BadInput("v_rank", change(v=lambda a: a["v"][..., 0]), ValueError,
             r"^v must have shape \[N_src, H, Dv\], got \[5, 2\]"),
    BadInput("v_heads", change(v=lambda a: a["v"][:, :1]), ValueError,
             r"^v must have shape \[N_src, H, Dv\] = \[5, 2, 3\], got \[5, 1, 3\]"),
    BadInput("k_dtype", change(k=lambda a: a["k"].half()), TypeError,
             r"^k must have the dtype of q \(torch.float32\), got torch.float16"),
    BadInput("v_dtype", change(v=lambda a: a["v"].double()), TypeError,
             r"^v must have the dtype of q \(torch.float32\), got torch.float64"),
    BadInput("k_device", change(k=meta("k")), ValueError,
             r"^k must be on the device of q \(cpu\), got meta"),
    BadInput("graph_device", change(q=meta("q"), k=meta("k"), v=meta("v")), ValueError,
             r"^graph must be on the device of q \(meta\), got cpu"),
    BadInput("no_heads", change(q=torch.ones(4, 0, 3), k=torch.ones(5, 0, 3),
                                v=torch.ones(5, 0, 3)),
             ValueError, r"^q must have at least 1 head, got 0"),
    BadInput("no_width", change(q=torch.ones(4, 2, 0), k=torch.ones(5, 2, 0)), ValueError,
             r"^q must have a head width of 1 \.\. 256, got 0"),
    BadInput("too_wide", change(v=torch.ones(5, 2, 257)), ValueError,
             r"^v must have a head width of 1 \.\. 256, got 257"),
    BadInput("graph_an_edge_index", change(graph=lambda a: a["graph"].edge_index()), TypeError,
             r"^graph must be a gtkern.Graph \(Graph.from_any makes one\), got Tensor"),
    BadInput("bias_no_tensor", change(bias=1.0), TypeError, r"^bias must be a tensor, got float"),
    BadInput("bias_integer", change(bias=torch.ones(8, 2, dtype=torch.int32)), TypeError,
             r"^bias must be float32, .* got torch.int32"),
    BadInput("bias_rows", change(bias=torch.ones(7, 2)), ValueError,
             r"^bias must have shape \[E, H\] = \[8, 2\] \(the graph has no edge types\), "
             r"got \[7, 2\]"),
    BadInput("bias_heads", change(bias=torch.ones(8, 3)), ValueError,
             r"^bias must have shape \[E, H\] = \[8, 2\].*got \[8, 3\]"),
    BadInput("bias_scalar", change(bias=torch.tensor(1.0)), ValueError,
             r"^bias must have shape \[E, H\] = \[8, 2\].*got \[\]"),
    BadInput("bias_too_few_types", change(graph=typed, bias=torch.ones(1, 2)), ValueError,
             r"^bias must have shape \[T, H\] with T >= 2 edge types or \[E, H\] with E = 8.*"
             r"got \[1, 2\]"),
    BadInput("bias_device", change(bias=torch.ones(8, 2, device="meta")), ValueError,
             r"^bias must be on the device of q \(cpu\), got meta"),
    BadInput("key_scale_width", change(key_scale=torch.ones(8, 2, 2)), ValueError,
             r"^key_scale must have shape \[E, H, D\] = \[8, 2, 3\].*got \[8, 2, 2\]"),
    BadInput("key_scale_rank", change(graph=typed, key_scale=torch.ones(2, 2)), ValueError,
             r"^key_scale must have shape \[T, H, D\] with T >= 2 .*got \[2, 2\]"),
    BadInput("edge_query_alone", change(edge_query=torch.ones(4, 2, 2)), ValueError,
             r"^edge_attr must be given too: edge_query and edge_attr work as a pair"),
    BadInput("edge_attr_alone", change(edge_attr=torch.ones(8, 2)), ValueError,
             r"^edge_query must be given too"),
    BadInput("edge_attr_rank", change(edge_query=torch.ones(4, 2, 2), edge_attr=torch.ones(8)),
             ValueError, r"^edge_attr must have shape \[E, De\], got \[8\]"),
    BadInput("edge_attr_rows", change(edge_query=torch.ones(4, 2, 2), edge_attr=torch.ones(7, 2)),
             ValueError, r"^edge_attr must have shape \[E, De\] = \[8, 2\], got \[7, 2\]"),
    BadInput("edge_query_width", change(edge_query=torch.ones(4, 2, 3),
                                        edge_attr=torch.ones(8, 2)), ValueError,
             r"^edge_query must have shape \[N_dst, H, De\] = \[4, 2, 2\], got \[4, 2, 3\]"),
    BadInput("edge_attr_too_wide", change(edge_query=torch.ones(4, 2, 257),
                                          edge_attr=torch.ones(8, 257)), ValueError,
             r"^edge_attr must have a width of 1 \.\. 256, got 257"),
    BadInput("edge_attr_dtype", change(edge_query=torch.ones(4, 2, 2),
                                       edge_attr=torch.ones(8, 2).half()), TypeError,
             r"^edge_attr must have the dtype of q \(torch.float32\), got torch.float16"),
    BadInput("prefix_k_alone", change(prefix_k=torch.ones(2, 2, 3)), ValueError,
             r"^prefix_v must be given too: prefix_k and prefix_v work as a pair"),
    BadInput("prefix_v_alone", change(prefix_v=torch.ones(2, 2, 3)), ValueError,
             r"^prefix_k must be given too"),
    BadInput("prefix_no_tensor", change(prefix_k=[1.0], prefix_v=torch.ones(2, 2, 3)), TypeError,
             r"^prefix_k must be a tensor, got list"),
    BadInput("prefix_rank", change(prefix_k=torch.ones(2, 6), prefix_v=torch.ones(2, 2, 3)),
             ValueError, r"^prefix_k must have shape \[P, H, D\], got \[2, 6\]"),
    BadInput("prefix_heads", change(prefix_k=torch.ones(2, 1, 3), prefix_v=torch.ones(2, 2, 3)),
             ValueError, r"^prefix_k must have shape \[P, H, D\] = \[2, 2, 3\], got \[2, 1, 3\]"),
    BadInput("prefix_slots", change(prefix_k=torch.ones(2, 2, 3), prefix_v=torch.ones(3, 2, 3)),
             ValueError, r"^prefix_v must have shape \[P, H, Dv\] = \[2, 2, 3\], got \[3, 2, 3\]"),
    BadInput("prefix_dtype",
             change(prefix_k=torch.ones(2, 2, 3), prefix_v=torch.ones(2, 2, 3).half()),
             TypeError, r"^prefix_v must have the dtype of q \(torch.float32\), got torch.float16"),
    BadInput("prefix_device",
             change(prefix_k=torch.ones(2, 2, 3), prefix_v=torch.ones(2, 2, 3, device="meta")),
             ValueError, r"^prefix_v must be on the device of q \(cpu\), got meta"),
    BadInput("prefix_and_scores",
             change(**{name: torch.ones(2, 2, 3) for name in ("prefix_k", "prefix_v")},
                    return_scores=True),
             ValueError, r"^return_scores must be False with prefix_k"),
    BadInput("scale_a_string", change(scale="1"), TypeError, r"^scale must be a number, got str"),
    BadInput("scale_nan", change(scale=math.nan), ValueError, r"^scale must be in .*got nan"),
    BadInput("scale_infinite", change(scale=math.inf), ValueError,
             r"^scale must be in .*got inf"),
    BadInput("clamp_zero", change(clamp=0.0), ValueError, r"^clamp must be in \(0, inf\], got 0"),
    BadInput("temperature_zero", change(temperature=0), ValueError,
             r"^temperature must be in \(0, inf\], got 0"),
    BadInput("temperature_nan", change(temperature=math.nan), ValueError,
             r"^temperature must be in \(0, inf\], got nan"),
    BadInput("dropout_negative", change(dropout=-0.1), ValueError,
             r"^dropout must be in \[0, 1\), got -0\.1"),
    BadInput("dropout_one", change(dropout=1.0), ValueError, r"^dropout must be in \[0, 1\)"),
    BadInput("dropout_a_bool", change(dropout=True), TypeError,
             r"^dropout must be a number, got bool"),
    BadInput("seed_a_float", change(seed=1.5, dropout=0.5), TypeError,
             r"^seed must be an integer, got float"),
    BadInput("seed_too_large", change(seed=2**63, dropout=0.5), ValueError,
             r"^seed must fit in 64 signed bits, got 9223372036854775808"),
    BadInput("seed_a_vector", change(seed=torch.ones(2, dtype=torch.int64), dropout=0.5), TypeError,
             r"^seed must be an integer or a 0-d int64 CPU tensor, got torch.int64 \[2\]"),
    BadInput("normalization_unknown", change(normalization="sigmoid"), ValueError,
             r"^normalization must be 'softmax' or 'exphormer', got 'sigmoid'"),
    BadInput("backend_unknown", change(backend="numpy"), ValueError,
             r"^backend must be one of 'auto', 'reference', .*got 'numpy'"),
    BadInput("backend_without_float64",
             change(backend="triton", **{name: lambda a, name=name: a[name].double()
                                         for name in ("q", "k", "v")}),
             NotImplementedError,
             r"^backend 'triton' cannot run sparse_attention here: it has no float64 kernels; "
             r"use backend='(cpu|reference)'"),
)  # fmt: skip

ROOM = Room(
    op=ops.sparse_attention,
    samples=SAMPLES,
    results=results,
    structure=graph_structure,
    edges=graph_edges,
    relabel=graph_relabel,
    join=graph_join,
    saved_bytes=saved_bytes,
    bad=BAD,
)
