"""A run that was killed and resumed ends as one that nothing happened to."""

from __future__ import annotations

import functools
import os
import pathlib
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from text_rings import rings

from gtkern.data import GraphDataset, minesweeper, motifs
from gtkern.methods.deepgpt.pretrained import open_backbone
from gtkern.methods.deepgpt.run import TuneRun
from gtkern.methods.deepgpt.settings import TuneSettings
from gtkern.methods.gtsp.run import PruneRun
from gtkern.methods.gtsp.settings import PruneSettings
from gtkern.methods.leading.run import LeadingRun
from gtkern.methods.leading.settings import LeadingSettings
from gtkern.methods.node_settings import Expander
from gtkern.methods.spexphormer.run import Spexphormer
from gtkern.methods.spexphormer.settings import Phase1, Phase2, Settings
from gtkern.models import GraphGPS, GraphGPSSettings, save_model
from gtkern.training import fit as fitting
from gtkern.training import settings as settings_of
from gtkern.training.graph_run import GraphRun, build_network
from gtkern.training.graph_settings import settings_class
from gtkern.training.run import RunFolder
from gtkern.training.task import Task

QUIET = Console(quiet=True)
SMALL = {"width": 8, "heads": 2, "layers": 1, "walk_steps": 3}
TRAINING = {"epochs": 3, "lr": 0.01, "batch_size": 12, "warmup_epochs": 0}


@functools.cache
def graphs() -> GraphDataset:
    return GraphDataset("synthetic", motifs(graphs=30), "classification", 4, "accuracy")


def base() -> Any:
    values = {
        "dataset": "synthetic",
        "model": "graphgps",
        "network": SMALL,
        "training": TRAINING,
    }
    return settings_of.read(settings_class("graphgps"), values)


def spexphormer(path: pathlib.Path, **options: Any) -> Any:
    settings = Settings(
        dataset="minesweeper",
        metric="roc_auc",
        seed=1,
        expander=Expander(degree=2),
        phase1=Phase1(epochs=3, lr=0.02, layers=2, temperature_wait=1, warmup_epochs=1),
        phase2=Phase2(epochs=3, lr=0.02, layers=2, width=8, heads=2, neighbors=(4, 3)),
    )
    return Spexphormer(settings, minesweeper(0, rows=12), RunFolder(path), console=QUIET).run(
        **options
    )


def graph(path: pathlib.Path, **options: Any) -> Any:
    return GraphRun(base(), graphs(), RunFolder(path), console=QUIET).run(**options)


def prune(path: pathlib.Path, **options: Any) -> Any:
    torch.manual_seed(3)
    values = {
        "dataset": "synthetic",
        "stretch": {"end": 2, "every": 1},
        "training": TRAINING,
        "heads": {"ratio": 0.5},
        "weights": {"ratio": 0.5, "structure": "neurons"},
    }
    chosen = settings_of.read(PruneSettings, values)
    weights = build_network(base(), graphs()).state_dict()
    return PruneRun(chosen, base(), graphs(), RunFolder(path), weights=weights, console=QUIET).run(
        **options
    )


def tune(path: pathlib.Path, **options: Any) -> Any:
    torch.manual_seed(1)
    backbone = path.parent / f"backbone-{path.name}"
    features = graphs().graphs.node_categories
    if not backbone.exists():
        network = GraphGPS(features, 7, GraphGPSSettings(**SMALL))
        save_model(network, backbone, node_features=features, num_tasks=7)
    values = {
        "dataset": "synthetic",
        "folds": 3,
        "prompts": {"prefix_tokens": 2},
        "training": TRAINING,
    }
    chosen = settings_of.read(TuneSettings, values)
    return TuneRun(chosen, open_backbone(backbone), graphs(), RunFolder(path), console=QUIET).run(
        **options
    )


def leading(path: pathlib.Path, **options: Any) -> Any:
    phase = {"epochs": 3, "lr": 0.01, "warmup_epochs": 0}
    values = {
        "dataset": "synthetic",
        "encoder": {"max_tokens": 8},
        "propagation": {"width": 8},
        "neighbors": {"fanout": 2},
        "features": phase,
        "training": {**phase, "batch_size": 4},
    }
    chosen = settings_of.read(LeadingSettings, values)
    return LeadingRun(chosen, rings(), RunFolder(path), console=QUIET).run(**options)


def killed(train: Callable[..., Any], path: pathlib.Path, number: int) -> None:
    """Train in a child process that is killed in its epoch of that number, phases counted on.

    A fork, which need not import everything again; it has one thread, as those of a pool do not
    live on in a child.
    """
    child = os.fork()
    if child == 0:
        try:
            begin, epochs = Task.on_train_epoch_start, [0]

            def kill(self: Task) -> None:
                begin(self)
                epochs[0] += 1
                if epochs[0] == number:
                    os.kill(os.getpid(), signal.SIGKILL)

            Task.on_train_epoch_start = kill  # type: ignore[method-assign]
            train(path)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.parametrize(
    ("train", "number"),
    [(spexphormer, 2), (spexphormer, 6), (graph, 3), (prune, 3), (tune, 3), (leading, 3)],
)
def test_a_killed_run_ends_as_one_that_was_not(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    train: Callable[..., Any],
    number: int,
) -> None:
    # sums of other numbers of threads differ in the last bit
    torch.set_num_threads(1)
    monkeypatch.setattr(fitting, "SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    monkeypatch.setattr(fitting, "LARGEST_SHARE", 1e9)
    whole = train(tmp_path / "whole")
    killed(train, tmp_path / "killed", number)
    kept = tmp_path / "killed/checkpoints"
    assert list(kept.glob("*.ckpt")), "it was killed before there was anything to resume from"
    assert not (tmp_path / "killed/summary.json").exists()
    resumed = train(tmp_path / "killed", resume=True)
    assert (resumed.val, resumed.test) == (whole.val, whole.test)
    assert [phase.epochs for phase in resumed.phases] == [phase.epochs for phase in whole.phases]
    for file in (tmp_path / "whole/checkpoints").glob("*.safetensors"):
        mine = load_file(kept / file.name)
        for name, value in load_file(file).items():
            assert torch.equal(mine[name], value), f"{file.name}: {name}"
