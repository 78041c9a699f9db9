"""What the commands for models of whole graphs share."""

from __future__ import annotations

import pathlib
import shlex
import sys

from rich.console import Console

from gtkern.cli.inputs import (
    check_backend_name,
    check_known,
    integers,
    lasting,
    load_graph_data,
    read_settings,
)

__all__ = ["DEFAULT", "known_model", "repeat"]

DEFAULT = "synthetic"
"""The data set without options."""


def known_model(model: str | None, config: pathlib.Path | None) -> str:
    """The model that is asked for, else that of the settings, else GraphGPS.

    Raises:
        UserError: there is no such model.
    """
    from gtkern.training import settings as settings_of
    from gtkern.training.graph_settings import MODELS

    if model is None and config is not None and config.is_file():
        model = str(settings_of.load(config).get("model", "graphgps"))
    model = model or "graphgps"
    check_known("model", model, tuple(MODELS))
    return model


def repeat(
    model: str,
    *,
    seeds: str | None,
    seed: int | None,
    dataset: str | None,
    data_root: pathlib.Path | None,
    out: pathlib.Path | None,
    config: pathlib.Path | None,
    assignments: list[str] | None,
    epochs: str | None,
    folds: int | None,
    backend: str,
    devices: str,
    resume: bool,
) -> None:
    """Do a run for each seed, or for each seed and fold; print their table.

    Args:
        model: its name.
        seeds: the option; None: one seed, `seed` or the settings' own.
        dataset, data_root, out, config, assignments, epochs, folds, backend, devices: the options.
        resume: go on from what is in the folder; else begin anew.

    Raises:
        UserError: an option does not fit.
    """
    from gtkern.training.errors import UserError
    from gtkern.training.graph_settings import settings_class

    check_backend_name(backend)
    changes = list(assignments or [])
    own = ["seed"] if seeds is not None else []
    for key in (*own, "fold"):
        if any(assignment.partition("=")[0].strip() == key for assignment in changes):
            raise UserError(f"every {key} is a run of its own here, got --set {key}")
    if folds is not None:
        changes.append(f"folds={folds}")
    seed_list = [seed] if seeds is None else [*integers("--seeds", seeds)]
    for number in seed_list:
        # a seed out of range shows before any run; the others are alike
        settings = read_settings(
            model,
            settings_class(model),
            ("training.epochs",),
            dataset=dataset,
            default=DEFAULT,
            config=config,
            assignments=changes,
            seed=number,
            epochs=epochs,
        )
    folder_path = out or pathlib.Path("runs") / f"{model}-{settings.dataset}-runs"

    with lasting():
        from gtkern.training import memory
        from gtkern.training.fit import join_processes
        from gtkern.training.graph_repeats import NAME, GraphRepeats
        from gtkern.training.run import RunFolder

    memory.keep_freed_memory()
    device = join_processes(devices)
    data, name = load_graph_data(settings, data_root, folder_path)
    repeats = GraphRepeats(
        settings,
        data,
        RunFolder(folder_path),
        dataset=name,
        device=device,
        backend=backend,
        command=shlex.join(["gtkern", *sys.argv[1:]]),
        console=Console(stderr=True),
    )
    used = [settings.seed if number is None else number for number in seed_list]
    console = Console()
    console.print(repeats.run(used, resume=resume))
    console.print(f"{folder_path / NAME}.csv and .png; the runs are beside them", highlight=False)
