"""Tokens are dropped from the attention of every network, but for those that are no nodes."""

from __future__ import annotations

import pytest
import small_models
import torch
from torch import nn

from gtkern.methods.gtsp import HeadPruner, Schedule, TokenPruner, attention_sites
from gtkern.nn import TokenDroppingAttention


def blocks(model: nn.Module) -> list[TokenDroppingAttention]:
    return [part for part in model.modules() if isinstance(part, TokenDroppingAttention)]


def options(name: str) -> dict[str, int]:
    """LiGhT has a virtual node, of descriptors."""
    return {"descriptor_features": 3} if name == "light" else {}


def made(name: str) -> tuple[nn.Module, object]:
    model, packed = small_models.make(name, **options(name))
    if name == "light":
        values = torch.randn(len(packed), 3, generator=torch.Generator().manual_seed(2))
        packed.add("descriptors", values, torch.arange(len(packed) + 1))
    return model, packed


@pytest.mark.parametrize("name", small_models.NAMES)
def test_keeping_all_tokens_leaves_the_network_as_it_is(name: str) -> None:
    model, packed = made(name)
    dense = small_models.output(model, packed)
    pruner = TokenPruner(1.0)
    pruner.prepare(model)
    torch.testing.assert_close(small_models.output(model, packed), dense)


@pytest.mark.parametrize("name", small_models.NAMES)
def test_pruned_networks_train_and_compact_to_the_same(name: str) -> None:
    model, packed = made(name)
    dense = small_models.output(model, packed)
    pruner = TokenPruner(0.5)
    pruner.prepare(model)
    assert len(blocks(model)) == 3
    before = [block.scorer.weight.clone() for block in blocks(model)]
    small_models.train(model, packed, pruner, 2)
    for block, weight in zip(blocks(model), before, strict=True):
        assert (block.scorer.weight - weight).abs().max() > 1e-6
    pruned = small_models.output(model, packed)
    assert (pruned - dense).abs().max() > 1e-6
    torch.testing.assert_close(small_models.output(pruner.compact(), packed), pruned)


@pytest.mark.parametrize(
    ("name", "ends"),
    [("graphgps", (0, 0)), ("graphtrans", (0, 1)), ("graphormer", (1, 0)), ("light", (0, 1))],
)
def test_tokens_that_are_no_nodes_are_always_kept(name: str, ends: tuple[int, int]) -> None:
    model, packed = made(name)
    TokenPruner(0.01).prepare(model)
    kept = []

    def see(block: nn.Module, inputs: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        ragged, there = inputs[1], (out != 0).any(1)
        kept.append((there[ragged.ptr[:-1]], there[ragged.ptr[1:] - 1], there.sum()))

    for block in blocks(model):
        block.register_forward_hook(see)
    small_models.output(model, packed)
    assert len(kept) == 3
    for first, last, count in kept:
        assert count == len(packed)
        if ends == (1, 0):
            assert first.all()
        elif ends == (0, 1):
            assert last.all()


def test_shares_fall_along_the_schedule() -> None:
    model, packed = small_models.make("graphgps")
    pruner = TokenPruner([0.5, 0.25, 1.0], Schedule(begin=1, end=3, every=1))
    pruner.prepare(model)
    assert list(pruner.kept().values()) == [1.0, 1.0, 1.0]
    small_models.train(model, packed, pruner, 2)
    assert 0.5 < next(iter(pruner.kept().values())) < 1.0
    small_models.train(model, packed, TokenStep(pruner), 1)
    assert list(pruner.kept().values()) == [0.5, 0.25, 1.0] and pruner.settled


class TokenStep:
    """Takes the pruner's step."""

    def __init__(self, pruner: TokenPruner) -> None:
        self.step = pruner.step


def test_tokens_and_heads_are_pruned_together() -> None:
    model, packed = small_models.make("graphormer")
    tokens = TokenPruner(0.5)
    tokens.prepare(model)
    heads = HeadPruner(0.5, Schedule(begin=1, end=1, every=1))
    heads.prepare(model)
    small_models.train(model, packed, heads, 1)
    heads.compact()
    assert [site.attention().heads is not None for site in attention_sites(model)] == [True] * 3
    pruned = small_models.output(model, packed)
    torch.testing.assert_close(small_models.output(tokens.compact(), packed), pruned)


def test_what_cannot_be_pruned_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^ratio\[1\] must be in \(0, 1\], got 0"):
        TokenPruner([0.5, 0])
    model, _ = small_models.make("graphgps")
    with pytest.raises(ValueError, match=r"^ratio must have one number for each of the 3 layers"):
        TokenPruner([0.5, 0.5]).prepare(model)
    TokenPruner(0.5).prepare(model)
    with pytest.raises(ValueError, match=r"^layers.0 cannot be pruned: its tokens already are"):
        TokenPruner(0.5).prepare(model)
    other = nn.Module()
    other.inner = small_models.make("graphgps")[0]
    with pytest.raises(TypeError, match=r"^always_keep must be given where the model is none of"):
        TokenPruner(0.5).prepare(other)
