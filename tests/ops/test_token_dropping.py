"""select_tokens: the room's contract, and what only this room promises."""

from __future__ import annotations

import itertools
import math
from typing import Any

import hypothesis
import pytest
import scipy.stats
import torch
from contract import OpContract, RoomContract
from dropping_rooms import SELECT, make_scores, mask, normal, ragged_of
from hypothesis import strategies
from room import (
    Call,
    Sample,
    everywhere,
    fast,
)

from gtkern import ops
from gtkern.random import gumbel, philox


class TestSelect(OpContract):
    """select_tokens. Its gate is straight-through, so that numbers cannot tell its gradient."""

    room = SELECT
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
def test_strided_counts_are_read_as_they_are(backend: str, device: torch.device) -> None:
    ragged = ragged_of((4, 3, 5)).to(device)
    score = torch.arange(12.0, device=device)
    k = torch.tensor([[1, 9], [2, 9], [3, 9]])[:, 0]
    assert not k.is_contiguous()
    chosen = ops.select_tokens(score, ragged, k=k, backend=backend)
    assert chosen.index.tolist() == [3, 5, 6, 9, 10, 11]
