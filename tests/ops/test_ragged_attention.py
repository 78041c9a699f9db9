"""ragged_attention: the room's contract, and what only this room promises."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from attention_contract import AttentionContract
from hypothesis import strategies
from ragged_room import BYTE, ROOM, SAMPLES, SHORT, attend, edges, indices, make, ragged_of
from room import (
    Call,
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
from torch.nn import functional

from gtkern import PairIndex, Ragged, ops
from gtkern.random import keep_mask
from gtkern.testing import assert_within_budget


@strategies.composite
def calls(draw: strategies.DrawFn) -> Call:
    """Any small batch with any mixture of options."""
    # the gradient of a table's only entry is 0 but for rounding, which grows with the pairs:
    # the sample "tables_of_one_entry" has few
    index = strategies.sampled_from([("uint8", 2), ("uint8", 7), ("int16", 9)])
    sizes = draw(strategies.lists(strategies.integers(0, 20), max_size=4))
    prefix = draw(strategies.sampled_from([None, 0, 1, 5]))
    choice = strategies.lists(strategies.integers(-1, 2), min_size=len(sizes), max_size=len(sizes))
    sets = draw(strategies.one_of(strategies.none(), choice))
    return make(
        sizes,
        heads=draw(strategies.integers(1, 6)),
        width=draw(strategies.sampled_from([1, 3, 8, 10, 16, 17, 24, 33])),
        value_width=draw(strategies.sampled_from([None, 1, 5, 16])),
        bias=draw(strategies.lists(index, max_size=3)),
        masked=draw(strategies.sampled_from([0.0, 0.3])),
        prefix=prefix,
        # there is one set at least
        sets=sets if sets and prefix is not None and max(sets) >= 0 else None,
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

    def test_nodes_without_edges_reach_nothing_whatever_they_hold(
        self, backend: str, device: torch.device, sample: Sample
    ) -> None:
        pytest.skip("every node meets all of its graph, if only to be masked")

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
        number = int(call.others["prefix_set"][graph]) if "prefix_set" in call.others else 0
        if "prefix_k" in tensors and number >= 0:
            prefix_k, prefix_v = tensors["prefix_k"], tensors["prefix_v"]
            if "prefix_set" in call.others:
                prefix_k, prefix_v = prefix_k[number], prefix_v[number]
            keys, values = torch.cat((keys, prefix_k)), torch.cat((values, prefix_v))
            bias = torch.cat((bias, bias.new_zeros(n, prefix_k.size(0), heads)), dim=1)
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
    "smaller_graphs_with_larger_blocks": functools.partial(make, (408, 409), heads=1, width=4),
    "without_pairs_of_heads": functools.partial(make, (520,), heads=1, width=16),
    "in_the_last_of_few_chunks": functools.partial(
        make, (513, 20, 514, 7), heads=25, width=4, bias=(("int16", 32_767),)
    ),
}
"""Batches with graphs that the CPU kernels cut by queries."""


@pytest.mark.parametrize("name", LONG)
def test_long_graphs_are_cut_by_queries(name: str) -> None:
    call = LONG[name]()
    expected = oracle(ROOM, call, torch.float32)
    found = run(ROOM, call.cast(torch.float32), "cpu")
    assert_all_within_budget(found, expected, torch.float32)


def test_one_to_six_thousand_nodes_in_a_batch() -> None:
    sizes = (1, 6_000, 0, 17)
    call = make(sizes, heads=1, width=8)
    wide = {name: value.requires_grad_() for name, value in call.tensors.items()}
    parts = zip(*(wide[name].transpose(0, 1).split(sizes, 1) for name in "qkv"), strict=True)
    # the reference would hold all pairs at once, several times
    out = torch.cat([functional.scaled_dot_product_attention(*part) for part in parts], 1)[0]
    weight = torch.arange(out.numel(), dtype=out.dtype).sin().view_as(out)
    gradients = torch.autograd.grad(out, [wide[name] for name in "qkv"], weight)
    leaves = {name: wide[name].detach().float().requires_grad_() for name in "qkv"}
    found = attend(**leaves, **call.others, backend="cpu")
    rest = torch.autograd.grad(found, list(leaves.values()), weight.float()[:, None])
    names = ["out", *(f"grad of {name}" for name in leaves)]
    assert_all_within_budget(
        dict(zip(names, (found.detach(), *rest), strict=True)),
        dict(zip(names, (out.detach()[:, None], *gradients), strict=True)),
        torch.float32,
    )


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
def test_a_graph_gets_what_its_set_alone_gives_it(backend: str, device: torch.device) -> None:
    sizes, sets = (5, 3, 4, 0, 2), (1, 0, -1, 1, 0)
    call = make(sizes, width=4, bias=(BYTE,), prefix=2, sets=sets, dropout=0.2, seed=4)
    call = call.cast(torch.float32, device)
    found = run(ROOM, call, backend)
    prefix = {name: call.tensors.pop(name) for name in ("prefix_k", "prefix_v")}
    set_of_row = call.others.pop("prefix_set")[call.others["ragged"].batch()]
    every, by_row = dict(call.tensors), ("out", *(f"grad of {name}" for name in "qkv"))
    for number in (0, 1, -1):
        alone = {name: part[number] for name, part in prefix.items()} if number >= 0 else {}
        expected = run(ROOM, call._replace(tensors=every | alone), backend)
        mine = set_of_row == number
        assert_bit_equal(
            {name: found[name][mine] for name in by_row},
            {name: expected[name][mine] for name in by_row},
        )


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
