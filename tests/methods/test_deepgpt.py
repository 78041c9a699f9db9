"""Prompts do what the paper says, and train nothing but themselves and the head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import full_tokens
import pytest
import small_models
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gtkern.data.packed import PackedGraphs
from gtkern.methods.deepgpt import PromptTuner
from gtkern.methods.gtsp import DroppableAttention
from gtkern.nn import TokenDroppingAttention

TOKENS = 5


def make(name: str, prefix_tokens: int = TOKENS, **more: Any) -> tuple[PromptTuner, PackedGraphs]:
    """A tuner in evaluation over a small network in fp64."""
    torch.manual_seed(0)
    network = {key: more.pop(key) for key in ("norm", "local", "dropout") if key in more}
    model, packed = small_models.make(name, **network)
    return PromptTuner(model.eval(), prefix_tokens, **more), packed


def whole(packed: PackedGraphs) -> Any:
    return packed.batch(range(len(packed)))


def step(tuner: PromptTuner, batch: Any) -> None:
    """One step of training with weight decay."""
    optimizer = torch.optim.AdamW(tuner.trained_parameters(), lr=1e-2, weight_decay=0.1)
    nn.functional.cross_entropy(tuner.train()(batch), batch.y).backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("graphormer", {}),
        ("graphormer", {"norm": "pre"}),
        ("light", {}),
        ("graphgps", {}),
        ("graphgps", {"local": "gated_gcn", "layers": [1]}),
        ("graphtrans", {"layers": range(1, 3)}),
    ],
)
def test_keys_and_values_equal_tokens_that_are_whole_rows(name: str, more: dict[str, Any]) -> None:
    tuner, packed = make(name, **more)
    prefix, vector = tuner.prompts.prefix, tuner.prompts.vector
    assert prefix is not None and vector is not None
    batch = whole(packed)
    out = tuner(batch)
    weight = torch.randn_like(out)
    got = torch.autograd.grad((out * weight).sum(), (prefix, vector))
    # the head of the tuner is a copy of the model's
    expected = full_tokens.output(tuner.model, tuner.prompts.layers, prefix, vector, batch)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    wanted = torch.autograd.grad((expected * weight).sum(), (prefix, vector))
    for one, other in zip(got, wanted, strict=True):
        assert float(other.abs().max()) > 1e-4
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", small_models.NAMES)
def test_without_tokens_and_with_vectors_of_zero_it_is_the_backbone(name: str) -> None:
    tuner, packed = make(name, 0, graph_prompt_init="zero")
    assert tuner.prompts.prefix is None
    assert torch.equal(tuner(whole(packed)), tuner.model(whole(packed)))
    alone, _ = make(name, 0, graph_prompt=False)
    assert torch.equal(alone(whole(packed)), alone.model(whole(packed)))


@pytest.mark.parametrize("name", small_models.NAMES)
def test_the_order_of_tokens_does_not_matter(name: str) -> None:
    tuner, packed = make(name)
    before = tuner(whole(packed))
    with torch.no_grad():
        tuner.prompts.prefix.copy_(tuner.prompts.prefix.flip(1))
    torch.testing.assert_close(tuner(whole(packed)), before, rtol=1e-11, atol=1e-11)
    with torch.no_grad():
        tuner.prompts.prefix.copy_(torch.randn_like(tuner.prompts.prefix))
    assert not torch.allclose(tuner(whole(packed)), before)


@pytest.mark.parametrize(
    ("name", "more"),
    [("graphgps", {"local": "gated_gcn"}), ("graphormer", {}), ("light", {}), ("graphtrans", {})],
)
def test_training_changes_prompts_and_head_alone(name: str, more: dict[str, Any]) -> None:
    tuner, packed = make(name, dropout=0.1, **more)
    before = {key: value.clone() for key, value in tuner.state_dict().items()}
    head = [value.clone() for value in tuner.model.head.state_dict().values()]
    for _ in range(2):
        step(tuner, whole(packed))
    assert all(parameter.grad is None for parameter in tuner.model.parameters())
    for key, value in tuner.state_dict().items():
        frozen = key.startswith("model.")
        assert torch.equal(value, before[key]) == frozen, key
    for value, old in zip(tuner.model.head.state_dict().values(), head, strict=True):
        assert torch.equal(value, old)


def test_training_turns_dropout_on_and_running_statistics_off() -> None:
    tuner, packed = make("graphgps")
    norms = [module for module in tuner.model.modules() if "running_mean" in module._buffers]
    assert norms
    tuner.train()
    assert not any(norm.training for norm in norms)
    assert tuner.model.layers[0].attention.training
    assert not torch.equal(tuner(whole(packed)), tuner(whole(packed)))
    still, _ = make("graphgps", backbone_dropout=False)
    still.train()
    assert still.prompts.training
    assert torch.equal(still(whole(packed)), still(whole(packed)))
    tuner.eval()
    assert not any(module.training for module in tuner.modules())


class Calls(TorchDispatchMode):
    """What autograd calls: names, with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, Sequence[Any]]] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append((op.name(), args))
        return op(*args, **(kwargs or {}))

    def named(self, part: str) -> list[Sequence[Any]]:
        return [args for name, args in self.seen if part in name]


def test_backward_asks_for_no_gradient_of_what_is_frozen() -> None:
    tuner, packed = make("graphormer")
    loss = tuner(whole(packed)).square().sum()
    with Calls() as calls:
        loss.backward()
    needs = [args[-2] for args in calls.named("ragged_attention_bwd")]
    # q, k, v, table, prefix_k, prefix_v
    assert needs == [[True, True, True, False, True, True]] * 3
    norms = [args[-1] for args in calls.named("native_layer_norm_backward")]
    assert norms and all(list(mask) == [True, False, False] for mask in norms)
    assert not calls.named("embedding")
    # the gradients of what linear layers read: of the head that and its weight's, of the
    # transform, and of each layer four and its tokens'
    assert len(calls.named("aten::mm")) + len(calls.named("aten::addmm")) == 2 + 1 + 3 * (4 + 1)


def test_nothing_is_kept_of_what_does_not_depend_on_prompts() -> None:
    tuner, packed = make("graphormer", layers=[1], graph_prompt=False)
    seen: list[tuple[bool, bool]] = []
    for layer in tuner.model.layers:
        layer.register_forward_pre_hook(
            lambda _, args: seen.append((args[0].requires_grad, args[2][0][1].requires_grad))
        )
    loss = tuner(whole(packed)).square().sum()
    assert seen == [(False, False), (False, False), (True, False)]
    with Calls() as calls:
        loss.backward()
    needs = [args[-2] for args in calls.named("ragged_attention_bwd")]
    assert needs == [[True, True, True, False, False, False], [False] * 4 + [True] * 2]


def test_an_mlp_makes_the_tokens_until_it_is_folded() -> None:
    tuner, packed = make("graphormer", reparameterize=True)
    step(tuner, whole(packed))
    assert len(tuner.prompts.project) == 3
    before = tuner.eval()(whole(packed))
    trained = sum(parameter.numel() for parameter in tuner.prompts.parameters())
    assert tuner.prompts.fold() is tuner.prompts
    assert torch.equal(tuner(whole(packed)), before)
    plain, _ = make("graphormer")
    assert {key: value.shape for key, value in tuner.state_dict().items()} == {
        key: value.shape for key, value in plain.state_dict().items()
    }
    assert trained == 3 * (TOKENS * 16 + 16 + 2 * (16 * 16 + 16))


def test_dropout_of_tokens_is_that_of_training() -> None:
    tuner, packed = make("graphormer", backbone_dropout=False)
    tuner.prompts.dropout = 0.5
    batch = whole(packed)
    assert torch.equal(tuner(batch), tuner(batch))
    tuner.train()
    assert not torch.equal(tuner(batch), tuner(batch))


def test_pruned_networks_are_tuned() -> None:
    tuner, packed = make("graphormer")
    model = tuner.model
    prefix = tuner.prompts.prefix.detach()
    every = model.layers[0].attention
    model.layers[0].attention = every.keep_heads([0, 2])
    model.layers[1].attention = None
    model.layers[2].attention = TokenDroppingAttention(
        model.layers[2].attention, 1.0, always_keep=(1, 0)
    ).double()
    other = PromptTuner(model, TOKENS)
    assert other.prompts.layers == (0, 2)
    with torch.no_grad():
        other.prompts.prefix.copy_(prefix[[0, 2]])
        got = other(whole(packed))
        # without the other heads' columns of the projection behind attention: the same
        every.out_proj.weight.view(16, 4, 4)[:, [1, 3]] = 0
    model.layers[0].attention = every
    torch.testing.assert_close(other(whole(packed)), got, rtol=1e-11, atol=1e-11)
    model.layers[2].attention.ratio = 0.5
    step(other, whole(packed))
    assert not torch.allclose(other.eval()(whole(packed)), got)


def test_what_takes_no_prompts_is_named() -> None:
    model, _ = small_models.make("graphgps")
    with pytest.raises(TypeError, match=r"^model must be one of GraphGPS, .*, got Linear$"):
        PromptTuner(nn.Linear(2, 2))
    for layers, error in (
        ([0, 3], r"^layers must be 0 \.\. 2, got 3$"),
        ([1, 1], r"^layers must name each layer once, got \[1, 1\]$"),
        ([], r"^layers must name at least one layer with attention, got none$"),
    ):
        with pytest.raises(ValueError, match=error):
            PromptTuner(model, layers=layers)
    with pytest.raises(TypeError, match=r"^layers must be integers, got str$"):
        PromptTuner(model, layers="01")
    model.layers[1].attention = None
    with pytest.raises(ValueError, match=r"got 1: layers\.1\.attention was pruned away$"):
        PromptTuner(model, layers=[0, 1])
    model.layers[2].attention = DroppableAttention(model.layers[2].attention)
    with pytest.raises(ValueError, match=r"^layers\.2\.attention must be .* got DroppableAttent"):
        PromptTuner(model)


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"prefix_tokens": -1}, r"^prefix_tokens must be at least 0, got -1$"),
        ({"graph_prompt_init": "one"}, r"^graph_prompt_init must be 'uniform' or 'zero', got"),
        ({"prefix_std": -1.0}, r"^prefix_std must be at least 0 and finite, got -1\.0$"),
        ({"dropout": 1.0}, r"^dropout must be in \[0, 1\), got 1\.0$"),
        ({"num_tasks": 0}, r"^num_tasks must be at least 1, got 0$"),
        ({"num_tasks": 2, "train_head": False}, r"^num_tasks needs train_head"),
        (
            {"prefix_tokens": 0, "graph_prompt": False, "train_head": False},
            r"^train_head must be True where there are no prompts",
        ),
    ],
)
def test_bad_settings_are_refused(more: dict[str, Any], error: str) -> None:
    model, _ = small_models.make("graphgps")
    with pytest.raises(ValueError, match=error):
        PromptTuner(model, **more)


@pytest.mark.parametrize("name", ["graphgps", "light"])
def test_a_new_head_has_its_own_outputs(name: str) -> None:
    tuner, packed = make(name, num_tasks=7)
    assert tuner(whole(packed)).shape == (len(packed), 7)
    assert tuner.model(whole(packed)).shape == (len(packed), 4)
    frozen, _ = make(name, train_head=False)
    assert frozen.head is None
    names = {key for key, value in frozen.named_parameters() if value.requires_grad}
    assert names == {"prompts.prefix", "prompts.vector"}


def test_graphs_of_a_batch_do_not_touch_each_other() -> None:
    tuner, packed = make("light")
    together: Tensor = tuner(whole(packed))
    alone = torch.cat([tuner(packed.batch([graph])) for graph in range(len(packed))])
    torch.testing.assert_close(alone, together, rtol=1e-11, atol=1e-11)
