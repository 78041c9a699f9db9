"""What the commands share that train one network and leave a run folder."""

from __future__ import annotations

import pathlib
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console

from gtkern.cli.inputs import (
    check_backend_name,
    check_same,
    lasting,
    load_data,
    read_settings,
)

__all__ = ["train_method"]


def train_method(
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
    except (FileNotFoundError, ImportError, NotImplementedError, TypeError, ValueError) as error:
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
