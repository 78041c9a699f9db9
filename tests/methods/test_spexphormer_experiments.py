"""The experiments of Spexphormer's paper: what they run, what they leave, and going on."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from gtkern.data import minesweeper
from gtkern.methods.node_settings import Expander
from gtkern.methods.spexphormer import experiments as module
from gtkern.methods.spexphormer import kept_runs
from gtkern.methods.spexphormer.experiments import ABLATIONS, EXPERIMENTS, Experiments
from gtkern.methods.spexphormer.kept_runs import Runs
from gtkern.methods.spexphormer.run import Spexphormer
from gtkern.methods.spexphormer.settings import Phase1, Phase2, Settings
from gtkern.training.errors import InterruptedRunError, UserError
from gtkern.training.run import RunFolder
from gtkern.training.settings import SettingsError
from gtkern.training.tables import spread

SETTINGS = Settings(
    dataset="minesweeper",
    metric="roc_auc",
    expander=Expander(degree=2),
    phase1=Phase1(epochs=2, lr=0.02, layers=2, temperature_wait=1, warmup_epochs=0),
    phase2=Phase2(epochs=2, lr=0.02, layers=2, width=8, heads=2, neighbors=(4, 3)),
)


def runs(path: pathlib.Path, settings: Settings = SETTINGS, **options: Any) -> Runs:
    options = {"dataset": "minesweeper (generated)", "console": Console(quiet=True), **options}
    return Runs(settings, minesweeper(0, rows=12), RunFolder(path), **options)


def rows(path: pathlib.Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def summary(path: pathlib.Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((path / "summary.json").read_text())
    return read


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """All experiments with two seeds."""
    path = tmp_path_factory.mktemp("done")
    for name in EXPERIMENTS:
        sizes = {"batches": (20, 72), "consistency": (2, 4)}.get(name, ())
        Experiments(runs(path), (0, 1)).run(name, sizes)
    return path


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_leaves_a_table_and_a_plot(done: pathlib.Path, name: str) -> None:
    assert rows(done / f"{name}.csv")
    assert (done / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_main_is_the_mean_of_the_runs_beside_the_papers_figure(done: pathlib.Path) -> None:
    tests = [summary(done / f"full/seed-{seed}")["test"]["roc_auc"] for seed in (0, 1)]
    first, second, middle, paper = rows(done / "main.csv")
    assert [float(row["test"]) for row in (first, second)] == tests
    assert float(middle["test"]) == pytest.approx(sum(tests) / 2)
    assert float(middle["std"]) == pytest.approx(abs(tests[0] - tests[1]) / 2**0.5)
    assert (float(paper["test"]), float(paper["std"])) == (0.9071, 0.0017)
    assert paper["note"] == "quoted from the paper by others; on the published graph"


def test_a_single_run_has_no_deviation() -> None:
    assert spread([0.5]) is None


def test_the_first_network_alone_is_an_ablation(done: pathlib.Path) -> None:
    by_name = {row["variant"]: row for row in rows(done / "ablations.csv")}
    assert list(by_name) == ["full", "phase-1-alone", *ABLATIONS]
    phase = summary(done / "full/seed-1")["phases"][0]
    assert float(by_name["phase-1-alone"]["test_seed_1"]) == phase["test"]["roc_auc"]


def test_an_ablation_changes_what_its_name_says(done: pathlib.Path) -> None:
    configs = {name: (done / name / "seed-0/config.yaml").read_text() for name in ABLATIONS}
    assert "sampling: uniform" in configs["uniform-sampling"]
    assert "sampling: top" in configs["top-sampling"]
    assert "temperature_ratio: 1.0" in configs["no-temperature"]
    assert "normalize_values: false" in configs["raw-values"]
    assert "norm: none" in configs["no-norm"]


@pytest.mark.parametrize("name", ["uniform-sampling", "top-sampling"])
def test_an_ablation_of_the_sampling_takes_phase_1_of_the_full_run(
    done: pathlib.Path, name: str
) -> None:
    assert (
        summary(done / name / "seed-0")["phases"][0] == summary(done / "full/seed-0")["phases"][0]
    )
    assert not (done / name / "seed-0/scores").exists()


def test_an_ablation_that_changes_nothing_is_not_run(tmp_path: pathlib.Path) -> None:
    constant = dataclasses.replace(SETTINGS.phase1, temperature_ratio=1.0)
    result = Experiments(runs(tmp_path, dataclasses.replace(SETTINGS, phase1=constant)), (0,))
    by_name = {row["variant"]: row for row in result.run("ablations").rows}
    assert by_name["no-temperature"]["changed"] == "phase1.temperature_ratio=1.0, as in full"
    assert by_name["no-temperature"]["test"] == by_name["full"]["test"]
    assert not (tmp_path / "no-temperature").exists()


def test_the_edge_ratio_is_sampled_edges_over_graph_and_expander(done: pathlib.Path) -> None:
    attention = 1012 + 4 * 144
    first, second, middle, paper = rows(done / "edges.csv")
    assert float(first["sampled"]) == pytest.approx(4 * 144 / attention)
    assert float(second["sampled"]) == pytest.approx(3 * 144 / attention)
    assert float(middle["sampled"]) == pytest.approx(3.5 * 144 / attention)
    assert 0 < float(first["distinct"]) <= 4 * 144 / (attention + 144)
    assert paper["note"].startswith("remembered, not verified")


def test_smaller_batches_take_more_steps(done: pathlib.Path) -> None:
    small, whole = rows(done / "batches.csv")
    assert (small["batch_size"], small["steps"]) == ("20", "4")
    assert (whole["batch_size"], whole["steps"]) == ("72", "1")
    assert float(small["seconds_per_epoch"]) > 0


def test_consistency_compares_with_the_widest(done: pathlib.Path) -> None:
    found = {row["scores"]: row for row in rows(done / "consistency.csv")}
    assert list(found) == ["width 2", "uniform", "random"]
    row_ptr = np.load(done / "width-4/seed-0/scores/row_ptr.npy")
    distances = []
    for seed in (0, 1):
        two, four = (
            np.load(done / f"width-{width}/seed-{seed}/scores/scores.npy")[0] for width in (2, 4)
        )
        squares = np.square(two - four)
        pieces = [squares[low:high] for low, high in itertools.pairwise(row_ptr)]
        distances.append(np.mean([np.sqrt(piece.sum()) for piece in pieces]))
    assert float(found["width 2"]["layer_1"]) == pytest.approx(np.mean(distances), rel=1e-5)
    assert len(summary(done / "width-2/seed-0")["phases"]) == 1


def test_the_energy_distance_is_that_of_the_definition() -> None:
    generator = np.random.default_rng(0)
    # two edges each: scipy knows the distance on a line, where 0 and 1 are at distance 1
    first, second = (generator.dirichlet((1, 1), 3) for _ in range(2))
    found = module.energy_distance(first.ravel(), second.ravel(), np.array([0, 2, 4, 6]))
    expected = [
        stats.energy_distance([0, 1], [0, 1], one, other)
        for one, other in zip(first, second, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


class Counting(Spexphormer):
    """Counts the runs that train."""

    trained: int = 0

    def run(self, **options: Any) -> Any:
        Counting.trained += 1
        return super().run(**options)


def test_finished_seeds_are_not_run_again(
    done: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_runs, "Spexphormer", Counting)
    monkeypatch.setattr(Counting, "trained", 0)
    before = (done / "main.csv").read_text()
    Experiments(runs(done), (0, 1)).run("main")
    assert Counting.trained == 0
    assert (done / "main.csv").read_text() == before


class Stopping(Spexphormer):
    """Is stopped after its first phase."""

    def _phase2(self, *arguments: Any) -> Any:
        raise InterruptedRunError("phase2")


def test_a_stopped_experiment_goes_on(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, done: pathlib.Path
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(kept_runs, "Spexphormer", Stopping)
        with pytest.raises(InterruptedRunError, match="stopped in phase2 of full, seed 0"):
            Experiments(runs(tmp_path), (0,)).run("main")
    phase1 = (tmp_path / "full/seed-0/checkpoints/phase1.json").stat().st_mtime_ns
    Experiments(runs(tmp_path), (0,)).run("main")
    assert (tmp_path / "full/seed-0/checkpoints/phase1.json").stat().st_mtime_ns == phase1
    assert summary(tmp_path / "full/seed-0")["test"] == summary(done / "full/seed-0")["test"]


def other_settings() -> Settings:
    return dataclasses.replace(SETTINGS, phase2=dataclasses.replace(SETTINGS.phase2, lr=0.5))


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        (other_settings(), {}, "holds a run with another phase2.lr; --out must name another"),
        (SETTINGS, {"dataset": "minesweeper"}, "holds experiments with the dataset minesweeper "),
        (SETTINGS, {"backend": "reference"}, "holds experiments with the backend auto, got ref"),
    ],
)
def test_a_folder_of_other_runs_is_refused(
    done: pathlib.Path, settings: Settings, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Experiments(runs(done, settings, **options), (0, 1)).run("main")


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("main", (4,), "sizes are for batches and consistency, got them with main"),
        ("consistency", (4,), r"consistency needs two widths or more, got \[4\]"),
        ("consistency", (4, 999), "phase1.width must be >= 1 and <= 256, got 999"),
        ("batches", (1,), "phase2.batch_size must be >= 2, got 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_any_run(
    tmp_path: pathlib.Path, name: str, sizes: Sequence[int], message: str
) -> None:
    with pytest.raises((UserError, SettingsError), match=message):
        Experiments(runs(tmp_path), (0,)).run(name, sizes)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_summary_is_told(tmp_path: pathlib.Path) -> None:
    Experiments(runs(tmp_path), (0,)).run("main")
    (tmp_path / "full/seed-0/summary.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot read .*summary\.json"):
        Experiments(runs(tmp_path), (0,)).run("main")
