"""Philox against its published vectors, and the dropout mask made of it."""

from __future__ import annotations

import pytest
import torch

from gtkern.random import dropout_threshold, keep_mask, philox

ALL = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        ((0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ALL, ALL), (ALL, ALL, ALL, ALL), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0xA4093822, 0x299F31D0),
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "digits_of_pi"],
)
def test_philox_gives_the_published_words(
    key: tuple[int, int],
    counter: tuple[int, int, int, int],
    expected: tuple[int, int, int, int],
    device: torch.device,
) -> None:
    words = tuple(torch.tensor(word, device=device) for word in counter)
    found = philox(key[0] | key[1] << 32, words)
    assert tuple(found.tolist()) == expected


def test_philox_broadcasts_its_counter() -> None:
    grid = philox(7, (torch.arange(3)[:, None], torch.arange(2), 5, 0))
    assert grid.shape == (3, 2, 4)
    single = philox(7, (torch.tensor(2), 1, 5, 0))
    assert torch.equal(grid[2, 1], single)


def test_negative_seeds_are_their_64_bits() -> None:
    counter = (torch.arange(5), 0, 0, 0)
    assert torch.equal(philox(-1, counter), philox(2**64 - 1, counter))
    assert not torch.equal(philox(-1, counter), philox(ALL, counter))


def test_mask_of_an_edge_does_not_depend_on_its_neighbours() -> None:
    edges = torch.tensor([9, 3, 2**40 + 3, 3])
    mask = keep_mask(5, edges, 16, 0.5)
    alone = torch.cat([keep_mask(5, edge[None], 16, 0.5) for edge in edges])
    assert torch.equal(mask, alone)
    assert torch.equal(mask[1], mask[3])
    assert not torch.equal(mask[1], mask[2])


def test_mask_of_a_head_does_not_depend_on_the_number_of_heads() -> None:
    edges = torch.arange(50)
    wide = keep_mask(5, edges, 9, 0.5)
    assert torch.equal(wide[:, :2], keep_mask(5, edges, 2, 0.5))


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_mask_drops_at_its_rate(probability: float) -> None:
    """Within five standard deviations, over all and in each head."""
    edges, heads = 20_000, 5
    dropped = ~keep_mask(123, torch.arange(edges), heads, probability)
    deviation = (probability * (1 - probability) / edges) ** 0.5
    assert (dropped.double().mean(0) - probability).abs().max() < 5 * deviation
    assert abs(dropped.double().mean() - probability) < 5 * deviation / heads**0.5


def test_heads_and_seeds_are_not_correlated() -> None:
    edges = 20_000
    mask = keep_mask(1, torch.arange(edges), 5, 0.5)
    mask = torch.cat((mask, keep_mask(2, torch.arange(edges), 5, 0.5)), dim=1)
    correlation = torch.corrcoef(mask.double().T) - torch.eye(10)
    assert correlation.abs().max() < 5 / edges**0.5


def test_no_edges_have_an_empty_mask() -> None:
    assert keep_mask(1, torch.empty(0, dtype=torch.int64), 3, 0.5).shape == (0, 3)


def test_threshold_is_a_word() -> None:
    assert dropout_threshold(0.0) == 0
    assert dropout_threshold(0.5) == 2**31
    assert dropout_threshold(1 - 2.0**-32) == 2**32 - 1
