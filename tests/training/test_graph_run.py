"""Runs of whole-graph models: what they leave, that they go on, and their repeats."""

from __future__ import annotations

import csv
import dataclasses
import functools
import pathlib
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import gtkern
from gtkern.data import GRAPH_SETS, GraphDataset, load_graphs, motifs
from gtkern.training import settings as settings_of
from gtkern.training.errors import UserError
from gtkern.training.graph_repeats import GraphRepeats
from gtkern.training.graph_run import GraphRun, splits
from gtkern.training.graph_settings import MODELS, GraphSettings, settings_class
from gtkern.training.run import RunFolder, read_summary

CONFIGS = sorted(
    path
    for model in MODELS
    for path in (pathlib.Path(gtkern.__file__).parent / "configs" / model).glob("*.yaml")
)

SMALL: dict[str, dict[str, Any]] = {
    "graphgps": {"width": 8, "heads": 2, "layers": 1, "walk_steps": 4, "local": "gine"},
    "graphtrans": {
        "local_layers": 1,
        "local_width": 8,
        "width": 8,
        "heads": 2,
        "layers": 1,
        "feedforward": 8,
    },
    "graphormer": {
        "width": 8,
        "heads": 2,
        "layers": 1,
        "feedforward": 8,
        "max_degree": 16,
        "max_distance": 24,
        "path_length": 2,
        "attend_within": 4,
    },
    "light": {
        "width": 8,
        "heads": 2,
        "layers": 1,
        "path_length": 2,
        "path_width": 4,
        "head_width": 8,
    },
}
"""Settings of the smallest sensible network of each model."""


@functools.cache
def dataset() -> GraphDataset:
    return GraphDataset("synthetic", motifs(graphs=30), "classification", 4, "accuracy")


def settings(model: str = "graphgps", **changes: Any) -> GraphSettings:
    training = {"epochs": 2, "lr": 0.01, "batch_size": 12, "warmup_epochs": 0}
    values = {
        "dataset": "synthetic",
        "model": model,
        "network": SMALL[model],
        "training": training,
        **changes,
    }
    return settings_of.read(settings_class(model), values)


def train(path: pathlib.Path, chosen: GraphSettings | None = None, *, resume: bool = False) -> Any:
    run = GraphRun(chosen or settings(), dataset(), RunFolder(path), console=Console(quiet=True))
    return run.run(resume=resume)


@pytest.mark.parametrize("model", MODELS)
def test_a_run_leaves_its_files(tmp_path: pathlib.Path, model: str) -> None:
    train(tmp_path, settings(model))
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {
        "checkpoints/training.ckpt",
        "checkpoints/training.json",
        "checkpoints/training.safetensors",
        "metrics.csv",
        "plots/curves.png",
        "summary.json",
    }
    summary = read_summary(tmp_path / "summary.json")
    assert (summary["method"], summary["dataset"]) == (model, "synthetic")
    (phase,) = summary["phases"]
    assert phase["epochs"] == 2
    assert phase["details"]["graphs"] == {"train": 24, "val": 3, "test": 3}
    weights = load_file(tmp_path / "checkpoints/training.safetensors")
    assert sum(value.numel() for value in weights.values()) >= phase["parameters"]


def test_a_finished_run_is_not_trained_again(tmp_path: pathlib.Path) -> None:
    first = train(tmp_path)
    again = train(tmp_path, resume=True)
    assert dataclasses.asdict(again.phases[0]) == dataclasses.asdict(first.phases[0])


def test_two_runs_are_equal_and_a_seed_makes_another(tmp_path: pathlib.Path) -> None:
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tmp_path / name, settings(seed=seed))
        weights.append(load_file(tmp_path / name / "checkpoints/training.safetensors"))
    key = "head.weight"
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    assert not torch.equal(weights[0][key], weights[2][key])


def test_folds_are_the_tests_of_runs_one_after_the_other() -> None:
    tests = [splits(settings(folds=3, fold=fold), dataset())[2].tolist() for fold in range(3)]
    assert sorted(graph for part in tests for graph in part) == list(range(30))


def test_a_split_that_the_set_has_not_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="kind must be one of random for synthetic"):
        GraphRun(settings(split="scaffold"), dataset(), RunFolder(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": 2}, "folds must be 0 or at least 3, got 2"),
        ({"folds": 3, "fold": 3}, "fold must be less than folds 3, got 3"),
        ({"network": {"width": 9, "heads": 2}}, "network."),
        ({"network": {"wdth": 8}}, "the nearest key is 'network.width'"),
        ({"model": "graphtran"}, "model must be one of graphgps, got 'graphtran'"),
    ],
)
def test_settings_that_do_not_fit_are_told(changes: dict[str, Any], message: str) -> None:
    values = {
        "dataset": "synthetic",
        "model": "graphgps",
        "training": {"epochs": 1, "lr": 0.1},
        **changes,
    }
    with pytest.raises(settings_of.SettingsError, match=message):
        settings_of.read(settings_class("graphgps"), values)


def repeats(path: pathlib.Path, chosen: GraphSettings) -> GraphRepeats:
    console = Console(quiet=True)
    return GraphRepeats(chosen, dataset(), RunFolder(path), dataset="synthetic", console=console)


def test_repeats_are_runs_with_their_mean(tmp_path: pathlib.Path) -> None:
    chosen = settings(training={"epochs": 1, "lr": 0.01, "batch_size": 12})
    repeats(tmp_path, chosen).run([3, 5])
    with (tmp_path / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["seed 3", "seed 5", "mean"]
    first, second, mean = (float(row["test"]) for row in rows)
    assert mean == pytest.approx((first + second) / 2)
    assert float(rows[2]["std"]) == pytest.approx(abs(first - second) / 2**0.5)
    assert (tmp_path / "runs.png").is_file()
    assert read_summary(tmp_path / "seed-5/summary.json")["seed"] == 5


def test_folds_are_kept_unless_forgotten(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings(folds=3, training={"epochs": 1, "lr": 0.01, "batch_size": 12})
    repeats(tmp_path, chosen).run([0])
    found = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert found == [f"seed-0-fold-{fold}" for fold in range(3)]

    trained: list[bool] = []
    plain = GraphRun.run

    def counted(run: GraphRun, *, resume: bool = False) -> Any:
        trained.append(resume)
        return plain(run, resume=resume)

    monkeypatch.setattr(GraphRun, "run", counted)
    repeats(tmp_path, chosen).run([0])
    assert trained == []
    repeats(tmp_path, chosen).run([0], resume=False)
    assert trained == [False] * 3
    other = dataclasses.replace(chosen, training=dataclasses.replace(chosen.training, lr=0.5))
    with pytest.raises(UserError, match=r"holds a run with another training\.lr"):
        repeats(tmp_path, other).run([0])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_settings_of_a_data_set_are_valid(path: pathlib.Path) -> None:
    chosen = settings_of.read(settings_class(path.parent.name), settings_of.load(path))
    assert chosen.dataset == path.stem
    assert chosen.dataset in GRAPH_SETS
    # what is not written there would change with the defaults
    assert set(settings_of.load(path)["network"]) == {
        field.name for field in dataclasses.fields(chosen.network)
    }


@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_settings_for_the_generated_set(model: str) -> None:
    assert f"{model}/synthetic.yaml" in {f"{path.parent.name}/{path.name}" for path in CONFIGS}


@pytest.mark.parametrize("model", MODELS)
def test_every_model_learns_the_generated_set(tmp_path: pathlib.Path, model: str) -> None:
    path = next(path for path in CONFIGS if path.match(f"{model}/synthetic.yaml"))
    chosen = settings_of.read(settings_class(model), settings_of.load(path))
    data = load_graphs("synthetic")
    run = GraphRun(chosen, data, RunFolder(tmp_path), console=Console(quiet=True))
    assert run.run().test["accuracy"] > 0.9
