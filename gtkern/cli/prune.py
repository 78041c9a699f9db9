"""gtkern prune."""

from __future__ import annotations

import pathlib
import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from gtkern.cli.inputs import (
    check_backend_name,
    check_same,
    lasting,
    load_graph_data,
    read_settings,
)
from gtkern.cli.options import (
    BackendOption,
    ConfigOption,
    DataRootOption,
    DevicesOption,
    ResumeOption,
    SeedOption,
    SetOption,
)

if TYPE_CHECKING:
    from gtkern.training.graph_settings import GraphSettings

__all__ = ["base_settings", "prune"]

_RATIO = {"metavar": "RATIO", "help": "Share that is kept, above 0, at most 1."}


def prune(
    run: Annotated[
        pathlib.Path, typer.Argument(help="Folder of a finished run of gtkern train graph.")
    ],
    data_root: DataRootOption = None,
    out: Annotated[
        pathlib.Path | None, typer.Option(help="Run folder; default: RUN-pruned.")
    ] = None,
    tokens: Annotated[str | None, typer.Option(**_RATIO)] = None,
    heads: Annotated[str | None, typer.Option(**_RATIO)] = None,
    layers: Annotated[str | None, typer.Option(**_RATIO)] = None,
    weights: Annotated[str | None, typer.Option(**_RATIO)] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE",
            help="Of the dense network's FLOPs; the ratios are found, --set split=... weighs them.",
        ),
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    seed: SeedOption = None,
    epochs: Annotated[str | None, typer.Option(metavar="N", help="Epochs with masks.")] = None,
    backend: BackendOption = "auto",
    devices: DevicesOption = "auto",
    resume: ResumeOption = False,
) -> None:
    """Prune a trained network, make it compact, train on, save it, and report what that brought.

    Without ratios and budget: those of the settings for the run's data set.
    """
    from gtkern.methods.gtsp.settings import PruneSettings
    from gtkern.training import settings as settings_of
    from gtkern.training.errors import InterruptedRunError, UserError

    check_backend_name(backend)
    base = base_settings(run)
    folder_path = out or run.with_name(f"{run.name}-pruned")
    saved = folder_path / "config.yaml"
    if resume and not saved.is_file():
        raise UserError(f"nothing to resume: {saved} is not there")
    changes = list(set_ or [])
    given = {"tokens": tokens, "heads": heads, "layers": layers, "weights": weights}
    changes += [f"{name}.ratio={value}" for name, value in given.items() if value is not None]
    if budget is not None:
        changes.append(f"budget={budget}")
    settings = read_settings(
        "gtsp",
        PruneSettings,
        ("training.epochs",),
        dataset=None if config or resume else base.dataset,
        config=config or (saved if resume else None),
        assignments=changes,
        seed=seed,
        epochs=epochs,
    )
    if resume:
        check_same(settings, saved)

    with lasting():
        from gtkern.methods.gtsp.run import PruneRun
        from gtkern.training import memory
        from gtkern.training.fit import join_processes
        from gtkern.training.run import RunFolder, table

    memory.keep_freed_memory()
    device = join_processes(devices)
    data, name = load_graph_data(base, data_root, folder_path)
    folder = RunFolder(folder_path)
    try:
        pruned = PruneRun(
            settings,
            base,
            data,
            folder,
            weights=None if settings.start == "scratch" else _weights(run),
            device=device,
            backend=backend,
            dataset=name,
            command=shlex.join(["gtkern", *sys.argv[1:]]),
            console=Console(stderr=True),
        )
    except (NotImplementedError, TypeError, ValueError) as error:
        raise UserError(str(error)) from error
    folder.write_text("config.yaml", settings_of.dump(settings))
    try:
        summary = pruned.run(resume=resume)
    except InterruptedRunError as error:
        raise InterruptedRunError(
            f"stopped in {error}; the same command with --resume goes on"
        ) from None
    console = Console()
    console.print(table(summary))
    console.print(pruned.table())
    console.print(
        f"the compact network is in {folder_path / 'model'} (gtkern.models.load_model reads it); "
        f"pictures are in {folder_path / 'plots'}",
        highlight=False,
    )


def base_settings(run: pathlib.Path) -> GraphSettings:
    """The settings of a run of gtkern train graph.

    Raises:
        UserError: the folder has no such run, or one that was pruned already.
    """
    from gtkern.training import settings as settings_of
    from gtkern.training.errors import UserError
    from gtkern.training.graph_settings import MODELS, settings_class

    path = run / "config.yaml"
    if (run / "model/config.json").is_file():
        raise UserError(
            f"{run} was pruned and made compact already: what its masks hid is gone; prune the "
            "run of the dense network"
        )
    if not path.is_file():
        raise UserError(f"{run} has no run of gtkern train graph: {path} is not there")
    values = settings_of.load(path)
    model: Any = values.get("model")
    if model not in MODELS:
        raise UserError(
            f"{run} has a run of another kind: its model must be one of {', '.join(MODELS)}, "
            f"got {model!r}"
        )
    return settings_of.read(settings_class(model), values)


def _weights(run: pathlib.Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from gtkern.training.errors import UserError

    path = run / "checkpoints/training.safetensors"
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read the checkpoint {path}: {error}") from error
