"""The command line: gtkern train, pretrain, prune, tune, experiment, doctor and bench.

What a command needs is imported when it runs, so that help and mistakes come at once. A mistake of
the user ends with one line on stderr and exit code 2.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import traceback
from typing import Any, NoReturn

import typer
from rich.console import Console

from gtkern.cli.experiment import experiment
from gtkern.cli.pretrain import pretrain
from gtkern.cli.prune import prune
from gtkern.cli.train import train
from gtkern.cli.tune import tune

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
app.add_typer(train, name="train")
app.command(no_args_is_help=True)(pretrain)
app.command(no_args_is_help=True)(prune)
app.add_typer(tune, name="tune")
app.add_typer(experiment, name="experiment")


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


def _escape(text: str) -> Any:
    from rich.markup import escape

    return escape(text)
