"""Pre-training: what is hidden stays hidden, what a run leaves, and how mistakes end."""

from __future__ import annotations

import functools
import json
import pathlib
from typing import Any

import pytest
import torch
from command import call
from rich.console import Console
from safetensors.torch import load_file

import gtkern
from gtkern.data import PackedGraphs, from_smiles, read_smiles
from gtkern.data.molecule import feature_sizes
from gtkern.data.molecule_targets import DESCRIPTORS
from gtkern.models import load_model
from gtkern.training import settings as settings_of
from gtkern.training.errors import UserError
from gtkern.training.graph_settings import MODELS
from gtkern.training.pretrain import Pretraining
from gtkern.training.pretrain_run import PretrainRun
from gtkern.training.pretrain_settings import PRETRAINED, PretrainSettings, pretrain_settings_class
from gtkern.training.run import RunFolder, read_summary

pytest.importorskip("rdkit")
pytest.importorskip("ogb")

CONFIGS = sorted((pathlib.Path(gtkern.__file__).parent / "configs/pretrain").glob("*.yaml"))
SMALL: dict[str, dict[str, Any]] = {
    "graphgps": {"width": 8, "heads": 2, "layers": 2, "walk_steps": 4, "local": "gine"},
    "graphormer": {
        "width": 8,
        "heads": 2,
        "layers": 2,
        "feedforward": 8,
        "max_degree": 8,
        "max_distance": 8,
        "path_length": 2,
        "norm": "pre",
        "initial_std": 0.35,
    },
}
BITS = 16
TAILS = ("", "O", "N", "Cl", "C(=O)O", "c1ccccc1", "C#N", "OC", "C1CC1", "F")
MOLECULES = [f"{'C' * length}{tail}" for length in range(1, 5) for tail in TAILS]


def settings(model: str, **changes: Any) -> PretrainSettings:
    values = {
        "dataset": "few",
        "model": model,
        "network": SMALL[model],
        "held_out": 0.1,
        "targets": {"bits": BITS},
        "masking": {"graphs": 0.5, "atoms": 0.5},
        "training": {"epochs": 2, "lr": 0.01, "batch_size": 16, "warmup_epochs": 0},
        **changes,
    }
    return settings_of.read(pretrain_settings_class(model), values)


@functools.cache
def file(path: pathlib.Path) -> pathlib.Path:
    path = path / "few.smi"
    path.write_text("\n".join(MOLECULES))
    return path


def pretrain(path: pathlib.Path, chosen: PretrainSettings, *, resume: bool = False) -> Any:
    run = PretrainRun(
        chosen, read_smiles(file(path.parent)), RunFolder(path), console=Console(quiet=True)
    )
    return run.run(resume=resume)


def network(model: str) -> tuple[Pretraining, PackedGraphs]:
    atoms, bonds = feature_sizes()
    packed = PackedGraphs.from_data_list(
        [from_smiles(text) for text in ("CCO", "C", "c1ccccc1N")],
        node_categories=atoms,
        edge_categories=bonds,
    )
    cls, settings_class = MODELS[model]
    sizes = settings_class(**SMALL[model])
    cls.encode(packed, sizes)
    torch.manual_seed(0)
    return Pretraining(cls(atoms, 3, sizes, edge_features=bonds), atoms[0]).eval(), packed


@pytest.mark.parametrize("model", PRETRAINED)
def test_nothing_tells_a_hidden_atom(model: str) -> None:
    made, packed = network(model)
    batch = packed.batch([0, 1, 2])
    hidden = torch.zeros(11, dtype=torch.bool)
    hidden[[2, 7]] = True
    before = made(batch, hidden)
    batch.x[hidden] = 0
    after = made(batch, hidden)
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    assert not torch.equal(made(batch)[0], before[0])


@pytest.mark.parametrize("model", PRETRAINED)
def test_a_hidden_atom_s_logits_are_its_own(model: str) -> None:
    made, packed = network(model)
    hidden = torch.tensor([0, 0, 1, 1, 0, 0, 0, 1, 0, 0, 1], dtype=torch.bool)
    together = made(packed.batch([0, 1, 2]), hidden)[1]
    alone = [
        made(packed.batch([graph]), part)[1] for graph, part in enumerate(hidden.split([3, 1, 7]))
    ]
    assert together.shape == (4, 119)
    torch.testing.assert_close(together, torch.cat(alone))
    assert not torch.allclose(together[2], together[3])


@pytest.mark.parametrize("model", PRETRAINED)
def test_a_run_leaves_a_network_that_loads(tmp_path: pathlib.Path, model: str) -> None:
    pretrain(tmp_path / "run", settings(model))
    summary = read_summary(tmp_path / "run/summary.json")
    assert summary["method"] == f"pretrain-{model}"
    (phase,) = summary["phases"]
    assert phase["details"]["graphs"] == {"train": 32, "val": 4, "test": 4}
    rows = (tmp_path / "run/metrics.csv").read_text().splitlines()
    assert {"fingerprint_roc_auc", "atom_accuracy"} <= set(rows[0].split(","))
    assert (tmp_path / "run/plots/curves.png").is_file()
    loaded = load_model(tmp_path / "run/model")
    weights = load_file(tmp_path / "run/checkpoints/pretraining.safetensors")
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, weights[f"backbone.{name}"])
    assert weights["backbone.head.weight"].size(0) == len(DESCRIPTORS) + BITS
    config = json.loads((tmp_path / "run/model/config.json").read_text())
    assert tuple(config["node_features"]) == feature_sizes()[0]


def test_a_finished_run_is_not_done_again_and_seeds_differ(tmp_path: pathlib.Path) -> None:
    training = {"epochs": 1, "lr": 0.01, "batch_size": 16, "warmup_epochs": 0}
    chosen = settings("graphgps", training=training)
    first = pretrain(tmp_path / "run", chosen)
    assert pretrain(tmp_path / "run", chosen, resume=True).phases == first.phases
    pretrain(tmp_path / "same", chosen)
    pretrain(tmp_path / "other", settings("graphgps", training=training, seed=1))
    weights = [
        (tmp_path / name / "model/model.safetensors").read_bytes()
        for name in ("run", "same", "other")
    ]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


def test_it_learns_all_three(tmp_path: pathlib.Path) -> None:
    training = {"epochs": 16, "lr": 0.02, "batch_size": 8, "warmup_epochs": 0}
    pretrain(tmp_path / "run", settings("graphgps", training=training))
    record = json.loads((tmp_path / "run/checkpoints/pretraining.json").read_text())
    first, last = record["rows"][0], record["rows"][-1]
    assert last["loss"] < 0.5 * first["loss"]
    assert last["val"] < 0.5 * first["val"]
    assert last["fingerprint_roc_auc"] > max(0.6, first["fingerprint_roc_auc"])
    # five of six hidden atoms are carbon
    assert last["atom_accuracy"] > max(0.8, first["atom_accuracy"])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_settings_of_a_model_are_valid(path: pathlib.Path) -> None:
    values = settings_of.load(path)
    chosen = settings_of.read(pretrain_settings_class(path.stem), values)
    assert chosen.model == path.stem
    # what is not written there would change with the defaults
    assert set(values["network"]) == set(vars(chosen.network))
    assert {path.stem for path in CONFIGS} == set(PRETRAINED)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masking": {"graphs": 1.0}}, r"masking\.graphs must be below 1 where"),
        ({"masking": {"graphs": 0.0}}, r"targets\.atoms must be 0 where masking\.graphs is 0"),
        ({"targets": {"descriptors": 0, "fingerprint": 0, "atoms": 0}}, "must be above 0"),
        ({"held_out": 0.5}, "held_out must be > 0 and < 0.5"),
    ],
)
def test_settings_that_do_not_fit_are_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(settings_of.SettingsError, match=message):
        settings("graphgps", **changes)


def test_too_few_molecules_are_told(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r"held_out 0\.01 of 40 molecules leaves none"):
        pretrain(tmp_path / "run", settings("graphgps", held_out=0.01))


def test_the_command_pretrains_and_resumes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "run"
    options = ["--smiles", file(tmp_path), "--out", out, "--devices=cpu"]
    small = [f"--set=network.{key}={value}" for key, value in SMALL["graphgps"].items()]
    more = ["--model=graphgps", "--epochs=1", "--set=held_out=0.1", *small]
    assert call(monkeypatch, "pretrain", *options, *more) == 0
    assert json.loads((out / "summary.json").read_text())["dataset"] == "few"
    assert call(monkeypatch, "pretrain", *options, "--resume") == 0
    assert call(monkeypatch, "pretrain", *options, "--resume", "--seed=1") == 2
    assert "cannot resume with another seed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "light"], "there is no model to pre-train 'light'"),
        (["--dataset", "molhiv", "--smiles", "a.smi"], "give one of them"),
        (["--smiles", "/none/a.smi"], "cannot read --smiles"),
        (["--dataset", "synthetic"], "only molecules are pre-trained on"),
        ([], "molhiv is not generated: root must name the folder of its files"),
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
    assert call(monkeypatch, "pretrain", "--devices=cpu", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
