"""gtkern tune, and what the experiments of tuning share with it."""

from __future__ import annotations

import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from gtkern.cli.inputs import (
    check_backend_name,
    check_known,
    integers,
    lasting,
    load_graph_data,
    read_settings,
)
from gtkern.cli.options import (
    BackendOption,
    ConfigOption,
    DataRootOption,
    DevicesOption,
    SetOption,
)

if TYPE_CHECKING:
    from gtkern.methods.deepgpt.experiments import Tunings
    from gtkern.methods.deepgpt.pretrained import Backbone

__all__ = [
    "BackboneOption",
    "CheckpointOption",
    "NetworkOption",
    "SeedsOption",
    "open_tunings",
    "tune",
]

tune = typer.Typer(no_args_is_help=True, help="Tune a pre-trained network on a data set.")

BackboneOption = Annotated[
    pathlib.Path | None,
    typer.Option(help="Folder of gtkern pretrain or prune, or a file with a public checkpoint."),
]
CheckpointOption = Annotated[
    str | None,
    typer.Option("--model", help="Of a public checkpoint: graphormer or light."),
]
NetworkOption = Annotated[
    pathlib.Path | None,
    typer.Option(help="YAML of a public checkpoint's sizes; default: Graphormer-base, KPGT's."),
]
SeedsOption = Annotated[
    str | None, typer.Option(metavar="N,N,...", help="Runs for each; default: the settings'.")
]


@tune.command(no_args_is_help=True)
def deepgpt(
    backbone: BackboneOption = None,
    dataset: Annotated[str | None, typer.Option(help="Such as bace, esol or tox21.")] = None,
    data_root: DataRootOption = None,
    out: Annotated[
        pathlib.Path | None, typer.Option(help="Folder of all runs; default: runs/deepgpt-MODEL.")
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(help="deepgpt, full, head, prompt or prefix: what is trained."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="folds, or one with a test of its own: scaffold, random, published."),
    ] = None,
    folds: Annotated[
        int | None, typer.Option(metavar="K", help="Of the cross-validation; default: 5.")
    ] = None,
    seeds: SeedsOption = None,
    model: CheckpointOption = None,
    network: NetworkOption = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    epochs: Annotated[str | None, typer.Option(metavar="N", help="Epochs.")] = None,
    backend: BackendOption = "auto",
    devices: DevicesOption = "auto",
) -> None:
    """Tune prompts of a frozen network by DeepGPT; --train has the baselines.

    Without --split it is the paper's cross-validation: a run for each fold. A run that is finished
    in the folder is not done again; one that was stopped goes on.
    """
    changes = list(set_ or [])
    given = {"train": train, "split": split, "folds": folds}
    changes += [f"{name}={value}" for name, value in given.items() if value is not None]
    tunings, path = open_tunings(
        backbone,
        [dataset],
        data_root=data_root,
        out=out,
        model=model,
        network=network,
        config=config,
        assignments=changes,
        seeds=seeds,
        epochs=epochs,
        backend=backend,
        devices=devices,
    )
    console = Console()
    console.print(tunings.tune())
    console.print(f"tables, curves, prompts and the runs are in {path}", highlight=False)


def open_tunings(
    backbone: pathlib.Path | None,
    datasets: Sequence[str | None],
    *,
    data_root: pathlib.Path | None,
    out: pathlib.Path | None,
    model: str | None,
    network: pathlib.Path | None,
    config: pathlib.Path | None,
    assignments: Sequence[str],
    seeds: str | None,
    epochs: str | None,
    backend: str,
    devices: str,
) -> tuple[Tunings, pathlib.Path]:
    """The tunings that the options ask for, nothing of them done yet, and their folder.

    Args:
        backbone, data_root, out, model, network, config, seeds, epochs, backend, devices: the
            options.
        datasets: names; None: that of `config`.
        assignments: changed settings.

    Raises:
        UserError: an option does not fit.
    """
    from gtkern.methods.deepgpt.settings import TuneSettings, check_readable
    from gtkern.training.errors import UserError

    check_backend_name(backend)
    for key in ("seed", "fold"):
        if any(assignment.partition("=")[0].strip() == key for assignment in assignments):
            raise UserError(f"every {key} is a run of its own here, got --set {key}")
    if backbone is None:
        raise UserError("--backbone must name a folder of gtkern pretrain, or a checkpoint")
    found = _backbone(backbone, model, network)
    if config is None and None in datasets:
        raise UserError("--dataset must name a data set, or --config a file that does")
    chosen = []
    for dataset in datasets:
        settings = read_settings(
            f"deepgpt/{found.model}",
            TuneSettings,
            ("training.epochs",),
            dataset=dataset,
            config=config,
            assignments=assignments,
            seed=None,
            epochs=epochs,
        )
        try:
            check_readable(settings.dataset)
        except ValueError as error:
            raise UserError(str(error)) from error
        chosen.append(settings)
    seed_list = [chosen[0].seed] if seeds is None else integers("--seeds", seeds)
    folder_path = out or pathlib.Path("runs") / f"deepgpt-{found.model}"

    with lasting():
        from gtkern.methods.deepgpt.experiments import Tuning, Tunings
        from gtkern.training import memory
        from gtkern.training.fit import join_processes
        from gtkern.training.run import RunFolder

    memory.keep_freed_memory()
    device = join_processes(devices)
    sets = []
    for settings in chosen:
        data, name = load_graph_data(settings, data_root, folder_path)
        try:
            found.check(data)
        except ValueError as error:
            raise UserError(str(error)) from error
        sets.append(Tuning(settings, data, name))
    tunings = Tunings(
        found,
        sets,
        RunFolder(folder_path),
        seed_list,
        device=device,
        backend=backend,
        command=shlex.join(["gtkern", *sys.argv[1:]]),
        console=Console(stderr=True),
    )
    return tunings, folder_path


def _backbone(path: pathlib.Path, model: str | None, network: pathlib.Path | None) -> Backbone:
    from gtkern.methods.deepgpt.pretrained import PUBLIC, open_backbone
    from gtkern.training import settings as settings_of
    from gtkern.training.errors import UserError

    if model is not None:
        check_known("model with public checkpoints", model, PUBLIC)
    sizes: dict[str, Any] | None = None if network is None else settings_of.load(network)
    try:
        return open_backbone(path, model, sizes)
    except (ImportError, OSError, TypeError, ValueError) as error:
        raise UserError(f"--backbone: {error}") from error
