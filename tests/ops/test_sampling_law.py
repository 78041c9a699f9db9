"""neighbor_sampling: what is drawn has exactly the probabilities that the weights say."""

from __future__ import annotations

import itertools

import pytest
import scipy.stats
import torch
from room import everywhere
from sampling_room import ROOM, rows
from torch import Tensor

from gtkern import Graph, ops


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


@everywhere(ROOM, only_fast=True)
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


@everywhere(ROOM, only_fast=True)
def test_uniform_draws_every_set_alike(backend: str, device: torch.device) -> None:
    graph, _ = repeated([1.0] * 5, device)
    (layer,) = ops.sample_neighbors(graph, k=2, seed=2, method="uniform", backend=backend)
    code = (2 ** (layer.edge % 5)).sum(1).cpu()
    sets = [2**a + 2**b for a, b in itertools.combinations(range(5), 2)]
    counts = torch.tensor([int((code == key).sum()) for key in sets])
    assert chi_square(counts, torch.full((10,), REPEATS / 10)) > 1e-3


@everywhere(ROOM, only_fast=True)
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


@everywhere(ROOM, only_fast=True)
def test_draws_of_a_row_are_independent_of_each_other(backend: str, device: torch.device) -> None:
    """Neighbouring rows, layers and epochs: all pairs of choices equally often."""
    graph, weights = repeated([1.0, 1.0, 1.0], device)
    first, second = ops.sample_neighbors(graph, weights, [1, 1], seed=4, backend=backend)
    (later,) = ops.sample_neighbors(graph, weights, 1, seed=4, epoch=1, backend=backend)
    a, b, c = ((layer.edge % 3).flatten().cpu() for layer in (first, second, later))
    for other in (b, c, a.roll(1)):
        counts = torch.bincount(3 * a + other, minlength=9)
        assert chi_square(counts, torch.full((9,), REPEATS / 9)) > 1e-3
