"""Tunings: what they leave, that they go on, the paper's experiments, and how mistakes end."""

from __future__ import annotations

import csv
import functools
import pathlib
from typing import Any

import pytest
import torch
from command import call
from rich.console import Console
from safetensors.torch import load_file

import gtkern
import gtkern.data
from bench.padded_graphormer import PaddedGraphormer
from gtkern.data import GRAPH_SETS, GraphDataset, motifs
from gtkern.data.molecule import feature_sizes
from gtkern.methods.deepgpt import open_prompts
from gtkern.methods.deepgpt.experiments import Tuning, Tunings
from gtkern.methods.deepgpt.pretrained import open_backbone
from gtkern.methods.deepgpt.run import TuneRun, tune_splits
from gtkern.methods.deepgpt.settings import MODES, UNREAD, TuneSettings
from gtkern.models import (
    GraphGPS,
    GraphGPSSettings,
    GraphormerSettings,
    load_model,
    save_model,
)
from gtkern.training import settings as settings_of
from gtkern.training.errors import UserError
from gtkern.training.run import RunFolder

pytest.importorskip("ogb")

CONFIGS = sorted((pathlib.Path(gtkern.__file__).parent / "configs/deepgpt").glob("*/*.yaml"))
NETWORK = GraphGPSSettings(width=16, heads=2, layers=3, walk_steps=4, attention_dropout=0.1)


@functools.cache
def dataset() -> GraphDataset:
    return GraphDataset("synthetic", motifs(graphs=30), "classification", 4, "accuracy")


def settings(**changes: Any) -> TuneSettings:
    values = {
        "dataset": "synthetic",
        "folds": 3,
        "prompts": {"prefix_tokens": 3},
        "training": {"epochs": 2, "lr": 0.01, "batch_size": 12, "warmup_epochs": 0},
        **changes,
    }
    return settings_of.read(TuneSettings, values)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A saved network."""
    path = tmp_path_factory.mktemp("backbone")
    torch.manual_seed(1)
    features = dataset().graphs.node_categories
    save_model(GraphGPS(features, 7, NETWORK), path, node_features=features, num_tasks=7)
    return path


def tuned(
    pretrained: pathlib.Path, path: pathlib.Path, chosen: TuneSettings, **options: Any
) -> Any:
    run = TuneRun(
        chosen,
        open_backbone(pretrained),
        dataset(),
        RunFolder(path),
        console=Console(quiet=True),
    )
    return run.run(**options)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "full"])
def test_prompts_are_left_and_the_backbone_is_as_it_was(
    pretrained: pathlib.Path, tmp_path: pathlib.Path, mode: str
) -> None:
    before = (pretrained / "model.safetensors").read_bytes()
    summary = tuned(pretrained, tmp_path, settings(train=mode))
    assert (pretrained / "model.safetensors").read_bytes() == before
    (phase,) = summary.phases
    counts = phase.details
    vectors = 3 * 16 if mode in ("deepgpt", "prompt") else 0
    tokens = 3 * 3 * 16 if mode in ("deepgpt", "prefix") else 0
    assert counts["prompts"] == vectors + tokens
    assert summary.trained_parameters == counts["prompts"] + counts["head"] == phase.parameters
    assert summary.total_parameters == summary.trained_parameters + counts["backbone"]
    kept = load_file(tmp_path / "checkpoints/tuning.safetensors")
    assert not any(name.startswith("model.") for name in kept)
    opened = open_prompts(tmp_path / "prompts.safetensors", load_model(pretrained))
    assert torch.equal(opened.head.weight, kept["head.weight"])
    # the paper's folds have no graphs beside those trained and evaluated on
    assert phase.details["graphs"] == {"train": 20, "val": 10, "test": 10}
    assert phase.val == phase.test


def test_all_parameters_move_where_all_are_trained(
    pretrained: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    summary = tuned(pretrained, tmp_path, settings(train="full", full_lr=0.02))
    network, before = load_model(tmp_path / "model"), load_model(pretrained)
    assert network.head.weight.size(0) == 4
    for name in ("widen.weight", "output_norm.running_mean"):
        after, first = (model.layers[0].state_dict()[name] for model in (network, before))
        assert not torch.equal(after, first), name
    assert summary.total_parameters == summary.trained_parameters
    assert (tmp_path / "metrics.csv").read_text().splitlines()[1].split(",")[3] == "0.02"


def test_dropout_is_on_where_it_is_asked_for(
    pretrained: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    heads = []
    for name, on in (("on", True), ("off", False)):
        tuned(pretrained, tmp_path / name, settings(backbone_dropout=on))
        heads.append(load_file(tmp_path / name / "prompts.safetensors")["head.weight"])
    assert not torch.equal(*heads)


def test_a_run_goes_on_and_ends_the_same(pretrained: pathlib.Path, tmp_path: pathlib.Path) -> None:
    first = tuned(pretrained, tmp_path, settings())
    assert tuned(pretrained, tmp_path, settings(), resume=True).phases == first.phases
    prompts = load_file(tmp_path / "prompts.safetensors")
    (tmp_path / "checkpoints/tuning.json").unlink()
    # as if it had been stopped between the last epoch and the writing of what it gave
    tuned(pretrained, tmp_path, settings(), resume=True)
    again = load_file(tmp_path / "prompts.safetensors")
    assert all(torch.equal(value, prompts[name]) for name, value in again.items())


def test_folds_are_evaluated_one_after_the_other() -> None:
    data = dataset()
    parts = [tune_splits(settings(fold=fold), data) for fold in range(3)]
    assert sorted(graph for part in parts for graph in part[2].tolist()) == list(range(30))
    for train, val, test in parts:
        assert torch.equal(val, test)
        assert not set(train.tolist()) & set(test.tolist())
        assert train.numel() + test.numel() == 30
    train, val, test = tune_splits(settings(split="random"), data)
    assert not set(val.tolist()) & set(test.tolist())


def tunings(pretrained: pathlib.Path, path: pathlib.Path, *, epochs: int = 1) -> Tunings:
    training = {"epochs": epochs, "lr": 0.01, "batch_size": 20, "warmup_epochs": 0}
    return Tunings(
        open_backbone(pretrained),
        [Tuning(settings(training=training, split="random"), dataset(), "synthetic")],
        RunFolder(path),
        [0],
        console=Console(quiet=True),
    )


def rows(path: pathlib.Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_experiments_share_their_runs(
    pretrained: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tunings(pretrained, tmp_path)
    made.run("main")
    found = rows(tmp_path / "main.csv")
    assert [row["variant"] for row in found] == ["deepgpt", "head", "full"]
    assert float(found[2]["share"]) == 1
    made.run("parts")
    assert [row["variant"] for row in rows(tmp_path / "parts.csv")] == [
        "deepgpt",
        "head",
        "prompt",
        "prefix",
    ]
    made.run("prefixes", [3, 5])
    assert [row["variant"] for row in rows(tmp_path / "prefixes.csv")] == ["deepgpt", "prefix-5"]
    made.run("depth", [1, 8])
    depth = rows(tmp_path / "depth.csv")
    assert [(row["variant"], row["size"]) for row in depth] == [("last-1", "1"), ("deepgpt", "3")]
    assert int(depth[0]["prompts"]) * 3 == int(depth[1]["prompts"])
    names = {path.name for path in tmp_path.glob("*.png")}
    assert names == {
        "main-synthetic.png",
        "parts-synthetic.png",
        "prefixes.png",
        "depth.png",
    }
    runs = {path.name for path in (tmp_path / "synthetic").iterdir()}
    assert runs == {"deepgpt", "head", "full", "prompt", "prefix", "prefix-5", "last-1"}
    monkeypatch.setattr(TuneRun, "run", lambda *_, **__: pytest.fail("a run was done again"))
    tunings(pretrained, tmp_path).run("main")


def test_another_backbone_needs_another_folder(
    pretrained: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    other = tmp_path / "other"
    features = dataset().graphs.node_categories
    save_model(GraphGPS(features, 7, NETWORK), other, node_features=features, num_tasks=7)
    tunings(pretrained, tmp_path / "runs").tune()
    with pytest.raises(UserError, match="experiments with the backbone"):
        tunings(other, tmp_path / "runs").tune()


def test_a_backbone_must_read_the_data_s_features(tmp_path: pathlib.Path) -> None:
    made = GraphGPSSettings(width=8, heads=2, layers=1, local="gine")
    save_model(
        GraphGPS((5, 3), 1, made, edge_features=(2,)),
        tmp_path,
        node_features=(5, 3),
        num_tasks=1,
        edge_features=(2,),
    )
    message = (
        r"reads features of nodes that are categories of sizes \[5, 3\], those of "
        r"synthetic are categories of sizes \[8\]"
    )
    with pytest.raises(ValueError, match=message):
        open_backbone(tmp_path).check(dataset())


@pytest.mark.parametrize(("theirs", "row"), [("microsoft", 2), ("hugging face", 3)])
def test_a_graphormer_is_read_from_a_public_checkpoint(
    tmp_path: pathlib.Path, theirs: str, row: int
) -> None:
    sizes = {"width": 8, "heads": 2, "layers": 1, "feedforward": 8, "path_length": 2}
    atoms, bonds = feature_sizes()
    released = PaddedGraphormer(len(atoms), len(bonds), 1, GraphormerSettings(**sizes))
    state = dict(released.state_dict())
    if theirs == "hugging face":
        state["classifier.classifier.weight"] = state.pop("encoder.embed_out.weight")
    torch.save(state, tmp_path / "model.pt")
    network = open_backbone(tmp_path / "model.pt", "graphormer", sizes).read()
    table = state["encoder.graph_encoder.graph_node_feature.atom_encoder.weight"]
    assert torch.equal(network.node_encoder.table.weight[:119], table[row : 119 + row])
    assert not network.training


def test_a_public_checkpoint_needs_its_sizes(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "base.pth"
    torch.save({"encoder.graph_encoder.graph_token.weight": torch.zeros(1, 8)}, path)
    with pytest.raises(ValueError, match="its model must be one of graphormer, light, got None"):
        open_backbone(path)
    sizes = {"width": 8, "heads": 2, "layers": 1, "feedforward": 8, "max_distance": 8}
    backbone = open_backbone(path, "graphormer", sizes)
    with pytest.raises(ValueError, match=r"does not fill the network: \d+ parameters are missing"):
        backbone.read()
    kpgt = open_backbone(path, "light")
    assert (kpgt.node_features, kpgt.edge_features) == (137, 14)
    with pytest.raises(ValueError, match="that are 137 numbers, those of synthetic are cat"):
        kpgt.check(dataset())
    (tmp_path / "trained").mkdir()
    with pytest.raises(FileNotFoundError, match="a backbone must be a folder that"):
        open_backbone(tmp_path / "trained")
    with pytest.raises(FileNotFoundError, match="there is no backbone"):
        open_backbone(tmp_path / "none")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_settings_of_a_data_set_are_valid(path: pathlib.Path) -> None:
    chosen = settings_of.read(TuneSettings, settings_of.load(path))
    assert chosen.dataset == path.stem
    assert chosen.dataset in (*GRAPH_SETS, *UNREAD)
    assert chosen.train == "deepgpt"


def test_every_backbone_has_settings_for_the_paper_s_13_sets() -> None:
    for model in ("graphgps", "graphormer", "light"):
        assert sum(path.parent.name == model for path in CONFIGS) == 13


def test_the_command_tunes_every_fold(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    pretrained: pathlib.Path,
    tmp_path: pathlib.Path,
) -> None:
    monkeypatch.setattr(gtkern.data, "load_graphs", lambda *_, **__: dataset())
    monkeypatch.setenv("COLUMNS", "120")
    config = tmp_path / "config.yaml"
    config.write_text(settings_of.dump(settings(dataset="bace")))
    options = ["--backbone", pretrained, "--config", config, "--data-root", tmp_path]
    options += ["--out", tmp_path / "runs", "--epochs=1", "--devices=cpu"]
    assert call(monkeypatch, "tune", "deepgpt", *options, "--train=head") == 0
    shown = capsys.readouterr().out
    assert "seed 42, fold 2" in shown
    assert "mean" in shown
    assert len(rows(tmp_path / "runs/bace-head.csv")) == 4
    assert (tmp_path / "runs/bace-head.png").is_file()
    more = ["--datasets=bace", "--set=split=random", "--sizes=1"]
    assert call(monkeypatch, "experiment", "deepgpt", "depth", *options, *more) == 0
    assert (tmp_path / "runs/depth.csv").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--backbone must name a folder of gtkern pretrain, or a checkpoint"),
        (["--backbone", "/none"], "--backbone: there is no backbone /none"),
        (["--backbone", "GOOD"], "--dataset must name a data set"),
        (["--backbone", "GOOD", "--model", "light"], "says itself what its network is"),
        (["--backbone", "GOOD", "--dataset", "bac"], "no data set 'bac'; the nearest is bace"),
        (["--backbone", "GOOD", "--dataset", "estrogen"], "estrogen cannot be read: its files are"),
        (["--backbone", "GOOD", "--dataset", "molpcba"], "molpcba cannot be read: it is OGB's"),
        (["--backbone", "GOOD", "--dataset", "bace"], "root must name the folder of its files"),
        (["--backbone", "GOOD", "--dataset", "bace", "--train", "al"], "train must be one of"),
        (["--backbone", "GOOD", "--dataset", "bace", "--folds", "2"], "folds must be >= 3"),
        (["--backbone", "GOOD", "--dataset", "bace", "--set", "fold=1"], "every fold is a run of"),
        (
            ["--backbone", "GOOD", "--dataset", "bace", "--set", "prompts.layers=[3,1]"],
            "layers must be two numbers",
        ),
    ],
)
def test_a_mistake_is_one_line_and_code_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    pretrained: pathlib.Path,
    tmp_path: pathlib.Path,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [str(pretrained) if word == "GOOD" else word for word in arguments]
    assert call(monkeypatch, "tune", "deepgpt", "--devices=cpu", *given) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())
