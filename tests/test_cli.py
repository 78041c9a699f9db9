"""The command line: what it says, what it leaves, and how it ends."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
import yaml
from command import call

from gtkern.data import minesweeper

FAST = [
    "--epochs=2",
    "--set=expander.degree=2",
    "--set=phase2.width=8",
    "--set=phase2.heads=2",
    "--devices=cpu",
]


@pytest.fixture
def published(tmp_path: pathlib.Path) -> pathlib.Path:
    """A small graph in the published layout."""
    data = minesweeper(0, rows=12)
    folder = tmp_path / "data" / "minesweeper" / "raw"
    folder.mkdir(parents=True)
    np.savez(
        folder / "minesweeper.npz",
        node_features=data.x.numpy(),
        node_labels=data.y.numpy(),
        edges=data.edge_index.T.numpy(),
        train_masks=data.train_mask[None].numpy(),
        val_masks=data.val_mask[None].numpy(),
        test_masks=data.test_mask[None].numpy(),
    )
    return tmp_path / "data"


def test_training_leaves_a_run_folder(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: pathlib.Path,
    published: pathlib.Path,
) -> None:
    out = tmp_path / "run"
    arguments = ["train", "spexphormer", "--data-root", published, "--out", out, *FAST]
    assert call(monkeypatch, *arguments, "--seed", 3) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["seed"] == 3
    assert summary["dataset"] == "minesweeper"
    assert summary["command"].startswith("gtkern train spexphormer --data-root")
    assert [phase["epochs"] for phase in summary["phases"]] == [2, 2]
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["expander"]["degree"] == 2
    shown = capsys.readouterr().out
    assert "phase2" in shown
    assert str(out) in shown.replace("\n", "")

    assert call(monkeypatch, *arguments, "--seed", 3, "--resume") == 0
    assert call(monkeypatch, "train", "spexphormer", "--out", out, "--resume", *FAST) == 2
    assert "cannot resume" in capsys.readouterr().err


def test_epochs_are_given_for_both_phases_or_each(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, published: pathlib.Path
) -> None:
    arguments = ["train", "spexphormer", "--data-root", published, "--out", tmp_path / "run"]
    assert call(monkeypatch, *arguments, *FAST, "--epochs", "1,2") == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert [phase["epochs"] for phase in summary["phases"]] == [1, 2]


def test_the_power_law_graph_is_made_where_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    arguments = ["train", "spexphormer", "--dataset", "power-law", *FAST]
    arguments += ["--set=power_law.nodes=500", "--set=phase2.batch_size=100", "--epochs=1"]
    assert call(monkeypatch, *arguments, "--out", tmp_path / "a") == 0
    assert (tmp_path / "a/data/edge_index.npy").is_file()
    summary = json.loads((tmp_path / "a/summary.json").read_text())
    assert summary["dataset"] == "power-law (generated)"
    data = ["--data-root", tmp_path / "data"]
    assert call(monkeypatch, *arguments, *data, "--out", tmp_path / "b") == 0
    assert (tmp_path / "data/power-law/edge_index.npy").is_file()
    assert not (tmp_path / "b/data").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "power_law.nodes=9"], "power_law is for the data set power-law alone"),
        (
            ["--dataset", "power-law", "--set", "power_law.nodes=20"],
            "power_law.reach must be 1 .. 19, got 64",
        ),
        (["--dataset", "minesweper"], "no data set 'minesweper'; the nearest is minesweeper"),
        (["--backend", "cpuu"], "--backend must be one of auto, reference, cpu, triton, cuda"),
        (["--backend", "cpuu"], "the nearest is cpu"),
        (["--set", "phase1.lrr=3"], "the nearest key is 'phase1.lr'"),
        (["--set", "phase1.lr=-1"], "phase1.lr must be > 0, got -1.0"),
        (["--set", "phase1.lr"], "--set needs key=value"),
        (["--set", "dataset=tolokers"], "--data-root must name the folder"),
        (["--dataset", "tolokers"], "--data-root must name the folder"),
        (["--dataset", "tolokers", "--data-root", "/none"], "/none/tolokers/raw/tolokers.npz"),
        (["--seed", "-1"], "seed must be >= 0"),
        (["--epochs", "many"], "--epochs must be N or N1,N2, got 'many'"),
        (["--epochs", "0"], "phase1.epochs must be >= 1, got 0"),
        (["--devices", "tpu"], "--devices must be auto, cpu, cuda or cuda:N, got 'tpu'"),
        (["--devices", "cuda:99"], "--devices cuda:99: torch sees"),
        (["--compare", "dgl"], "--compare knows only pyg, got 'dgl'"),
        (["--config", "/none.yaml"], "cannot read the settings /none.yaml"),
        (["--resume"], "nothing to resume"),
        (["--no-such-option"], "No such option"),
        (["--seed", "one"], "unable to parse string as an integer"),
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
    assert call(monkeypatch, "train", "spexphormer", *arguments) == 2
    error = capsys.readouterr().err
    assert message in " ".join(error.replace("│", " ").split())
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_a_backend_that_cannot_run_is_code_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: pathlib.Path,
    published: pathlib.Path,
) -> None:
    # the run is on the CPU
    arguments = ["--data-root", published, "--out", tmp_path / "run", *FAST, "--backend", "cuda"]
    assert call(monkeypatch, "train", "spexphormer", *arguments) == 2
    assert "backend 'cuda' cannot run" in capsys.readouterr().err
    assert list((tmp_path / "run").iterdir()) == []


def test_a_broken_data_file_is_code_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: pathlib.Path,
    published: pathlib.Path,
) -> None:
    (published / "minesweeper/raw/minesweeper.npz").write_bytes(b"PK broken")
    arguments = ["--data-root", published, "--out", tmp_path / "run"]
    assert call(monkeypatch, "train", "spexphormer", *arguments) == 2
    assert "cannot read minesweeper under" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_unwritable_folder_is_code_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: pathlib.Path,
    published: pathlib.Path,
) -> None:
    (tmp_path / "file").touch()
    arguments = ["--data-root", published, "--out", tmp_path / "file" / "run"]
    assert call(monkeypatch, "train", "spexphormer", *arguments) == 2
    assert "cannot write to the run folder" in capsys.readouterr().err


def test_exphormer_trains_and_resumes(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: pathlib.Path,
    published: pathlib.Path,
) -> None:
    arguments = ["train", "exphormer", "--data-root", published, "--out", tmp_path / "run"]
    arguments += ["--epochs=2", "--set=training.local=gcn", "--devices=cpu"]
    assert call(monkeypatch, *arguments) == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert [phase["epochs"] for phase in summary["phases"]] == [2]
    assert call(monkeypatch, *arguments, "--resume") == 0
    assert call(monkeypatch, *arguments, "--resume", "--seed", 4) == 2
    assert "cannot resume with another seed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "1,2"], "--epochs must be N, got '1,2'"),
        (["--set", "training.heads=3"], "training.heads must divide width 32"),
        (["--set", "training.local=gat"], "training.local must be one of none, gcn, got 'gat'"),
        (["--set", "phase1.lr=1"], "there is no setting 'phase1.lr'"),
        (["--dataset", "proteins"], "there is no data set 'proteins'"),
        (["--backend", "cpuu"], "the nearest is cpu"),
        (["--resume"], "nothing to resume: runs/exphormer-minesweeper/config.yaml is not there"),
    ],
)
def test_a_mistake_with_exphormer_is_one_line_and_code_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: pathlib.Path,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "train", "exphormer", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_an_experiment_prints_its_table(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: pathlib.Path,
    published: pathlib.Path,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    arguments = ["experiment", "spexphormer", "main", "--data-root", published, *FAST]
    assert call(monkeypatch, *arguments, "--out", tmp_path / "paper", "--seeds", "3,5") == 0
    shown = capsys.readouterr().out
    for text in ("seed 3", "seed 5", "mean", "paper", "0.9071"):
        assert text in shown
    summary = json.loads((tmp_path / "paper/full/seed-5/summary.json").read_text())
    assert summary["seed"] == 5
    assert summary["command"].startswith("gtkern experiment spexphormer main")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mian"], "there is no experiment 'mian'; the nearest is main; known: main, ablations"),
        (["main", "--seeds", "0,one"], "--seeds must be numbers separated by commas, got '0,one'"),
        (["main", "--seeds", "-1"], "--seeds must be numbers separated by commas, got '-1'"),
        (["main", "--seeds", "1,1"], "--seeds must be different numbers, got '1,1'"),
        (["main", "--seeds", "9999999999"], "seed must be >= 0 and <= 2.14748e+09"),
        (["main", "--set", "seed=1"], "set by --seeds, got --set seed"),
        (["batches", "--sizes", "4,,8"], "--sizes must be numbers separated by commas"),
        (["main", "--dataset", "foto"], "no data set 'foto'; the nearest is photo"),
        (["main", "--epochs", "0"], "phase1.epochs must be >= 1, got 0"),
        (["main", "--dataset", "photo"], "--data-root must name the folder"),
    ],
)
def test_a_mistake_in_an_experiment_is_one_line_and_code_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: pathlib.Path,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "experiment", "spexphormer", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "--help"],
        ["experiment", "--help"],
        ["train", "graph", "--help"],
        ["experiment", "spexphormer", "--help"],
        ["experiment", "graph", "--help"],
        ["doctor", "--help"],
    ],
)
def test_help_ends_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert call(monkeypatch, *arguments) == 0
    assert "Usage: gtkern" in capsys.readouterr().out


def test_the_doctor_tests_every_room(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert call(monkeypatch, "doctor") == 0
    shown = capsys.readouterr().out
    for room in ("sparse_attention", "sampled_attention", "ragged_attention", "neighbor_sampling"):
        assert room in shown
    assert "WRONG" not in shown
