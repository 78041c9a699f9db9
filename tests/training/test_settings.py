"""Settings: what is read, what is refused, and what the refusal says."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib

import pytest
import yaml

from gtkern.methods.spexphormer.settings import Settings, temperature_at
from gtkern.training import settings as settings_of
from gtkern.training.optimization import Optimization, schedule_factor

CONFIGS = sorted((pathlib.Path(settings_of.__file__).parents[1] / "configs/spexphormer").glob("*"))
MINESWEEPER = next(path for path in CONFIGS if path.stem == "minesweeper")


def read(*assignments: str) -> Settings:
    values = settings_of.load(MINESWEEPER)
    return settings_of.read(Settings, settings_of.override(Settings, values, assignments))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_published_configuration_is_read(path: pathlib.Path) -> None:
    settings = settings_of.read(Settings, settings_of.load(path))
    assert settings.dataset == path.stem


def test_dumped_settings_are_read_back() -> None:
    settings = read("phase1.lr=1e-3", "phase2.neighbors=[1,2,3,4]")
    assert settings_of.read(Settings, yaml.safe_load(settings_of.dump(settings))) == settings
    assert settings.phase1.lr == 1e-3
    assert settings.phase2.neighbors == (1, 2, 3, 4)


def test_a_difference_is_named() -> None:
    assert settings_of.first_difference(read(), read()) is None
    assert settings_of.first_difference(read(), read("phase2.lr=0.5")) == "phase2.lr"


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("phase1.lrr=1", "no setting 'phase1.lrr'; the nearest key is 'phase1.lr'"),
        ("phase2.neighbours=[1]", "the nearest key is 'phase2.neighbors'"),
        ("batch_size=3", "the nearest key is 'phase2.batch_size'"),
        ("qqqq=3", "no setting 'qqqq'; the keys are dataset"),
        ("phase1=3", "no setting 'phase1'"),
        ("phase1.lr", "--set needs key=value, got 'phase1.lr'"),
        ("phase1.lr=fast", "phase1.lr must be a number, got 'fast'"),
        ("phase1.lr=0", "phase1.lr must be > 0, got 0.0"),
        ("phase1.lr=.nan", "phase1.lr must be > 0, got nan"),
        ("phase1.epochs=1.5", "phase1.epochs must be an integer, got 1.5"),
        ("phase1.epochs=true", "phase1.epochs must be an integer, got True"),
        ("phase1.epochs=0", "phase1.epochs must be >= 1, got 0"),
        ("phase2.dropout=1", "phase2.dropout must be >= 0 and < 1, got 1.0"),
        ("phase2.neighbors=3", "phase2.neighbors must be a list, got 3"),
        ("phase2.neighbors=[1,0,1,1]", "phase2.neighbors must be >= 1, got 0"),
        ("phase2.neighbors=[1,2]", "neighbors must have one number for each of 4 layers"),
        ("phase2.heads=5", "phase2.heads must divide width 32"),
        ("phase1.layers=3", "phase1.layers must be at least phase2.layers 4"),
        ("expander.algorithm=tree", "expander.algorithm must be one of hamiltonian"),
        ("phase2.batch_size=1", "phase2.batch_size must be >= 2"),
        ("phase2.evaluation=all", "phase2.evaluation must be one of batches, layers"),
        ("power_law.nodes=9", "power_law is for the data set power-law alone"),
        ("metric=f1", "metric must be one of accuracy, roc_auc, got 'f1'"),
        ("dataset=5", "dataset must be text, got 5"),
    ],
)
def test_a_bad_assignment_is_explained(assignment: str, message: str) -> None:
    with pytest.raises(settings_of.SettingsError) as caught:
        read(assignment)
    assert message in str(caught.value)


def test_evaluation_by_layers_needs_known_statistics() -> None:
    with pytest.raises(settings_of.SettingsError, match="needs the norm batch, got graph"):
        read("phase2.evaluation=layers", "phase2.norm=graph")


def test_a_bad_file_is_explained(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "settings.yaml"
    for text, message in (("a: [", "is no YAML"), ("- 1", "must hold keys and values, got list")):
        path.write_text(text)
        with pytest.raises(settings_of.SettingsError, match=message):
            settings_of.load(path)
    with pytest.raises(settings_of.SettingsError, match="cannot read the settings"):
        settings_of.load(tmp_path / "none.yaml")


def test_a_misspelt_key_in_a_file_is_explained() -> None:
    values = settings_of.load(MINESWEEPER)
    values["phase1"]["temprature_min"] = 0.1
    with pytest.raises(
        settings_of.SettingsError, match=r"nearest key is 'phase1\.temperature_min'"
    ):
        settings_of.read(Settings, values)


def test_a_missing_key_is_named() -> None:
    values = settings_of.load(MINESWEEPER)
    del values["phase2"]["neighbors"]
    with pytest.raises(settings_of.SettingsError, match=r"'phase2\.neighbors' is missing"):
        settings_of.read(Settings, values)


def test_temperature_falls_after_the_wait_to_its_minimum() -> None:
    phase = read(
        "phase1.temperature_ratio=0.5",
        "phase1.temperature_wait=2",
        "phase1.temperature_min=0.2",
    ).phase1
    assert [temperature_at(phase, epoch) for epoch in range(6)] == [1, 1, 1, 0.5, 0.25, 0.2]


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    chosen = Optimization(epochs=105, lr=1.0, warmup_epochs=5)
    factors = [schedule_factor(chosen, epoch) for epoch in range(106)]
    assert factors[:6] == [1e-6, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert factors[55] == pytest.approx(0.5)
    assert factors[105] == pytest.approx(0.0)
    assert all(first >= second for first, second in itertools.pairwise(factors[5:]))


def test_a_constant_learning_rate_stays_after_the_warm_up() -> None:
    chosen = Optimization(epochs=9, lr=1.0, warmup_epochs=2, schedule="constant")
    assert [schedule_factor(chosen, epoch) for epoch in range(5)] == [1e-6, 0.5, 1.0, 1.0, 1.0]


def test_plateaus_need_no_warm_up() -> None:
    with pytest.raises(ValueError, match="warmup_epochs must be 0 with the schedule plateau"):
        Optimization(epochs=9, lr=1.0, schedule="plateau")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limited:
    limit: int | None = 3


def test_a_setting_may_be_nothing() -> None:
    assert settings_of.read(Limited, {"limit": None}).limit is None
    assert (
        settings_of.read(Limited, settings_of.override(Limited, {}, ["limit=null"])).limit is None
    )
    assert settings_of.read(Limited, {"limit": 5}).limit == 5
    with pytest.raises(settings_of.SettingsError, match="limit must be an integer, got 'far'"):
        settings_of.read(Limited, {"limit": "far"})
