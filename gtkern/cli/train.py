"""gtkern train."""

from __future__ import annotations

import pathlib
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console

from gtkern.cli.inputs import (
    check_backend_name,
    check_same,
    lasting,
    load_data,
    load_graph_data,
    read_settings,
)
from gtkern.cli.options import (
    BackendOption,
    ConfigOption,
    DataRootOption,
    DatasetOption,
    DevicesOption,
    EpochsOption,
    FoldsOption,
    GraphsOption,
    ModelOption,
    ResumeOption,
    SeedOption,
    SetOption,
)

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

    _train(
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

    _train(
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

    _train(
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


def _train(
    method: str,
    cls: type[Any],
    epoch_keys: Sequence[str],
    load: Callable[[], Any],
    *,
    dataset: str | None,
    data_root: pathlib.Path | None,
    out: pathlib.Path | None,
    config: pathlib.Path | None,
    assignments: list[str] | None,
    seed: int | None,
    epochs: str | None,
    backend: str,
    devices: str,
    resume: bool,
    default: str = "minesweeper",
    data_of: Callable[[Any, pathlib.Path | None, pathlib.Path], tuple[Any, str]] = load_data,
    run_options: Mapping[str, Any] | None = None,
) -> None:
    """Train a method.

    Args:
        method: its name.
        cls, epoch_keys: see read_settings.
        load: imports the class of its runs.
        dataset, data_root, out, config, assignments, seed, epochs, backend, devices, resume: the
            options.
        default: data set without options. data_of: loads the data, as load_data does.
        run_options: what the class's `run` is told besides `resume`.
    """
    from gtkern.training import settings as settings_of
    from gtkern.training.errors import UserError

    check_backend_name(backend)
    saved = None
    if resume:
        if out is None:
            out = _default_folder(method, dataset or default)
        saved = out / "config.yaml"
        if not saved.is_file():
            raise UserError(f"nothing to resume: {saved} is not there")
    settings = read_settings(
        method,
        cls,
        epoch_keys,
        dataset=dataset,
        default=default,
        config=config or saved,
        assignments=assignments or [],
        seed=seed,
        epochs=epochs,
    )
    if saved is not None:
        check_same(settings, saved)

    folder_path = out or _default_folder(method, settings.dataset)

    from gtkern import _processes
    from gtkern.training.errors import InterruptedRunError, LostProcessError

    with lasting():
        run_class = load()
        from gtkern.training import memory
        from gtkern.training.fit import join_processes
        from gtkern.training.run import RunFolder, comparison_table, table

    memory.keep_freed_memory()
    device = join_processes(devices)
    first = _processes.rank() == 0
    if not first:
        # the first one writes what is generated, and the others read it
        _processes.barrier()
    data, name = data_of(settings, data_root, folder_path)
    if first:
        _processes.barrier()
    folder = RunFolder(folder_path, writes=first)
    try:
        run = run_class(
            settings,
            data,
            folder,
            device=device,
            backend=backend,
            dataset=name,
            command=shlex.join(["gtkern", *sys.argv[1:]]),
            console=Console(stderr=True),
        )
    except (NotImplementedError, TypeError, ValueError) as error:
        raise UserError(str(error)) from error
    if first:
        folder.write_text("config.yaml", settings_of.dump(settings))
    try:
        summary = run.run(resume=resume, **(run_options or {}))
    except InterruptedRunError as error:
        raise InterruptedRunError(
            f"stopped in {error}; the best weights so far and the state to go on from are in "
            f"{folder.path / 'checkpoints'}; the same command with --resume goes on"
        ) from None
    except LostProcessError as error:
        raise LostProcessError(
            f"{error}; the state to go on from is in {folder.path / 'checkpoints'}; the same "
            "command with --resume goes on"
        ) from None
    if not first:
        return
    console = Console()
    console.print(table(summary))
    if summary.comparison:
        console.print(comparison_table(summary.comparison))
    console.print(f"{summary.seconds:.1f} s in all; everything is in {folder.path}")


def _default_folder(method: str, dataset: str) -> pathlib.Path:
    return pathlib.Path("runs") / f"{method}-{dataset}"
