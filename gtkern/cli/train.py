"""gtkern train."""

from __future__ import annotations

import pathlib
from typing import Annotated, Any

import typer

from gtkern.cli.inputs import check_known, load_graph_data
from gtkern.cli.options import (
    BackendOption,
    ConfigOption,
    DataRootOption,
    DatasetOption,
    DevicesOption,
    EdgesOption,
    EpochsOption,
    FoldsOption,
    GraphsOption,
    LabelOption,
    LanguageModelOption,
    ModelOption,
    NodesOption,
    ResumeOption,
    SeedOption,
    SetOption,
    TextColumnsOption,
    TextsOption,
)
from gtkern.cli.runs import train_method

__all__ = ["train"]

train = typer.Typer(no_args_is_help=True, help="Train a method and leave a run folder.")


@train.command(no_args_is_help=False)
def spexphormer(
    dataset: DatasetOption = None,
    data_root: DataRootOption = None,
    out: Annotated[
        pathlib.Path | None, typer.Option(help="Run folder; default: runs/spexphormer-DATASET.")
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    seed: SeedOption = None,
    epochs: EpochsOption = None,
    backend: BackendOption = "auto",
    devices: DevicesOption = "auto",
    resume: ResumeOption = False,
    compare: Annotated[
        str | None,
        typer.Option(metavar="pyg", help="Then time the same model on plain PyG and torch ops."),
    ] = None,
) -> None:
    """Train Spexphormer: attention scores first, then a wider network on sampled edges.

    Without options: the paper's settings on the generated Minesweeper graph.
    """
    from gtkern.methods.spexphormer.settings import Settings
    from gtkern.training.errors import UserError

    if compare not in (None, "pyg"):
        raise UserError(f"--compare knows only pyg, got {compare!r}")

    def load() -> Any:
        from gtkern.methods.spexphormer.run import Spexphormer

        return Spexphormer

    train_method(
        "spexphormer",
        Settings,
        ("phase1.epochs", "phase2.epochs"),
        load,
        dataset=dataset,
        data_root=data_root,
        out=out,
        config=config,
        assignments=set_,
        seed=seed,
        epochs=epochs,
        backend=backend,
        devices=devices,
        resume=resume,
        run_options={"compare": compare is not None},
    )


@train.command(no_args_is_help=False)
def exphormer(
    dataset: DatasetOption = None,
    data_root: DataRootOption = None,
    out: Annotated[
        pathlib.Path | None, typer.Option(help="Run folder; default: runs/exphormer-DATASET.")
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    seed: SeedOption = None,
    epochs: Annotated[str | None, typer.Option(metavar="N", help="Epochs.")] = None,
    backend: BackendOption = "auto",
    devices: DevicesOption = "auto",
    resume: ResumeOption = False,
) -> None:
    """Train Exphormer, the baseline of Spexphormer: attention over the graph and an expander.

    --set training.local=gcn adds a graph convolution to every block, as GraphGPS does;
    training.graph_edges=false leaves the graph's own edges to it.
    """
    from gtkern.methods.exphormer.settings import Settings

    def load() -> Any:
        from gtkern.methods.exphormer.run import ExphormerRun

        return ExphormerRun

    train_method(
        "exphormer",
        Settings,
        ("training.epochs",),
        load,
        dataset=dataset,
        data_root=data_root,
        out=out,
        config=config,
        assignments=set_,
        seed=seed,
        epochs=epochs,
        backend=backend,
        devices=devices,
        resume=resume,
    )


@train.command(no_args_is_help=False)
def leading(
    dataset: TextsOption = None,
    data_root: Annotated[
        pathlib.Path | None, typer.Option(help="Folder that holds that of the data set.")
    ] = None,
    nodes: NodesOption = None,
    edges: EdgesOption = None,
    text: TextColumnsOption = None,
    label: LabelOption = None,
    lm: LanguageModelOption = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="joint (neighbours with gradient), language-model (no graph), cascaded (frozen "
            "language model), or tfidf.",
        ),
    ] = None,
    out: Annotated[
        pathlib.Path | None, typer.Option(help="Run folder; default: runs/leading-DATASET.")
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    seed: SeedOption = None,
    epochs: EpochsOption = None,
    backend: BackendOption = "auto",
    devices: DevicesOption = "auto",
    resume: ResumeOption = False,
) -> None:
    """Fine-tune a language model end to end on a graph of texts.

    Without options: a small language model with random weights on a generated graph. Predictions of
    all nodes are left in predictions.parquet, and the trained network in model/.
    """
    from gtkern.cli.texts import load_text_data, text_assignments
    from gtkern.methods.leading.settings import MODES, LeadingSettings

    if baseline is not None:
        check_known("baseline", baseline, MODES[1:])
    dataset, changes = text_assignments(dataset, nodes, edges, text, label, lm)
    if baseline is not None:
        changes.append(f"train={baseline}")

    def load() -> Any:
        from gtkern.methods.leading.run import LeadingRun

        return LeadingRun

    train_method(
        "leading",
        LeadingSettings,
        ("features.epochs", "training.epochs"),
        load,
        dataset=dataset,
        data_root=data_root,
        out=out,
        config=config,
        assignments=[*changes, *(set_ or [])],
        seed=seed,
        epochs=epochs,
        backend=backend,
        devices=devices,
        resume=resume,
        default="synthetic",
        data_of=load_text_data,
    )


@train.command(no_args_is_help=False)
def graph(
    model: ModelOption = None,
    dataset: GraphsOption = None,
    data_root: DataRootOption = None,
    out: Annotated[
        pathlib.Path | None, typer.Option(help="Run folder; default: runs/MODEL-DATASET.")
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    seed: SeedOption = None,
    epochs: Annotated[str | None, typer.Option(metavar="N", help="Epochs.")] = None,
    folds: FoldsOption = None,
    backend: BackendOption = "auto",
    devices: DevicesOption = "auto",
    resume: ResumeOption = False,
) -> None:
    """Train a graph transformer that predicts something of whole graphs, such as molecules.

    Without options: GraphGPS on a generated task. With --folds every fold is a run in a folder of
    its own, and a table has their mean.
    """
    from gtkern.cli.graphs import DEFAULT, known_model, repeat
    from gtkern.training.graph_settings import settings_class

    saved = out / "config.yaml" if resume and out is not None else None
    model = known_model(model, config or saved)
    if folds is not None:
        repeat(
            model,
            seeds=None,
            seed=seed,
            dataset=dataset,
            data_root=data_root,
            out=out,
            config=config,
            assignments=set_,
            epochs=epochs,
            folds=folds,
            backend=backend,
            devices=devices,
            resume=resume,
        )
        return

    def load() -> Any:
        from gtkern.training.graph_run import GraphRun

        return GraphRun

    train_method(
        model,
        settings_class(model),
        ("training.epochs",),
        load,
        dataset=dataset,
        data_root=data_root,
        out=out,
        config=config,
        assignments=set_,
        seed=seed,
        epochs=epochs,
        backend=backend,
        devices=devices,
        resume=resume,
        default=DEFAULT,
        data_of=load_graph_data,
    )
