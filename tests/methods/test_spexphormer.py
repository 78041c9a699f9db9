"""Spexphormer: its phases, what a run leaves, and going on after an interruption."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import pathlib
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from gtkern import ops, peers
from gtkern.data import minesweeper
from gtkern.data.node import NodeData
from gtkern.methods.node_settings import Expander
from gtkern.methods.spexphormer.run import Spexphormer, build_graph
from gtkern.methods.spexphormer.settings import Phase1, Phase2, Settings, temperature_at
from gtkern.methods.spexphormer.tasks import SampledTask, ScoreTask, own_rows
from gtkern.models.exphormer import SampledExphormer
from gtkern.training.batches import Batch, NodeBatches
from gtkern.training.errors import InterruptedRunError, UserError
from gtkern.training.fit import fit
from gtkern.training.node import aligned
from gtkern.training.run import RunFolder, comparison_table, read_summary, table
from gtkern.training.task import Best

CPU = torch.device("cpu")
QUIET = Console(quiet=True)


def small(**changes: Any) -> Settings:
    settings = Settings(
        dataset="minesweeper",
        metric="roc_auc",
        seed=1,
        expander=Expander(degree=2),
        phase1=Phase1(epochs=4, lr=0.02, layers=2, temperature_wait=1, warmup_epochs=1),
        phase2=Phase2(epochs=4, lr=0.02, layers=2, width=8, heads=2, neighbors=(4, 3)),
    )
    return dataclasses.replace(settings, **changes)


def data() -> NodeData:
    return minesweeper(0, rows=12)


def run(path: pathlib.Path, settings: Settings | None = None, **options: Any) -> Any:
    method = Spexphormer(settings or small(), data(), RunFolder(path), console=QUIET)
    return method.run(**options)


def rendered(shown: Table) -> str:
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(shown)
    return console.export_text()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    torch.set_num_threads(2)  # as in every test: sums of other threads differ in the last bit
    path = tmp_path_factory.mktemp("finished")
    run(path)
    return path


def test_a_run_leaves_its_files_and_no_parts(finished: pathlib.Path) -> None:
    files = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    assert files == {
        "checkpoints/phase1.ckpt",
        "checkpoints/phase1.json",
        "checkpoints/phase1.safetensors",
        "checkpoints/phase2.ckpt",
        "checkpoints/phase2.json",
        "checkpoints/phase2.safetensors",
        "metrics.csv",
        "plots/curves.png",
        "plots/kept_edges.png",
        "plots/scores.png",
        "scores/edge_type.npy",
        "scores/row_ptr.npy",
        "scores/scores.npy",
        "scores/source.npy",
        "summary.json",
    }


def test_the_summary_has_the_documented_keys(finished: pathlib.Path) -> None:
    summary = read_summary(finished / "summary.json")
    assert set(summary) == {
        "command",
        "method",
        "dataset",
        "seed",
        "backend",
        "device",
        "versions",
        "test",
        "val",
        "seconds",
        "peak_bytes",
        "trained_parameters",
        "total_parameters",
        "phases",
        "comparison",
        "processes",
        "format",
    }
    assert [phase["name"] for phase in summary["phases"]] == ["phase1", "phase2"]
    for phase in summary["phases"]:
        assert phase["epochs"] == 4
        assert 0 < phase["test"]["roc_auc"] < 1
        assert phase["peak_bytes"] > 0
    assert summary["test"] == summary["phases"][1]["test"]
    assert summary["phases"][1]["edges_kept"] == pytest.approx(3.5 * 144 / (1012 + 576))


def test_the_metrics_have_a_row_for_every_epoch(finished: pathlib.Path) -> None:
    with (finished / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["phase"], row["epoch"]) for row in rows] == [
        (phase, str(epoch)) for phase in ("phase1", "phase2") for epoch in range(1, 5)
    ]
    temperatures = [float(row["temperature"]) for row in rows[:4]]
    assert temperatures == pytest.approx([1, 1, 0.99, 0.99**2])


def test_scores_are_of_the_best_epoch_at_its_temperature(finished: pathlib.Path) -> None:
    settings = small()
    graph = build_graph(settings, data())
    task = ScoreTask(settings, data(), graph)
    task.network.load_state_dict(load_file(finished / "checkpoints/phase1.safetensors"))
    best = json.loads((finished / "checkpoints/phase1.json").read_text())["phase"]["best_epoch"]
    with torch.inference_mode():
        expected = list(
            task.network.eval().scores(  # type: ignore[operator]
                task.x, graph, temperature_at(settings.phase1, best - 1)
            )
        )
    scores = np.load(finished / "scores/scores.npy", mmap_mode="r")
    assert scores.shape == (2, graph.num_edges)
    np.testing.assert_allclose(scores, torch.stack(expected).numpy(), rtol=1e-5, atol=1e-7)
    assert np.array_equal(np.load(finished / "scores/source.npy"), graph.csr.index.numpy())


def test_the_table_shows_the_summarys_figures(tmp_path: pathlib.Path) -> None:
    summary = run(tmp_path)
    shown = table(summary)
    text = rendered(shown)
    assert f"{summary.phases[1].test['roc_auc']:.4f}" in text
    (best,) = (list(column.cells) for column in shown.columns if column.header == "best")
    assert best == [str(phase.best_epoch) for phase in summary.phases]
    assert "edges kept" in text


def test_two_runs_are_equal(finished: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run(tmp_path)
    assert weights_equal(tmp_path, finished)


def weights_equal(first: pathlib.Path, second: pathlib.Path) -> bool:
    return all(
        torch.equal(value, load_file(second / f"checkpoints/{phase}.safetensors")[key])
        for phase in ("phase1", "phase2")
        for key, value in load_file(first / f"checkpoints/{phase}.safetensors").items()
    )


class Interrupting(ScoreTask):
    """Sends the process a signal in its second epoch."""

    number = signal.SIGINT

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        if self.current_epoch == 1:
            os.kill(os.getpid(), self.number)


class InterruptingLater(SampledTask):
    """The same in phase 2."""

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        if self.current_epoch == 2:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("name", "task", "phase", "rows"),
    [
        ("ScoreTask", Interrupting, "phase1", 2),
        ("SampledTask", InterruptingLater, "phase2", 7),
    ],
)
def test_an_interrupted_run_goes_on_as_if_nothing_was(
    finished: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    task: type,
    phase: str,
    rows: int,
) -> None:
    module = "gtkern.methods.spexphormer.run"
    with monkeypatch.context() as patch:
        patch.setattr(f"{module}.{name}", task)
        with pytest.raises(InterruptedRunError, match=phase):
            run(tmp_path)
    assert (tmp_path / f"checkpoints/{phase}.safetensors").is_file()
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == rows + 1
    assert not (tmp_path / "summary.json").exists()
    summary = run(tmp_path, resume=True)
    assert [done.epochs for done in summary.phases] == [4, 4]
    assert weights_equal(tmp_path, finished)


def test_a_finished_run_is_not_trained_again(tmp_path: pathlib.Path) -> None:
    first = run(tmp_path)
    again = run(tmp_path, resume=True)
    assert [dataclasses.asdict(phase) for phase in again.phases] == [
        dataclasses.asdict(phase) for phase in first.phases
    ]


def test_a_new_run_forgets_the_old_one(tmp_path: pathlib.Path) -> None:
    run(tmp_path)
    keep = tmp_path / "notes.txt"
    keep.touch()
    settings = small()
    with pytest.raises(UserError, match=r"training diverged: the loss is nan in epoch \d"):
        run(tmp_path, dataclasses.replace(settings, phase1=diverging(settings.phase1)))
    assert not (tmp_path / "summary.json").exists()
    assert not (tmp_path / "scores/scores.npy").exists()
    assert keep.exists()


def diverging(phase: Phase1) -> Phase1:
    return dataclasses.replace(phase, lr=1e38, clip_grad_norm=0.0, warmup_epochs=0)


def test_resuming_on_another_graph_is_refused(tmp_path: pathlib.Path) -> None:
    run(tmp_path)
    method = Spexphormer(small(), minesweeper(0, rows=10), RunFolder(tmp_path), console=QUIET)
    with pytest.raises(UserError, match="cannot resume: the scores"):
        method.run(resume=True)


def test_features_are_read_from_a_cache_line_on() -> None:
    whole = torch.arange(400.0)
    shift = (-whole.data_ptr() % 64) // 4
    inside = whole[shift + 4 :][:80].view(10, 8)
    copy = aligned(inside)
    assert copy.data_ptr() % 64 == 0
    assert torch.equal(copy, inside)
    there = whole[shift:][:80].view(10, 8)
    assert aligned(there) is there


def test_sampled_edges_change_every_epoch_and_come_back() -> None:
    settings, graph = small(), build_graph(small(), data())
    task = SampledTask(settings, data(), graph, torch.rand(2, graph.num_edges))
    drawn = []
    for epoch in (0, 1, 0):
        task.sample(epoch)
        drawn.append(task.neighbors[0].edge)
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


def test_a_sample_serves_for_as_many_epochs_as_asked() -> None:
    settings = small(phase2=dataclasses.replace(small().phase2, resample_every=3))
    graph = build_graph(settings, data())
    task = SampledTask(settings, data(), graph, torch.rand(2, graph.num_edges))
    task.sample(0)
    first = task.neighbors
    task.sample(2)
    assert task.neighbors is first
    task.sample(3)
    assert task.neighbors is not first


def test_a_table_too_large_for_its_memory_changes_no_sample() -> None:
    samples = []
    for gib in (1.0, 0.0):
        phase = dataclasses.replace(small().phase2, sampling_table_gib=gib)
        settings = small(phase2=phase)
        graph = build_graph(settings, data())
        scores = torch.rand(2, graph.num_edges, generator=torch.Generator().manual_seed(1))
        task = SampledTask(settings, data(), graph, scores)
        assert (task.weight is scores) == (gib == 0.0)
        task.sample(1)
        samples.append([layer.edge for layer in task.neighbors])
    assert all(torch.equal(a, b) for a, b in zip(*samples, strict=True))


@pytest.mark.parametrize("sampling", ["uniform", "top"])
def test_other_samplings_train(tmp_path: pathlib.Path, sampling: str) -> None:
    phase = dataclasses.replace(small().phase2, sampling=sampling, epochs=1)
    summary = run(tmp_path, small(phase2=phase))
    assert math.isfinite(summary.test["roc_auc"])


def test_small_batches_see_every_training_node() -> None:
    settings = small(phase2=dataclasses.replace(small().phase2, batch_size=20))
    graph = build_graph(settings, data())
    task = SampledTask(settings, data(), graph, torch.rand(2, graph.num_edges))
    fit(task, title="phase2", device=CPU, console=QUIET)
    assert len(task.history) == 4
    assert math.isfinite(task.history[-1]["loss"])


def test_batches_are_shuffled_by_epoch_and_complete() -> None:
    epoch = 0
    batches = NodeBatches(torch.arange(10), 4, whole, epoch=lambda: epoch)
    first = torch.cat([batch.targets for batch in batches])
    assert [len(batch.targets) for batch in batches] == [4, 4, 2]
    assert torch.equal(first, torch.cat([batch.targets for batch in batches]))
    epoch = 1
    assert not torch.equal(first, torch.cat([batch.targets for batch in batches]))
    assert torch.equal(first.sort().values, torch.arange(10))


def test_a_last_batch_of_one_node_is_joined_to_the_one_before() -> None:
    batches = NodeBatches(torch.arange(9), 4, whole)
    assert [len(batch.targets) for batch in batches] == [4, 5]
    assert len(batches) == 2


def batches_of(ahead: int) -> list[Batch]:
    phase = dataclasses.replace(small().phase2, batch_size=20, prepared_ahead=ahead)
    settings, graph = small(phase2=phase), build_graph(small(), data())
    scores = torch.rand(2, graph.num_edges, generator=torch.Generator().manual_seed(0))
    task = SampledTask(settings, data(), graph, scores)
    task.sample(0)
    return [*task.train_dataloader(), *task.val_dataloader()]


@pytest.mark.parametrize("ahead", [1, 3, 100])
def test_batches_prepared_ahead_are_the_same(ahead: int) -> None:
    plain, prepared = batches_of(0), batches_of(ahead)
    assert len(plain) == len(prepared) == 4 + 4
    for first, second in zip(plain, prepared, strict=True):
        assert torch.equal(first.targets, second.targets)
        assert torch.equal(first.inputs[0], second.inputs[0])
        for one, other in zip(first.inputs[1], second.inputs[1], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_batches_are_prepared_in_a_thread_and_no_further_than_asked() -> None:
    made: list[int] = []

    def make(nodes: torch.Tensor) -> Batch:
        made.append(threading.get_ident())
        return whole(nodes)

    batches = iter(NodeBatches(torch.arange(100), 10, make, ahead=2))
    next(batches)
    deadline = time.monotonic() + 10
    while len(made) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert len(made) == 3
    assert threading.get_ident() not in made


def test_a_mistake_in_the_thread_is_raised() -> None:
    def make(nodes: torch.Tensor) -> Batch:
        raise ValueError(f"of node {int(nodes[0])}")

    with pytest.raises(ValueError, match="of node 0"):
        list(NodeBatches(torch.arange(100), 10, make, ahead=2))


@pytest.mark.parametrize("at_once", [7, 1000])
def test_evaluation_by_layers_is_that_of_batches(at_once: int) -> None:
    settings, graph = small(), build_graph(small(), data())
    task = SampledTask(settings, data(), graph, torch.rand(2, graph.num_edges))
    task.sample(0)
    network = task.network
    assert isinstance(network, SampledExphormer)
    for _ in range(3):
        task.logits(task.batch(torch.arange(144)))  # statistics of BatchNorm other than 0 and 1
    network.eval()
    nodes = torch.tensor([5, 140, 17, 77])
    with torch.no_grad():
        by_layers = network.everywhere(task.x, task.neighbors, slice(0, 144), at_once)
        by_batches = task.logits(task.batch(nodes))
    torch.testing.assert_close(by_layers[nodes], by_batches, rtol=1e-5, atol=1e-6)


def test_a_run_with_evaluation_by_layers_ends_the_same(
    finished: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    phase = dataclasses.replace(small().phase2, evaluation="layers")
    summary = run(tmp_path, small(phase2=phase))
    expected = read_summary(finished / "summary.json")
    assert summary.test["roc_auc"] == pytest.approx(expected["test"]["roc_auc"], abs=1e-3)


def test_scores_are_computed_one_layer_at_a_time(tmp_path: pathlib.Path) -> None:
    calls = 0

    def attend(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += options["return_scores"]
        return ops.sparse_attention(*arguments, **options)

    settings, graph = small(), build_graph(small(), data())
    task = ScoreTask(settings, data(), graph, attend=attend)
    task.best = Best(0, 0.5, 0.5, task.network.state_dict())
    pieces = task.best_scores()
    assert calls == 0
    next(pieces)
    assert calls == 1
    assert len(list(pieces)) == 1


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_processes_own_all_rows_and_about_as_many_edges(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    graph = build_graph(small(), data())
    monkeypatch.setattr("gtkern._processes.count", lambda: count)
    end, edges = 0, []
    for rank in range(count):
        monkeypatch.setattr("gtkern._processes.rank", lambda rank=rank: rank)
        rows = own_rows(graph)
        assert rows.start == end
        end = rows.stop
        edges.append(int(graph.csr.ptr[rows.stop] - graph.csr.ptr[rows.start]))
    assert end == 144
    largest = int(graph.degree().max())
    assert max(edges) - min(edges) <= 2 * largest


def whole(nodes: torch.Tensor) -> Batch:
    return Batch(nodes, nodes.numel(), None)


def test_several_tasks_at_once_are_learned(tmp_path: pathlib.Path) -> None:
    graph = data()
    graph.y = torch.stack((graph.y, 1 - graph.y, graph.x[:, 0].long()), dim=1).float()
    graph.y[:3] = float("nan")
    method = Spexphormer(small(), graph, RunFolder(tmp_path), console=QUIET)
    assert math.isfinite(method.run().test["roc_auc"])


def test_roc_auc_of_many_classes_is_refused(tmp_path: pathlib.Path) -> None:
    graph = data()
    graph.y[0] = 7
    with pytest.raises(ValueError, match="metric roc_auc needs two classes, got 8"):
        Spexphormer(small(), graph, RunFolder(tmp_path), console=QUIET)


def test_the_comparison_runs_the_same_model(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("torch_geometric")
    summary = run(tmp_path, compare=True)
    assert [row.phase for row in summary.comparison] == ["phase1", "phase2"]
    for row in summary.comparison:
        assert row.loss == pytest.approx(row.peer_loss, rel=1e-4)
    assert "ratio" in rendered(comparison_table(summary.comparison))


def test_the_yardsticks_give_the_same_gradients() -> None:
    pytest.importorskip("torch_geometric")
    settings, graph = small(), build_graph(small(), data())
    nodes = torch.arange(144)
    losses = {}
    for name, options in (
        ("ours", {}),
        ("peer", {"attend": peers.sparse_attention_on(graph)}),
    ):
        torch.manual_seed(0)
        task = ScoreTask(settings, data(), graph, **options)
        out = task.network(task.x, graph, 0.8)[nodes]
        out.square().mean().backward()
        gradients = [parameter.grad for parameter in task.network.parameters()]
        losses[name] = torch.cat([grad.flatten() for grad in gradients if grad is not None])
    torch.testing.assert_close(losses["ours"], losses["peer"], rtol=1e-3, atol=1e-5)
