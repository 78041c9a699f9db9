"""Heads are scored truly, exchanged at a constant number, and cost nothing when they are gone."""

from __future__ import annotations

import pytest
import small_models
import torch
from torch import nn

from gtkern.methods.gtsp import GatedHeads, HeadPruner, Schedule, attention_sites
from gtkern.ragged import Ragged

ONCE = Schedule(begin=1, end=1, every=1)
SOON = Schedule(begin=1, end=5, every=2)


def shut(pruner: HeadPruner, heads: tuple[int, ...]) -> None:
    for _, gate in pruner._gates:
        gate.mask[list(heads)] = False


@pytest.mark.parametrize("name", small_models.NAMES)
def test_masked_and_compact_networks_give_the_same(name: str) -> None:
    model, packed = small_models.make(name)
    dense = small_models.output(model, packed)
    pruner = HeadPruner(0.5, ONCE)
    pruner.prepare(model)
    torch.testing.assert_close(small_models.output(model, packed), dense)
    # other heads in every layer: a layer must read its own columns of the bias
    for depth, (_, gate) in enumerate(pruner._gates):
        gate.mask[[depth, 3]] = False
    masked = small_models.output(model, packed)
    assert (masked - dense).abs().max() > 1e-6
    compact = pruner.compact()
    torch.testing.assert_close(small_models.output(compact, packed), masked)
    assert not any(isinstance(part, GatedHeads) for part in compact.modules())


def test_projections_are_sliced() -> None:
    model, _ = small_models.make("graphgps")
    pruner = HeadPruner(0.5, ONCE)
    pruner.prepare(model)
    shut(pruner, (0, 2))
    pruner.compact()
    for site in attention_sites(model):
        attention = site.attention()
        assert attention is not None
        assert attention.heads == (1, 3)
        assert attention.in_proj_weight.shape == (3 * 2 * 4, 16)
        assert attention.out_proj.weight.shape == (16, 2 * 4)


def test_a_shut_head_gives_nothing_not_even_its_offset() -> None:
    model, packed = small_models.make("graphgps")
    pruner = HeadPruner(0.75, ONCE)
    pruner.prepare(model)
    shut(pruner, (1,))
    before = small_models.output(model, packed)
    with torch.no_grad():
        for site in attention_sites(model):
            attention = site.attention()
            assert attention is not None and attention.in_proj_bias is not None
            attention.in_proj_bias.view(3, 4, 4)[:, 1] += 1.0
    assert torch.equal(small_models.output(model, packed), before)


def test_importance_is_that_of_true_heads() -> None:
    torch.manual_seed(0)
    ragged = Ragged.from_ptr(torch.tensor([0, 3, 5]))
    given = torch.randn(5, 2, 4, requires_grad=True)
    gate = GatedHeads(lambda q, k, v, ragged: q * 1.0, 2)
    weight = torch.randn(5, 2, 4)
    (gate(given, given, given, ragged) * weight).sum().backward()
    taylor = (weight * given.detach()).sum(2)
    expected = (taylor[:3].sum(0).abs() + taylor[3:].sum(0).abs()) / 2
    torch.testing.assert_close(gate.importance, expected)
    torch.testing.assert_close(gate.growth, weight.abs().sum((0, 2)) / 2)


def test_the_least_important_heads_are_shut() -> None:
    model, packed = small_models.make("graphgps")
    pruner = HeadPruner(0.5, ONCE, exchange=0.0)
    pruner.prepare(model)
    with torch.no_grad():
        for site in attention_sites(model):
            attention = site.attention()
            assert attention is not None
            # heads 0 and 2 reach the output hardly at all
            attention.out_proj.weight.view(16, 4, 4)[:, [0, 2]] *= 1e-6
    small_models.train(model, packed, pruner, 1)
    assert set(map(tuple, pruner.open_heads().values())) == {(1, 3)}


@pytest.mark.parametrize("exchange", [0.5, 1.0])
def test_the_number_of_heads_stays_while_they_are_exchanged(exchange: float) -> None:
    model, packed = small_models.make("graphgps", attention_dropout=0.0)
    pruner = HeadPruner(
        0.5, Schedule(begin=1, end=9, every=1), start="random", exchange=exchange, seed=3
    )
    pruner.prepare(model)
    seen = set()
    for _ in range(9):
        assert set(pruner.kept().values()) == {0.5}
        seen.add(str(pruner.open_heads()))
        small_models.train(model, packed, _Stepping(pruner), 1)
    assert len(seen) > 1


class _Stepping:
    """A pruner whose optimiser is new each time."""

    def __init__(self, pruner: HeadPruner) -> None:
        self.step = pruner.step


def test_heads_go_by_and_by_from_a_dense_start() -> None:
    model, packed = small_models.make("graphgps")
    pruner = HeadPruner(0.25, SOON)
    pruner.prepare(model)
    counts = []
    for _ in range(6):
        small_models.train(model, packed, _Stepping(pruner), 1)
        counts.append(pruner.kept()["layers.0"])
    assert counts == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    assert pruner.settled


def test_a_head_that_opens_again_is_as_it_was_when_shut() -> None:
    model, packed = small_models.make("graphgps")
    pruner = HeadPruner(0.5, ONCE, exchange=0.0)
    pruner.prepare(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    batch = packed.batch(range(len(packed)))

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch), batch.y).backward()
        optimizer.step()
        pruner.step(optimizer)

    step()
    attention = attention_sites(model)[0].attention()
    assert attention is not None
    closed = [head for head in range(4) if head not in pruner.open_heads()["layers.0"]]
    before = attention.out_proj.weight.view(16, 4, 4)[:, closed].detach().clone()
    for _ in range(3):
        step()
    # without moments that were cleared Adam would go on
    assert torch.equal(attention.out_proj.weight.view(16, 4, 4)[:, closed], before)


def test_a_ratio_of_one_changes_nothing() -> None:
    model, packed = small_models.make("light")
    dense = small_models.output(model, packed)
    pruner = HeadPruner(1.0, ONCE)
    compact = pruner.prepare(model)
    assert pruner.compact() is compact
    assert torch.equal(small_models.output(compact, packed), dense)


def test_resumed_pruning_shuts_the_same_heads() -> None:
    def run(stop: int | None) -> dict[str, list[int]]:
        torch.manual_seed(0)
        model, packed = small_models.make("graphgps", attention_dropout=0.0)
        pruner = HeadPruner(0.5, SOON, exchange=0.5)
        pruner.prepare(model)
        for step in range(5):
            small_models.train(model, packed, _Stepping(pruner), 1)
            if step == stop:
                state, weights = pruner.state_dict(), model.state_dict()
                model, packed = small_models.make("graphgps", attention_dropout=0.0)
                pruner = HeadPruner(0.5, SOON, exchange=0.5)
                pruner.prepare(model)
                model.load_state_dict(weights)
                pruner.load_state_dict(state)
        return dict(pruner.open_heads())

    assert run(stop=3) == run(stop=None)


@pytest.mark.parametrize("ratio", [0.0, -0.5, 1.5, float("nan")])
def test_ratios_out_of_range_are_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"^ratio must be in \(0, 1\], got"):
        HeadPruner(ratio, ONCE)


def test_a_layer_that_would_lose_all_heads_is_named() -> None:
    model, _ = small_models.make("graphgps")
    with pytest.raises(
        ValueError, match=r"^layers\.0\.attention cannot be pruned: of its 4 heads a ratio of 0\.2"
    ):
        HeadPruner(0.2, ONCE).prepare(model)


def test_a_network_without_attention_is_refused() -> None:
    with pytest.raises(TypeError, match=r"RaggedMultiheadAttention .* got Sequential$"):
        HeadPruner(0.5, ONCE).prepare(nn.Sequential(nn.Linear(2, 2)))


def test_pruning_after_compact_is_refused_with_the_reason() -> None:
    model, _ = small_models.make("graphgps")
    pruner = HeadPruner(0.5, ONCE, start="random")
    pruner.prepare(model)
    pruner.compact()
    for act in (pruner.step, pruner.compact, lambda: pruner.prepare(model)):
        with pytest.raises(RuntimeError, match=r"after compact\(\): what the masks hid is gone"):
            act()
    with pytest.raises(ValueError, match=r"^layers\.0\.attention cannot be pruned: it was made c"):
        HeadPruner(0.5, ONCE).prepare(model)
