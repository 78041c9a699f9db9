"""neighbor_sampling: the room's contract, and what only this room promises."""

from __future__ import annotations

import itertools
import math

import hypothesis
import pytest
import torch
from contract import OpContract
from hypothesis import strategies
from room import (
    Call,
    Sample,
    everywhere,
    fast,
)
from sampling_room import ROOM, drawn, law, make, results, rows, sample_flat

from gtkern import Graph, ops
from gtkern.ops.neighbor_sampling import table as tables
from gtkern.random import exponential, philox
from gtkern.testing import random_graph


class TestContract(OpContract):
    """The claims that do not speak of gradients."""

    room = ROOM

    def test_the_sample_is_the_references_to_the_bit(
        self, backend: str, device: torch.device, sample: Sample, dtype: torch.dtype
    ) -> None:
        call = sample.build().cast(dtype)
        expected = sample_flat(**call.tensors, **call.others, backend="reference")
        call = call.cast(dtype, device)
        found = sample_flat(**call.tensors, **call.others, backend=backend)
        for (name, _), value, right in zip(results(call), found, expected, strict=True):
            assert value.dtype == right.dtype and torch.equal(value.cpu(), right), name

    def test_every_place_is_what_it_says(
        self, backend: str, device: torch.device, sample: Sample
    ) -> None:
        call = sample.build().cast(torch.float32, device)
        graph, weight = call.others["graph"], call.tensors.get("weight")
        source, destination = graph.edge_index()
        layers = ops.sample_neighbors(**call.tensors, **call.others, backend=backend)
        for number, layer in enumerate(layers):
            mine = torch.ones(graph.num_edges) if weight is None else weight
            mine = mine[number] if mine.dim() == 2 else mine
            candidates = torch.zeros(graph.num_dst_nodes, dtype=torch.int64, device=device)
            candidates.index_add_(0, destination, (mine >= 2.0**-100).long())
            real = layer.edge >= 0
            assert torch.equal(layer.index >= 0, real)
            row = torch.arange(graph.num_dst_nodes, device=device)[:, None].expand_as(layer.edge)
            edge = layer.edge[real]
            assert torch.equal(source[edge], layer.index[real].long())
            assert torch.equal(destination[edge], row[real])
            assert (mine[edge] >= 2.0**-100).all()
            if layer.type is not None:
                assert torch.equal(graph.edge_type()[edge], layer.type[real])
                assert (layer.type[~real] == 0).all()
            k = layer.edge.size(1)
            expected = candidates.clamp(max=k)
            if call.others.get("fill") != "pad":
                expected = torch.where(candidates > 0, k, 0)
            assert torch.equal(real.sum(1), expected)
            # those drawn without replacement differ; -1 - place stands for the others
            place = torch.arange(k, device=device).expand_as(layer.edge)
            once = torch.where(place < candidates[:, None], layer.edge, -1 - place)
            assert (once.sort(dim=1).values.diff(dim=1) > 0).all()


@strategies.composite
def calls(draw: strategies.DrawFn) -> Call:
    degrees = draw(strategies.lists(strategies.integers(0, 80), max_size=8))
    layers = draw(strategies.integers(0, 3))
    count = strategies.integers(1, 40)
    return make(
        lambda: rows(*degrees, types=draw(strategies.integers(0, 3))),
        layers=layers,
        k=draw(count if layers < 2 else strategies.lists(count, min_size=layers, max_size=layers)),
        shape=draw(strategies.sampled_from(["plain", "steep", "ties", "rare"])),
        method=draw(strategies.sampled_from(["weighted", "top"])),
        fill=draw(strategies.sampled_from(["replacement", "pad"])),
        seed=draw(strategies.integers(-(2**63), 2**63 - 1)),
        epoch=draw(strategies.integers(0, 2**32 - 1)),
    )


@everywhere(ROOM)
def test_any_rows_with_any_options(backend: str, device: torch.device) -> None:
    if backend == "reference":
        pytest.skip("the reference is the yardstick")

    @hypothesis.settings(max_examples=100 if fast(backend, device) else 8)
    @hypothesis.given(call=calls())
    def proof(call: Call) -> None:
        call = call.cast(torch.float32)
        expected = sample_flat(**call.tensors, **call.others, backend="reference")
        call = call.cast(torch.float32, device)
        found = sample_flat(**call.tensors, **call.others, backend=backend)
        for value, right in zip(found, expected, strict=True):
            assert torch.equal(value.cpu(), right)

    proof()


@everywhere(ROOM)
def test_seed_epoch_and_layer_change_the_sample(backend: str, device: torch.device) -> None:
    (first,) = drawn(backend, device)
    assert all(
        torch.equal(a, b) for a, b in zip(first[:2], drawn(backend, device)[0][:2], strict=True)
    )
    layers = drawn(backend, device, k=[6, 6])
    assert torch.equal(layers[0].edge, first.edge)
    others = [drawn(backend, device, seed=4)[0], drawn(backend, device, epoch=1)[0], layers[1]]
    samples = [first, *others]
    for a, b in itertools.combinations(samples, 2):
        assert not torch.equal(a.edge, b.edge)


@everywhere(ROOM)
def test_top_takes_the_largest_and_the_earlier_of_equals(
    backend: str, device: torch.device
) -> None:
    graph = rows(6, 3).to(device)
    weight = torch.tensor([2.0, 5.0, 2.0, 0.0, 7.0, 2.0, 0.0, 1.0, 0.0], device=device)
    (layer,) = ops.sample_neighbors(
        graph, weight, 3, seed=0, method="top", fill="pad", backend=backend
    )
    assert layer.edge.tolist() == [[0, 1, 4], [7, -1, -1]]


@everywhere(ROOM)
def test_rows_without_weight_draw_nothing(backend: str, device: torch.device) -> None:
    graph = rows(3, 0, 2, types=2).to(device)
    weight = torch.tensor([0.0, 2.0**-120, 0.0, 0.0, 3.0], device=device)
    (layer,) = ops.sample_neighbors(graph, weight, 2, seed=0, backend=backend)
    assert layer.edge.tolist() == [[-1, -1], [-1, -1], [4, 4]]
    assert layer.index.tolist() == [[-1, -1], [-1, -1], [4, 4]]
    assert layer.type is not None and layer.type.tolist() == [[0, 0], [0, 0], [0, 0]]


@everywhere(ROOM)
@pytest.mark.parametrize("size", [2.0**-97, 2.0**100])
def test_weights_may_have_any_size(backend: str, device: torch.device, size: float) -> None:
    """A power of two that all weights share changes nothing, up to the ends of the range."""
    graph = law("power_law", 30, 900)().to(device)
    weight = (0.125 + 0.875 * torch.rand(900)).to(device)
    (expected,) = ops.sample_neighbors(graph, weight, 40, seed=5, backend=backend)
    (found,) = ops.sample_neighbors(graph, weight * size, 40, seed=5, backend=backend)
    assert torch.equal(found.edge, expected.edge)


@everywhere(ROOM)
def test_edges_are_numbered_as_the_caller_did(backend: str, device: torch.device) -> None:
    """The same edges in another order, their weights with them: the same edges are drawn."""
    graph = law("power_law", 30, 900)()
    once = torch.unique(graph.edge_index(), dim=1)
    order = torch.randperm(once.size(1))
    weight = torch.rand(once.size(1))
    first = Graph.from_edge_index(once, 30).to(device)
    second = Graph.from_edge_index(once[:, order], 30).to(device)
    (a,) = ops.sample_neighbors(first, weight.to(device), 6, seed=5, backend=backend)
    (b,) = ops.sample_neighbors(second, weight[order].to(device), 6, seed=5, backend=backend)
    order = torch.cat((order, torch.tensor([-1]))).to(device)
    assert torch.equal(order[b.edge], a.edge)


@everywhere(ROOM)
@pytest.mark.parametrize("method", ["weighted", "top"])
def test_a_table_gives_the_bits_of_its_weights(
    backend: str, device: torch.device, method: str
) -> None:
    graph = law("power_law", 20, 300, 2)().to(device)
    weight = torch.rand(2, 300, device=device)
    weight[1] **= 12
    table = ops.sampling_table(graph, weight)
    for k in (3, 20):
        options = {"k": [k, k], "seed": 5, "method": method, "backend": backend}
        expected = ops.sample_neighbors(graph, weight, **options)
        found = ops.sample_neighbors(graph, table, **options)
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a.edge, b.edge)


def test_a_table_of_one_layer_serves_all() -> None:
    graph = law("power_law", 30, 900)()
    weight = torch.rand(900)
    expected = ops.sample_neighbors(graph, weight, [4, 6], seed=5)
    found = ops.sample_neighbors(graph, ops.sampling_table(graph, weight), [4, 6], seed=5)
    assert all(torch.equal(a.edge, b.edge) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("shape", ["plain", "steep", "ties", "rare"])
@pytest.mark.parametrize("backend", ["cpu"])
def test_native_tables_are_those_of_torch(device: torch.device, backend: str, shape: str) -> None:
    """Rows of one edge, of sums that need shifting, and without edges."""
    graph = rows(1, 300, 0, 255, 256, 257, 17)
    order = torch.randperm(graph.num_edges)
    graph = Graph.from_edge_index(graph.edge_index()[:, order], graph.num_edges)
    call = make(lambda: graph, layers=2, shape=shape).cast(torch.float32)
    weight = call.tensors["weight"]
    weight[0, :300] = weight[0, 0]
    found = ops.sampling_table(graph, weight)
    ordered, prefix = tables.sorted_weight(graph.csr, weight, None)
    assert ordered is not None and prefix is not None
    assert torch.equal(found.weight, ordered)
    assert torch.equal(found.prefix.long(), prefix.long())


def test_prefix_sums_are_the_published_ones() -> None:
    graph = rows(3, 2, 300)
    weight = torch.cat((torch.tensor([1.0, 0.0, 4.0, 0.0, 2.0**-110]), torch.full((300,), 0.3)))
    prefix = ops.sampling_table(graph, weight).prefix.long()[0]
    assert prefix[:5].tolist() == [2**22, 2**22, 2**22 + 2**24, 0, 0]
    # 300 shares of 2**24 need 33 bits: one is shifted out
    assert torch.equal(prefix[5:], torch.arange(1, 301) * 2**23)


@everywhere(ROOM)
def test_missing_seed_is_drawn_from_torchs_generator(backend: str, device: torch.device) -> None:
    torch.manual_seed(1)
    (first,) = drawn(backend, device, seed=None)
    torch.manual_seed(1)
    (again,) = drawn(backend, device, seed=None)
    (other,) = drawn(backend, device, seed=None)
    assert torch.equal(first.edge, again.edge) and not torch.equal(first.edge, other.edge)


@everywhere(ROOM)
def test_op_passes_opcheck(backend: str, device: torch.device) -> None:
    graph = random_graph("uniform", 9, 40, seed=0, device=device)
    weight = torch.rand(2, 40, device=device)
    arguments = (list(graph.csr), weight, [], [3, 4], torch.tensor(1), 0, "draw", False, backend)
    report = torch.library.opcheck(torch.ops.gtkern.sample_neighbors.default, arguments)
    assert set(report.values()) == {"SUCCESS"}
    table = ops.sampling_table(graph, weight)
    sums = [table.prefix, table.row_ptr]
    report = torch.library.opcheck(
        torch.ops.gtkern.sample_neighbors.default,
        (arguments[0], table.weight, sums, *arguments[3:]),
    )
    assert set(report.values()) == {"SUCCESS"}


@everywhere(ROOM)
def test_compiled_equals_eager(backend: str, device: torch.device) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(sample_flat, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (30, 47):
        call = make(law("uniform", size, 20 * size), k=[3, 5]).cast(torch.float32, device)
        found = compiled(**call.tensors, **call.others, backend=backend)
        expected = sample_flat(**call.tensors, **call.others, backend=backend)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_exponential_variates_are_accurate() -> None:
    """Of the exact -2**16 log2((word + 1/2) / 2**32): within 2**-23, or 2 units of 2**-16."""
    word = torch.cat(
        (
            torch.arange(1, 100_000),
            2**32 - torch.arange(1, 100_000),
            torch.randint(2**32, (300_000,)),
            2 ** torch.arange(32),
        )
    )
    exact = -65536 * torch.log2((word.double() + 0.5) / 2**32)
    found = exponential(word).double()
    assert ((found - exact).abs() <= exact * 2.0**-23 + 1.1 * 2.0**-16).all()
    assert found.min() > 0


def test_exponential_variates_are_pinned() -> None:
    """The bits that every backend must give."""
    word = torch.tensor([0, 1, 2, 5, 65_535, 12_345, 2**31 - 1, 2**31, 3 * 10**9, 2**32 - 1])
    expected = (
        "0x1.f6a3fep+20", "0x1.f6a3fep+20", "0x1.ead962p+20", "0x1.d8a62cp+20", "0x1.00000cp+20",
        "0x1.268868p+20", "0x1p+16", "0x1p+16", "0x1.090df6p+15", "0x1p-16",
    )  # fmt: skip
    assert exponential(word).tolist() == [float.fromhex(text) for text in expected]


@everywhere(ROOM)
def test_the_race_is_the_published_one(backend: str, device: torch.device) -> None:
    """Position p of the CSR order takes word p % 4 of the counter (p / 4, layer, epoch)."""
    graph = rows(200, 130).to(device)
    weight = torch.rand(330)
    _, layer = ops.sample_neighbors(
        graph, weight.to(device), [1, 65], seed=99, epoch=7, backend=backend
    )
    words = philox(99, (torch.arange(83), 0, 1, 7)).flatten()[:330]
    key = exponential(words) * (1 / weight)
    for row, (begin, end) in enumerate(((0, 200), (200, 330))):
        smallest = key[begin:end].argsort(stable=True)[:65] + begin
        assert layer.edge[row].tolist() == smallest.sort().values.tolist()


@everywhere(ROOM)
@pytest.mark.parametrize("steep", [False, True])
def test_the_draws_are_the_published_ones(backend: str, device: torch.device, steep: bool) -> None:
    """Draw d of row r takes word d % 4 of the counter (r, d / 4, layer + 2**30, epoch); steep
    weights leave some places to the race.
    """
    degrees, k, draws = (300, 41, 19, 100), 9, 32
    graph = rows(*degrees).to(device)
    weight = torch.rand(graph.num_edges)
    weight = (weight**40).clamp(min=1e-20) if steep else weight
    prefix = ops.sampling_table(graph, weight.to(device)).prefix.cpu().long()[0]
    _, layer = ops.sample_neighbors(
        graph, weight.to(device), [1, k], seed=99, epoch=7, backend=backend
    )
    number = torch.arange(draws)
    raced, begin = 0, 0
    for row, degree in enumerate(degrees):
        sums = prefix[begin : begin + degree].tolist()
        words = philox(99, (torch.full((8,), row), torch.arange(8), 1 + 2**30, 7)).flatten()
        chosen: list[int] = []
        for draw in number.tolist():
            target = int(words[draw]) * sums[-1] >> 32
            hit = next(at for at, value in enumerate(sums) if value > target)
            if hit not in chosen and len(chosen) < k:
                chosen.append(hit)
        position = torch.arange(begin, begin + degree)
        words = philox(99, (position // 4, 0, 1, 7)).gather(1, (position % 4)[:, None])[:, 0]
        key = exponential(words) * (1 / weight[position])
        key[chosen] = math.inf
        rest = key.argsort(stable=True)[: k - len(chosen)].tolist()
        raced += len(rest)
        assert layer.edge[row].tolist() == [begin + at for at in sorted(chosen + rest)]
        begin += degree
    assert (raced > 0) == steep
