"""GTSP's experiments: every run is done once, and tables and plots are made of all."""

from __future__ import annotations

import csv
import pathlib
from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console

from gtkern.data import GraphDataset, motifs
from gtkern.methods.gtsp.experiments import PruningExperiments
from gtkern.methods.gtsp.run import PruneRun
from gtkern.methods.gtsp.settings import DIMENSIONS, PruneSettings
from gtkern.training import settings as settings_of
from gtkern.training.errors import UserError
from gtkern.training.graph_settings import settings_class
from gtkern.training.run import RunFolder

TRAINING = {"epochs": 2, "lr": 0.01, "batch_size": 16, "warmup_epochs": 0}


@pytest.fixture(autouse=True)
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures of time are not what is tested."""
    monkeypatch.setattr("gtkern.methods.gtsp.report._WARM_UP", 0)
    monkeypatch.setattr("gtkern.methods.gtsp.report._REPEATS", 1)


def experiments(
    path: pathlib.Path, dimensions: Sequence[str] = DIMENSIONS, **changes: Any
) -> PruningExperiments:
    base = {
        "dataset": "synthetic",
        "model": "graphgps",
        "network": {"width": 8, "heads": 2, "layers": 1, "walk_steps": 2},
        "training": {**TRAINING, "epochs": 1},
    }
    values = {
        "dataset": "synthetic",
        "start": "scratch",
        "stretch": {"end": 1, "every": 1},
        "training": TRAINING,
        **changes,
    }
    return PruningExperiments(
        settings_of.read(settings_class("graphgps"), base),
        settings_of.read(PruneSettings, values),
        GraphDataset("synthetic", motifs(graphs=20), "classification", 4, "accuracy"),
        RunFolder(path),
        [0],
        dataset="synthetic",
        dimensions=dimensions,
        console=Console(quiet=True),
    )


def test_each_dimension_is_pruned_by_itself_and_only_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = experiments(tmp_path).run("ratios", [0.5])
    # of one layer a half is nothing
    variants = ["dense", "tokens-0.5", "heads-0.5", "weights-0.5"]
    assert table.row_count == len(variants)
    rows = list(csv.DictReader((tmp_path / "ratios.csv").open()))
    assert [row["variant"] for row in rows] == variants
    assert [row["ratios"] for row in rows] == ["", "tokens 0.50", "heads 0.50", "weights 0.50"]
    assert float(rows[2]["flops"]) < 1
    assert float(rows[3]["parameters"]) < 0.8 * float(rows[0]["parameters"])
    for name in ("ratios.png", "ratios-gap.png", "heads-0.5/seed-0/model/config.json"):
        assert (tmp_path / name).stat().st_size > 0
    before = (tmp_path / "ratios.csv").read_text()

    def never(*given: Any, **more: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(PruneRun, "run", never)
    experiments(tmp_path).run("ratios", [0.5])
    assert (tmp_path / "ratios.csv").read_text() == before
    with pytest.raises(UserError, match=r"holds a run with another training\.lr; --out must name"):
        experiments(tmp_path, training={**TRAINING, "lr": 0.02}).run("ratios", [0.5])


def test_a_budget_needs_weights_that_save_work(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r"^a budget needs weights\.structure=neurons or blocks"):
        experiments(tmp_path).run("budget", [0.5])


def test_orders_and_splits_are_variants(tmp_path: pathlib.Path) -> None:
    made = experiments(tmp_path, weights={"structure": "neurons"})
    orders = made.order((0.5,))
    assert list(orders) == [
        "together-0.5",
        "weights-first-0.5",
        "attention-first-0.5",
        "layers-first-0.5",
    ]
    assert orders["layers-first-0.5"].stretch.order == ("layers", "heads", "tokens", "weights")
    assert set(orders["together-0.5"].ratios.values()) == {0.5}
    budgets = made.budget((0.5, 0.7))
    assert len(budgets) == 10
    assert budgets["even-0.7"].budget == 0.7


def test_some_dimensions_alone(tmp_path: pathlib.Path) -> None:
    made = experiments(tmp_path, ("weights", "heads"))
    assert list(made.ratios((0.5,))) == ["heads-0.5", "weights-0.5"]
    with pytest.raises(UserError, match="no dimension is left to vary"):
        experiments(tmp_path, ("layers",)).ratios((0.5,))
    with pytest.raises(ValueError, match=r"dimensions must be some of .*, got 'head'"):
        experiments(tmp_path, ("head",))
