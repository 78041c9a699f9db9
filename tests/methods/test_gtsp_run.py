"""Runs that prune: what they leave, that they go on, and how mistakes end."""

from __future__ import annotations

import functools
import json
import pathlib
import sys
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

import gtkern
import gtkern.data
from gtkern import cli
from gtkern.data import GRAPH_SETS, GraphDataset, motifs
from gtkern.methods.gtsp import Schedule
from gtkern.methods.gtsp.joint import make_pruners, schedules, split_budget
from gtkern.methods.gtsp.run import PruneRun
from gtkern.methods.gtsp.settings import DIMENSIONS, PruneSettings
from gtkern.models import load_model
from gtkern.nn import BlockSparseLinear
from gtkern.training import settings as settings_of
from gtkern.training.errors import UserError
from gtkern.training.flops import count_flops
from gtkern.training.graph_run import GraphRun, build_network
from gtkern.training.graph_settings import GraphSettings, settings_class
from gtkern.training.run import RunFolder, read_summary

CONFIGS = sorted((pathlib.Path(gtkern.__file__).parent / "configs/gtsp").glob("*.yaml"))
NETWORK = {"width": 16, "heads": 4, "layers": 2, "walk_steps": 4}


@pytest.fixture(autouse=True)
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures of time are not what is tested."""
    monkeypatch.setattr("gtkern.methods.gtsp.report._WARM_UP", 0)
    monkeypatch.setattr("gtkern.methods.gtsp.report._REPEATS", 1)


@functools.cache
def dataset() -> GraphDataset:
    return GraphDataset("synthetic", motifs(graphs=30), "classification", 4, "accuracy")


def base_settings(**network: Any) -> GraphSettings:
    training = {"epochs": 1, "lr": 0.01, "batch_size": 12, "warmup_epochs": 0}
    values = {
        "dataset": "synthetic",
        "model": "graphgps",
        "network": {**NETWORK, **network},
        "training": training,
    }
    return settings_of.read(settings_class("graphgps"), values)


def prune_settings(**changes: Any) -> PruneSettings:
    values = {
        "dataset": "synthetic",
        "stretch": {"end": 1, "every": 1},
        "training": {"epochs": 2, "lr": 0.01, "batch_size": 12, "warmup_epochs": 0},
        **changes,
    }
    return settings_of.read(PruneSettings, values)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder of a trained run."""
    path = tmp_path_factory.mktemp("base")
    folder = RunFolder(path)
    folder.write_text("config.yaml", settings_of.dump(base_settings()))
    GraphRun(base_settings(), dataset(), folder, console=Console(quiet=True)).run()
    return path


def prune(trained: pathlib.Path, path: pathlib.Path, **changes: Any) -> PruneRun:
    weights = load_file(trained / "checkpoints/training.safetensors")
    run = PruneRun(
        prune_settings(**changes),
        base_settings(),
        dataset(),
        RunFolder(path),
        weights=weights,
        console=Console(quiet=True),
    )
    run.run()
    return run


ALL = {
    "tokens": {"ratio": 0.5},
    "heads": {"ratio": 0.5},
    "layers": {"ratio": 0.5},
    "weights": {"ratio": 0.5, "structure": "neurons"},
}


def test_a_run_leaves_a_compact_network_and_a_report(
    trained: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    prune(trained, tmp_path, **ALL, finetune=1)
    summary = read_summary(tmp_path / "summary.json")
    assert [phase["name"] for phase in summary["phases"]] == ["prune", "finetune"]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["kept"]["layers"] in (
        {"layers.0": 1.0, "layers.1": 0.0},
        {"layers.0": 0.0, "layers.1": 1.0},
    )
    assert set(report["kept"]["heads"].values()) == {0.5}
    for key in ("parameters", "flops", "training_flops"):
        assert report["compact"][key] < 0.8 * report["dense"][key]
    for key in ("seconds", "train", "val", "test"):
        assert report["compact"][key] is not None
    assert report["compact"]["test"] == pytest.approx(summary["test"]["accuracy"])
    for name in ("curves", "heads", "kept", "layers", "tokens"):
        assert (tmp_path / f"plots/{name}.png").stat().st_size > 1000
    network = load_model(tmp_path / "model")
    batch = dataset().graphs.batch(range(5))
    state = load_file(tmp_path / "checkpoints/finetune.safetensors")
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert network(batch).shape == (5, 4)


def test_the_compact_network_has_the_metric_of_the_masked_one(
    trained: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    prune(trained, tmp_path, **ALL)
    report = json.loads((tmp_path / "report.json").read_text())
    phase = read_summary(tmp_path / "summary.json")["phases"][0]
    assert report["compact"]["val"] == pytest.approx(phase["val"]["accuracy"])
    assert report["compact"]["test"] == pytest.approx(phase["test"]["accuracy"])


def test_single_weights_are_zeros_in_what_is_saved(
    trained: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    prune(trained, tmp_path, weights={"ratio": 0.25})
    report = json.loads((tmp_path / "report.json").read_text())
    kept = report["kept"]["weights"]
    state = load_file(tmp_path / "model/model.safetensors")
    for name, share in kept.items():
        assert float((state[name] != 0).float().mean()) == pytest.approx(share)
    sizes = {name: state[name].numel() for name in kept}
    alive = sum(share * sizes[name] for name, share in kept.items())
    assert alive == pytest.approx(0.25 * sum(sizes.values()), abs=1)
    assert report["compact"]["flops"] == report["dense"]["flops"]


def test_blocks_are_what_is_left_of_layers_outside_attention(
    trained: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    weights = {"ratio": 0.5, "structure": "blocks", "block": [8, 8]}
    prune(trained, tmp_path, weights=weights, heads={"ratio": 0.5}, finetune=1)
    report = json.loads((tmp_path / "report.json").read_text())
    kept = report["kept"]["weights"]
    assert not any("attention" in name or name.startswith("head") for name in kept)
    assert report["compact"]["flops"] < 0.8 * report["dense"]["flops"]
    network = load_model(tmp_path / "model")
    sparse = [part for part in network.modules() if isinstance(part, BlockSparseLinear)]
    assert len(sparse) == sum(share < 1 for share in kept.values())
    state = load_file(tmp_path / "checkpoints/finetune.safetensors")
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_epochs_before_the_end_of_pruning_are_not_the_best(
    trained: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    training = {"epochs": 4, "lr": 0.01, "batch_size": 12, "warmup_epochs": 0}
    prune(trained, tmp_path, **ALL, stretch={"end": 3, "every": 1}, training=training)
    assert read_summary(tmp_path / "summary.json")["phases"][0]["best_epoch"] >= 3


def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    trained: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    from gtkern.methods.gtsp import joint

    training = {"epochs": 3, "lr": 0.01, "batch_size": 12, "warmup_epochs": 0}
    changes = {**ALL, "stretch": {"end": 2, "every": 1}, "training": training}
    whole = prune(trained, tmp_path / "whole", **changes)
    weights = load_file(trained / "checkpoints/training.safetensors")

    def run(path: pathlib.Path) -> PruneRun:
        return PruneRun(
            prune_settings(**changes),
            base_settings(),
            dataset(),
            RunFolder(path),
            weights=weights,
            console=Console(quiet=True),
        )

    stopped = run(tmp_path / "stopped")
    seen = joint.Pruning.on_validation_start

    def stop(self: Any, trainer: Any, task: Any) -> None:
        seen(self, trainer, task)
        if trainer.current_epoch == 1:
            # as the keeper of checkpoints does when the user asks to stop
            keeper = trainer.callbacks[-1]
            keeper.stopping = lambda: True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joint.Pruning, "on_validation_start", stop)
        stopped.run()
    # the phase's record is of two epochs: without it the checkpoint goes on
    (tmp_path / "stopped/checkpoints/prune.json").unlink()
    run(tmp_path / "stopped").run(resume=True)
    mine = load_file(tmp_path / "stopped/model/model.safetensors")
    assert whole.folder.path != stopped.folder.path
    for name, value in load_file(tmp_path / "whole/model/model.safetensors").items():
        assert torch.equal(mine[name], value), name


def test_a_budget_is_met_by_what_runs() -> None:
    torch.manual_seed(0)
    network = build_network(base_settings(), dataset())
    batch = dataset().graphs.batch(range(6))
    chosen = prune_settings(budget=0.6, split=[0, 1, 0, 1], weights={"structure": "neurons"})
    found, dense, compact = split_budget(chosen, network, batch)
    with torch.no_grad():
        assert count_flops(lambda: network(batch)) == dense
    assert 0.45 * dense < compact <= 0.6 * dense
    assert found.budget is None
    assert found.tokens.ratio == found.layers.ratio == 1
    # of four heads whole ones stay
    assert found.heads.ratio in (0.5, 0.75)
    assert found.heads.ratio == pytest.approx(found.weights.ratio, abs=0.125)
    with pytest.raises(ValueError, match=r"^budget must be at least 0\.\d+, .* got 0\.01"):
        split_budget(prune_settings(budget=0.01, weights={"structure": "neurons"}), network, batch)


def test_dimensions_may_follow_each_other() -> None:
    chosen = prune_settings(
        **ALL, stretch={"end": 1, "every": 1, "order": ["weights", "layers", "heads", "tokens"]}
    )
    found = schedules(chosen, 40)
    ends = {name: (each.begin, each.end) for name, each in found.items()}
    assert ends == {"weights": (1, 10), "layers": (11, 20), "heads": (21, 30), "tokens": (31, 40)}
    with pytest.raises(ValueError, match=r"^stretch\.order must name layers too"):
        schedules(
            prune_settings(**ALL, stretch={"end": 1, "order": ["weights", "heads", "tokens"]}), 30
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": {"ratio": 0}}, r"heads\.ratio must be > 0 and <= 1, got 0"),
        ({"tokens": {"ratio": 1.5}}, r"tokens\.ratio must be > 0 and <= 1, got 1\.5"),
        ({"stretch": {"end": 2}}, r"training\.epochs must be more than stretch\.end 2, .*, got 2"),
        ({"budget": 0.5}, r"weights\.structure must be blocks or neurons with a budget"),
        ({"stretch": {"begin": 1, "end": 1}}, r"end must be greater than begin 1, got 1"),
        ({"split": [1.0]}, r"split must be 4 numbers, got 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prune_settings(**changes)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_published_settings_are_read(path: pathlib.Path) -> None:
    settings = settings_of.read(PruneSettings, settings_of.load(path))
    assert settings.dataset == path.stem
    assert settings.dataset in GRAPH_SETS
    once = dict.fromkeys(DIMENSIONS, Schedule(begin=1, end=1, every=1))
    pruner = make_pruners(settings, once, build_network(base_settings(), dataset()))
    assert set(pruner.pruners) == set(DIMENSIONS)


def test_a_checkpoint_of_another_architecture_is_refused(
    trained: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    weights = load_file(trained / "checkpoints/training.safetensors")
    run = PruneRun(
        prune_settings(**ALL),
        base_settings(width=8),
        dataset(),
        RunFolder(tmp_path),
        weights=weights,
        console=Console(quiet=True),
    )
    with pytest.raises(UserError, match=r"is of another architecture than graphgps .*mismatch"):
        run.run()
    with pytest.raises(ValueError, match=r"^weights must be given to start from a trained netw"):
        PruneRun(prune_settings(**ALL), base_settings(), dataset(), RunFolder(tmp_path))


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the command line; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["gtkern", *(str(argument) for argument in arguments)])
    monkeypatch.setattr(gtkern.data, "load_graphs", lambda *given, **more: dataset())
    with pytest.raises(SystemExit) as ended:
        cli.run()
    return int(ended.value.code or 0)


def test_the_command_prunes_a_run(
    trained: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    fast = ["--devices=cpu", "--set=stretch.end=1", "--epochs=2", "--set=finetune=0"]
    out = tmp_path / "pruned"
    assert call(monkeypatch, "prune", trained, "--out", out, "--budget=0.7", *fast) == 0
    shown = capsys.readouterr().out
    for text in ("prune", "forward, MFLOP", "compact/dense", "not zero", "load_model"):
        assert text in shown
    report = json.loads((out / "report.json").read_text())
    assert report["compact"]["flops"] <= 0.71 * report["dense"]["flops"]
    assert call(monkeypatch, "prune", trained, "--out", out, "--resume", "--devices=cpu") == 0
    capsys.readouterr()

    def mistake(*arguments: object) -> str:
        assert call(monkeypatch, "prune", *arguments) == 2
        return capsys.readouterr().err

    assert "was pruned and made compact already: what its masks hid is gone" in mistake(out)
    assert "heads.ratio must be > 0 and <= 1, got 2" in mistake(trained, "--heads=2")
    assert "has no run of gtkern train graph" in mistake(tmp_path)
    (tmp_path / "config.yaml").write_text("model: other\n")
    assert "must be one of graphgps, graphtrans, graphormer, light, got 'other'" in mistake(
        tmp_path
    )
    other = tmp_path / "other/checkpoints"
    other.mkdir(parents=True)
    save_file({"a": torch.zeros(1)}, other / "training.safetensors")
    (tmp_path / "other/config.yaml").write_text((trained / "config.yaml").read_text())
    assert "the checkpoint is of another architecture" in mistake(tmp_path / "other", *fast)
