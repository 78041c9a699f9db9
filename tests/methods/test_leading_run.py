"""Runs of LEADING and its baselines: what they leave, that they go on, and how mistakes end."""

from __future__ import annotations

import functools
import io
import json
import pathlib
from dataclasses import replace
from typing import Any

import pandas
import pytest
import torch
from command import call
from rich.console import Console
from text_rings import rings

import gtkern
from gtkern.data.text import TEXT_SETS, TextGraph
from gtkern.methods.leading import inference
from gtkern.methods.leading.experiments import EXPERIMENTS, Experiments
from gtkern.methods.leading.run import LeadingRun
from gtkern.methods.leading.settings import MODES, LeadingSettings
from gtkern.training import fit as fitting
from gtkern.training import settings as settings_of
from gtkern.training.errors import InterruptedRunError, UserError
from gtkern.training.run import RunFolder

CONFIGS = sorted((pathlib.Path(gtkern.__file__).parent / "configs/leading").glob("*.yaml"))


def settings(**changes: Any) -> LeadingSettings:
    values = {
        "dataset": "synthetic",
        "encoder": {"max_tokens": 8},
        "propagation": {"width": 8},
        "neighbors": {"fanout": 2},
        "features": {"epochs": 2, "lr": 0.01, "warmup_epochs": 0},
        "training": {"epochs": 2, "lr": 0.01, "warmup_epochs": 0, "batch_size": 4},
        **changes,
    }
    return settings_of.read(LeadingSettings, values)


@functools.cache
def data() -> TextGraph:
    return rings()


def run(
    folder: pathlib.Path, chosen: LeadingSettings, *, resume: bool = False, **options: Any
) -> dict[str, Any]:
    made = LeadingRun(chosen, data(), RunFolder(folder), console=Console(file=io.StringIO()))
    made.run(resume=resume, **options)
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


@pytest.mark.parametrize("train", MODES)
def test_every_mode_leaves_predictions_and_figures(tmp_path: pathlib.Path, train: str) -> None:
    summary = run(tmp_path, settings(train=train))
    together = train in ("leading", "joint", "language-model")
    names = [phase["name"] for phase in summary["phases"]]
    assert names == (["features", "training", "refit"] if together else ["features"])
    table = pandas.read_parquet(tmp_path / "predictions.parquet")
    assert table["node"].tolist() == list(range(30))
    assert table["split"].value_counts().to_dict() == {"train": 10, "val": 10, "test": 10}
    for part in ("val", "test"):
        rows = table[table["split"] == part]
        share = float((rows["prediction"] == rows["label"]).mean())
        assert summary[part]["accuracy"] == pytest.approx(share)
    assert (tmp_path / "plots/curves.png").is_file()
    assert (tmp_path / "model/about.json").is_file() == together
    if train == "leading":
        figures = summary["phases"][1]["details"]
        assert figures["steps"] == 6
        assert figures["bank"]["visited"] == 30
    if train == "cascaded":
        assert summary["total_parameters"] > summary["trained_parameters"]


def test_the_language_model_learns_and_adapts(tmp_path: pathlib.Path) -> None:
    """What is saved is another model than at first, and can be tuned further by its folder."""
    chosen = settings(warm_start=False, refit=False)
    run(tmp_path / "first", chosen)
    folder = tmp_path / "first/model/language-model"
    before = inference.open_language_model(chosen, data().texts)
    encoder = replace(chosen.encoder, path=str(folder))
    after = inference.open_language_model(replace(chosen, encoder=encoder), data().texts)
    assert inference.digest(before) != inference.digest(after)
    summary = run(tmp_path / "second", replace(chosen, encoder=encoder))
    (phase,) = summary["phases"]
    assert phase["name"] == "training"

    # adapters alone learn, and are in the weights of what is saved
    encoder = replace(encoder, lora_rank=2, checkpointing=True)
    adapted = replace(chosen, encoder=encoder)
    summary = run(tmp_path / "third", adapted)
    assert summary["phases"][0]["parameters"] < phase["parameters"] / 10
    merged = replace(
        encoder, path=str(tmp_path / "third/model/language-model"), lora_rank=0, checkpointing=False
    )
    saved = inference.open_language_model(replace(chosen, encoder=merged), data().texts)
    assert saved.state_dict().keys() == after.state_dict().keys()
    assert inference.digest(saved) != inference.digest(after)


def test_a_run_repeats_itself(tmp_path: pathlib.Path) -> None:
    tables = []
    for name in ("a", "b"):
        run(tmp_path / name, settings())
        tables.append(pandas.read_parquet(tmp_path / name / "predictions.parquet"))
    pandas.testing.assert_frame_equal(*tables)


@pytest.mark.parametrize("mapped", [False, True])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, mapped: bool
) -> None:
    chosen = settings(neighbors={"fanout": 2, "mapped": mapped})
    whole = run(tmp_path / "whole", chosen)
    stops = []

    def stop(keeper: Any, trainer: Any, task: Any) -> None:
        end(keeper, trainer, task)
        if hasattr(task, "bank") and not stops:
            stops.append(trainer.current_epoch)
            raise KeyboardInterrupt

    end = fitting._Keeper.on_train_epoch_end
    monkeypatch.setattr(fitting._Keeper, "on_train_epoch_end", stop)
    monkeypatch.setattr(fitting, "SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    monkeypatch.setattr(fitting, "LARGEST_SHARE", 1e9)
    with pytest.raises(InterruptedRunError):
        run(tmp_path / "parts", chosen)
    assert stops == [0]
    files = sorted(path.name for path in tmp_path.glob("parts/checkpoints/bank/*"))
    assert files == (["copy-3", "rank-0"] if mapped else [])
    parts = run(tmp_path / "parts", chosen, resume=True)
    for summary in (whole, parts):
        for phase in summary["phases"]:
            for key in ("seconds", "seconds_per_epoch", "peak_bytes", "details"):
                del phase[key]
    assert parts["phases"] == whole["phases"]
    tables = [
        pandas.read_parquet(tmp_path / name / "predictions.parquet") for name in ("whole", "parts")
    ]
    pandas.testing.assert_frame_equal(*tables)


def test_a_run_does_not_go_on_with_other_texts(tmp_path: pathlib.Path) -> None:
    chosen = settings()
    run(tmp_path, chosen)
    (tmp_path / "checkpoints/training.json").unlink()
    other = replace(data(), texts=[f"{text} thin" for text in data().texts])
    made = LeadingRun(chosen, other, RunFolder(tmp_path), console=Console(file=io.StringIO()))
    with pytest.raises(UserError, match="cannot resume with other texts or another tokenizer"):
        made.run(resume=True)


def test_encoding_of_all_nodes_goes_on_where_it_stopped(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "NODES_AT_ONCE", 10)
    chosen = settings()
    made = LeadingRun(chosen, data(), RunFolder(tmp_path), console=Console(file=io.StringIO()))
    model = made.language_model
    assert model is not None
    tokens = made._tokens(model)
    encoded: list[int] = []

    def counting(*arguments: Any) -> torch.Tensor:
        if len(encoded) == 2:
            raise KeyboardInterrupt
        encoded.append(arguments[2].numel())
        return rows(*arguments)

    rows = inference.encoded_rows
    monkeypatch.setattr(inference, "encoded_rows", counting)
    with pytest.raises(KeyboardInterrupt):
        inference.encode_all(model, tokens, chosen, tmp_path / "features")
    encoded.clear()
    x = inference.encode_all(model, tokens, chosen, tmp_path / "features")
    assert encoded == [10]
    expected = torch.empty_like(x)
    for nodes, values in model.encode(tokens, torch.arange(30)):
        expected[nodes] = values
    torch.testing.assert_close(x, expected)


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name != "labels"])
def test_experiments_leave_a_table_and_a_plot(tmp_path: pathlib.Path, name: str) -> None:
    chosen = settings()
    chosen = replace(
        chosen,
        features=replace(chosen.features, epochs=1),
        training=replace(chosen.training, epochs=1, batch_size=10),
    )
    experiments = Experiments(
        chosen,
        lambda _: data(),
        RunFolder(tmp_path),
        [0],
        dataset="rings",
        console=Console(file=io.StringIO()),
    )
    variants = EXPERIMENTS[name](experiments)
    table = experiments.run(name)
    assert table.row_count == len(variants)
    assert (tmp_path / f"{name}.png").is_file()
    rows = pandas.read_csv(tmp_path / f"{name}.csv")
    assert rows["variant"].tolist() == list(variants)
    assert rows["test"].between(0, 1).all()


def test_sweeps_are_fewer_by_chebyshev(tmp_path: pathlib.Path) -> None:
    experiments = Experiments(
        settings(),
        lambda _: data(),
        RunFolder(tmp_path),
        [0],
        dataset="rings",
        console=Console(file=io.StringIO()),
    )
    experiments.run("sweeps")
    rows = pandas.read_csv(tmp_path / "sweeps.csv")
    strict = rows[(rows["alpha"] == 0.05) & (rows["tol"] == 1e-6)]
    assert float(strict["ratio"].iloc[0]) > 3
    assert (tmp_path / "sweeps.png").is_file()


def test_labels_vary_what_is_kept(tmp_path: pathlib.Path) -> None:
    seen = []

    def texts(chosen: LeadingSettings) -> TextGraph:
        seen.append((chosen.text.labels_per_class, chosen.text.label_share))
        return data()

    experiments = Experiments(
        settings(),
        texts,
        RunFolder(tmp_path),
        [0],
        dataset="rings",
        console=Console(file=io.StringIO()),
    )
    for variant, chosen in experiments.labels().items():
        if variant.endswith("tfidf"):
            experiments._summary("labels", variant, chosen, 0)
    assert seen == [(20, 0.0), (0, 0.01), (0, 0.05), (0, 0.1)]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_published_settings_are_read(path: pathlib.Path) -> None:
    values = settings_of.load(path)
    assert values["dataset"] == path.stem
    assert path.stem in (*TEXT_SETS, "files")
    if path.stem == "files":
        values["files"] = {"nodes": "nodes.csv", "edges": "edges.csv"}
    settings_of.read(LeadingSettings, values)


def test_the_command_trains_on_tables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    graph = data()
    nodes = pandas.DataFrame(
        {
            "id": range(30),
            "title": graph.texts,
            "field": [graph.class_names[label] for label in graph.y.tolist()],
        }
    )
    nodes.to_csv(tmp_path / "nodes.csv", index=False)
    pandas.DataFrame(graph.edge_index.t().numpy(), columns=["from", "to"]).to_parquet(
        tmp_path / "edges.parquet"
    )
    options = ["train", "leading", "--nodes", tmp_path / "nodes.csv"]
    options += ["--edges", tmp_path / "edges.parquet", "--text", "title", "--label", "field"]
    options += ["--epochs", "1", "--set", "training.batch_size=9", "--out", tmp_path / "run"]
    assert call(monkeypatch, *options) == 0
    assert "training" in capsys.readouterr().out
    assert len(pandas.read_parquet(tmp_path / "run/predictions.parquet")) == 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lm", "nowhere"], "nowhere"),
        (["--baseline", "tf-idf"], "there is no baseline 'tf-idf'; the nearest is tfidf"),
        (["--nodes", "nodes.csv"], "--nodes and --edges go together, got --nodes"),
        (["--dataset", "files"], "files.nodes and files.edges are both needed"),
        (["--dataset", "cora-text"], "root must name the folder of its files"),
        (["--set", "propagation.alpha=1.0"], "propagation.alpha must be > 0 and < 1"),
        (["--set", "propagation.alpha=0"], "propagation.alpha must be > 0 and < 1"),
        (["--set", "encoder.lora_rank=4"], "are for a language model in a folder"),
    ],
)
def test_mistakes_end_with_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: pathlib.Path,
    options: list[str],
    message: str,
) -> None:
    assert call(monkeypatch, "train", "leading", *options, "--out", tmp_path / "run") == 2
    err = capsys.readouterr().err
    assert message in " ".join(err.split())
    assert "Traceback" not in err


def test_a_resumed_run_keeps_its_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    chosen = settings()
    RunFolder(tmp_path).write_text("config.yaml", settings_of.dump(chosen))
    options = ["--resume", "--out", tmp_path, "--set", "neighbors.fanout=3"]
    assert call(monkeypatch, "train", "leading", *options) == 2
    assert "cannot resume with another neighbors.fanout" in capsys.readouterr().err


def test_what_is_missing_at_the_end_is_told_at_the_start(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = inference.importlib.util.find_spec
    monkeypatch.setattr(
        inference.importlib.util,
        "find_spec",
        lambda name, *more: None if name == "pyarrow" else found(name, *more),
    )
    with pytest.raises(ImportError, match=r"need pyarrow: pip install 'gtkern\[language\]'"):
        LeadingRun(settings(), data(), RunFolder(tmp_path))


def test_a_batch_is_of_all_processes(tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("gtkern.methods.leading.run._processes.rank", lambda: 0)
    monkeypatch.setattr("gtkern.methods.leading.run._processes.count", lambda: 5)
    with pytest.raises(UserError, match=r"training\.batch_size 4 must be at least the 5 processes"):
        LeadingRun(settings(), data(), RunFolder(tmp_path))
