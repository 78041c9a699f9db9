"""Times whole methods: `gtkern train <method>` as a process of its own, from start to end.

python bench/methods.py [--method spexphormer] [--case NAME] [--seeds 0 1 2] [--out CSV]
                        [-- more of the command]
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["Run", "main", "time_run"]

FIELDS = (
    "method", "dataset", "seed", "seconds", "phase_seconds", "peak_mib", "val", "test", "backend",
    "device", "versions", "command",
)  # fmt: skip


CASES = {
    # some minutes, 7 GiB of memory and 2 GiB of disk: asked for by name only
    "million": ("--dataset", "power-law", "--epochs", "1"),
    "nci1": ("--dataset", "nci1", "--epochs", "12"),
}
"""Further arguments of the command, by name. million: a million nodes, 50 million attention edges;
nci1: GTSP's base network on its set, with --method graph, and --data-root after --."""


@dataclass(frozen=True)
class Run:
    """One process.

    Attributes:
        seconds: from its start to its end, imports included.
        peak_bytes: largest resident memory of the process.
        summary: what it left in summary.json.
        command: as typed.
    """

    seconds: float
    peak_bytes: int
    summary: dict[str, Any]
    command: str

    def row(self) -> dict[str, str]:
        """The run as a row of a CSV."""
        summary = self.summary
        phases = [f"{phase['name']} {phase['seconds']:.2f}" for phase in summary["phases"]]
        return {
            "method": summary["method"],
            "dataset": summary["dataset"],
            "seed": str(summary["seed"]),
            "seconds": f"{self.seconds:.2f}",
            "phase_seconds": "; ".join(phases),
            "peak_mib": f"{self.peak_bytes / 2**20:.0f}",
            "val": _metrics(summary["val"]),
            "test": _metrics(summary["test"]),
            "backend": str(summary["backend"]),
            "device": str(summary.get("device", "")),
            "versions": "; ".join(f"{name} {v}" for name, v in summary["versions"].items()),
            "command": self.command,
        }


def _metrics(values: dict[str, float]) -> str:
    return "; ".join(f"{name} {value:.4f}" for name, value in values.items())


def time_run(arguments: Sequence[str]) -> Run:
    """Run `gtkern` with `arguments` and wait for its end.

    Args:
        arguments: all but --out, which is a folder that is removed afterwards.

    Raises:
        RuntimeError: the command is not installed, failed, or left no summary.
    """
    beside = pathlib.Path(sys.executable).with_name("gtkern")
    program = str(beside) if beside.exists() else shutil.which("gtkern")
    if program is None:
        raise RuntimeError("the command gtkern is not installed; run `make setup`")
    typed = " ".join(["gtkern", *arguments])
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "output.txt"
        with output.open("w") as file:
            begin = time.perf_counter()
            process = subprocess.Popen(
                [program, *arguments, "--out", f"{folder}/run"], stdout=file, stderr=file
            )
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            last = output.read_text().strip().splitlines()[-5:]
            raise RuntimeError(
                f"`{typed}` ended with code {process.returncode}: " + "\n".join(last)
            )
        try:
            summary = json.loads((pathlib.Path(folder) / "run" / "summary.json").read_text())
        except (OSError, ValueError) as error:
            raise RuntimeError(f"`{typed}` left no readable summary.json ({error})") from error
    # ru_maxrss counts bytes on macOS and KiB elsewhere
    unit = 1 if sys.platform == "darwin" else 1024
    return Run(seconds, usage.ru_maxrss * unit, summary, typed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="bench/methods.py",
        description="Time `gtkern train <method>` as a process, from start to end.",
    )
    parser.add_argument("--method", default="spexphormer")
    parser.add_argument("--case", choices=CASES, help="instead of the default data set")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=pathlib.Path, metavar="CSV", help="append the runs here")
    parser.add_argument("more", nargs="*", help="after --: further arguments of the command")
    options = parser.parse_args(arguments)
    if options.out is not None:
        try:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            with options.out.open("a"):
                pass
        except OSError as error:
            parser.error(f"--out: cannot write {options.out}: {error.strerror}")
    runs: list[Run] = []
    for seed in options.seeds:
        try:
            of_case = CASES.get(options.case, ())
            command = ["train", options.method, *of_case, "--seed", str(seed), *options.more]
            run = time_run(command)
        except RuntimeError as error:
            print(f"bench/methods.py: {error}", file=sys.stderr)
            return 2
        runs.append(run)
        if options.out is not None:
            _append(options.out, run)
    _print(runs)
    return 0


def _append(path: pathlib.Path, run: Run) -> None:
    new = path.stat().st_size == 0
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(run.row())


def _print(runs: Sequence[Run]) -> None:
    view = Table(title=runs[0].command.replace(" --seed " + str(runs[0].summary["seed"]), ""))
    names = ("seed", "seconds", "phase_seconds", "peak_mib", "val", "test")
    for name in names:
        view.add_column(name.replace("_", " "))
    for run in runs:
        row = run.row()
        view.add_row(*(row[name] for name in names))
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(view)
    middle = statistics.median(run.seconds for run in runs)
    for phase in runs[-1].summary["phases"]:
        console.print(
            f"{phase['name']}: {phase['seconds']:.1f} s, {phase['seconds_per_epoch']:.2f} s an "
            f"epoch, peak {phase['peak_bytes'] / 2**20:,.0f} MiB (seed {runs[-1].summary['seed']})",
            highlight=False,
        )
    console.print(f"{middle:.2f} s from start to end (median of {len(runs)})", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
