"""The commands for whole graphs: what they leave, and how mistakes end."""

from __future__ import annotations

import json
import pathlib

import pytest
import yaml
from command import call

import gtkern.data
from gtkern.data import GraphDataset, motifs

FAST = [
    "--set=network.width=8",
    "--set=network.heads=2",
    "--set=network.layers=1",
    "--epochs=1",
    "--devices=cpu",
]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the generated set a small one."""

    def load(name: str, root: pathlib.Path | None, *, on_bad: str) -> GraphDataset:
        return GraphDataset(name, motifs(graphs=30), "classification", 4, "accuracy")

    monkeypatch.setattr(gtkern.data, "load_graphs", load)


@pytest.mark.usefixtures("few")
def test_a_run_is_resumed_by_what_its_folder_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "run"
    assert call(monkeypatch, "train", "graph", "--out", out, *FAST, "--seed", 3) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["method"], summary["dataset"]) == ("graphgps", "synthetic (generated)")
    assert summary["seed"] == 3
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["model"] == "graphgps"
    assert config["network"]["width"] == 8
    assert str(out) in capsys.readouterr().out.replace("\n", "")
    assert call(monkeypatch, "train", "graph", "--out", out, "--resume", "--devices=cpu") == 0
    assert call(monkeypatch, "train", "graph", "--out", out, "--resume", "--seed", 4) == 2
    assert "cannot resume with another seed" in capsys.readouterr().err


@pytest.mark.usefixtures("few")
def test_folds_and_seeds_end_in_a_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    out = tmp_path / "folds"
    assert call(monkeypatch, "train", "graph", "--out", out, *FAST, "--folds", 3) == 0
    shown = capsys.readouterr().out
    for text in ("seed 0, fold 2", "mean", "test accuracy"):
        assert text in shown
    assert json.loads((out / "seed-0-fold-1/summary.json").read_text())["seed"] == 0
    out = tmp_path / "seeds"
    assert call(monkeypatch, "experiment", "graph", "--out", out, *FAST, "--seeds", "1,4") == 0
    assert "seed 4" in capsys.readouterr().out
    assert (out / "runs.csv").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "graphgsp"], "no model 'graphgsp'; the nearest is graphgps"),
        (["--dataset", "nci2"], "no data set 'nci2'; the nearest is nci1"),
        (["--dataset", "nci1"], "nci1 is not generated: root must name the folder of its files"),
        (["--dataset", "nci1", "--data-root", "/none"], "nci1 is not under /none"),
        (["--backend", "cpuu"], "the nearest is cpu"),
        (["--set", "network.widht=8"], "the nearest key is 'network.width'"),
        (["--set", "network.heads=3"], "network."),
        (["--set", "training.loss=huber"], "training.loss must be one of mse, l1, got 'huber'"),
        (["--epochs", "1,2"], "--epochs must be N, got '1,2'"),
        (["--folds", "2"], "folds must be 0 or at least 3, got 2"),
        (["--folds", "5", "--set", "fold=1"], "every fold is a run of its own here"),
        (["--seed", "-1"], "seed must be >= 0"),
        (["--resume"], "nothing to resume: runs/graphgps-synthetic/config.yaml is not there"),
        (
            ["--dataset", "bbbp"],
            "there are no settings of graphgps for 'bbbp': name a file of them by --config",
        ),
        (["--dataset", "nci2"], "there is no data set 'nci2'; the nearest is nci1"),
        (["--set", "split=scaffold"], "kind must be one of random for synthetic"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: pathlib.Path,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "train", "graph", "--devices=cpu", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.rglob("config.yaml"))


def test_seeds_are_not_set_twice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "experiment", "graph", "--set", "seed=1") == 2
    assert "every seed is a run of its own here, got --set seed" in capsys.readouterr().err
