"""sampled_attention: the room's contract, and what only this room promises."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from attention_contract import AttentionContract
from hypothesis import strategies
from room import (
    BadInput,
    Call,
    Room,
    Sample,
    assert_all_within_budget,
    assert_bit_equal,
    cotangent,
    everywhere,
    lazy_zeros,
    run,
)
from torch import Tensor

from gtkern import Graph, ops
from gtkern.ops.sampled_attention.places import group_by_source
from gtkern.random import keep_mask
from gtkern.testing import assert_within_budget


def attend(*, sources: int, **arguments: Any) -> Any:
    """The op; `sources` tells the contract how many there are."""
    return ops.sampled_attention(**arguments)


def drawn(
    num_src: int, num_dst: int, degree: int, *, empty: float = 0.2, types: int = 0
) -> dict[str, Any]:
    """Random neighbours, some repeated, some places and the last row empty."""
    generator = torch.Generator().manual_seed(7)
    shape = (num_dst, degree)
    neighbors = torch.full(shape, -1, dtype=torch.int32)
    if num_src:
        neighbors = torch.randint(num_src, shape, generator=generator).to(torch.int32)
        neighbors[torch.rand(shape, generator=generator) < empty] = -1
    if empty:
        neighbors[-1:] = -1
    others = {"neighbors": neighbors, "sources": num_src}
    if types:
        kind = torch.randint(types, shape, generator=generator).to(torch.uint8)
        others["edge_type"] = kind
    return others


def crowded(num_src: int, num_dst: int, degree: int, *, types: int = 0) -> dict[str, Any]:
    """Source 1 stands in nine places of ten."""
    others = drawn(num_src, num_dst, degree, types=types)
    neighbors = others["neighbors"]
    chosen = torch.rand(neighbors.shape, generator=torch.Generator().manual_seed(8)) < 0.9
    neighbors[chosen & (neighbors >= 0)] = 1
    return others


def make(
    others: Mapping[str, Any],
    *,
    heads: int = 2,
    width: int = 8,
    value_width: int | None = None,
    key_scale: str | None = None,
    bias: str | None = None,
    masked: bool = False,
    edge_width: int | None = None,
    types: int = 1,
    values: int = 0,
    **options: Any,
) -> Call:
    """A call with unit-sized random arguments.

    Args:
        others: what `drawn` gives.
        key_scale: "type", "place", "type by head" or "place by head" (the last axis 1).
        bias: "type" or "place".
        masked: every third place's bias is -inf, and all those of row 0.
        edge_width: De of edge_query and edge_attr; None: without them.
        types: rows of the tables.
        values: seed of the arguments.
        options: of the op.
    """
    generator = torch.Generator().manual_seed(values)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    places = tuple(others["neighbors"].shape)
    num_src, num_dst = others["sources"], places[0]
    lead = {"type": (types,), "place": places}
    axis = {"type": "type", "place": "dst"}
    tensors = {
        "q": normal(num_dst, heads, width),
        "k": normal(num_src, heads, width),
        "v": normal(num_src, heads, width if value_width is None else value_width),
    }
    axes = {"q": "dst", "k": "src", "v": "src"}
    if key_scale:
        by = key_scale.split()[0]
        axes["key_scale"] = axis[by]
        last = 1 if key_scale.endswith("by head") else width
        tensors["key_scale"] = normal(*lead[by], heads, last)
    if bias:
        axes["bias"] = axis[bias]
        tensors["bias"] = normal(*lead[bias], heads)
    if masked:
        tensors["bias"][:, ::3] = -math.inf
        tensors["bias"][0] = -math.inf
    if edge_width is not None:
        axes |= {"edge_query": "dst", "edge_attr": "dst"}
        tensors["edge_query"] = normal(num_dst, heads, edge_width)
        tensors["edge_attr"] = normal(*places, edge_width)
    return Call(tensors, axes, {**others, **options})


def results(call: Call) -> list[tuple[str, str]]:
    named = [("out", "dst")]
    if "edge_attr" in call.tensors:
        named.append(("edge_out", "dst"))
    if call.others.get("return_scores"):
        named.append(("scores", "dst"))
    return named


def structure(others: Mapping[str, Any]) -> list[Tensor]:
    return [others[name] for name in ("neighbors", "edge_type") if name in others]


def edges(others: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    neighbors = others["neighbors"]
    row, place = (neighbors >= 0).nonzero(as_tuple=True)
    return neighbors[row, place].long(), row


def relabel(others: Mapping[str, Any], source_to: Tensor, destination_to: Tensor) -> dict[str, Any]:
    moved = dict(others)
    neighbors = others["neighbors"]
    if source_to.numel():
        renamed = source_to.to(torch.int32)[neighbors.clamp(min=0).long()]
        neighbors = torch.where(neighbors >= 0, renamed, -1)
    moved["neighbors"] = torch.empty_like(neighbors).index_copy(0, destination_to, neighbors)
    if "edge_type" in others:
        kind = others["edge_type"]
        moved["edge_type"] = torch.empty_like(kind).index_copy(0, destination_to, kind)
    return moved


def join(calls: list[Mapping[str, Any]]) -> dict[str, Any]:
    joined = dict(calls[0])
    sources, neighbors = 0, []
    for others in calls:
        mine = others["neighbors"]
        neighbors.append(torch.where(mine >= 0, mine + sources, mine))
        sources += others["sources"]
    joined |= {"neighbors": torch.cat(neighbors), "sources": sources}
    if "edge_type" in joined:
        joined["edge_type"] = torch.cat([others["edge_type"] for others in calls])
    return joined


def saved_bytes(call: Call) -> int:
    """8 bytes for each destination and head."""
    num_dst, heads, _ = call.tensors["q"].shape
    return 8 * num_dst * heads


def sample(name: str, others: Mapping[str, Any], size: str = "small", **options: Any) -> Sample:
    return Sample(name, functools.partial(make, others, **options), size)


SAMPLES = (
    sample("plain", drawn(5, 4, 3), "tiny", width=3),
    sample(
        "every_option_by_type", drawn(5, 4, 3, types=2), "tiny",
        types=2, width=3, value_width=2, key_scale="type", bias="type", edge_width=2, scale=0.7,
        temperature=1.3, dropout=0.3, seed=11, normalization="exphormer", return_scores=True,
    ),
    sample(
        "every_option_by_place", drawn(4, 3, 4), "tiny",
        width=2, value_width=3, key_scale="place", bias="place", edge_width=3, clamp=1.0,
        dropout=0.4, seed=-5, return_scores=True,
    ),
    sample("scaled_by_head", drawn(4, 3, 3), "tiny", key_scale="place by head", bias="place",
           width=2),
    sample("no_padding", drawn(9, 7, 4, empty=0.0), heads=1, width=4),
    sample("odd_heads_and_widths", drawn(9, 7, 5), heads=3, width=7, value_width=5),
    sample("type_table_by_head", drawn(9, 7, 5, types=4), types=4, key_scale="type by head",
           bias="type"),
    sample("more_rows_than_types", drawn(9, 7, 5, types=2), types=5, key_scale="type",
           bias="type"),
    sample("table_without_types", drawn(9, 7, 5), key_scale="type", bias="type"),
    sample("scores", drawn(9, 7, 5), return_scores=True),
    sample("clamp", drawn(9, 7, 5), clamp=0.5, bias="place"),
    sample("temperature", drawn(9, 7, 5), temperature=0.25, clamp=5.0),
    sample("negative_scale", drawn(9, 7, 5), scale=-0.5),
    sample("masked", drawn(9, 7, 6), bias="place", masked=True, return_scores=True),
    sample("masked_exphormer", drawn(9, 7, 6), bias="place", masked=True,
           normalization="exphormer", return_scores=True),
    sample("edge_attributes", drawn(9, 7, 5), edge_width=5, value_width=6),
    sample("few_sources", drawn(2, 12, 6), bias="place"),
    sample("many_sources", drawn(40, 3, 6)),
    sample("all_padding", drawn(5, 4, 3, empty=1.0), return_scores=True),
    sample("no_places", drawn(5, 4, 0), bias="place", edge_width=2, return_scores=True),
    sample("no_sources", drawn(0, 3, 2), return_scores=True),
    sample("no_destinations", drawn(4, 0, 3)),
    sample("nothing", drawn(0, 0, 2), return_scores=True),
    sample("one_neighbor", drawn(6, 6, 1, empty=0.0)),
    sample("one_node_with_a_loop", drawn(1, 1, 1, empty=0.0), edge_width=2),
    sample("always_the_same", drawn(1, 6, 9, empty=0.0), key_scale="place", return_scores=True),
    sample("long_rows", drawn(12, 9, 20, types=2), types=2, width=9, key_scale="type", bias="type",
           clamp=1.0, dropout=0.2, seed=3),
    sample("long_rows_of_wide_heads", drawn(9, 7, 20), width=32),
    sample("wide_row", drawn(50, 4, 1_500), heads=1, width=4, return_scores=True),
    sample("split_source", crowded(3, 260, 15, types=2), "long", types=2, heads=1, width=4,
           key_scale="type", bias="type", return_scores=True),
    sample("split_source_with_dropout", crowded(2, 180, 9), "long", heads=1, width=4, edge_width=2,
           dropout=0.2, seed=8),
    sample("photo", drawn(3_000, 1_500, 15, types=3), "broad", types=3, heads=4, width=16,
           key_scale="type", bias="type", clamp=8.0, scale=1.0),
    sample("dropout", drawn(900, 600, 20), "broad", heads=4, width=8, dropout=0.2, seed=4),
    sample("width_28", drawn(300, 200, 10), "broad", heads=2, width=28),
    sample("width_64", drawn(300, 200, 10, types=3), "broad", types=3, width=64,
           key_scale="type", bias="type"),
    sample("width_256", drawn(40, 30, 8), "broad", heads=2, width=256, edge_width=256),
    sample("width_1", drawn(60, 50, 9), "broad", heads=5, width=1),
    sample("many_heads", drawn(60, 50, 9), "broad", heads=37, width=3, return_scores=True),
    sample("many_types", drawn(200, 150, 20, types=256), "broad", types=256, key_scale="type",
           bias="type"),
)  # fmt: skip


def change(**arguments: Any) -> Any:
    """Replace arguments by values, or by functions of the right arguments."""
    return lambda right: {
        name: value(right) if callable(value) and not isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }


def with_neighbor(value: int) -> Any:
    def changed(right: Mapping[str, Any]) -> Tensor:
        neighbors = right["neighbors"].clone()
        neighbors[1, 2] = value
        return neighbors

    return changed


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
    BadInput("q_rank", change(q=lambda a: a["q"][0]), ValueError,
             r"^q must have shape \[N_dst, H, D\], got \[2, 3\]"),
    BadInput("k_heads", change(k=lambda a: a["k"][:, :1]), ValueError,
             r"^k must have shape \[N_src, H, D\] = \[5, 2, 3\], got \[5, 1, 3\]"),
    BadInput("v_rows", change(v=lambda a: a["v"][1:]), ValueError,
             r"^v must have shape \[N_src, H, Dv\] = \[5, 2, 3\], got \[4, 2, 3\]"),
    BadInput("k_dtype", change(k=lambda a: a["k"].half()), TypeError,
             r"^k must have the dtype of q \(torch.float32\), got torch.float16"),
    BadInput("k_device", change(k=lambda a: a["k"].to("meta")), ValueError,
             r"^k must be on the device of q \(cpu\), got meta"),
    BadInput("too_wide", change(v=torch.ones(5, 2, 257)), ValueError,
             r"^v must have a head width of 1 \.\. 256, got 257"),
    BadInput("neighbors_no_tensor", change(neighbors=[[0]]), TypeError,
             r"^neighbors must be a tensor, got list"),
    BadInput("neighbors_dtype", change(neighbors=lambda a: a["neighbors"].long()), TypeError,
             r"^neighbors must be int32, got torch.int64"),
    BadInput("neighbors_rank", change(neighbors=lambda a: a["neighbors"][0]), ValueError,
             r"^neighbors must have shape \[N_dst, K\], got \[3\]"),
    BadInput("neighbors_rows", change(neighbors=lambda a: a["neighbors"][1:]), ValueError,
             r"^neighbors must have shape \[N_dst, K\] = \[4, 3\], got \[3, 3\]"),
    BadInput("neighbor_too_large", change(neighbors=with_neighbor(5)), ValueError,
             r"^neighbors must be -1 \(none\) or 0 \.\. 4 \(N_src - 1\), got 5"),
    BadInput("neighbor_negative", change(neighbors=with_neighbor(-2)), ValueError,
             r"^neighbors must be -1 \(none\) or 0 \.\. 4 \(N_src - 1\), got -2"),
    BadInput("edge_type_dtype", change(edge_type=torch.zeros(4, 3, dtype=torch.int64)), TypeError,
             r"^edge_type must be uint8, got torch.int64"),
    BadInput("edge_type_shape", change(edge_type=torch.zeros(12, dtype=torch.uint8)), ValueError,
             r"^edge_type must have shape \[N_dst, K\] = \[4, 3\], got \[12\]"),
    BadInput("edge_type_too_large",
             change(edge_type=torch.full((4, 3), 2, dtype=torch.uint8), bias=torch.ones(2, 2)),
             ValueError, r"^edge_type must be 0 \.\. 1 \(the rows of bias\), got 2"),
    BadInput("bias_integer", change(bias=torch.ones(1, 2, dtype=torch.int32)), TypeError,
             r"^bias must be float32, .* got torch.int32"),
    BadInput("bias_places", change(bias=torch.ones(4, 2, 2)), ValueError,
             r"^bias must have shape \[T, H\] .* \[N_dst, K, H\] .*= \[4, 3\] and H = \[2\], "
             r"got \[4, 2, 2\]"),
    BadInput("bias_without_rows", change(bias=torch.ones(0, 2)), ValueError,
             r"^bias must have a row for at least 1 edge type, got 0"),
    BadInput("key_scale_width", change(key_scale=torch.ones(1, 2, 2)), ValueError,
             r"^key_scale must have shape \[T, H, D\] .*got \[1, 2, 2\]"),
    BadInput("edge_query_alone", change(edge_query=torch.ones(4, 2, 2)), ValueError,
             r"^edge_attr must be given too"),
    BadInput("edge_attr_alone", change(edge_attr=torch.ones(4, 3, 2)), ValueError,
             r"^edge_query must be given too"),
    BadInput("edge_attr_shape", change(edge_query=torch.ones(4, 2, 2),
                                       edge_attr=torch.ones(4, 2, 2)), ValueError,
             r"^edge_attr must have shape \[N_dst, K, De\] = \[4, 3, 2\], got \[4, 2, 2\]"),
    BadInput("edge_query_width", change(edge_query=torch.ones(4, 2, 3),
                                        edge_attr=torch.ones(4, 3, 2)), ValueError,
             r"^edge_query must have shape \[N_dst, H, De\] = \[4, 2, 2\], got \[4, 2, 3\]"),
    BadInput("temperature_zero", change(temperature=0), ValueError,
             r"^temperature must be in \(0, inf\], got 0"),
    BadInput("dropout_one", change(dropout=1.0), ValueError, r"^dropout must be in \[0, 1\)"),
    BadInput("normalization_unknown", change(normalization="sigmoid"), ValueError,
             r"^normalization must be 'softmax' or 'exphormer', got 'sigmoid'"),
    BadInput("compat_unknown", change(compat="pyg"), ValueError,
             r"^compat must be None or 'spexphormer-release', got 'pyg'"),
    BadInput("compat_in_kernels", change(compat="spexphormer-release", backend="cpu"),
             NotImplementedError, r"^backend 'cpu' cannot run .* use backend='reference'"),
    BadInput("backend_unknown", change(backend="numpy"), ValueError,
             r"^backend must be one of 'auto', 'reference', .*got 'numpy'"),
)  # fmt: skip

ROOM = Room(
    op=attend,
    samples=SAMPLES,
    results=results,
    structure=structure,
    edges=edges,
    relabel=relabel,
    join=join,
    saved_bytes=saved_bytes,
    bad=BAD,
)


@strategies.composite
def calls(draw: strategies.DrawFn) -> Call:
    """Any small sample with any mixture of options."""
    num_src, num_dst = draw(strategies.integers(1, 7)), draw(strategies.integers(1, 7))
    degree, types = draw(strategies.integers(1, 6)), draw(strategies.integers(0, 3))
    by = strategies.sampled_from([None, "place", "type"])
    others = drawn(
        num_src, num_dst, degree, empty=draw(strategies.sampled_from([0.0, 0.4])), types=types
    )
    return make(
        others,
        types=max(types, 1),
        heads=draw(strategies.integers(1, 5)),
        width=draw(strategies.sampled_from([1, 3, 4, 8, 16, 17])),
        value_width=draw(strategies.sampled_from([None, 1, 5, 8])),
        key_scale=draw(by),
        bias=draw(by),
        edge_width=draw(strategies.sampled_from([None, 1, 4])),
        values=draw(strategies.integers(0, 99)),
        clamp=draw(strategies.sampled_from([None, 1.0])),
        temperature=draw(strategies.sampled_from([1.0, 0.5])),
        dropout=draw(strategies.sampled_from([0.0, 0.4])),
        normalization=draw(strategies.sampled_from(["softmax", "exphormer"])),
        return_scores=draw(strategies.booleans()),
    )


class TestContract(AttentionContract):
    """Every claim of the contract."""

    room = ROOM
    calls = staticmethod(calls)

    def test_renamed_nodes_get_the_same_results(
        self, backend: str, device: torch.device, sample: Sample
    ) -> None:
        if sample.build().others.get("dropout"):
            pytest.skip("a dropout mask belongs to a place's number, which renaming changes")
        super().test_renamed_nodes_get_the_same_results(backend, device, sample)


def as_sparse(call: Call) -> tuple[Graph, dict[str, Tensor], dict[str, Any]]:
    """The same call for sparse_attention: the graph, what is per place by edge, the options."""
    source, row = edges(call.others)
    real = call.others["neighbors"] >= 0
    sizes = (call.others["sources"], real.size(0))
    kind = call.others["edge_type"][real] if "edge_type" in call.others else None
    if kind is None and any(axis == "type" for axis in call.axes.values()):
        kind = torch.zeros(source.numel(), dtype=torch.uint8)
    graph = Graph.from_edge_index(torch.stack((source, row)), sizes, edge_type=kind)
    places = real.dim() + 1
    tensors = {
        name: value[real]
        if name in ("key_scale", "bias", "edge_attr")
        and call.axes[name] == "dst"
        and value.dim() >= places
        else value
        for name, value in call.tensors.items()
    }
    options = {
        name: value
        for name, value in call.others.items()
        if name not in ("neighbors", "edge_type", "sources")
    }
    return graph, tensors, options


@pytest.mark.parametrize(
    "sample", [s for s in SAMPLES if s.size != "broad"], ids=lambda sample: sample.name
)
def test_reference_is_sparse_attention_on_the_equivalent_graph(sample: Sample) -> None:
    call = sample.build()
    call.others.pop("dropout", None)
    graph, tensors, options = as_sparse(call)
    if any(axis == "type" for axis in call.axes.values()) and not graph.num_edges:
        pytest.skip("a graph without edges has no types to look up")
    leaves = {name: value.requires_grad_() for name, value in tensors.items()}
    found = ops.sparse_attention(**leaves, graph=graph, **options, backend="reference")
    found = found if isinstance(found, tuple) else (found,)
    mine = run(ROOM, call, "reference", needs=())
    real = call.others["neighbors"] >= 0
    for (name, _), value in zip(results(call), found, strict=True):
        actual = mine[name][real] if name == "scores" else mine[name]
        assert_within_budget(actual, value.detach(), name=name)


@everywhere(ROOM)
def test_repeated_neighbors_count_as_often_as_they_appear(
    backend: str, device: torch.device
) -> None:
    """Node 1 three times and node 0 once, all scores equal: weights 3/4 and 1/4."""
    neighbors = torch.tensor([[1, 0, -1, 1, 1]], dtype=torch.int32, device=device)
    zero = torch.zeros(2, 1, 1, device=device)
    v = torch.tensor([4.0, 8.0], device=device).view(2, 1, 1)
    out, scores = ops.sampled_attention(
        zero[:1], zero, v, neighbors, return_scores=True, backend=backend
    )
    assert_within_budget(out, torch.full((1, 1, 1), 7.0).double(), name="out")
    expected = torch.tensor([0.25, 0.25, 0.0, 0.25, 0.25], dtype=torch.float64).view(1, 5, 1)
    assert_within_budget(scores, expected, name="scores")


@everywhere(ROOM)
def test_dropout_mask_numbers_the_places(backend: str, device: torch.device) -> None:
    others = drawn(9, 8, 6)
    call = make(others, heads=3, width=4, value_width=1).cast(torch.float32, device)
    call.tensors["v"] = torch.eye(9, device=device)[:, None].expand(9, 3, 9)
    neighbors = torch.stack([torch.randperm(9)[:6] for _ in range(8)]).to(torch.int32)
    call.others["neighbors"] = neighbors.to(device)
    kept = run(ROOM, call, backend, needs=())["out"]
    call.others.update(dropout=0.25, seed=123)
    dropped = run(ROOM, call, backend, needs=())["out"]
    mask = keep_mask(123, torch.arange(48, device=device), 3, 0.25).view(8, 6, 3)
    row = torch.arange(8)[:, None].expand(8, 6)
    alpha = kept[row, :, neighbors.long()]
    expected = torch.where(mask, alpha / 0.75, torch.zeros_like(alpha))
    found = dropped[row, :, neighbors.long()]
    assert_within_budget(found, expected.double(), name="dropped attention")
    assert torch.equal(found != 0, mask)


@everywhere(ROOM)
def test_queries_may_be_a_prefix_of_the_sources(backend: str, device: torch.device) -> None:
    """As a network's layers use it: one tensor of nodes, of which the first are computed."""
    x = torch.randn(9, 2, 4, device=device)
    neighbors = drawn(9, 4, 3)["neighbors"].to(device)
    expected = ops.sampled_attention(x[:4].clone(), x, x, neighbors, backend=backend)
    assert torch.equal(ops.sampled_attention(x[:4], x, x, neighbors, backend=backend), expected)


def released(
    q: Tensor, k: Tensor, v: Tensor, neighbors: Tensor, key_scale: Tensor, bias: Tensor
) -> Tensor:
    """The released formula, place by place: slot t of head h meets key m of head g, where m and g
    are the quotient and the remainder of (h * K + t) / H."""
    (num_dst, heads, _), degree = q.shape, neighbors.size(1)
    out = torch.zeros(num_dst, heads, v.size(2), dtype=q.dtype)
    for i in range(num_dst):
        for h in range(heads):
            score = torch.zeros(degree, dtype=q.dtype)
            for t in range(degree):
                m, g = divmod(h * degree + t, heads)
                key = key_scale[i, m, g] * k[neighbors[i, m], g]
                score[t] = q[i, h] @ key + bias[i, t, h]
            weight = score.clamp(-8, 8).softmax(0)
            out[i, h] = sum(weight[t] * v[neighbors[i, t], h] for t in range(degree))
    return out


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_compat_is_the_released_mixture_of_heads_and_places(heads: int) -> None:
    others = drawn(9, 5, 4, empty=0.0)
    call = make(others, heads=heads, width=3, key_scale="place", bias="place", scale=1.0, clamp=8.0)
    expected = released(neighbors=others["neighbors"].long(), **call.tensors)
    found = attend(**call.tensors, **call.others, compat="spexphormer-release")
    assert_within_budget(found, expected, name="out")
    right = run(ROOM, call, "reference", needs=())["out"]
    assert torch.allclose(found, right) == (heads == 1)


@everywhere(ROOM)
def test_padding_may_stand_anywhere(backend: str, device: torch.device) -> None:
    call = make(drawn(9, 6, 8), heads=2, width=4).cast(torch.float32, device)
    expected = run(ROOM, call, backend)
    neighbors = call.others["neighbors"]
    order = (neighbors < 0).to(torch.int8).argsort(dim=1, stable=True)
    call.others["neighbors"] = neighbors.gather(1, order)
    found = run(ROOM, call, backend)
    if backend == "cpu":
        # which drops the empty places first; the others add up a row in an order set by its places
        assert_bit_equal(found, expected)
    else:
        wide = {name: value.double() for name, value in expected.items()}
        assert_all_within_budget(found, wide, torch.float32)


@pytest.mark.parametrize("types", [0, 3])
@pytest.mark.parametrize(
    ("num_src", "num_dst", "degree"), [(7, 9, 5), (3, 400, 11), (2, 5, 0), (0, 4, 3), (4, 0, 3)]
)
def test_places_by_source_are_the_graphs_transpose(
    num_src: int, num_dst: int, degree: int, types: int
) -> None:
    others = drawn(num_src, num_dst, degree, types=types)
    neighbors = others["neighbors"]
    kind = others.get("edge_type", torch.empty(0, dtype=torch.uint8))
    source, row = edges(others)
    place = (neighbors.flatten() >= 0).nonzero().flatten()
    transpose = Graph.from_edge_index(torch.stack((source, row)), (num_src, num_dst)).csc
    found = group_by_source(neighbors, kind, num_src)
    count = place.numel()
    assert torch.equal(found.ptr, transpose.ptr)
    assert found.index.numel() == neighbors.numel()
    assert torch.equal(neighbors.flatten()[found.edge_id[:count]].long(), source.sort().values)
    for begin, end in itertools.pairwise(found.ptr.tolist()):
        assert bool((found.edge_id[begin:end].diff() > 0).all())
    assert torch.equal(found.index[:count].long(), found.edge_id[:count] // max(degree, 1))
    if types:
        assert torch.equal(found.edge_type[:count], kind.flatten()[found.edge_id[:count]])
    used = found.heavy[:, 0] >= 0
    assert torch.equal(found.heavy[used], transpose.heavy)
    assert bool((found.heavy[~used] == -1).all()) and bool((used.int().diff() <= 0).all())


@pytest.mark.large
@everywhere(ROOM)
def test_more_than_two_to_the_31_elements(backend: str, device: torch.device) -> None:
    if backend == "reference" or device.type != "cpu":
        pytest.skip("only kernels on the host leave the untouched rows without memory")
    heads, width = 4, 256
    rows = 2**31 // (heads * width) + 2
    k = lazy_zeros(rows, heads, width, torch.float32)
    ends = torch.tensor([0, rows - 2, 1, rows - 1])
    values = torch.randn(4, heads, width)
    k[ends] = values
    q = torch.randn(2, heads, width, requires_grad=True)

    def proof(key: Tensor, neighbors: Tensor) -> dict[str, Tensor]:
        chosen = neighbors.to(torch.int32).view(2, 2)
        out = ops.sampled_attention(q, key, key, chosen, backend=backend)
        (gradient,) = torch.autograd.grad(out, q, cotangent(out, 0))
        return {"out": out.detach(), "grad of q": gradient}

    assert k.numel() > 2**31
    assert_bit_equal(proof(k, ends), proof(values, torch.arange(4)))
