"""Weights go by magnitude, come back by gradient, and what is pruned is 0 and stays so."""

from __future__ import annotations

import pytest
import small_models
import torch
from torch import Tensor, nn

from gtkern.methods.gtsp import NeuronPruner, Schedule, WeightPruner
from gtkern.methods.gtsp.neurons import hidden_pairs
from gtkern.methods.gtsp.weights import largest
from gtkern.nn import BlockSparseLinear

ONCE = Schedule(begin=1, end=1, every=1)
SOON = Schedule(begin=1, end=5, every=2)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4), nn.LayerNorm(4))


def train(model: nn.Module, pruner: object, steps: int, optimizer: object = None) -> Tensor:
    """Steps of Adam with decay, and how many weights are not 0 after each."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(16, 6, generator=generator), torch.randn(16, 4, generator=generator)
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=0.05, weight_decay=0.1)
    alive = []
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        pruner.step(optimizer)
        alive.append(sum(int((part.weight != 0).sum()) for part in (model[0], model[2])))
    assert all(int(state["step"]) == steps for state in optimizer.state.values())
    return torch.tensor(alive)


def test_the_share_follows_the_cubic_and_reaches_the_ratio() -> None:
    model = network()
    pruner = WeightPruner(0.25, Schedule(begin=2, end=6, every=1), exchange=0.0)
    pruner.prepare(model)
    alive = train(model, pruner, 8)
    kept = [1.0, 1.0, *(1 - 0.75 * (1 - (1 - part / 4) ** 3) for part in (1, 2, 3, 4)), 0.25, 0.25]
    assert alive.tolist() == [round(80 * share) for share in kept]
    assert pruner.settled


def test_the_threshold_is_one_for_all_layers() -> None:
    model = network()
    pruner = WeightPruner(0.5, ONCE, exchange=0.0)
    pruner.prepare(model)
    with torch.no_grad():
        model[0].weight.mul_(100.0)
    train(model, pruner, 1)
    assert pruner.kept() == {"0.weight": 40 / 48, "2.weight": 0.0}


@pytest.mark.parametrize("block", [None, (2, 3)])
def test_what_is_pruned_stays_zero_and_so_do_its_moments(block: tuple[int, int] | None) -> None:
    model = network()
    pruner = WeightPruner(0.5, SOON, block=block)
    pruner.prepare(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    train(model, pruner, 7, optimizer)
    for layer in (model[0], model[2]):
        pruned = layer.weight == 0
        assert pruned.any()
        assert layer.weight.grad[pruned].abs().max() > 0
        state = optimizer.state[layer.weight]
        assert not state["exp_avg"][pruned].any()
        assert not state["exp_avg_sq"][pruned].any()


def test_weights_come_back_where_the_gradient_is_largest() -> None:
    model = nn.Sequential(nn.Linear(8, 4))
    pruner = WeightPruner(0.5, ONCE, exchange=0.5)
    pruner.prepare(model)
    weight = model[0].weight
    with torch.no_grad():
        weight.copy_(torch.arange(1.0, 33.0).view(4, 8))
    weight.grad = torch.zeros_like(weight)
    weight.grad[0, :2] = torch.tensor([2.0, 1.0])
    pruner.step()
    # at the schedule's end the exchanged share is 0.005: one of 16
    assert int(pruner._masks["0.weight"].sum()) == 16
    assert bool(pruner._masks["0.weight"][0, 0])
    assert not bool(pruner._masks["0.weight"][2, 0])


def test_regrowth_keeps_the_number() -> None:
    model = network()
    pruner = WeightPruner(0.5, SOON, exchange=0.5)
    pruner.prepare(model)
    train(model, pruner, 5)
    assert sum(int(mask.sum()) for mask in pruner._masks.values()) == 40


def test_blocks_go_whole() -> None:
    model = network()
    pruner = WeightPruner(0.5, ONCE, block=(4, 4), exchange=0.0)
    pruner.prepare(model)
    train(model, pruner, 1)
    tails = model[0].weight.detach()
    for rows in (slice(0, 4), slice(4, 8)):
        for columns in (slice(0, 4), slice(4, 6)):
            assert (tails[rows, columns] != 0).float().mean() in (0.0, 1.0)
    assert sum(int(mask.sum()) for mask in pruner._masks.values()) == 3


def test_compact_layers_keep_their_blocks_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 4))
    pruner = WeightPruner(0.5, ONCE, block=(8, 8), exchange=0.0)
    pruner.prepare(model)
    with torch.no_grad():
        # all of a layer's blocks may go
        model[2].weight.mul_(1e-3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x = torch.randn(16, 6)
    model(x).square().sum().backward()
    optimizer.step()
    pruner.step(optimizer)
    masked = model(x)
    compact = pruner.compact()
    assert isinstance(compact[0], nn.Linear)
    assert isinstance(compact[2], BlockSparseLinear)
    assert compact[2].weight.num_blocks == 0
    torch.testing.assert_close(compact(x), masked)


def test_a_density_may_leave_rows_and_layers_empty() -> None:
    model = network()
    pruner = WeightPruner(0.02, ONCE, exchange=0.0)
    pruner.prepare(model)
    train(model, pruner, 1)
    out = pruner.compact()(torch.randn(3, 6))
    assert out.isfinite().all()


def test_every_parameter_with_two_axes_is_pruned_embeddings_too() -> None:
    model, packed = small_models.make("graphgps")
    pruner = WeightPruner(0.5, ONCE)
    pruner.prepare(model)
    expected = {name for name, value in model.named_parameters() if value.dim() > 1}
    assert set(pruner.kept()) == expected
    assert "node_encoder.table.weight" in expected
    small_models.train(model, packed, pruner, 1)
    masked = small_models.output(model, packed)
    assert torch.equal(small_models.output(pruner.compact(), packed), masked)


def test_resumed_pruning_is_that_of_one_run() -> None:
    def run(stop: int | None) -> Tensor:
        model = network()
        pruner = WeightPruner(0.5, SOON)
        pruner.prepare(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(5):
            optimizer.zero_grad()
            model(torch.ones(2, 6)).square().sum().backward()
            optimizer.step()
            pruner.step(optimizer)
            if step == stop:
                state, weights = pruner.state_dict(), model.state_dict()
                model = network()
                pruner = WeightPruner(0.5, SOON)
                pruner.prepare(model)
                model.load_state_dict(weights)
                pruner.load_state_dict(state)
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return model[0].weight.detach()

    assert torch.equal(run(stop=2), run(stop=None))


def test_masks_are_taken_from_restored_weights() -> None:
    model = network()
    pruner = WeightPruner(0.5, ONCE)
    pruner.prepare(model)
    train(model, pruner, 1)
    with torch.no_grad():
        model[0].weight[0] = 0
        model[0].weight[1] = 1
    pruner.restored()
    assert not pruner._masks["0.weight"][0].any()
    assert pruner._masks["0.weight"][1].all()


def test_the_largest_entries_with_ties_to_the_first() -> None:
    score = torch.tensor([1.0, 3.0, 1.0, 2.0, 1.0])
    assert largest(score, 3).tolist() == [True, True, False, True, False]
    assert not largest(score, 0).any()
    assert largest(score, 5).all()


def test_layers_that_cannot_be_pruned_are_named() -> None:
    with pytest.raises(ValueError, match=r"^3\.weight cannot be pruned: it has 1 axis"):
        WeightPruner(0.5, ONCE, only=["3"]).prepare(network())
    with pytest.raises(ValueError, match=r"^only must name parameters of the model, got 'x'"):
        WeightPruner(0.5, ONCE, only=["x"]).prepare(network())
    table = nn.Sequential(nn.Embedding(4, 8), nn.Linear(8, 8))
    with pytest.raises(ValueError, match=r"^0\.weight cannot be pruned: blocks are of torch\.nn\."):
        WeightPruner(0.5, ONCE, block=(8, 8), only=["0"]).prepare(table)
    with pytest.raises(TypeError, match=r"^model must have weights that can be pruned, got Layer"):
        WeightPruner(0.5, ONCE).prepare(nn.LayerNorm(4))


@pytest.mark.parametrize("kind", [WeightPruner, NeuronPruner])
def test_bad_calls_are_refused(kind: type) -> None:
    with pytest.raises(ValueError, match=r"^ratio must be in \(0, 1\], got 2"):
        kind(2, ONCE)
    pruner = kind(0.5, ONCE)
    with pytest.raises(RuntimeError, match=r"^prepare\(model\) must come first"):
        pruner.step()
    pruner.prepare(network())
    with pytest.raises(RuntimeError, match=r"^prepare\(\) must be called once"):
        pruner.prepare(network())
    pruner.compact()
    with pytest.raises(RuntimeError, match=r"after compact\(\): what the masks hid is gone"):
        pruner.prepare(network())


def test_neurons_go_with_both_sides() -> None:
    model = network()
    pruner = NeuronPruner(0.5, SOON)
    pruner.prepare(model)
    train(model, pruner, 5)
    x = torch.randn(3, 6)
    masked = model(x)
    compact = pruner.compact()
    assert (compact[0].out_features, compact[2].in_features) == (4, 4)
    torch.testing.assert_close(compact(x), masked)


@pytest.mark.parametrize("name", small_models.NAMES)
def test_every_model_has_neurons(name: str) -> None:
    model, packed = small_models.make(name)
    pruner = NeuronPruner(0.5, ONCE)
    pruner.prepare(model)
    pairs = {pair.first for pair in hidden_pairs(model)}
    assert {f"layers.{depth}.widen" for depth in range(3)} <= pairs
    small_models.train(model, packed, pruner, 1)
    masked = small_models.output(model, packed)
    before = sum(value.numel() for value in model.parameters())
    compact = pruner.compact()
    torch.testing.assert_close(small_models.output(compact, packed), masked)
    assert sum(value.numel() for value in compact.parameters()) < 0.95 * before
