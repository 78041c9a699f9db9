"""Token dropping: the contract of its differentiable ops, and what only this room promises."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import hypothesis
import pytest
import scipy.stats
import torch
from contract import OpContract, RoomContract
from hypothesis import strategies
from room import (
    BadInput,
    Call,
    Room,
    Sample,
    assert_bit_equal,
    everywhere,
    fast,
    lazy_zeros,
    run,
)
from torch import Tensor

from gtkern import Graph, PairIndex, Ragged, ops
from gtkern.ops import Selection
from gtkern.ops.token_dropping.op import BACKENDS
from gtkern.random import gumbel, philox
from gtkern.testing import random_edges


def ragged_of(sizes: Sequence[int]) -> Ragged:
    """The batch of graphs with these numbers of nodes."""
    return Ragged.from_ptr(torch.tensor([0, *itertools.accumulate(sizes)]))


def keeping(ragged: Ragged, kept: Tensor) -> Selection:
    """The selection of the tokens marked in bool [N]."""
    count = torch.zeros(ragged.num_graphs, dtype=torch.int64).index_add(
        0, ragged.batch(), kept.long()
    )
    return ops.select_tokens(kept.float(), ragged, k=count, backend="reference")


def some_of(sizes: Sequence[int], share: float = 0.5, seed: int = 1) -> Selection:
    """A selection of about this share of the tokens, at random."""
    ragged = ragged_of(sizes)
    generator = torch.Generator().manual_seed(seed)
    return keeping(ragged, torch.rand(ragged.num_nodes, generator=generator) < share)


def normal(shape: Sequence[int], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# Moving rows: "src" are the rows that are read, "dst" those that are written.


def gather(gated: bool = True, **arguments: Any) -> Tensor:
    """The op; a gate that is not to be used still counts the rows written."""
    gate = arguments.pop("gate")
    return ops.gather_tokens(gate=gate if gated else None, **arguments)


def scatter(filled: bool = True, **arguments: Any) -> Tensor:
    """The op; a fill that is not to be used still counts the rows written."""
    fill = arguments.pop("fill")
    return ops.scatter_tokens(fill=fill if filled else None, **arguments)


def make_gather(sizes: Sequence[int], width: int, share: float = 0.5, gated: bool = True) -> Call:
    selection = some_of(sizes, share)
    tensors = {
        "x": normal((selection.ragged.num_nodes, 2, width)),
        "gate": normal((selection.num_kept,), 1),
    }
    return Call(tensors, {"x": "src", "gate": "dst"}, {"selection": selection, "gated": gated})


def make_scatter(sizes: Sequence[int], width: int, share: float = 0.5, filled: bool = True) -> Call:
    selection = some_of(sizes, share)
    tensors = {
        "y": normal((selection.num_kept, 2, width)),
        "fill": normal((selection.ragged.num_nodes, 2, width), 1),
    }
    return Call(tensors, {"y": "src", "fill": "dst"}, {"selection": selection, "filled": filled})


def structure(others: Mapping[str, Any]) -> list[Tensor]:
    if "ragged" in others:
        return [others["ragged"].ptr, others["ragged"].host_ptr]
    selection = others["selection"]
    return [selection.index, selection.position, selection.ragged.ptr, selection.kept_ptr]


def gather_edges(others: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    index = others["selection"].index
    return index, torch.arange(index.numel(), device=index.device)


def scatter_edges(others: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    kept, row = gather_edges(others)
    return row, kept


def node_order(ragged: Ragged, generator: torch.Generator) -> Tensor:
    """Nodes change places inside their graph."""
    spans = itertools.pairwise(ragged.ptr.tolist())
    parts = [first + torch.randperm(end - first, generator=generator) for first, end in spans]
    return torch.cat([torch.empty(0, dtype=torch.int64), *parts])


def both_orders(call: Call, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """New numbers of the nodes, and those that the kept tokens then have."""
    selection = call.others["selection"]
    nodes = node_order(selection.ragged, generator)
    return nodes, nodes[selection.index].argsort().argsort()


def gather_orders(call: Call, generator: torch.Generator) -> dict[str, Tensor]:
    nodes, kept = both_orders(call, generator)
    return {"src": nodes, "dst": kept}


def scatter_orders(call: Call, generator: torch.Generator) -> dict[str, Tensor]:
    nodes, kept = both_orders(call, generator)
    return {"src": kept, "dst": nodes}


def moved(others: Mapping[str, Any], nodes: Tensor) -> dict[str, Any]:
    """The structure with node i renamed nodes[i]."""
    selection = others["selection"]
    kept = torch.zeros(selection.ragged.num_nodes, dtype=torch.bool)
    kept[nodes[selection.index]] = True
    return {**others, "selection": keeping(selection.ragged, kept)}


def join(calls: list[Mapping[str, Any]]) -> dict[str, Any]:
    selections = [others["selection"] for others in calls]
    sizes = [size for each in selections for size in each.ragged.sizes().tolist()]
    kept = torch.cat([each.position >= 0 for each in selections])
    return {**calls[0], "selection": keeping(ragged_of(sizes), kept)}


def row_samples(make: Any, plain: str) -> tuple[Sample, ...]:
    def sample(name: str, sizes: Sequence[int], size: str = "small", **options: Any) -> Sample:
        return Sample(name, functools.partial(make, sizes, **options), size)

    return (
        sample("plain", (2, 0, 3, 1), "tiny", width=3),
        sample("copied", (5, 0, 7), width=4, **{plain: False}),
        sample("one_node_graphs", (1, 1, 1), width=2),
        sample("everything", (4, 3), width=5, share=1.0),
        sample("nothing", (4, 3), width=5, share=0.0),
        sample("no_graphs", (), width=4),
        sample("odd_width", (30, 1, 17), width=33, share=0.3),
        sample("batch", (29, 34, 17, 111, 8, 25, 40), "broad", width=128),
        sample("one_large_graph", (5_000,), "broad", width=8, share=0.7),
    )


def change(**arguments: Any) -> Any:
    """Replace arguments by values, or by functions of the right arguments."""
    return lambda right: {
        name: value(right) if callable(value) and not isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }


GATHER = Room(
    op=gather,
    samples=row_samples(make_gather, "gated"),
    results=lambda call: [("out", "dst")],
    structure=structure,
    edges=gather_edges,
    relabel=lambda others, source_to, destination_to: moved(others, source_to),
    join=join,
    saved_bytes=lambda call: 0,
    orders=gather_orders,
    backends=BACKENDS,
    bad=(
        BadInput("selection_of_another_kind", change(selection=torch.arange(3)), TypeError,
                 r"^selection must be a Selection \(select_tokens makes one\), got Tensor"),
        BadInput("x_no_tensor", change(x=[1.0]), TypeError, r"^x must be a tensor, got list"),
        BadInput("x_rows", change(x=torch.zeros(5, 3)), ValueError,
                 r"^x must have shape \[N, ...\] with N = 6, got \[5, 3\]"),
        BadInput("x_a_number", change(x=torch.tensor(1.0)), ValueError,
                 r"^x must have shape \[N, ...\] with N = 6, got \[\]"),
        BadInput("x_device", change(x=torch.zeros(6, 3, device="meta")), ValueError,
                 r"^x must be on the device of selection \(cpu\), got meta"),
        BadInput("integers_with_a_gate", change(x=torch.zeros(6, 3, dtype=torch.int64)), TypeError,
                 r"^x must be float32, .* got torch.int64"),
        BadInput("gate_rows", change(gate=torch.ones(7)), ValueError,
                 r"^gate must have shape \[M\] = \[\d\], got \[7\]"),
        BadInput("gate_dtype", change(gate=lambda a: a["gate"].double()), TypeError,
                 r"^gate must have the dtype of x \(torch.float32\), got torch.float64"),
        BadInput("backend_unknown", change(backend="numpy"), ValueError,
                 r"^backend must be one of 'auto', 'reference', .*got 'numpy'"),
    ),
)  # fmt: skip

SCATTER = Room(
    op=scatter,
    samples=row_samples(make_scatter, "filled"),
    results=lambda call: [("out", "dst")],
    structure=structure,
    edges=scatter_edges,
    relabel=lambda others, source_to, destination_to: moved(others, destination_to),
    join=join,
    saved_bytes=lambda call: 0,
    orders=scatter_orders,
    backends=BACKENDS,
    bad=(
        BadInput("selection_of_another_kind", change(selection=None), TypeError,
                 r"^selection must be a Selection \(select_tokens makes one\), got NoneType"),
        BadInput("y_rows", change(y=torch.zeros(6, 2, 3)), ValueError,
                 r"^y must have shape \[M, ...\] with M = \d, got \[6, 2, 3\]"),
        BadInput("fill_width", change(fill=torch.zeros(6, 2, 4)), ValueError,
                 r"^fill must have shape \[N, ...\] = \[6, 2, 3\], got \[6, 2, 4\]"),
        BadInput("fill_dtype", change(fill=lambda a: a["fill"].half()), TypeError,
                 r"^fill must have the dtype of y \(torch.float32\), got torch.float16"),
        BadInput("fill_no_tensor", change(fill=0.0), TypeError,
                 r"^fill must be a tensor, got float"),
    ),
)  # fmt: skip


class TestGather(RoomContract):
    """gather_tokens, with and without a gate."""

    room = GATHER


class TestScatter(RoomContract):
    """scatter_tokens, with and without rows for the dropped tokens."""

    room = SCATTER

    def test_destinations_without_edges_get_zero_and_give_zero(
        self, backend: str, device: torch.device, sample: Sample
    ) -> None:
        call = sample.build().cast(torch.float32, device)
        found = run(SCATTER, call, backend)
        dropped = call.others["selection"].position < 0
        expected = call.tensors["fill"] if call.others["filled"] else torch.zeros_like(found["out"])
        assert torch.equal(found["out"][dropped], expected[dropped])
        assert (found["grad of fill"][~dropped] == 0).all()

    @pytest.mark.sizes("tiny")
    def test_nan_stays_in_its_rows(
        self, backend: str, device: torch.device, sample: Sample
    ) -> None:
        call = sample.build().cast(torch.float32, device)
        selection = call.others["selection"]
        clean = run(SCATTER, call, backend)["out"]
        dropped = int((selection.position < 0).nonzero()[0])
        for name, row, struck in (("y", 0, int(selection.index[0])), ("fill", dropped, dropped)):
            tensors = {key: value.clone() for key, value in call.tensors.items()}
            tensors[name][row] = float("nan")
            found = run(SCATTER, call._replace(tensors=tensors), backend)["out"]
            rest = torch.arange(found.size(0), device=device) != struck
            assert found[struck].isnan().all()
            assert_bit_equal({"out": found[rest]}, {"out": clean[rest]})


# Choosing: scores come in and the mask [N] comes out, which is the gate in its places.


def mask(**arguments: Any) -> Tensor:
    backend = arguments["backend"]
    selection = ops.select_tokens(**arguments)
    return ops.scatter_tokens(selection.gate, selection, backend=backend)


def make_scores(
    sizes: Sequence[int], *, always: float = 0.0, shape: str = "plain", **options: Any
) -> Call:
    """A call on graphs of these sizes.

    Args:
        always: share of the tokens that are always kept.
        shape: "plain": normal; "ties": quarters; "steep": over many orders of magnitude.
    """
    ragged = ragged_of(sizes)
    values = normal((ragged.num_nodes,))
    if shape == "ties":
        values = (values * 4).round() / 4
    elif shape == "steep":
        values = values * 30
    if always:
        generator = torch.Generator().manual_seed(4)
        options["always_keep"] = torch.rand(ragged.num_nodes, generator=generator) < always
    if "k" not in options:
        options.setdefault("ratio", 0.5)
    return Call({"score": values}, {"score": "dst"}, {"ragged": ragged, **options})


def scores(name: str, sizes: Sequence[int], size: str = "small", **options: Any) -> Sample:
    return Sample(name, functools.partial(make_scores, sizes, **options), size)


def join_scores(calls: list[Mapping[str, Any]]) -> dict[str, Any]:
    sizes = [size for others in calls for size in others["ragged"].sizes().tolist()]
    joined = {**calls[0], "ragged": ragged_of(sizes)}
    for name in ("always_keep", "k"):
        if isinstance(calls[0].get(name), Tensor):
            joined[name] = torch.cat([others[name] for others in calls])
    return joined


def same_nodes(call: Call, generator: torch.Generator) -> dict[str, Tensor]:
    nodes = torch.arange(call.others["ragged"].num_nodes)
    return {"src": nodes, "dst": nodes}


GUMBEL = {"noise": "gumbel", "seed": 7}

SELECT = Room(
    op=mask,
    samples=(
        scores("plain", (2, 0, 3, 1), "tiny"),
        scores("noise", (5, 3), temperature=0.5, **GUMBEL),
        scores("always", (4, 6), "tiny", always=0.3, ratio=0.4),
        scores("by_count", (9, 4, 0, 2), k=3),
        scores("counts", (9, 1, 0, 2), k=torch.tensor([2, 9, 5, 0])),
        scores("everything", (7, 5), ratio=1.0, always=0.5),
        scores("ties", (40, 13), shape="ties", ratio=0.3),
        scores("steep", (17, 33), shape="steep", ratio=0.25, **GUMBEL),
        scores("more_forced_than_asked", (30, 6), always=0.9, ratio=0.1),
        scores("all_forced", (5, 3), always=1.0, **GUMBEL),
        scores("no_graphs", ()),
        scores("hundreds", (130, 97, 96, 64, 65), ratio=0.4, always=0.02, **GUMBEL),
        scores("batch", (29, 34, 17, 111, 8, 25, 40) * 8, "broad", **GUMBEL),
        scores("thousands", (3_000, 40_000, 5, 33_000), "broad", ratio=0.6, always=0.001, **GUMBEL),
        scores("thousands_with_ties", (33_000, 9_000), "broad", ratio=0.2, shape="ties"),
    ),
    results=lambda call: [("mask", "dst")],
    structure=structure,
    edges=lambda others: (torch.empty(0), torch.empty(0)),
    relabel=lambda others, source_to, destination_to: dict(others),
    join=join_scores,
    # the places of the kept tokens, which the selection holds too, and k or a seed
    saved_bytes=lambda call: 12 * call.tensors["score"].numel() + 64,
    orders=same_nodes,
    backends=BACKENDS,
    bad=(
        BadInput("ratio_and_k", change(k=2), ValueError,
                 r"^ratio or k must be given, one of them, got both"),
        BadInput("neither", change(ratio=None), ValueError,
                 r"^ratio or k must be given, one of them, got neither"),
        BadInput("ratio_zero", change(ratio=0.0), ValueError, r"^ratio must be in \(0, 1\], got 0"),
        BadInput("ratio_above", change(ratio=1.5), ValueError,
                 r"^ratio must be in \(0, 1\], got 1\.5"),
        BadInput("ratio_nan", change(ratio=math.nan), ValueError,
                 r"^ratio must be in \(0, 1\], got nan"),
        BadInput("k_zero", change(ratio=None, k=0), ValueError, r"^k must be at least 1, got 0"),
        BadInput("k_a_float", change(ratio=None, k=1.5), TypeError,
                 r"^k must be an integer or an int64 tensor, got float"),
        BadInput("k_floats", change(ratio=None, k=torch.ones(4)), TypeError,
                 r"^k must be an integer or an int64 tensor, got torch.float32"),
        BadInput("k_for_other_graphs", change(ratio=None, k=torch.tensor([1, 2])), ValueError,
                 r"^k must have shape \[G\] = \[4\], got \[2\]"),
        BadInput("k_negative", change(ratio=None, k=torch.tensor([1, 1, -2, 1])), ValueError,
                 r"^k must not be negative, got -2 for graph 2"),
        BadInput("score_no_tensor", change(score=[0.5]), TypeError,
                 r"^score must be a tensor, got list"),
        BadInput("score_integers", change(score=torch.arange(6)), TypeError,
                 r"^score must be float32, .* got torch.int64"),
        BadInput("score_rank", change(score=torch.zeros(6, 1)), ValueError,
                 r"^score must have shape \[N\], got \[6, 1\]"),
        BadInput("score_rows", change(score=torch.zeros(7)), ValueError,
                 r"^score must have shape \[N\] = \[6\], got \[7\]"),
        BadInput("score_nan", change(score=torch.tensor([0, 1, math.nan, 2, 3, 4])), ValueError,
                 r"^score must not hold NaN, got one at row 2"),
        BadInput("ragged_a_tensor", change(ragged=torch.tensor([0, 6])), TypeError,
                 r"^ragged must be a Ragged, got Tensor"),
        BadInput("always_keep_integers", change(always_keep=torch.ones(6).int()), TypeError,
                 r"^always_keep must be bool, got torch.int32"),
        BadInput("always_keep_rows", change(always_keep=torch.ones(5).bool()), ValueError,
                 r"^always_keep must have shape \[N\] = \[6\], got \[5\]"),
        BadInput("always_keep_device",
                 change(always_keep=torch.ones(6, dtype=torch.bool, device="meta")), ValueError,
                 r"^always_keep must be on the device of score \(cpu\), got meta"),
        BadInput("noise_unknown", change(noise="normal"), ValueError,
                 r"^noise must be None or 'gumbel', got 'normal'"),
        BadInput("temperature_zero", change(temperature=0.0), ValueError,
                 r"^temperature must be in \(0, .*got 0"),
        BadInput("seed_a_float", change(noise="gumbel", seed=0.5), TypeError,
                 r"^seed must be an integer, got float"),
        BadInput("backend_unknown", change(backend="numpy"), ValueError,
                 r"^backend must be one of 'auto', 'reference', .*got 'numpy'"),
    ),
)  # fmt: skip


class TestSelect(OpContract):
    """select_tokens. Its gate is straight-through, so that numbers cannot tell its gradient."""

    room = SELECT
    test_results_have_the_dtype_of_the_arguments = (
        RoomContract.test_results_have_the_dtype_of_the_arguments
    )
    test_reference_differentiates_twice = RoomContract.test_reference_differentiates_twice
    test_opcheck = RoomContract.test_opcheck
    test_compiled_equals_eager = RoomContract.test_compiled_equals_eager
    test_inductor_equals_eager = RoomContract.test_inductor_equals_eager
    test_expanded_gradients_are_understood = RoomContract.test_expanded_gradients_are_understood
    test_a_graph_does_not_see_its_batch_mates = (
        RoomContract.test_a_graph_does_not_see_its_batch_mates
    )
    test_backward_keeps_little = RoomContract.test_backward_keeps_little

    def test_the_selection_is_the_references(
        self, backend: str, device: torch.device, sample: Sample, dtype: torch.dtype
    ) -> None:
        call = sample.build()
        expected = ops.select_tokens(**call.cast(dtype).tensors, **call.others, backend="reference")
        there = call.cast(dtype, device)
        found = ops.select_tokens(**there.tensors, **there.others, backend=backend)
        for name in ("index", "position", "kept_ptr", "host_kept_ptr", "gate"):
            value, right = getattr(found, name).cpu(), getattr(expected, name)
            assert value.dtype == right.dtype and torch.equal(value, right), name

    def test_the_best_are_kept_in_order(
        self, backend: str, device: torch.device, sample: Sample
    ) -> None:
        call = sample.build().cast(torch.float32, device)
        found = ops.select_tokens(**call.tensors, **call.others, backend=backend)
        ragged, forced = call.others["ragged"], call.others.get("always_keep")
        key = call.tensors["score"].tolist()
        if "noise" in call.others:
            key = [float(torch.tensor(a) + b) for a, b in zip(key, noise(len(key)), strict=True)]
        always = [False] * len(key) if forced is None else forced.tolist()
        expected, ends = [], [0]
        for graph, (first, end) in enumerate(itertools.pairwise(ragged.ptr.tolist())):
            rows = range(first, end)
            if "k" in call.others:
                k = call.others["k"]
                count = k if isinstance(k, int) else int(k[graph])
            else:
                count = max(1, math.ceil(call.others["ratio"] * (end - first)))
            count = min(max(count, sum(always[first:end])), end - first)
            best = sorted(rows, key=lambda i: (not always[i], -key[i], i))[:count]
            expected += sorted(best)
            ends.append(len(expected))
        assert found.index.tolist() == expected
        assert found.kept_ptr.tolist() == ends and found.kept.num_nodes == len(expected)
        place = {row: at for at, row in enumerate(expected)}
        assert found.position.tolist() == [place.get(row, -1) for row in range(len(key))]

    def test_the_gradient_is_that_of_the_softmax(
        self, backend: str, device: torch.device, sample: Sample
    ) -> None:
        call = sample.build().cast(torch.float32, device)
        others = dict(call.others)
        ragged, forced = others["ragged"], others.get("always_keep")
        temperature = others.get("temperature", 1.0)
        weight = normal((ragged.num_nodes,), 9).to(device)
        score = call.tensors["score"].double().requires_grad_()
        shift = torch.zeros_like(score)
        if "noise" in others:
            shift = torch.tensor(noise(score.numel()), dtype=torch.float64, device=device)
        parts = []
        for first, end in itertools.pairwise(ragged.ptr.tolist()):
            free = torch.ones(end - first, dtype=torch.bool, device=device)
            if forced is not None:
                free = ~forced[first:end]
            logit = torch.log_softmax(score[first:end][free], 0) + shift[first:end][free]
            y = torch.zeros_like(score[first:end])
            y = y.masked_scatter(free, torch.softmax(logit / temperature, 0))
            parts.append(y)
        kept = ops.select_tokens(**call.tensors, **others, backend=backend).position >= 0
        soft = torch.cat([score[:0], *parts])
        expected = torch.autograd.grad((soft * weight * kept).sum(), score)[0]
        found = call.tensors["score"].clone().requires_grad_()
        out = mask(score=found, **others, backend=backend)
        gradient = torch.autograd.grad((out * weight.float()).sum(), found)[0]
        torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-6)


def noise(rows: int) -> list[float]:
    """The noise of the samples' seed, row by row."""
    words = philox(7, (torch.arange(-(-rows // 4)), 0, 0, 1)).flatten()[:rows]
    return (gumbel(words).double() * 2.0**-26).tolist()


def test_gumbel_is_the_logarithm_of_the_exponential() -> None:
    word = torch.cat((torch.tensor([1, 2, 3, 2**31, 2**32 - 3]), torch.randint(2**32, (10_000,))))
    uniform = (word.double() + 0.5) / 2**32
    expected = -torch.log(-torch.log(uniform))
    found = gumbel(word).double() * 2.0**-26
    # towards the largest variates the words themselves lie further apart
    assert ((found - expected).abs() < 1e-7 + 2e-16 * 2.0**32 * expected.exp()).all()


@everywhere(SELECT)
def test_noise_draws_in_proportion_to_the_exponentials(backend: str, device: torch.device) -> None:
    graphs = 2_000 if fast(backend, device) else 60
    score = torch.tensor([0.0, 1.0, -0.5, 0.3], device=device)
    ragged = ragged_of([4] * graphs).to(device)
    found = ops.select_tokens(
        score.repeat(graphs), ragged, k=1, noise="gumbel", seed=1, backend=backend
    )
    observed = torch.bincount(found.index % 4, minlength=4).double().cpu()
    expected = torch.softmax(score.double(), 0).cpu() * graphs
    statistic = float(((observed - expected) ** 2 / expected).sum())
    assert scipy.stats.chi2.sf(statistic, 3) > 1e-3


@everywhere(SELECT)
def test_without_a_seed_every_call_draws_anew(backend: str, device: torch.device) -> None:
    ragged = ragged_of([64]).to(device)
    score = torch.zeros(64, device=device)
    first, second = (
        ops.select_tokens(score, ragged, k=20, noise="gumbel", backend=backend) for _ in range(2)
    )
    assert not torch.equal(first.index, second.index)


def test_a_share_that_is_whole_is_not_rounded_up() -> None:
    ragged = ragged_of(range(1, 201))
    for part in (1, 2, 3, 7, 9, 49, 83):
        for whole in (100, 150, 199):
            kept = ops.select_tokens(torch.zeros(20_100), ragged, ratio=part / whole).kept.sizes()
            expected = [max(1, -(-part * size // whole)) for size in range(1, 201)]
            assert kept.tolist() == expected


@everywhere(SELECT)
def test_infinite_scores_rank_where_they_belong(backend: str, device: torch.device) -> None:
    score = torch.tensor([-math.inf, 1.0, math.inf, -math.inf, -0.0, 0.0], device=device)
    for count, expected in ((1, [2]), (3, [1, 2, 4]), (5, [0, 1, 2, 4, 5])):
        ragged = ragged_of([6]).to(device)
        assert ops.select_tokens(score, ragged, k=count, backend=backend).index.tolist() == expected


@everywhere(SELECT)
def test_rows_of_any_dtype_are_moved(backend: str, device: torch.device) -> None:
    selection = some_of((5, 0, 8)).to(device)
    for dtype in (torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool):
        for shape in ((), (1,), (3,), (2, 2), (0,)):
            x = torch.randint(2, (13, *shape), device=device).to(dtype)
            kept = ops.gather_tokens(x, selection, backend=backend)
            assert kept.dtype == dtype and torch.equal(kept, x[selection.index])
            back = ops.scatter_tokens(kept, selection, x, backend=backend)
            assert torch.equal(back, x)


@everywhere(SELECT)
def test_uncopied_rows_are_learnt_from_without_a_gate(backend: str, device: torch.device) -> None:
    selection = some_of((5, 3)).to(device)
    x = torch.randn(8, 3, device=device, requires_grad=True)
    weight = torch.randn(selection.num_kept, 3, device=device)
    out = ops.gather_tokens(x, selection, backend=backend)
    found = torch.autograd.grad(out, x, weight)[0]
    assert torch.equal(found, ops.scatter_tokens(weight, selection, backend="reference"))


def brute_edges(edges: Tensor, selection: Selection) -> tuple[list[list[int]], list[int]]:
    place = selection.position.tolist()
    kept = [
        (place[a], place[b], at)
        for at, (a, b) in enumerate(edges.T.tolist())
        if place[a] >= 0 and place[b] >= 0
    ]
    return [[a, b] for a, b, _ in kept], [at for *_, at in kept]


EDGE_CASES = [((5, 0, 8, 1), 60), ((70, 3), 700), ((4,), 0), ((), 0), ((3,), 9)]


@everywhere(SELECT)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize(("sizes", "edges"), EDGE_CASES)
def test_edges_between_kept_tokens_stay(
    backend: str, device: torch.device, dtype: torch.dtype, sizes: Sequence[int], edges: int
) -> None:
    selection = some_of(sizes)
    ends = random_edges("uniform", sum(sizes), edges, seed=1).to(dtype)
    expected, numbers = brute_edges(ends, selection)
    found, edge = ops.drop_tokens(ends.to(device), selection.to(device), backend=backend)
    assert found.dtype == dtype and found.T.tolist() == expected
    assert edge.dtype == torch.int64 and edge.tolist() == numbers


@everywhere(SELECT)
@pytest.mark.parametrize("types", [0, 3])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("sizes", "edges"), EDGE_CASES)
def test_graphs_keep_the_rows_of_kept_tokens(
    backend: str, device: torch.device, types: int, grouped: bool, sizes: Sequence[int], edges: int
) -> None:
    selection = some_of(sizes)
    ends = random_edges("uniform", sum(sizes), edges, seed=1)
    if grouped:
        ends = ends[:, ends[1].sort(stable=True).indices]
    kind = torch.arange(edges) % types if types else None
    graph = Graph.from_edge_index(ends, sum(sizes), edge_type=kind)
    found, edge = ops.drop_tokens(graph.to(device), selection.to(device), backend=backend)
    found.validate()
    assert found.num_src_nodes == found.num_dst_nodes == selection.num_kept
    numbers = brute_edges(ends, selection)[1]
    assert sorted(edge.tolist()) == numbers
    expected = selection.position[ends[:, edge.cpu()]]
    assert torch.equal(found.edge_index().cpu(), expected.long())
    if kind is not None:
        types_found = found.edge_type()
        assert types_found is not None
        assert torch.equal(types_found.cpu().long(), kind[edge.cpu()])


@everywhere(SELECT)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16])
@pytest.mark.parametrize("sizes", [(5, 0, 8, 1), (40,), ()])
def test_pairs_of_kept_tokens_keep_their_entries(
    backend: str, device: torch.device, dtype: torch.dtype, sizes: Sequence[int]
) -> None:
    selection = some_of(sizes)
    ragged = selection.ragged
    entry = torch.randint(250, (ragged.num_pairs,)).to(dtype)
    entry[::7] = PairIndex.MASKED[dtype]
    index = PairIndex.from_tensor(entry, ragged, 250).to(device)
    found = ops.gather_pairs(index, selection.to(device), backend=backend)
    dense = torch.zeros(ragged.num_nodes, ragged.num_nodes, dtype=dtype)
    dense[ragged.pairs()] = entry
    query, key = selection.kept.pairs()
    expected = dense[selection.index[query], selection.index[key]]
    assert torch.equal(found.index.cpu(), expected) and found.num_entries == 250
    assert found.num_pairs == selection.kept.num_pairs


def bad_edges(**arguments: Any) -> tuple[Any, Any]:
    selection = some_of((3, 2))
    return ops.drop_tokens(
        **{"edges": torch.zeros(2, 4).long(), "selection": selection, **arguments}
    )


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"edges": [0]}, TypeError, r"^edges must be a tensor, got list"),
        ({"edges": torch.zeros(2, 4)}, TypeError, r"^edges must be int32 or int64, got .*float32"),
        ({"edges": torch.zeros(3, 4).long()}, ValueError, r"^edges must have shape \[2, E\]"),
        ({"edges": torch.full((2, 1), 5)}, ValueError, r"^edges must be 0 \.\. 4 .*, got 5"),
        ({"edges": torch.full((2, 1), -1)}, ValueError, r"^edges must be 0 \.\. 4 .*, got -1"),
        ({"edges": Graph.from_edge_index(torch.zeros(2, 1).long(), 4)}, ValueError,
         r"^edges must be a Graph of 5 nodes, as the selection, got one of 4 sources"),
        ({"selection": 3}, TypeError, r"^selection must be a Selection"),
    ],
)  # fmt: skip
def test_bad_edges_are_refused(
    arguments: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        bad_edges(**arguments)


def test_bad_pairs_are_refused() -> None:
    selection = some_of((3, 2))
    other = PairIndex.from_tensor(torch.zeros(4, dtype=torch.uint8), ragged_of([2]), 1)
    with pytest.raises(ValueError, match=r"^pairs must have 13 pairs, as .*, got 4"):
        ops.gather_pairs(other, selection)
    with pytest.raises(TypeError, match=r"^pairs must be a PairIndex, got Tensor"):
        ops.gather_pairs(other.index, selection)  # type: ignore[arg-type]


@strategies.composite
def calls(draw: strategies.DrawFn) -> Call:
    sizes = draw(strategies.lists(strategies.integers(0, 140), max_size=5))
    options: dict[str, Any] = {}
    if draw(strategies.booleans()):
        options["ratio"] = draw(strategies.floats(0.01, 1.0))
    else:
        options["k"] = draw(strategies.integers(1, 150))
    if draw(strategies.booleans()):
        options |= {"noise": "gumbel", "seed": draw(strategies.integers(-(2**63), 2**63 - 1))}
    return make_scores(
        sizes,
        always=draw(strategies.sampled_from([0.0, 0.1, 0.8])),
        shape=draw(strategies.sampled_from(["plain", "ties", "steep"])),
        **options,
    )


@everywhere(SELECT)
def test_any_graphs_with_any_options(backend: str, device: torch.device) -> None:
    if backend == "reference":
        pytest.skip("the reference is the yardstick")

    @hypothesis.settings(max_examples=100 if fast(backend, device) else 6)
    @hypothesis.given(call=calls())
    def proof(call: Call) -> None:
        call = call.cast(torch.float32)
        expected = ops.select_tokens(**call.tensors, **call.others, backend="reference")
        call = call.cast(torch.float32, device)
        found = ops.select_tokens(**call.tensors, **call.others, backend=backend)
        assert torch.equal(found.index.cpu(), expected.index)

    proof()


@everywhere(SELECT)
@pytest.mark.large
def test_rows_beyond_2_31_elements(backend: str, device: torch.device) -> None:
    if device.type != "cpu":
        pytest.skip("lazy memory is the CPU's")
    rows, width = 2**22 + 2, 512
    x = lazy_zeros(rows, 1, width, torch.bfloat16)
    x[-2], x[-1] = 2.0, 3.0
    ragged = Ragged.from_ptr(torch.tensor([0, rows - 2, rows]))
    position = torch.full((rows,), -1, dtype=torch.int32)
    position[-1] = 0
    ptr = torch.tensor([0, 0, 1])
    selection = Selection(torch.tensor([rows - 1]), position, ragged, ptr, ptr, torch.ones(1))
    found = ops.gather_tokens(x, selection, backend=backend)
    assert found.shape == (1, 1, width) and (found == 3.0).all()
