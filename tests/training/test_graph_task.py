"""Training on whole graphs: losses, metrics, and what a task keeps."""

from __future__ import annotations

import math
import os
import pathlib
import signal
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from gtkern.data import GraphDataset, PackedGraphs
from gtkern.training import metrics
from gtkern.training.errors import InterruptedRunError
from gtkern.training.fit import fit
from gtkern.training.graph import GraphTask
from gtkern.training.graph_settings import GraphTraining

NAN = math.nan
CPU = torch.device("cpu")


class MeanOfNodes(nn.Module):
    """A linear function of the mean of a graph's nodes."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2, outputs)

    def forward(self, batch: Any) -> Tensor:
        total = torch.zeros(batch.num_graphs, 2).index_add(0, batch.batch, batch.x)
        return self.linear(total / batch.ptr.diff()[:, None])


def dataset(task: str, y: Tensor, *, ogb: str | None = None, seed: int = 0) -> GraphDataset:
    """Graphs of three nodes without edges; the first feature tells the graph's label."""
    generator = torch.Generator().manual_seed(seed)
    count = y.size(0)
    x = torch.randn(3 * count, 2, generator=generator)
    first = y.nan_to_num().reshape(count, -1)[:, 0].float()
    x *= 0.1
    x[:, 0] = ((first - first.mean()) / first.std()).repeat_interleave(3)
    graphs = PackedGraphs(
        x,
        torch.empty(2, 0, dtype=torch.int64),
        3 * torch.arange(count + 1),
        torch.zeros(count + 1, dtype=torch.int64),
        y=y,
    )
    outputs = {"classification": 2}.get(task, y.reshape(count, -1).size(1))
    metric = {"classification": "accuracy", "multilabel": "roc_auc", "regression": "rmse"}[task]
    return GraphDataset("made up", graphs, task, outputs, metric, ogb)


def task_of(data: GraphDataset, cls: type[GraphTask] = GraphTask, **changes: Any) -> GraphTask:
    torch.manual_seed(0)
    values = {"epochs": 30, "lr": 0.1, "batch_size": 8, "warmup_epochs": 0, **changes}
    training = GraphTraining(**values)
    order = torch.arange(len(data.graphs))
    splits = (order[:20], order[20:30], order[30:])
    return cls(MeanOfNodes(data.num_outputs), data, splits, training, seed=0)


def train(task: GraphTask, checkpoint: pathlib.Path | None = None, resume: bool = False) -> None:
    fit(
        task,
        title="training",
        device=CPU,
        console=Console(quiet=True),
        checkpoint=checkpoint,
        resume=resume,
    )


def classes(count: int = 40) -> Tensor:
    return torch.randint(2, (count,), generator=torch.Generator().manual_seed(1))


def test_classes_are_learned() -> None:
    task = task_of(dataset("classification", classes()))
    train(task)
    assert task.best is not None
    assert task.best.val == 1.0
    assert task.history[-1]["test"] == 1.0


def test_tasks_with_missing_labels_are_learned() -> None:
    y = torch.stack((classes().float(), 1 - classes().float()), dim=1)
    y[::3, 1] = NAN
    y[1::5, 0] = NAN
    task = task_of(dataset("multilabel", y))
    train(task)
    assert task.best is not None
    assert task.best.test > 0.95
    assert all(math.isfinite(row["loss"]) for row in task.history)


@pytest.mark.parametrize("loss", ["mse", "l1"])
def test_numbers_are_learned_in_their_own_units(loss: str) -> None:
    numbers = torch.randn(40, 1, generator=torch.Generator().manual_seed(2))
    data = dataset("regression", 1000 + 50 * numbers)
    task = task_of(data, loss=loss, epochs=80)
    train(task)
    assert task.best is not None
    # a constant would have 50, and the numbers themselves are far from any initial output
    assert task.best.test < 15
    assert task.mean.item() == pytest.approx(float(data.graphs.y[:20].mean()))
    assert task.deviation.item() == pytest.approx(float(data.graphs.y[:20].std(correction=0)))


def test_the_best_error_is_the_smallest() -> None:
    numbers = torch.randn(40, 1, generator=torch.Generator().manual_seed(2))
    task = task_of(dataset("regression", numbers), epochs=12)
    train(task)
    assert task.best is not None
    values = [row["val"] for row in task.history]
    assert task.best.val == min(values)
    assert task.best.epoch == values.index(min(values))


def test_a_loss_counts_known_labels_only() -> None:
    logits = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    y = torch.tensor([[1.0, NAN], [NAN, 0.0]])
    each = nn.functional.softplus(torch.tensor([-1.0, 3.0]))
    assert metrics.loss(logits, y).item() == pytest.approx(each.mean().item())
    assert metrics.loss(logits, y, kind="mse").item() == pytest.approx(9 / 2)
    assert metrics.loss(logits, y, kind="l1").item() == pytest.approx(3 / 2)


def test_a_missing_label_has_no_gradient() -> None:
    logits = torch.zeros(2, 2, requires_grad=True)
    metrics.loss(logits, torch.tensor([[1.0, NAN], [0.0, NAN]])).backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad[:, 1], torch.zeros(2))
    assert bool((logits.grad[:, 0] != 0).all())


def test_rmse_is_the_mean_over_tasks() -> None:
    found = torch.tensor([[1.0, 0.0], [3.0, 5.0], [0.0, 2.0]])
    truth = torch.tensor([[0.0, NAN], [0.0, 2.0], [0.0, NAN]])
    expected = (math.sqrt(10 / 3) + 3.0) / 2
    assert metrics.evaluate("rmse", found, truth) == pytest.approx(expected)
    assert metrics.evaluate("mae", found, truth) == pytest.approx((4 / 3 + 3) / 2)


def test_average_precision_of_a_ranking() -> None:
    # by falling score: right, wrong, right
    scores = torch.tensor([[3.0], [2.0], [1.0]])
    truth = torch.tensor([[1.0], [0.0], [1.0]])
    found = metrics.evaluate("average_precision", scores, truth)
    assert found == pytest.approx((1 / 1 + 2 / 3) / 2)


@pytest.mark.parametrize(
    ("name", "metric", "tasks"),
    [
        ("ogbg-molhiv", "roc_auc", 1),
        ("ogbg-moltox21", "roc_auc", 12),
        ("ogbg-molpcba", "average_precision", 128),
        ("ogbg-molfreesolv", "rmse", 1),
    ],
)
def test_the_evaluator_of_ogb_agrees(name: str, metric: str, tasks: int) -> None:
    pytest.importorskip("ogb")
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(2, (60, tasks), generator=generator).float()
    logits = torch.randn(60, tasks, generator=generator) + truth
    if tasks > 1:
        truth[torch.rand(60, tasks, generator=generator) < 0.3] = NAN
        # a task of one class alone counts nowhere
        truth[:, 0] = truth[:, 0].clamp(max=0)
    official = metrics.ogb_metric(name)(logits, truth)
    assert metrics.evaluate(metric, logits, truth) == pytest.approx(official, abs=1e-6)


def test_a_set_of_ogb_is_evaluated_by_ogb() -> None:
    pytest.importorskip("ogb")
    y = classes().float()[:, None]
    task = task_of(dataset("multilabel", y, ogb="ogbg-molhiv"), epochs=2)
    train(task)
    assert task.best is not None
    task.eval()
    task.network.load_state_dict(task.best.weights)
    batch = task.data.graphs.batch(torch.arange(30, 40))
    expected = metrics.evaluate("roc_auc", task.network(batch).detach(), y[30:])
    assert task.best.test == pytest.approx(expected, abs=1e-6)


class Interrupted(GraphTask):
    """Sends the process a signal in its fourth epoch."""

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        if self.current_epoch == 3:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("schedule", ["cosine", "plateau"])
def test_a_resumed_task_ends_with_the_same_weights(tmp_path: pathlib.Path, schedule: str) -> None:
    data = dataset("classification", classes())
    # every other evaluation is a plateau
    values = {"schedule": schedule, "epochs": 8, "plateau_patience": 0}
    whole = task_of(data, **values)
    train(whole)
    path = tmp_path / "task.ckpt"
    with pytest.raises(InterruptedRunError):
        train(task_of(data, Interrupted, **values), path)
    resumed = task_of(data, **values)
    train(resumed, path, resume=True)
    assert [row["lr"] for row in resumed.history] == [row["lr"] for row in whole.history]
    for key, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[key])


def test_a_plateau_lowers_the_learning_rate() -> None:
    # labels without any relation to the features: validation soon stops rising
    y = classes()
    data = dataset("classification", y)
    data.graphs.x.normal_(generator=torch.Generator().manual_seed(5))
    task = task_of(data, schedule="plateau", plateau_patience=1, plateau_factor=0.5, epochs=20)
    train(task)
    rates = [row["lr"] for row in task.history]
    assert rates[0] == 0.1
    assert rates[-1] < 0.01
    best, waited, expected = -1.0, 0, [0.1]
    for row in task.history[:-1]:
        waited = 0 if row["val"] > best else waited + 1
        best = max(best, row["val"])
        expected.append(expected[-1])
        if waited > 1:
            expected[-1], waited = expected[-1] * 0.5, 0
    assert rates == pytest.approx(expected)


def test_a_last_batch_of_one_graph_is_left_out() -> None:
    data = dataset("classification", classes())
    task = task_of(data, batch_size=19)
    assert [batch.num_graphs for batch in task.train_dataloader()] == [19]
    assert [batch.num_graphs for batch in task.val_dataloader()] == [19, 1]
