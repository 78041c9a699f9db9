"""ragged_attention: the room's contract, and what only this room promises."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
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
    oracle,
    run,
)
from torch import Tensor

from gtkern import PairIndex, Ragged, ops
from gtkern.ops.ragged_attention.op import BACKENDS
from gtkern.random import keep_mask
from gtkern.testing import assert_within_budget

DTYPES = {"uint8": torch.uint8, "int16": torch.int16}


def attend(**arguments: Any) -> Tensor:
    """The op; the contract names every tensor, so index_0 and table_0 stand for bias[0]."""
    count = sum(name.startswith("index_") for name in arguments)
    bias = [(arguments.pop(f"index_{m}"), arguments.pop(f"table_{m}")) for m in range(count)]
    return ops.ragged_attention(bias=arguments.pop("bias", bias), **arguments)


def ragged_of(sizes: Sequence[int]) -> Ragged:
    """The batch of graphs with these numbers of nodes."""
    return Ragged.from_ptr(torch.tensor([0, *itertools.accumulate(sizes)]))


def make(
    sizes: Sequence[int],
    *,
    heads: int = 2,
    width: int = 8,
    value_width: int | None = None,
    bias: Sequence[tuple[str, int]] = (),
    masked: float = 0.0,
    prefix: int | None = None,
    values: int = 0,
    **options: Any,
) -> Call:
    """A call with unit-sized random arguments.

    Args:
        sizes: n_g of each graph.
        bias: dtype and number of entries of each index; tables have one row more.
        masked: share of pairs that each index masks, and all those of the first query.
        prefix: P; None: without.
        values: seed of the arguments.
        options: of the op.
    """
    generator = torch.Generator().manual_seed(values)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    ragged = ragged_of(sizes)
    nodes = ragged.num_nodes
    value_width = width if value_width is None else value_width
    tensors = {
        "q": normal(nodes, heads, width),
        "k": normal(nodes, heads, width),
        "v": normal(nodes, heads, value_width),
    }
    axes = {"q": "dst", "k": "src", "v": "src"}
    others: dict[str, Any] = {"ragged": ragged}
    for m, (dtype, entries) in enumerate(bias):
        index = torch.randint(entries, (ragged.num_pairs,), generator=generator).to(DTYPES[dtype])
        if masked:
            hidden = torch.rand(ragged.num_pairs, generator=generator) < masked
            hidden[: max(sizes[:1], default=0)] = True
            index[hidden] = PairIndex.MASKED[index.dtype]
        others[f"index_{m}"] = PairIndex.from_tensor(index, ragged, entries)
        tensors[f"table_{m}"] = normal(entries + 1, heads)
        axes[f"table_{m}"] = "type"
    if prefix is not None:
        tensors["prefix_k"] = normal(prefix, heads, width)
        tensors["prefix_v"] = normal(prefix, heads, value_width)
        axes |= {"prefix_k": "type", "prefix_v": "type"}
    return Call(tensors, axes, {**others, **options})


def indices(others: Mapping[str, Any]) -> dict[str, PairIndex]:
    return {name: value for name, value in others.items() if name.startswith("index_")}


def structure(others: Mapping[str, Any]) -> list[Tensor]:
    ragged = others["ragged"]
    return [ragged.ptr, ragged.pair_ptr, *(each.index for each in indices(others).values())]


def edges(others: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """The keys and the queries of the pairs that no index masks."""
    query, key = others["ragged"].pairs()
    real = torch.ones_like(query, dtype=torch.bool)
    for each in indices(others).values():
        real &= each.index != PairIndex.MASKED[each.index.dtype]
    return key[real], query[real]


def orders(call: Call, generator: torch.Generator) -> dict[str, Tensor]:
    """Nodes change places inside their graph, queries and keys on their own."""
    spans = list(itertools.pairwise(call.others["ragged"].ptr.tolist()))

    def order() -> Tensor:
        parts = [first + torch.randperm(end - first, generator=generator) for first, end in spans]
        return torch.cat([torch.empty(0, dtype=torch.int64), *parts])

    return {"src": order(), "dst": order()}


def relabel(others: Mapping[str, Any], source_to: Tensor, destination_to: Tensor) -> dict[str, Any]:
    """The indices follow the nodes."""
    ragged = others["ragged"]
    query, key = ragged.pairs()
    local = torch.arange(ragged.num_nodes) - ragged.ptr[ragged.batch()]
    graph = ragged.batch()[query]
    to = (
        ragged.pair_ptr[graph]
        + local[destination_to[query]] * ragged.sizes()[graph]
        + local[source_to[key]]
    )
    moved = dict(others)
    for name, each in indices(others).items():
        index = torch.empty_like(each.index).index_copy(0, to, each.index)
        moved[name] = PairIndex.from_tensor(index, ragged, each.num_entries)
    return moved


def join(calls: list[Mapping[str, Any]]) -> dict[str, Any]:
    sizes = [size for others in calls for size in others["ragged"].sizes().tolist()]
    joined = {**calls[0], "ragged": ragged_of(sizes)}
    for name, each in indices(calls[0]).items():
        index = torch.cat([others[name].index for others in calls])
        joined[name] = PairIndex.from_tensor(index, joined["ragged"], each.num_entries)
    return joined


def saved_bytes(call: Call) -> int:
    """lse, and where there are several tables the stack of them."""
    nodes, heads, _ = call.tensors["q"].shape
    tables = [value for name, value in call.tensors.items() if name.startswith("table_")]
    stacked = sum(table.numel() * table.element_size() for table in tables)
    wide = call.tensors["q"].dtype == torch.float64
    return (8 if wide else 4) * nodes * heads + (stacked if len(tables) > 1 else 0)


def sample(name: str, sizes: Sequence[int], size: str = "small", **options: Any) -> Sample:
    return Sample(name, functools.partial(make, sizes, **options), size)


BYTE, SHORT = ("uint8", 5), ("int16", 300)

SAMPLES = (
    sample("plain", (2, 0, 3, 1), "tiny", width=3),
    sample("everything", (3, 0, 2, 1), "tiny", width=3, value_width=2, bias=(BYTE, ("int16", 4)),
           masked=0.2, prefix=2, scale=0.7, dropout=0.3, seed=11),
    sample("bias", (3, 2), "tiny", heads=1, width=2, value_width=3, bias=(("uint8", 3),),
           masked=0.3),
    sample("one_node_graphs", (1, 1, 1), bias=(BYTE,)),
    sample("tables_of_one_entry", (6, 5), bias=(("uint8", 1), ("int16", 1)), scale=-0.5),
    sample("odd_heads_and_widths", (9, 17, 4), heads=3, width=7, value_width=5, bias=(BYTE,)),
    sample("three_tables", (9, 18), heads=5, bias=(BYTE, SHORT, BYTE), masked=0.1),
    sample("all_masked", (4, 3), bias=(BYTE,), masked=1.0),
    sample("all_masked_but_a_prefix", (4, 3), bias=(BYTE,), masked=1.0, prefix=3),
    sample("prefix", (5, 0, 18), heads=4, width=16, prefix=5),
    sample("prefix_and_bias", (5, 16), heads=3, width=5, bias=(BYTE,), prefix=12),
    sample("empty_prefix", (4, 3), prefix=0),
    sample("prefix_alone", (0, 0), bias=(BYTE,), prefix=2),
    sample("no_graphs", (), bias=(BYTE,), prefix=2),
    sample("dropout", (19, 2, 16), heads=5, width=4, dropout=0.25, seed=-3, prefix=2),
    sample("many_graphs", tuple(range(0, 40, 5)), heads=4, width=10, bias=(BYTE,), masked=0.1),
    sample("one_large_graph", (1,) * 30 + (70,), heads=1, width=4, bias=(BYTE,), masked=0.1,
           prefix=2),
    sample("more_graphs", tuple(range(40)), "broad", heads=4, width=10, bias=(BYTE,), masked=0.1),
    sample("nci1", (29, 34, 17, 111, 8, 25, 40), "broad", heads=4, width=16),
    sample("molhiv", (25, 31, 0, 48, 16, 33, 2, 64, 100), "broad", heads=32, width=24,
           bias=(("uint8", 40),), prefix=3),
    sample("molhiv_dropout", (25, 31, 48, 16), "broad", heads=8, width=32, dropout=0.1, seed=5,
           bias=(("uint8", 40), SHORT), masked=0.05),
    sample("large", (700, 3, 90), "broad", heads=2, width=16, bias=(BYTE,), prefix=4),
    sample("width_64", (50, 70), "broad", heads=3, width=64, bias=(BYTE,)),
    sample("width_256", (20, 33), "broad", width=256, value_width=200),
    sample("width_1", (60, 50, 9), "broad", heads=5, width=1),
    sample("many_heads", (20, 9, 33), "broad", heads=37, width=3, bias=(BYTE,)),
    sample("large_table", (40, 60), "broad", heads=4, bias=(("int16", 32_767),)),
)  # fmt: skip


def change(**arguments: Any) -> Any:
    """Replace arguments by values, or by functions of the right arguments."""
    return lambda right: {
        name: value(right) if callable(value) and not isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }


def index_for(pair_count: int) -> PairIndex:
    return PairIndex(torch.zeros(pair_count, dtype=torch.uint8), 3)


def one(index: Any, table: Any) -> Any:
    return change(bias=[(index, table)])


BAD = (
    BadInput("q_no_tensor", change(q=[1.0]), TypeError, r"^q must be a tensor, got list"),
    BadInput("q_integer", change(q=lambda a: a["q"].long()), TypeError,
             r"^q must be float32, bfloat16, float16 or float64, got torch.int64"),
    BadInput("q_rank", change(q=lambda a: a["q"][0]), ValueError,
             r"^q must have shape \[N, H, D\], got \[2, 3\]"),
    BadInput("q_rows", change(q=lambda a: a["q"][1:]), ValueError,
             r"^q must have 6 rows \(ragged.num_nodes\), got 5"),
    BadInput("no_heads", change(**{name: torch.ones(6, 0, 3) for name in "qkv"}), ValueError,
             r"^q must have at least 1 head, got 0"),
    BadInput("k_heads", change(k=lambda a: a["k"][:, :1]), ValueError,
             r"^k must have shape \[N, H, D\] = \[6, 2, 3\], got \[6, 1, 3\]"),
    BadInput("v_rows", change(v=lambda a: a["v"][1:]), ValueError,
             r"^v must have shape \[N, H, Dv\] = \[6, 2, 3\], got \[5, 2, 3\]"),
    BadInput("k_dtype", change(k=lambda a: a["k"].half()), TypeError,
             r"^k must have the dtype of q \(torch.float32\), got torch.float16"),
    BadInput("k_device", change(k=lambda a: a["k"].to("meta")), ValueError,
             r"^k must be on the device of q \(cpu\), got meta"),
    BadInput("too_wide", change(v=torch.ones(6, 2, 257)), ValueError,
             r"^v must have a head width of 1 \.\. 256, got 257"),
    BadInput("ragged_tensor", change(ragged=torch.tensor([0, 6])), TypeError,
             r"^ragged must be a Ragged, got Tensor"),
    BadInput("bias_no_sequence", change(bias=index_for(14)), TypeError,
             r"^bias must be a sequence of \(index, table\), got PairIndex"),
    BadInput("bias_no_pair", change(bias=[index_for(14)]), TypeError,
             r"^bias\[0\] must be a pair \(index, table\), got PairIndex"),
    BadInput("bias_bare_index", one(torch.zeros(14, dtype=torch.uint8), torch.ones(3, 2)),
             TypeError, r"^bias\[0\]\[0\] must be a PairIndex, got Tensor"),
    BadInput("bias_other_batch", one(index_for(15), torch.ones(3, 2)), ValueError,
             r"^bias\[0\]\[0\] must have 14 pairs \(ragged.num_pairs\), got 15"),
    BadInput("bias_device", one(index_for(14).to("meta"), torch.ones(3, 2)), ValueError,
             r"^bias\[0\]\[0\] must be on the device of ragged \(cpu\), got meta"),
    BadInput("table_no_tensor", one(index_for(14), [1.0]), TypeError,
             r"^bias\[0\]\[1\] must be a tensor, got list"),
    BadInput("table_dtype", one(index_for(14), torch.ones(3, 2).half()), TypeError,
             r"^bias\[0\]\[1\] must have the dtype of q \(torch.float32\) or float32, got "
             r"torch.float16"),
    BadInput("table_rows", one(index_for(14), torch.ones(2, 2)), ValueError,
             r"^bias\[0\]\[1\] must have shape \[B, H\] with B at least 3 .* H = 2, got \[2, 2\]"),
    BadInput("table_heads", one(index_for(14), torch.ones(3, 1)), ValueError,
             r"^bias\[0\]\[1\] must have shape \[B, H\] .* got \[3, 1\]"),
    BadInput("two_table_dtypes",
             lambda right: {
                 **{name: right[name].half() for name in "qkv"},
                 "bias": [(index_for(14), torch.ones(3, 2)),
                          (index_for(14), torch.ones(3, 2).half())],
             },
             TypeError, r"^bias\[1\]\[1\] must have the dtype of bias\[0\]\[1\] \(torch.float32\)"),
    BadInput("table_device", one(index_for(14), torch.ones(3, 2, device="meta")), ValueError,
             r"^bias\[0\] must be on the device of q \(cpu\), got meta"),
    BadInput("prefix_k_alone", change(prefix_k=torch.ones(2, 2, 3)), ValueError,
             r"^prefix_v must be given too"),
    BadInput("prefix_v_alone", change(prefix_v=torch.ones(2, 2, 3)), ValueError,
             r"^prefix_k must be given too"),
    BadInput("prefix_width", change(prefix_k=torch.ones(2, 2, 4), prefix_v=torch.ones(2, 2, 3)),
             ValueError, r"^prefix_k must have shape \[P, H, D\] = \[2, 2, 3\], got \[2, 2, 4\]"),
    BadInput("prefix_slots", change(prefix_k=torch.ones(2, 2, 3), prefix_v=torch.ones(3, 2, 3)),
             ValueError, r"^prefix_v must have shape \[P, H, Dv\] = \[2, 2, 3\], got \[3, 2, 3\]"),
    BadInput("prefix_dtype",
             change(prefix_k=torch.ones(2, 2, 3).half(), prefix_v=torch.ones(2, 2, 3)),
             TypeError, r"^prefix_k must have the dtype of q \(torch.float32\), got torch.float16"),
    BadInput("scale_infinite", change(scale=math.inf), ValueError, r"^scale must be in \["),
    BadInput("dropout_one", change(dropout=1.0), ValueError, r"^dropout must be in \[0, 1\)"),
    BadInput("seed_float", change(dropout=0.5, seed=1.5), TypeError,
             r"^seed must be an integer, got float"),
    BadInput("backend_unknown", change(backend="numpy"), ValueError,
             r"^backend must be one of 'auto', 'reference', .*got 'numpy'"),
)  # fmt: skip

ROOM = Room(
    op=attend,
    samples=SAMPLES,
    results=lambda call: [("out", "dst")],
    structure=structure,
    edges=edges,
    relabel=relabel,
    join=join,
    saved_bytes=saved_bytes,
    orders=orders,
    backends=BACKENDS,
    bad=BAD,
)


@strategies.composite
def calls(draw: strategies.DrawFn) -> Call:
    """Any small batch with any mixture of options."""
    # the gradient of a table's only entry is 0 but for rounding, which grows with the pairs:
    # the sample "tables_of_one_entry" has few
    index = strategies.sampled_from([("uint8", 2), ("uint8", 7), ("int16", 9)])
    return make(
        draw(strategies.lists(strategies.integers(0, 20), max_size=4)),
        heads=draw(strategies.integers(1, 6)),
        width=draw(strategies.sampled_from([1, 3, 8, 10, 16, 17, 24, 33])),
        value_width=draw(strategies.sampled_from([None, 1, 5, 16])),
        bias=draw(strategies.lists(index, max_size=3)),
        masked=draw(strategies.sampled_from([0.0, 0.3])),
        prefix=draw(strategies.sampled_from([None, 0, 1, 5])),
        values=draw(strategies.integers(0, 99)),
        scale=draw(strategies.sampled_from([None, 1.0])),
        dropout=draw(strategies.sampled_from([0.0, 0.4])),
    )


class TestContract(AttentionContract):
    """Every claim of the contract."""

    room = ROOM
    calls = staticmethod(calls)

    def test_renamed_nodes_get_the_same_results(
        self, backend: str, device: torch.device, sample: Sample
    ) -> None:
        if sample.build().others.get("dropout"):
            pytest.skip("a dropout mask belongs to a pair's number, which renaming changes")
        super().test_renamed_nodes_get_the_same_results(backend, device, sample)

    def test_destinations_without_edges_get_zero_and_give_zero(
        self, backend: str, device: torch.device, sample: Sample
    ) -> None:
        if "prefix_k" in sample.build().tensors:
            pytest.skip("every query sees the prefix")
        super().test_destinations_without_edges_get_zero_and_give_zero(backend, device, sample)

    @pytest.mark.sizes("tiny")
    def test_nan_stays_in_its_rows(
        self, backend: str, device: torch.device, sample: Sample
    ) -> None:
        """One in a query in its row; one in a key or value in its graph, masked or not."""
        call = sample.build().cast(torch.float32, device)
        graph = call.others["ragged"].batch()
        source, destination = edges(call.others)
        clean = run(self.room, call, backend)
        for name in "qkv":
            node = int((destination if name == "q" else source)[-1])
            tensors = {key: value.clone() for key, value in call.tensors.items()}
            tensors[name][node] = math.nan
            reached = torch.zeros_like(graph, dtype=torch.bool)
            reached[node if name == "q" else destination[source == node]] = True
            touched = reached if name == "q" else graph == graph[node]
            found = run(self.room, call._replace(tensors=tensors), backend)
            assert_bit_equal({name: found["out"][~touched]}, {name: clean["out"][~touched]})
            dropped = call.others.get("dropout", 0) > 0 and name == "v"
            assert dropped or found["out"][reached].isnan().any(dim=(1, 2)).all(), name
            elsewhere = graph != graph[node]
            for key in "qkv":
                assert found[f"grad of {key}"][elsewhere].isfinite().all(), f"{name} -> {key}"


def attention_of_one_graph(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """softmax(scale q kᵀ + bias) v, for [n, H, D] and bias [n, m, H]."""
    score = scale * torch.einsum("ihd,jhd->ijh", q, k) + bias
    return torch.einsum("ijh,jhd->ihd", score.softmax(1).nan_to_num(0.0), v)


@pytest.mark.parametrize("sample", [each for each in SAMPLES if each.size != "broad"],
                         ids=lambda sample: sample.name)  # fmt: skip
def test_reference_is_the_softmax_of_each_graph(sample: Sample) -> None:
    call = sample.build()
    call.others.pop("dropout", None)
    call.others.pop("seed", None)
    found = run(ROOM, call, "reference", needs=())["out"]
    ragged, tensors = call.others["ragged"], call.tensors
    heads, scale = tensors["q"].size(1), call.others.get("scale", tensors["q"].size(2) ** -0.5)
    expected = []
    for graph, (first, end) in enumerate(itertools.pairwise(ragged.ptr.tolist())):
        n, at = end - first, int(ragged.pair_ptr[graph])
        bias = torch.zeros(n, n, heads, dtype=torch.float64)
        for name, each in indices(call.others).items():
            index = each.index[at : at + n * n].view(n, n)
            masked = index == PairIndex.MASKED[index.dtype]
            table = tensors[name.replace("index", "table")]
            bias = bias + table[index.long().masked_fill(masked, 0)]
            bias[masked] = -math.inf
        keys, values = tensors["k"][first:end], tensors["v"][first:end]
        if "prefix_k" in tensors:
            keys = torch.cat((keys, tensors["prefix_k"]))
            values = torch.cat((values, tensors["prefix_v"]))
            slots = tensors["prefix_k"].size(0)
            bias = torch.cat((bias, bias.new_zeros(n, slots, heads)), dim=1)
        expected.append(attention_of_one_graph(tensors["q"][first:end], keys, values, bias, scale))
    empty = tensors["v"][:0]
    assert_within_budget(found, torch.cat([empty, *expected]), name="out")


@everywhere(ROOM)
@pytest.mark.parametrize(
    ("sizes", "width", "entries"), [((1,) * 30 + (140,), 40, 5), ((3, 2), 2, 20_000)],
    ids=["one_large_graph_among_small_ones", "a_table_that_no_block_sums_at_once"],
)  # fmt: skip
def test_where_kernels_cut_their_work_in_another_way(
    backend: str, device: torch.device, sizes: Sequence[int], width: int, entries: int
) -> None:
    call = make(sizes, heads=1, width=width, bias=(("int16", entries),), masked=0.1)
    expected = oracle(ROOM, call, torch.float32)
    found = run(ROOM, call.cast(torch.float32, device), backend)
    assert_all_within_budget(found, expected, torch.float32)


LONG = {
    "among_short_ones": functools.partial(
        make, (5, 520, 0, 600), heads=3, bias=(BYTE,), masked=0.1, prefix=2, dropout=0.1, seed=3
    ),
    "without_pairs_of_heads": functools.partial(make, (520,), heads=1, width=16),
    "in_the_last_of_few_chunks": functools.partial(
        make, (513, 20, 514, 7), heads=33, bias=(("int16", 32_767),)
    ),
}
"""Batches with graphs that the CPU kernels cut by queries."""


@pytest.mark.parametrize("name", LONG)
def test_long_graphs_are_cut_by_queries(name: str) -> None:
    call = LONG[name]()
    expected = oracle(ROOM, call, torch.float32)
    found = run(ROOM, call.cast(torch.float32), "cpu")
    assert_all_within_budget(found, expected, torch.float32)


def test_long_graphs_are_the_same_alone_and_at_any_number_of_threads() -> None:
    batch = make((300, 530, 9), heads=2, bias=(BYTE,)).cast(torch.float32)
    rows, pairs = slice(300, 830), slice(300**2, 300**2 + 530**2)
    alone = make((530,), heads=2, bias=(BYTE,)).cast(torch.float32)
    for name in "qkv":
        alone.tensors[name] = batch.tensors[name][rows].clone()
    alone.tensors["table_0"] = batch.tensors["table_0"].clone()
    index = batch.others["index_0"].index[pairs].clone()
    alone.others["index_0"] = PairIndex.from_tensor(index, alone.others["ragged"], BYTE[1])

    def gradients(call: Call, chosen: slice) -> dict[str, Tensor]:
        leaves = {name: value.clone().requires_grad_() for name, value in call.tensors.items()}
        out = attend(**leaves, **call.others, backend="cpu")
        found = torch.autograd.grad(out, [leaves[name] for name in "qkv"], out.detach().sin())
        parts = dict(zip(("out", *"qkv"), (out.detach(), *found), strict=True))
        return {name: part[chosen] for name, part in parts.items()}

    threads, found = torch.get_num_threads(), gradients(batch, rows)
    assert_bit_equal(gradients(alone, slice(None)), found)
    try:
        torch.set_num_threads(1)
        assert_bit_equal(gradients(batch, rows), found)
    finally:
        torch.set_num_threads(threads)


@everywhere(ROOM)
def test_dropout_mask_numbers_the_pairs_then_the_prefix(backend: str, device: torch.device) -> None:
    """Values that are rows of the identity make the output the attention itself."""
    sizes, heads, slots = (3, 5), 5, 2
    call = make(sizes, heads=heads, width=4, prefix=slots)
    nodes = sum(sizes)
    eye = torch.eye(nodes + slots, dtype=torch.float64)[:, None].expand(-1, heads, -1)
    call.tensors["v"], call.tensors["prefix_v"] = eye[:nodes], eye[nodes:]
    call = call.cast(torch.float32, device)
    kept = run(ROOM, call, backend, needs=())["out"]
    call.others.update(dropout=0.25, seed=123)
    dropped = run(ROOM, call, backend, needs=())["out"]
    query, key = call.others["ragged"].pairs()
    every = torch.arange(nodes, device=device)
    query = torch.cat((query, every.repeat_interleave(slots)))
    key = torch.cat((key, nodes + torch.arange(slots, device=device).repeat(nodes)))
    mask = keep_mask(123, torch.arange(query.numel(), device=device), heads, 0.25)
    alpha = kept[query, :, key]
    expected = torch.where(mask, alpha / 0.75, torch.zeros_like(alpha))
    found = dropped[query, :, key]
    assert_within_budget(found, expected.double(), name="dropped attention")
    assert torch.equal(found != 0, mask)


@everywhere(ROOM)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tables_may_be_float32_beside_half_queries(
    backend: str, device: torch.device, dtype: torch.dtype
) -> None:
    call = make((5, 3), bias=(BYTE, SHORT), masked=0.1).cast(dtype, device)
    for name in ("table_0", "table_1"):
        call.tensors[name] = call.tensors[name].float()
    wide = call.cast(torch.float64)
    expected = run(ROOM, wide, "reference")
    found = run(ROOM, call, backend)
    assert found["grad of table_0"].dtype == torch.float32
    for name, value in found.items():
        assert_within_budget(value, expected[name], name=name, dtype=dtype, unit=0.5)


@everywhere(ROOM)
def test_a_table_of_minus_infinity_masks(backend: str, device: torch.device) -> None:
    call = make((6, 4), bias=(BYTE,)).cast(torch.float32, device)
    index = call.others["index_0"].index
    call.tensors["table_0"][2] = -math.inf
    found = run(ROOM, call, backend)
    masked = torch.where(index == 2, 255, index.int()).to(torch.uint8)
    call.others["index_0"] = PairIndex.from_tensor(masked, call.others["ragged"], 5)
    call.tensors["table_0"][2] = 0.0
    assert_bit_equal(found, run(ROOM, call, backend))


@everywhere(ROOM)
def test_parts_of_one_projection_are_read_where_they_lie(
    backend: str, device: torch.device
) -> None:
    ragged = ragged_of((5, 0, 19)).to(device)
    projected = torch.randn(24, 3, 4, 10, device=device)

    def gradients(parts: list[Tensor]) -> dict[str, Tensor]:
        out = ops.ragged_attention(*parts, ragged, backend=backend)
        found = torch.autograd.grad(out, parts, cotangent(out, 0))
        return dict(zip(("out", *"qkv"), (out.detach(), *found), strict=True))

    strided = [part.detach().requires_grad_() for part in projected.unbind(1)]
    dense = [part.contiguous().requires_grad_() for part in projected.unbind(1)]
    assert not strided[0].is_contiguous()
    assert_bit_equal(gradients(strided), gradients(dense))


@pytest.mark.large
def test_pairs_past_two_to_the_31_are_found() -> None:
    """The second graph's pairs lie past 2^31, behind a gap that stands for a huge graph's."""
    sizes, gap = (5, 9), 2**31
    near = ragged_of(sizes)
    far = Ragged(near.ptr, near.pair_ptr + torch.tensor([0, gap, gap]), near.max_nodes)
    index = torch.randint(3, (near.num_pairs,), dtype=torch.uint8)
    wide = lazy_zeros(far.num_pairs, 1, 1, torch.uint8).view(-1)
    wide[:25], wide[-81:] = index[:25], index[25:]

    def attended(ragged: Ragged, entries: Tensor) -> dict[str, Tensor]:
        call = make(sizes, bias=(("uint8", 3),)).cast(torch.float32)
        # made without its check, which reads every pair
        call.others.update(ragged=ragged, index_0=PairIndex(entries, 3))
        return run(ROOM, call, "cpu")

    assert far.num_pairs > 2**31
    assert_bit_equal(attended(far, wide), attended(near, index))
