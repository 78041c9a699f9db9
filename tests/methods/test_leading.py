"""LEADING: blocks, gradients against joint training, the lazy solver, the memory bank's part."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from text_rings import rings
from torch import Tensor
from torch.nn import functional

from gtkern import ops
from gtkern.data.text import TextGraph, load_text_graph
from gtkern.methods.leading.bank import MemoryBank
from gtkern.methods.leading.blocks import Blocks
from gtkern.methods.leading.language_model import LanguageModel
from gtkern.methods.leading.lazy import LazyMemory
from gtkern.methods.leading.network import GraphPart, TextGraphNetwork
from gtkern.methods.leading.settings import LeadingSettings
from gtkern.methods.leading.task import EndToEndTask, FeatureTask
from gtkern.methods.leading.tokens import TokenizedTexts, tokenize, train_tokenizer
from gtkern.training import settings as settings_of

ALPHA = 0.2


def settings(**changes: Any) -> LeadingSettings:
    values = {
        "dataset": "synthetic",
        "propagation": {"width": 8, "dropout": 0.0, "alpha": ALPHA, "tol": 1e-6, "sweeps": 0},
        "neighbors": {"fanout": 0, "bank": "float32"},
        "features": {"epochs": 1, "lr": 0.01, "warmup_epochs": 0},
        "training": {"epochs": 1, "lr": 0.01, "warmup_epochs": 0, "batch_size": 64},
    }
    for key, value in changes.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    return settings_of.read(LeadingSettings, values)


@pytest.fixture(scope="module")
def data() -> TextGraph:
    return rings()


@pytest.fixture(scope="module")
def model(data: TextGraph) -> tuple[LanguageModel, TokenizedTexts]:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(data.texts)
    language_model = LanguageModel.small(tokenizer, width=16, layers=1, heads=2, dropout=0.0)
    return language_model, tokenize(data.texts, tokenizer, max_tokens=8)


def made(
    model: tuple[LanguageModel, TokenizedTexts], data: TextGraph, chosen: LeadingSettings
) -> tuple[TextGraphNetwork, Blocks]:
    torch.manual_seed(1)
    part = GraphPart(16, data.num_classes, chosen.propagation)
    blocks = Blocks(
        data.edge_index,
        data.num_nodes,
        fanout=chosen.neighbors.fanout,
        hops=chosen.neighbors.hops,
        unlabelled=chosen.training.unlabelled,
    )
    return TextGraphNetwork(copy.deepcopy(model[0]), part), blocks


def gradients(network: TextGraphNetwork, loss: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def step(
    network: TextGraphNetwork,
    tokens: TokenizedTexts,
    data: TextGraph,
    blocks: Blocks,
    chosen: LeadingSettings,
    lazy: LazyMemory | None = None,
) -> tuple[EndToEndTask, dict[str, Tensor]]:
    """The gradients of one step on all training nodes, its bank filled by the model as it is."""
    bank = MemoryBank(data.num_nodes, 16, dtype="float32", identity="test")
    task = EndToEndTask(network, tokens, data, blocks, chosen, bank=bank, lazy=lazy)
    for nodes, rows in network.language_model.encode(tokens, torch.arange(data.num_nodes)):
        bank.write(nodes, rows, step=0)
    network.train()
    batch = task.make(data.train_mask.nonzero().flatten(), 0)
    return task, gradients(network, task.training_step(batch, 0))


def joint(
    network: TextGraphNetwork,
    tokens: TokenizedTexts,
    data: TextGraph,
    blocks: Blocks,
    *,
    detached: Tensor | None = None,
) -> dict[str, Tensor]:
    """Those of training everything at once on the whole graph, by a dense solve."""
    x = network.language_model(tokens, torch.arange(data.num_nodes))
    if detached is not None:
        x = torch.where(detached[:, None], x.detach(), x)
    part = network.graph_part
    weight = torch.zeros(data.num_nodes, data.num_nodes)
    weight[blocks.looped[1], blocks.looped[0]] = blocks.weight
    z = ALPHA * torch.linalg.solve(
        torch.eye(data.num_nodes) - (1 - ALPHA) * weight, functional.relu(part.project(x))
    )
    logits = part.head(z)
    loss = functional.cross_entropy(logits[data.train_mask], data.y[data.train_mask])
    return gradients(network, loss)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    largest = max(float(value.abs().max()) for value in expected.values())
    assert largest > 1e-3
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5 * largest, msg=name)


def test_with_all_nodes_as_targets_gradients_are_those_of_joint_training(
    data: TextGraph, model: Any
) -> None:
    chosen = settings(neighbors={"hops": 30}, training={"unlabelled": 30})
    network, blocks = made(model, data, chosen)
    _, found = step(network, model[1], data, blocks, chosen)
    assert_equal(found, joint(network, model[1], data, blocks))


@pytest.mark.parametrize("sweeps", [0, 150])
def test_with_fresh_neighbours_only_their_texts_have_no_gradient(
    data: TextGraph, model: Any, sweeps: int
) -> None:
    chosen = settings(neighbors={"hops": 30}, propagation={"sweeps": sweeps, "beta": 0.0})
    network, blocks = made(model, data, chosen)
    lazy = None
    if sweeps:
        lazy = LazyMemory(data.num_nodes, 8, beta=0.5, theta=0.5, identity="test")
        # from anywhere the solver comes to the same
        lazy.solutions.write(torch.arange(30), torch.randn(30, 8), step=0)
        lazy.adjoints.write(torch.arange(30), torch.randn(30, 8), step=0)
    _, found = step(network, model[1], data, blocks, chosen, lazy)
    assert_equal(found, joint(network, model[1], data, blocks, detached=~data.train_mask))


def test_lazy_solver_is_that_of_lazygnn(data: TextGraph, model: Any) -> None:
    """Two steps of the released solver, written out: lazy start, momentum, two sweeps."""
    chosen = settings(neighbors={"hops": 30}, propagation={"sweeps": 2})
    network, blocks = made(model, data, chosen)
    lazy = LazyMemory(data.num_nodes, 8, beta=0.3, theta=0.6, identity="test")
    block = blocks.block(data.train_mask.nonzero().flatten(), 0)
    a = torch.zeros(30, 30)
    a[block.edge_index[1], block.edge_index[0]] = block.weight
    b = block.num_targets
    memory = gradient_memory = None
    for number in (1, 2):
        x = torch.randn(30, 8, requires_grad=True)
        upstream = torch.randn(30, 8)
        upstream[b:] = 0
        z = network.graph_part._propagate(x, block, lazy.start(block, number))
        z.backward(upstream)

        expected, adjoint = x.detach().clone(), upstream.clone()
        if memory is not None:
            expected[:b] = 0.7 * memory + 0.3 * x.detach()[:b]
            adjoint[:b] = 0.4 * gradient_memory + 0.6 * upstream[:b]
        for _ in range(2):
            expected = (1 - ALPHA) * a @ expected + ALPHA * x.detach()
            adjoint = (1 - ALPHA) * a.T @ adjoint + ALPHA * upstream
        torch.testing.assert_close(z.detach(), expected)
        torch.testing.assert_close(x.grad, adjoint)
        memory, gradient_memory = expected[:b].clone(), adjoint[:b].clone()
        torch.testing.assert_close(lazy.solutions.read(block.targets), memory)
        torch.testing.assert_close(lazy.adjoints.read(block.targets), gradient_memory)
    assert not bool(lazy.solutions.visited(block.neighbors).any())


def test_block_has_sampled_neighbours_and_weights_of_the_whole_graph(data: TextGraph) -> None:
    blocks = Blocks(data.edge_index, data.num_nodes, fanout=1, hops=1, unlabelled=2, seed=3)
    labelled = torch.tensor([7, 3, 20])
    block = blocks.block(labelled, epoch=1)
    assert block.nodes[:3].tolist() == labelled.tolist()
    assert block.nodes.unique().numel() == block.nodes.numel()
    assert block.num_labelled == 3
    assert block.num_targets == 5 <= block.nodes.numel() <= 6
    whole = {
        (int(i), int(j)): float(w)
        for i, j, w in zip(*blocks.looped.tolist(), blocks.weight.tolist(), strict=True)
    }
    found = {
        (int(block.nodes[i]), int(block.nodes[j])): float(w)
        for i, j, w in zip(*block.edge_index.tolist(), block.weight.tolist(), strict=True)
    }
    inside = set(block.nodes.tolist())
    assert found == {pair: w for pair, w in whole.items() if inside.issuperset(pair)}
    others = [set(blocks.block(labelled, epoch).neighbors.tolist()) for epoch in range(8)]
    assert any(other != others[0] for other in others)


@pytest.mark.parametrize(
    ("refresh", "period", "refreshed"),
    # of the 20 nodes in no batch as targets, and of 10 targets in two batches
    [("epoch", 1, 20), ("epoch", 2, 0), ("never", 1, 0), ("rolling", 4, 8)],
)
def test_refresh(data: TextGraph, model: Any, refresh: str, period: int, refreshed: int) -> None:
    chosen = settings(
        neighbors={"refresh": refresh, "period": period, "hops": 30},
        training={"batch_size": 5, "epochs": 2},
    )
    network, blocks = made(model, data, chosen)
    bank = MemoryBank(data.num_nodes, 16, dtype="float32", identity="test")
    task = EndToEndTask(network, model[1], data, blocks, chosen, bank=bank, lazy=None)
    for epoch in range(2):
        task._seconds = dict.fromkeys(task._seconds, 0.0)
        task._refreshed = 0
        task.__dict__["_trainer"] = type("Trainer", (), {"current_epoch": epoch})()
        task._refresh_epoch(bank)
        # nothing was ever written, and no node of a batch is without a row
        assert epoch or task._refreshed == 30
        task._refreshed = task._refreshed if epoch else 0
        for nodes in task.train_dataloader().split():
            task.training_step(task.make(nodes, epoch), 0)
    assert task._refreshed == refreshed


def test_evaluation_writes_nothing_to_the_bank(data: TextGraph, model: Any) -> None:
    chosen = settings()
    network, blocks = made(model, data, chosen)
    task, _ = step(network, model[1], data, blocks, chosen)
    before = task.bank.state_dict()
    with task.bank.frozen(), torch.no_grad():
        task.validation_step(task.eval_batch(task._eval_nodes), 0)
    after = task.bank.state_dict()
    for name in ("stamps", "values"):
        assert torch.equal(before[name], after[name])
    assert network.training


def test_evaluation_reads_what_the_bank_has_and_encodes_the_evaluated(
    data: TextGraph, model: Any
) -> None:
    chosen = settings()
    network, blocks = made(model, data, chosen)
    task, _ = step(network, model[1], data, blocks, chosen)
    marked = torch.full((30, 16), 0.25)
    task.bank.write(torch.arange(30), marked, step=5)
    network.eval()
    with torch.no_grad():
        task.validation_step(task.eval_batch(task._eval_nodes), 0)
        for nodes, rows in network.language_model.encode(model[1], task._eval_nodes):
            marked[nodes] = rows
        expected = network(marked, blocks.whole())[task._eval_nodes]
    torch.testing.assert_close(task._evaluated[0][0], expected, rtol=1e-4, atol=1e-5)


def test_graph_part_without_warm_start_reads_features_as_they_are() -> None:
    part = GraphPart(4, 2, settings().propagation)
    assert bool((part.mean == 0).all()) and bool((part.deviation == 1).all())
    x = torch.randn(50, 4) * 3 + 5
    x[:, 2] = 7
    part.standardize(x)
    scaled = (x - part.mean) / part.deviation
    torch.testing.assert_close(scaled.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    assert bool((scaled[:, 2] == 0).all())


def test_a_feature_that_hardly_changes_is_not_blown_up() -> None:
    """Its gradient would be the only one that clipping leaves."""
    part = GraphPart(3, 2, settings().propagation)
    x = torch.randn(50, 3)
    x[:, 1] = 0
    x[0, 1] = 1e-30
    part.standardize(x)
    assert float(part.deviation.min()) > 1e-3
    part.standardize(torch.ones(5, 3))
    assert bool((part.deviation == 1).all())


@pytest.mark.parametrize("kind", ["implicit", "gcn", "gat", "none"])
def test_features_are_learned(kind: str) -> None:
    """Classes that only neighbours tell, but for "none", which must not know them."""
    data = load_text_graph("synthetic", seed=0)
    chosen = settings(propagation={"kind": kind})
    blocks = Blocks(data.edge_index, data.num_nodes, fanout=0, hops=1)
    torch.manual_seed(0)
    x = torch.randn(data.num_nodes, data.num_classes) + 1.5 * functional.one_hot(data.y)
    task = FeatureTask(GraphPart(x.size(1), 4, chosen.propagation), x, data, blocks.whole(), chosen)
    optimizer = torch.optim.Adam(task.network.parameters(), lr=0.05)
    for _ in range(30):
        optimizer.zero_grad()
        logits = task.network(x, task.block)
        functional.cross_entropy(logits[data.train_mask], data.y[data.train_mask]).backward()
        optimizer.step()
    found = float((logits.argmax(1) == data.y)[data.test_mask].float().mean())
    assert found > (0.6 if kind == "none" else 0.75)
    if kind == "none":
        alone = task.network(x, Blocks(data.edge_index[:, :0], 600, fanout=0, hops=1).whole())
        assert torch.equal(alone, task.network(x, task.block))


def test_gat_needs_a_width_of_whole_heads() -> None:
    with pytest.raises(ValueError, match=r"width must be a multiple of 4 with gat, got 10"):
        GraphPart(4, 2, settings(propagation={"kind": "gat", "width": 10}).propagation)


def test_propagation_of_a_block_is_that_of_the_whole_graph_where_it_has_all(
    data: TextGraph,
) -> None:
    blocks = Blocks(data.edge_index, data.num_nodes, fanout=0, hops=30)
    block = blocks.block(torch.tensor([4]), 0)
    x = torch.randn(30, 5)
    part = ops.propagate(block.graph, x[block.nodes], ALPHA, weight=block.weight)
    whole = ops.propagate(blocks.graph, x, ALPHA)
    torch.testing.assert_close(part, whole[block.nodes], rtol=1e-4, atol=1e-5)
