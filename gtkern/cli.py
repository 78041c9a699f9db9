"""The command line: gtkern train, gtkern experiment, gtkern doctor, gtkern bench.

What a command needs is imported when it runs, so that help and mistakes come at once. A mistake of
the user ends with one line on stderr and exit code 2.
"""

from __future__ import annotations

import difflib
import gc
import os
import pathlib
import shlex
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console

if TYPE_CHECKING:
    from gtkern.data.node import NodeData
    from gtkern.methods.spexphormer.settings import Settings

__all__ = ["app", "main", "run"]

USER_MISTAKE = 2
INTERRUPTED = 130

app = typer.Typer(
    name="gtkern",
    help="Kernels for graph transformers, and the methods built on them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
train = typer.Typer(no_args_is_help=True, help="Train a method and leave a run folder.")
app.add_typer(train, name="train")
experiment = typer.Typer(no_args_is_help=True, help="Do a paper's experiments again.")
app.add_typer(experiment, name="experiment")

# the options that several commands have
DatasetOption = Annotated[
    str | None,
    typer.Option(
        help="A data set of the paper, or power-law; that and, without --data-root, "
        "minesweeper are generated."
    ),
]
DataRootOption = Annotated[
    pathlib.Path | None,
    typer.Option(help="Folder of published files, as PyG's and OGB's loaders lay them out."),
]
ConfigOption = Annotated[
    pathlib.Path | None, typer.Option(help="YAML of settings instead of the paper's.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, as in phase1.lr=0.02."),
]
EpochsOption = Annotated[
    str | None, typer.Option(metavar="N|N1,N2", help="Epochs of both phases, or of each.")
]
BackendOption = Annotated[
    str, typer.Option(help="auto, reference, cpu, triton or cuda; a named one never falls back")
]
DevicesOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


def main() -> NoReturn:
    """Run the command line of this process, and end it."""
    try:
        run()
        code: Any = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # taking the interpreter apart, module by module, takes longer than starting it
    os._exit(code if isinstance(code, int) else int(code is not None))


def run() -> None:
    """Run the command line; raises SystemExit with the code of any end but a good one."""
    from gtkern.training.errors import InterruptedRunError, LostProcessError, UserError

    error_console = Console(stderr=True)
    try:
        app(prog_name="gtkern")
    except UserError as error:
        error_console.print(f"[bold red]gtkern:[/] {_escape(str(error))}", soft_wrap=True)
        raise SystemExit(USER_MISTAKE) from None
    except InterruptedRunError as error:
        from gtkern import _processes

        if _processes.rank() == 0:
            error_console.print(f"[bold yellow]gtkern:[/] {_escape(str(error))}", soft_wrap=True)
        raise SystemExit(INTERRUPTED) from None
    except LostProcessError as error:
        error_console.print(f"[bold red]gtkern:[/] {_escape(str(error))}", soft_wrap=True)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


@train.command(no_args_is_help=False)
def spexphormer(
    dataset: DatasetOption = None,
    data_root: DataRootOption = None,
    out: Annotated[
        pathlib.Path | None, typer.Option(help="Run folder; default: runs/spexphormer-DATASET.")
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random; default 0.")] = None,
    epochs: EpochsOption = None,
    backend: BackendOption = "auto",
    devices: DevicesOption = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the run folder.")
    ] = False,
    compare: Annotated[
        str | None,
        typer.Option(metavar="pyg", help="Then time the same model on plain PyG and torch ops."),
    ] = None,
) -> None:
    """Train Spexphormer: attention scores first, then a wider network on sampled edges.

    Without options: the paper's settings on the generated Minesweeper graph.
    """
    from gtkern.training import settings as settings_of
    from gtkern.training.errors import UserError

    if compare not in (None, "pyg"):
        raise UserError(f"--compare knows only pyg, got {compare!r}")
    _check_backend_name(backend)
    saved = None
    if resume:
        if out is None:
            out = _default_folder(dataset or "minesweeper")
        saved = out / "config.yaml"
        if not saved.is_file():
            raise UserError(f"nothing to resume: {saved} is not there")
    settings = _settings(dataset, config or saved, set_ or [], seed, epochs)
    if saved is not None:
        _check_same(settings, saved)

    folder_path = out or _default_folder(settings.dataset)

    from gtkern import _processes
    from gtkern.training.errors import InterruptedRunError, LostProcessError

    with _lasting():
        from gtkern.methods.spexphormer.run import Spexphormer
        from gtkern.training import memory
        from gtkern.training.fit import join_processes
        from gtkern.training.run import RunFolder, comparison_table, table

    memory.keep_freed_memory()
    device = join_processes(devices)
    first = _processes.rank() == 0
    if not first:
        # the first one writes what is generated, and the others read it
        _processes.barrier()
    data, name = _load_data(settings, data_root, folder_path)
    if first:
        _processes.barrier()
    folder = RunFolder(folder_path, writes=first)
    try:
        method = Spexphormer(
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
        summary = method.run(resume=resume, compare=compare is not None)
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


@experiment.command("spexphormer", no_args_is_help=True)
def spexphormer_experiment(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="main, ablations, edges, batches or consistency."),
    ],
    dataset: DatasetOption = None,
    data_root: DataRootOption = None,
    out: Annotated[
        pathlib.Path | None,
        typer.Option(help="Folder of all experiments; default: runs/spexphormer-DATASET-paper."),
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    seeds: Annotated[str, typer.Option(metavar="N,N,...", help="One run for each.")] = "0,1,2",
    epochs: EpochsOption = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help="Batch sizes of batches (default: all training nodes, half of them, ...), widths "
            "of consistency (default: 4,8,16,32,64).",
        ),
    ] = None,
    backend: BackendOption = "auto",
    devices: DevicesOption = "auto",
) -> None:
    """Do an experiment of Spexphormer's paper: runs, a table and a plot.

    main: every seed, and the paper's figure. ablations: without one part at a time. edges: how many
    are kept. batches: time and memory by batch size. consistency: scores of narrow networks beside
    those of a wide one.

    A run that is finished in the folder is not done again; one that was stopped goes on.
    """
    from gtkern.training.errors import UserError

    _check_backend_name(backend)
    _check_known("experiment", name, ("main", "ablations", "edges", "batches", "consistency"))
    seed_list = _integers("--seeds", seeds)
    size_list = [] if sizes is None else _integers("--sizes", sizes)
    if any(assignment.partition("=")[0].strip() == "seed" for assignment in set_ or []):
        raise UserError("the seeds of an experiment are set by --seeds, got --set seed")
    for seed in seed_list:
        # a seed out of range shows before any run; the others are alike
        settings = _settings(dataset, config, set_ or [], seed, epochs)
    folder_path = out or pathlib.Path("runs") / f"spexphormer-{settings.dataset}-paper"

    with _lasting():
        from gtkern.methods.spexphormer.experiments import Experiments
        from gtkern.methods.spexphormer.kept_runs import Runs
        from gtkern.training import memory
        from gtkern.training.fit import join_processes
        from gtkern.training.run import RunFolder

    memory.keep_freed_memory()
    device = join_processes(devices)
    data, data_name = _load_data(settings, data_root, folder_path)
    folder = RunFolder(folder_path)
    try:
        runs = Runs(
            settings,
            data,
            folder,
            dataset=data_name,
            device=device,
            backend=backend,
            command=shlex.join(["gtkern", *sys.argv[1:]]),
            console=Console(stderr=True),
        )
    except (NotImplementedError, TypeError, ValueError) as error:
        raise UserError(str(error)) from error
    result = Experiments(runs, seed_list).run(name, size_list)
    console = Console()
    console.print(result.table())
    console.print(f"{folder.path / name}.csv and .png; the runs are beside them", highlight=False)


@app.command()
def doctor() -> None:
    """Show versions, devices and backends, and test every room against its reference."""
    from gtkern.doctor import show

    if not show(Console()):
        raise SystemExit(1)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def bench(context: typer.Context) -> None:
    """Time every op against its peers (from a clone of the repository; --help tells more)."""
    import gtkern
    from gtkern.training.errors import UserError

    root = pathlib.Path(gtkern.__file__).parent.parent
    if not (root / "bench" / "run.py").is_file():
        raise UserError("the benchmarks are not part of the installed package: run from a clone")
    command = [sys.executable, "-m", "bench.run", *context.args]
    raise SystemExit(subprocess.run(command, cwd=root, check=False).returncode)


@contextmanager
def _lasting() -> Iterator[None]:
    """Import what stays until the end: not searched for garbage meanwhile, nor ever after.

    Lightning and what it imports are a million objects; looking through them takes a fifth of the
    import, and then a moment of every few training steps.
    """
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def _settings(
    dataset: str | None,
    config: pathlib.Path | None,
    assignments: list[str],
    seed: int | None,
    epochs: str | None,
) -> Settings:
    """The settings behind the options; later options win: file, data set, --set, --seed."""
    from gtkern.methods.spexphormer.settings import Settings
    from gtkern.training import settings as settings_of
    from gtkern.training.errors import UserError

    if config is None:
        config = _published_config("spexphormer", dataset or "minesweeper")
        dataset = None
    values = settings_of.load(config)
    changes = list(assignments)
    if dataset is not None:
        changes.insert(0, f"dataset={dataset}")
    if seed is not None:
        changes.append(f"seed={seed}")
    if epochs is not None:
        parts = epochs.split(",")
        if len(parts) > 2 or not all(part.strip().isdigit() for part in parts):
            raise UserError(f"--epochs must be N or N1,N2, got {epochs!r}")
        changes += [f"phase1.epochs={parts[0]}", f"phase2.epochs={parts[-1]}"]
    return settings_of.read(Settings, settings_of.override(Settings, values, changes))


def _check_known(kind: str, name: str, known: Sequence[str]) -> None:
    from gtkern.training.errors import UserError

    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; the nearest is {near[0]}" if near else ""
        raise UserError(f"there is no {kind} {name!r}{hint}; known: {', '.join(known)}")


def _integers(option: str, text: str) -> list[int]:
    """Different numbers from 0, separated by commas."""
    from gtkern.training.errors import UserError

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise UserError(f"{option} must be numbers separated by commas, got {text!r}")
    numbers = [int(part) for part in parts]
    if len(set(numbers)) < len(numbers):
        raise UserError(f"{option} must be different numbers, got {text!r}")
    return numbers


def _published_config(method: str, dataset: str) -> pathlib.Path:
    folder = pathlib.Path(__file__).parent / "configs" / method
    _check_known("data set", dataset, sorted(path.stem for path in folder.glob("*.yaml")))
    return folder / f"{dataset}.yaml"


def _check_same(settings: Settings, saved: pathlib.Path) -> None:
    from gtkern.methods.spexphormer.settings import Settings as settings_class
    from gtkern.training import settings as settings_of
    from gtkern.training.errors import UserError

    before = settings_of.read(settings_class, settings_of.load(saved))
    key = settings_of.first_difference(before, settings)
    if key is not None:
        raise UserError(f"cannot resume with another {key} than in {saved}")


def _load_data(
    settings: Settings, root: pathlib.Path | None, folder: pathlib.Path
) -> tuple[NodeData, str]:
    """The data and its name in tables; generated files go to root, or into the run folder."""
    import zipfile

    from gtkern.data import DataNotFoundError, load_published, minesweeper
    from gtkern.training.errors import UserError

    if settings.dataset == "power-law":
        return _power_law(settings, folder / "data" if root is None else root / "power-law")
    if root is None:
        if settings.dataset != "minesweeper":
            raise UserError(
                f"{settings.dataset} is not generated: --data-root must name the folder of its "
                "files"
            )
        return minesweeper(settings.data_seed), "minesweeper (generated)"
    try:
        return load_published(settings.dataset, root), settings.dataset
    except DataNotFoundError as error:
        raise UserError(str(error)) from error
    except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
        raise UserError(f"cannot read {settings.dataset} under {root}: {error}") from error


def _power_law(settings: Settings, folder: pathlib.Path) -> tuple[NodeData, str]:
    import dataclasses

    from gtkern.data import power_law
    from gtkern.training.errors import UserError

    try:
        data = power_law(folder, settings.data_seed, **dataclasses.asdict(settings.power_law))
    except ValueError as error:
        raise UserError(f"power_law.{error}") from error
    except OSError as error:
        raise UserError(f"cannot write the data set power-law to {folder}: {error}") from error
    return data, "power-law (generated)"


def _check_backend_name(backend: str) -> None:
    from gtkern._backends import BACKENDS
    from gtkern.training.errors import UserError

    names = ("auto", *BACKENDS)
    if backend not in names:
        near = difflib.get_close_matches(backend, names, n=1)
        hint = f"; the nearest is {near[0]}" if near else ""
        raise UserError(f"--backend must be one of {', '.join(names)}, got {backend!r}{hint}")


def _default_folder(dataset: str) -> pathlib.Path:
    return pathlib.Path("runs") / f"spexphormer-{dataset}"


def _escape(text: str) -> Any:
    from rich.markup import escape

    return escape(text)
