"""Attention blocks are left out whole, the most redundant ones go, and then they cost nothing."""

from __future__ import annotations

import pytest
import small_models
import torch

from gtkern.methods.gtsp import LayerPruner, Schedule, attention_sites
from gtkern.methods.gtsp.layers import DroppableAttention
from gtkern.methods.gtsp.similarity import head_distances, linear_cka, similarity_matrix
from gtkern.nn import RaggedMultiheadAttention
from gtkern.ragged import Ragged

SOON = Schedule(begin=1, end=6, every=2)


@pytest.mark.parametrize("name", small_models.NAMES)
def test_masked_and_compact_networks_give_the_same(name: str) -> None:
    model, packed = small_models.make(name)
    dense = small_models.output(model, packed)
    pruner = LayerPruner(0.67, SOON)
    pruner.prepare(model)
    assert torch.equal(small_models.output(model, packed), dense)
    small_models.train(model, packed, pruner, 6)
    assert sorted(pruner.kept().values()) == [0.0, 1.0, 1.0]
    masked = small_models.output(model, packed)
    parameters = sum(value.numel() for value in model.parameters())
    compact = pruner.compact()
    assert torch.equal(small_models.output(compact, packed), masked)
    assert sum(value.numel() for value in compact.parameters()) < parameters
    attentions = [site.layer.attention for site in attention_sites(compact)]
    assert attentions.count(None) == 1
    assert not any(isinstance(part, DroppableAttention) for part in compact.modules())


def test_a_block_is_left_out_whole_and_the_mean_stays() -> None:
    torch.manual_seed(0)
    block = DroppableAttention(RaggedMultiheadAttention(8, 2))
    block.rate = 0.25
    x, ragged = torch.randn(5, 8), Ragged.from_ptr(torch.tensor([0, 3, 5]))
    with torch.no_grad():
        whole = block.attention(x, ragged)
        found = [block(x, ragged) for _ in range(400)]
    # all nodes of all graphs are there, or none is
    dropped = [not bool(out.any()) for out in found]
    for out, gone in zip(found, dropped, strict=True):
        torch.testing.assert_close(out, torch.zeros_like(out) if gone else whole / 0.75)
    assert 70 <= sum(dropped) <= 130
    assert torch.equal(block.eval()(x, ragged), whole)


def test_the_layer_that_changes_least_goes() -> None:
    model, packed = small_models.make("graphtrans", dropout=0.0, norm="pre")
    pruner = LayerPruner(0.67, Schedule(begin=1, end=1, every=1))
    pruner.prepare(model)
    layer = attention_sites(model)[1].layer
    with torch.no_grad():
        for name, value in layer.named_parameters():
            if name.startswith(("attention.attention.out_proj", "narrow")):
                value.zero_()
    small_models.train(model, packed, pruner, 1)
    assert pruner.kept() == {"layers.0": 1.0, "layers.1": 0.0, "layers.2": 1.0}
    assert pruner.similarity["layers.1"] == pytest.approx(1.0)


def test_the_rate_rises_and_ends_with_the_schedule() -> None:
    model, packed = small_models.make("graphgps")
    pruner = LayerPruner(1.0, Schedule(begin=2, end=6, every=9), drop=0.5)
    pruner.prepare(model)
    rates = []
    for _ in range(6):
        small_models.train(model, packed, _Once(pruner), 1)
        rates.append(pruner._blocks[0][1].rate)
    # steps 2 and 6 measure, hence the rate before them is 0
    expected = [0.5 * (1 - (1 - (step - 2) / 4) ** 3) for step in (3, 4)]
    assert rates == pytest.approx([0.0, 0.0, *expected, 0.0, 0.0])


class _Once:
    """A pruner whose optimiser is new each time."""

    def __init__(self, pruner: LayerPruner) -> None:
        self.step = pruner.step


def test_without_dropping_training_is_that_of_the_dense_network() -> None:
    outputs = []
    for prune in (False, True):
        torch.manual_seed(0)
        model, packed = small_models.make("graphgps")
        pruner = LayerPruner(1.0, SOON, drop=0.0)
        if prune:
            pruner.prepare(model)
            small_models.train(model, packed, pruner, 6)
            model = pruner.compact()
        else:
            small_models.train(model, packed, _Nothing(), 6)
        outputs.append(small_models.output(model, packed))
    assert torch.equal(*outputs)


class _Nothing:
    def step(self, optimizer: torch.optim.Optimizer) -> None:
        pass


def test_the_state_dict_has_what_is_gone() -> None:
    model, packed = small_models.make("graphgps")
    pruner = LayerPruner(0.34, Schedule(begin=1, end=1, every=1))
    pruner.prepare(model)
    small_models.train(model, packed, pruner, 1)
    again, _ = small_models.make("graphgps")
    other = LayerPruner(0.34, Schedule(begin=1, end=1, every=1))
    other.prepare(again)
    again.load_state_dict(model.state_dict())
    other.load_state_dict(pruner.state_dict())
    assert other.kept() == pruner.kept()
    assert other.settled
    assert torch.equal(small_models.output(again, packed), small_models.output(model, packed))


def test_likeness_is_one_for_turned_and_scaled_features() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 4, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))[0]
    assert linear_cka(x, 3 * x @ turn + 1) == pytest.approx(1.0)
    other = torch.randn(200, 4, generator=generator, dtype=torch.float64)
    assert linear_cka(x, other) < 0.1
    assert linear_cka(x, torch.ones(200, 2)) == 0.0
    matrix = similarity_matrix([x, x @ turn, other])
    assert matrix[0, 1] == pytest.approx(1.0)
    assert torch.equal(matrix, matrix.T)
    heads = torch.stack((x, x @ turn, other), dim=1)
    distances = head_distances([heads[:, :2], heads[:, 2:]])
    torch.testing.assert_close(distances, 1 - matrix)


@pytest.mark.parametrize("ratio", [0.0, 1.01])
def test_ratios_out_of_range_are_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"^ratio must be in \(0, 1\], got"):
        LayerPruner(ratio, SOON)


def test_a_ratio_that_keeps_no_block_is_refused() -> None:
    model, _ = small_models.make("graphgps")
    with pytest.raises(ValueError, match=r"^ratio must keep one of the 3 layers layers\.0 \.\. "):
        LayerPruner(0.3, SOON).prepare(model)


def test_pruning_after_compact_is_refused_with_the_reason() -> None:
    model, packed = small_models.make("graphgps")
    pruner = LayerPruner(0.67, Schedule(begin=1, end=1, every=1))
    pruner.prepare(model)
    small_models.train(model, packed, pruner, 1)
    pruner.compact()
    with pytest.raises(RuntimeError, match=r"^layers cannot be pruned after compact\(\)"):
        pruner.step()
    with pytest.raises(ValueError, match=r"^layers\.\d cannot be pruned: its attention is gone"):
        LayerPruner(0.67, SOON).prepare(model)
