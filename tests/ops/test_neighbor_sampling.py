"""sample_neighbors and layer_batches: the contract, and what only this room promises."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from typing import Any

import hypothesis
import pytest
import scipy.stats
import torch
from contract import (
    BadInput,
    Call,
    OpContract,
    Room,
    Sample,
    fast,
    graph_edges,
    graph_join,
    graph_relabel,
    graph_structure,
    pairs,
)
from hypothesis import strategies
from torch import Tensor

from gtkern import Graph, ops
from gtkern.ops import Neighbors
from gtkern.ops.neighbor_sampling import batches
from gtkern.ops.neighbor_sampling import table as tables
from gtkern.ops.neighbor_sampling.reference import exponential
from gtkern.random import philox
from gtkern.testing import random_graph


def sample_flat(**arguments: Any) -> tuple[Tensor, ...]:
    """The op, with the tensors of its layers one after the other."""
    layers = ops.sample_neighbors(**arguments)
    return tuple(tensor for layer in layers for tensor in layer if tensor is not None)


def make(graph: Any, *, layers: int = 0, shape: str = "plain", **options: Any) -> Call:
    """A call on `graph()`.

    Args:
        layers: of the weights; 0: weight [E].
        shape: "plain": (0, 1); "steep": over twelve orders of magnitude; "ties": eleven values,
            0 among them; "rare": nine of ten are 0; "none": no weight.
    """
    graph = graph()
    generator = torch.Generator().manual_seed(5)
    size = (layers, graph.num_edges) if layers else (graph.num_edges,)
    uniform = torch.rand(size, generator=generator, dtype=torch.float64)
    weight = {
        "none": uniform,
        "plain": uniform,
        "steep": 10 ** (-12 * uniform),
        "ties": (uniform * 10).round(),
        "rare": torch.where(uniform < 0.1, uniform, 0.0),
    }[shape]
    tensors = {} if shape == "none" else {"weight": weight}
    return Call(tensors, {"weight": "edge"}, {"graph": graph, "seed": 3, **options})


def results(call: Call) -> list[tuple[str, str]]:
    """Names of the flat results."""
    k = call.others["k"]
    layers = len(k) if isinstance(k, list) else 1
    if "weight" in call.tensors and call.tensors["weight"].dim() == 2:
        layers = call.tensors["weight"].size(0)
    names = ["index", "edge", *(["type"] if call.others["graph"].has_edge_types else [])]
    return [(f"{name} of layer {layer}", "dst") for layer in range(layers) for name in names]


def law(name: str, nodes: int | tuple[int, int], edges: int, types: int = 0) -> Any:
    return functools.partial(random_graph, name, nodes, edges, num_edge_types=types, seed=3)


def rows(*degrees: int, types: int = 0) -> Graph:
    """Rows of the given degrees; edge e comes from node e."""
    destination = torch.repeat_interleave(torch.arange(len(degrees)), torch.tensor(degrees).long())
    edges = torch.stack((torch.arange(destination.numel()), destination))
    kind = torch.arange(destination.numel()) % types if types else None
    return Graph.from_edge_index(edges, (max(destination.numel(), 1), len(degrees)), edge_type=kind)


def sample(name: str, graph: Any, size: str = "small", **options: Any) -> Sample:
    return Sample(name, functools.partial(make, graph, **options), size)


SAMPLES = (
    sample("plain", law("uniform", 12, 60), "tiny", k=3),
    sample("layers", law("power_law", 12, 90, 3), "tiny", k=[2, 7, 4], layers=3, epoch=5),
    sample("one_weight_for_layers", law("power_law", 12, 90), "tiny", k=[3, 4], seed=-(2**63)),
    sample("uniform", law("uniform", 12, 60, 2), k=4, shape="none", method="uniform"),
    sample("top", law("uniform", 12, 60), "tiny", k=4, shape="ties", method="top"),
    sample("pad", law("uniform", 12, 60, 2), "tiny", k=9, fill="pad"),
    sample("ties", law("uniform", 12, 90), k=5, shape="ties", seed=2**63 - 1),
    sample("steep", law("uniform", 12, 200), k=5, shape="steep"),
    sample("rare", law("uniform", 12, 200), k=5, shape="rare"),
    sample("more_than_all", law("power_law", 12, 60), k=70, epoch=2**32 - 1),
    sample("many_places", law("uniform", 5, 60), k=700),
    sample("bipartite", law("uniform", (20, 3), 50, 2), k=6),
    sample("zero_edges", law("uniform", 4, 0, 2), k=2),
    sample("no_nodes", lambda: rows(), k=2),
    sample("one_edge_rows", lambda: rows(1, 0, 1, 1), k=3),
    sample("rows_of_31_to_34", lambda: rows(31, 32, 33, 34), k=8),
    sample("row_of_k", lambda: rows(6, 5, 7), k=6),
    sample("rows_around_2k", lambda: rows(9, 10, 11, 15, 16, 17, 21, 22, 40), k=8, shape="steep"),
    sample("most_drawn", lambda: rows(127, 128, 150, 300), k=64),
    sample("more_than_drawn", lambda: rows(130, 200), k=65),
    sample("searches", lambda: rows(*[16, 17, 33, 255, 256, 257, 1_024, 1_025, 2_000] * 3), k=7),
    sample("hub", law("hub", 40, 9_000, 2), "broad", k=10),
    sample("hub_with_many_places", law("hub", 40, 30_000), "broad", k=3_000),
    sample("hub_top", law("hub", 40, 9_000), "broad", k=10, shape="ties", method="top"),
    sample("hub_with_ties", law("hub", 4, 30_000), "broad", k=20, shape="steep"),
    sample("window_rows", lambda: rows(1_984, 1_985, 2_047, 2_048, 2_049, 64, 5_000), "broad", k=9),
    sample("power_law_thousands", law("power_law", 3_000, 60_000, 3), "broad", k=[5, 10], layers=2),
    sample("low_degrees", law("uniform", 5_000, 40_000), "broad", k=10),
)  # fmt: skip


def change(**arguments: Any) -> Any:
    """Replace arguments by values, or by functions of the right arguments."""
    return lambda right: {
        name: value(right) if callable(value) and not isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }


def spoiled(value: float) -> Any:
    def changed(right: Mapping[str, Any]) -> Tensor:
        weight = right["weight"].clone()
        weight[7] = value
        return weight

    return changed


BAD = (
    BadInput("graph_an_edge_index", change(graph=lambda a: a["graph"].edge_index()), TypeError,
             r"^graph must be a gtkern.Graph \(Graph.from_any makes one\), got Tensor"),
    BadInput("weight_no_tensor", change(weight=[1.0]), TypeError,
             r"^weight must be a tensor, got list"),
    BadInput("weight_integer", change(weight=lambda a: a["weight"].long()), TypeError,
             r"^weight must be float32, .* got torch.int64"),
    BadInput("weight_size", change(weight=torch.ones(59)), ValueError,
             r"^weight must have shape \[E\] or \[L, E\] with E = 60, got \[59\]"),
    BadInput("weight_rank", change(weight=torch.ones(1, 1, 60)), ValueError,
             r"^weight must have shape \[E\] or \[L, E\] with E = 60, got \[1, 1, 60\]"),
    BadInput("weight_without_layers", change(weight=torch.ones(0, 60)), ValueError,
             r"^weight must have shape \[E\] or \[L, E\] with E = 60, got \[0, 60\]"),
    BadInput("weight_negative", change(weight=spoiled(-0.5)), ValueError,
             r"^weight must be 0 \.\. 2\*\*100, got -0\.5"),
    BadInput("weight_nan", change(weight=spoiled(math.nan)), ValueError,
             r"^weight must be 0 \.\. 2\*\*100, got nan"),
    BadInput("weight_infinite", change(weight=spoiled(math.inf)), ValueError,
             r"^weight must be 0 \.\. 2\*\*100, got inf"),
    BadInput("weight_missing", change(weight=None), ValueError,
             r"^weight must be given with method='weighted', got None"),
    BadInput("weight_with_uniform", change(method="uniform"), ValueError,
             r"^weight must be None with method='uniform', got a tensor"),
    BadInput("weight_device", change(weight=torch.ones(60, device="meta")), ValueError,
             r"^weight must be on the device of graph \(cpu\), got meta"),
    BadInput("k_zero", change(k=0), ValueError, r"^k must be at least 1, got 0"),
    BadInput("k_negative", change(k=[3, -1]), ValueError, r"^k must be at least 1, got -1"),
    BadInput("k_a_float", change(k=2.0), TypeError,
             r"^k must be an integer or a list of them, got float"),
    BadInput("k_holds_a_string", change(k=["3"]), TypeError, r"^k must hold integers, got str"),
    BadInput("k_empty", change(k=[]), ValueError, r"^k must name at least 1 layer"),
    BadInput("k_for_other_layers", change(k=[2, 2], weight=torch.ones(3, 60)), ValueError,
             r"^k must have one number for each of the 3 layers of weight, got 2"),
    BadInput("seed_a_float", change(seed=0.5), TypeError, r"^seed must be an integer, got float"),
    BadInput("seed_too_large", change(seed=2**63), ValueError,
             r"^seed must fit in 64 signed bits, got 9223372036854775808"),
    BadInput("epoch_negative", change(epoch=-1), ValueError,
             r"^epoch must be 0 \.\. 2\*\*32 - 1, got -1"),
    BadInput("epoch_a_float", change(epoch=1.0), TypeError,
             r"^epoch must be an integer, got float"),
    BadInput("method_unknown", change(method="max"), ValueError,
             r"^method must be one of 'weighted', 'uniform', 'top', got 'max'"),
    BadInput("fill_unknown", change(fill="zero"), ValueError,
             r"^fill must be one of 'replacement', 'pad', got 'zero'"),
    BadInput("table_of_other_sizes",
             change(weight=lambda a: ops.sampling_table(rows(2, 3), torch.rand(5))), ValueError,
             r"^weight must be a table of the graph \(12 nodes, 60 edges\), got one of 2 nodes, 5"),
    BadInput("table_of_another_graph",
             change(weight=lambda a: ops.sampling_table(rows(*[5] * 12), torch.rand(60))),
             ValueError, r"^weight must be a table of the graph, got one of another graph"),
    BadInput("table_device",
             change(weight=lambda a: ops.sampling_table(a["graph"], a["weight"]).to("meta")),
             ValueError, r"^weight must be on the device of graph \(cpu\), got meta"),
    BadInput("table_with_uniform",
             change(weight=lambda a: ops.sampling_table(a["graph"], a["weight"]), method="uniform"),
             ValueError, r"^weight must be None with method='uniform', got a table"),
    BadInput("backend_unknown", change(backend="numpy"), ValueError,
             r"^backend must be one of 'auto', 'reference', .*got 'numpy'"),
)  # fmt: skip

ROOM = Room(
    op=sample_flat,
    samples=SAMPLES,
    results=results,
    structure=graph_structure,
    edges=graph_edges,
    relabel=graph_relabel,
    join=graph_join,
    saved_bytes=lambda call: 0,
    bad=BAD,
)

everywhere = pytest.mark.parametrize(
    ("backend", "device"), pairs(ROOM), ids=[f"{name}-{device}" for name, device in pairs(ROOM)]
)


FAST = [pair for pair in pairs(ROOM) if fast(*pair)]

# thousands of rows are too many for an interpreter; its bits are compared with the reference's
where_fast = pytest.mark.parametrize(
    ("backend", "device"), FAST, ids=[f"{name}-{device}" for name, device in FAST]
)


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


def drawn(backend: str, device: torch.device, **options: Any) -> tuple[Neighbors, ...]:
    call = make(law("power_law", 30, 900), **{"k": 6, **options}).cast(torch.float32, device)
    return ops.sample_neighbors(**call.tensors, **call.others, backend=backend)


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


@everywhere
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


def chi_square(observed: Tensor, expected: Tensor) -> float:
    """The probability of counts as far from the expected ones as these, or farther."""
    assert expected.min() > 8, "too few expected for the chi-square distribution"
    statistic = float(((observed - expected) ** 2 / expected).sum())
    return float(scipy.stats.chi2.sf(statistic, observed.numel() - 1))


def pooled(observed: Tensor, expected: Tensor) -> list[Tensor]:
    """The rarest outcomes together, so that 20 at least are expected of them."""
    order = expected.argsort()
    rare = int((expected[order].cumsum(0) < 20).sum()) + 1
    return [
        torch.cat((value[order][:rare].sum()[None], value[order][rare:]))
        for value in (observed, expected)
    ]


REPEATS = 20_000


def repeated(weight: list[float], device: torch.device) -> tuple[Graph, Tensor]:
    """The same row again and again."""
    graph = rows(*[len(weight)] * REPEATS).to(device)
    return graph, torch.tensor(weight, device=device).repeat(REPEATS)


def set_probabilities(weight: list[float], k: int) -> dict[tuple[int, ...], float]:
    """Of every set of k edges drawn one after the other, in proportion to what is left."""
    found: dict[tuple[int, ...], float] = {}
    for order in itertools.permutations(range(len(weight)), k):
        left, probability = sum(weight), 1.0
        for edge in order:
            probability *= weight[edge] / left
            left -= weight[edge]
        key = tuple(sorted(order))
        found[key] = found.get(key, 0.0) + probability
    return found


@where_fast
@pytest.mark.parametrize(
    ("weight", "k"),
    [
        ([1.0, 2.0, 3.0, 4.0, 5.0], 2),
        ([1.0, 1.0, 1.0, 1.0, 1.0, 1.0], 3),
        ([0.05, 0.1, 0.2, 0.3, 0.35], 1),
        ([8.0, 1.0, 0.5, 4.0, 2.0, 1.0], 4),
        # where 16 draws often hit fewer than 3 different edges, and the race gives the others
        ([60.0, 1.0, 2.0, 0.5, 30.0, 1.0], 3),
        ([1000.0, 1.0, 2.0, 3.0], 2),
    ],
)
def test_sets_are_drawn_with_their_exact_probabilities(
    backend: str, device: torch.device, weight: list[float], k: int
) -> None:
    graph, weights = repeated(weight, device)
    (layer,) = ops.sample_neighbors(graph, weights, k, seed=1, backend=backend)
    places = (layer.edge % len(weight)).cpu()
    code = (2**places).sum(1)
    expected = set_probabilities(weight, k)
    counts = torch.tensor([int((code == sum(2**e for e in key)).sum()) for key in expected])
    assert counts.sum() == REPEATS
    probabilities = torch.tensor(list(expected.values()))
    assert chi_square(*pooled(counts, REPEATS * probabilities)) > 1e-3


@where_fast
def test_uniform_draws_every_set_alike(backend: str, device: torch.device) -> None:
    graph, _ = repeated([1.0] * 5, device)
    (layer,) = ops.sample_neighbors(graph, k=2, seed=2, method="uniform", backend=backend)
    code = (2 ** (layer.edge % 5)).sum(1).cpu()
    sets = [2**a + 2**b for a, b in itertools.combinations(range(5), 2)]
    counts = torch.tensor([int((code == key).sum()) for key in sets])
    assert chi_square(counts, torch.full((10,), REPEATS / 10)) > 1e-3


@where_fast
def test_filling_draws_in_proportion_to_the_weights(backend: str, device: torch.device) -> None:
    weight = [0.5, 4.0, 0.0, 1.0, 2.5]
    graph, weights = repeated(weight, device)
    (layer,) = ops.sample_neighbors(graph, weights, 7, seed=3, backend=backend)
    places = (layer.edge % 5).cpu()
    assert (places[:, :4] == torch.tensor([0, 1, 3, 4])).all()
    counts = torch.bincount(places[:, 4:].flatten(), minlength=5)
    assert counts[2] == 0
    expected = 3 * REPEATS * torch.tensor(weight)[[0, 1, 3, 4]] / 8
    assert chi_square(counts[[0, 1, 3, 4]], expected) > 1e-3


@where_fast
def test_draws_of_a_row_are_independent_of_each_other(backend: str, device: torch.device) -> None:
    """Neighbouring rows, layers and epochs: all pairs of choices equally often."""
    graph, weights = repeated([1.0, 1.0, 1.0], device)
    first, second = ops.sample_neighbors(graph, weights, [1, 1], seed=4, backend=backend)
    (later,) = ops.sample_neighbors(graph, weights, 1, seed=4, epoch=1, backend=backend)
    a, b, c = ((layer.edge % 3).flatten().cpu() for layer in (first, second, later))
    for other in (b, c, a.roll(1)):
        counts = torch.bincount(3 * a + other, minlength=9)
        assert chi_square(counts, torch.full((9,), REPEATS / 9)) > 1e-3


@everywhere
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


@everywhere
def test_top_takes_the_largest_and_the_earlier_of_equals(
    backend: str, device: torch.device
) -> None:
    graph = rows(6, 3).to(device)
    weight = torch.tensor([2.0, 5.0, 2.0, 0.0, 7.0, 2.0, 0.0, 1.0, 0.0], device=device)
    (layer,) = ops.sample_neighbors(
        graph, weight, 3, seed=0, method="top", fill="pad", backend=backend
    )
    assert layer.edge.tolist() == [[0, 1, 4], [7, -1, -1]]


@everywhere
def test_rows_without_weight_draw_nothing(backend: str, device: torch.device) -> None:
    graph = rows(3, 0, 2, types=2).to(device)
    weight = torch.tensor([0.0, 2.0**-120, 0.0, 0.0, 3.0], device=device)
    (layer,) = ops.sample_neighbors(graph, weight, 2, seed=0, backend=backend)
    assert layer.edge.tolist() == [[-1, -1], [-1, -1], [4, 4]]
    assert layer.index.tolist() == [[-1, -1], [-1, -1], [4, 4]]
    assert layer.type is not None and layer.type.tolist() == [[0, 0], [0, 0], [0, 0]]


@everywhere
@pytest.mark.parametrize("size", [2.0**-97, 2.0**100])
def test_weights_may_have_any_size(backend: str, device: torch.device, size: float) -> None:
    """A power of two that all weights share changes nothing, up to the ends of the range."""
    graph = law("power_law", 30, 900)().to(device)
    weight = (0.125 + 0.875 * torch.rand(900)).to(device)
    (expected,) = ops.sample_neighbors(graph, weight, 40, seed=5, backend=backend)
    (found,) = ops.sample_neighbors(graph, weight * size, 40, seed=5, backend=backend)
    assert torch.equal(found.edge, expected.edge)


@everywhere
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


@everywhere
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


@everywhere
def test_missing_seed_is_drawn_from_torchs_generator(backend: str, device: torch.device) -> None:
    torch.manual_seed(1)
    (first,) = drawn(backend, device, seed=None)
    torch.manual_seed(1)
    (again,) = drawn(backend, device, seed=None)
    (other,) = drawn(backend, device, seed=None)
    assert torch.equal(first.edge, again.edge) and not torch.equal(first.edge, other.edge)


@everywhere
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


@everywhere
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


@everywhere
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


@everywhere
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


def batches_by_hand(
    targets: list[int], neighbors: tuple[Neighbors, ...]
) -> list[tuple[list[int], list[list[int]], list[list[int]]]]:
    """Nodes, local indices and edges of each layer, one neighbour after the other."""
    found, nodes = [], targets
    for layer in reversed(neighbors):
        seen = {node: at for at, node in enumerate(nodes)}
        local = []
        for node in nodes:
            places = [
                j if j < 0 else seen.setdefault(j, len(seen)) for j in layer.index[node].tolist()
            ]
            local.append(places)
        found.append((list(seen), local, layer.edge[nodes].tolist()))
        nodes = list(seen)
    return found[::-1]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("targets", [[4, 0, 17], [], [29], list(range(30))])
def test_batches_hold_what_their_targets_need(
    device: torch.device, dtype: torch.dtype, targets: list[int]
) -> None:
    graph = random_graph("power_law", 30, 150, num_edge_types=2, seed=2, device=device)
    weight = torch.rand(2, 150, device=device)
    neighbors = ops.sample_neighbors(graph, weight, [4, 3], seed=1, fill="pad")
    wanted = torch.tensor(targets, dtype=dtype, device=device)
    batches = ops.layer_batches(wanted, neighbors)
    assert len(batches) == 2
    expected = batches_by_hand(targets, neighbors)
    for batch, sampled, (nodes, index, edge) in zip(batches, neighbors, expected, strict=True):
        assert batch.nodes.dtype == torch.int64 and batch.nodes.tolist() == nodes
        assert batch.index.dtype == torch.int32 and batch.index.tolist() == index
        assert batch.edge.tolist() == edge
        assert batch.type is not None and sampled.type is not None
        rows = batch.nodes[: batch.index.size(0)]
        assert torch.equal(batch.type, sampled.type[rows])
    assert batches[1].index.size(0) == len(targets)
    assert batches[0].index.size(0) == batches[1].nodes.numel()


@pytest.mark.parametrize(
    ("targets", "error", "match"),
    [
        ([0, 1], TypeError, r"^targets must be a tensor, got list"),
        (torch.tensor([0.0]), TypeError, r"^targets must be int32 or int64, got torch.float32"),
        (torch.tensor([[0]]), ValueError, r"^targets must have shape \[B\], got \[1, 1\]"),
        (torch.tensor([0, 4]), ValueError, r"^targets must be 0 \.\. 3 \(N - 1\), got 4"),
        (torch.tensor([-1]), ValueError, r"^targets must be 0 \.\. 3 \(N - 1\), got -1"),
        (torch.tensor([2, 0, 2]), ValueError, r"^targets must be distinct"),
    ],
)
def test_bad_targets_are_refused(targets: Any, error: type[Exception], match: str) -> None:
    graph = random_graph("uniform", 4, 12, seed=0)
    neighbors = ops.sample_neighbors(graph, k=2, seed=0, method="uniform")
    with pytest.raises(error, match=match):
        ops.layer_batches(targets, neighbors)


def test_bad_layers_are_refused() -> None:
    graph = random_graph("uniform", 4, 12, seed=0)
    (layer,) = ops.sample_neighbors(graph, k=2, seed=0, method="uniform")
    (other,) = ops.sample_neighbors(rows(1, 1), k=2, seed=0, method="uniform")
    targets = torch.tensor([0])
    with pytest.raises(ValueError, match=r"^neighbors must hold at least 1 layer, got none"):
        ops.layer_batches(targets, [])
    with pytest.raises(TypeError, match=r"^neighbors must hold Neighbors, got Tensor"):
        ops.layer_batches(targets, [layer.index])
    with pytest.raises(ValueError, match=r"^neighbors must have as many rows in every layer"):
        ops.layer_batches(targets, [layer, other])


@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize("backend", ["cpu"])
@pytest.mark.parametrize("device", ["cpu"])
def test_native_layer_batches_equal_those_of_torch(backend: str, device: str, typed: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    edge_index = torch.randint(300, (2, 900), generator=generator)
    edge_type = torch.randint(4, (900,), generator=generator) if typed else None
    graph = Graph.from_edge_index(edge_index, 300, edge_type=edge_type)
    (sampled,) = ops.sample_neighbors(graph, torch.rand(900), 4, seed=0, fill="pad")
    nodes = torch.randperm(300, generator=generator)[:40]
    native, expected = batches._native_layer(nodes, sampled), batches._layer(nodes, sampled)
    for got, wanted in zip(native, expected, strict=True):
        assert (got is None) == (wanted is None)
        assert got is None or torch.equal(got, wanted)
