"""The command: `make fuzz`, or `PYTHONPATH=tests python -m fuzz`."""

from __future__ import annotations

import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .rooms import ROOMS
from .worker import Tally, explain, poison, try_case

console = Console(highlight=False)


def drive(room: str, seed: int, cases: int) -> Tally:
    """Try the cases of a room in processes of their own: what ends one does not end the drive."""
    tally = Tally()
    first = 0
    while first < cases:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "verdicts"
            arguments = [room, str(seed), str(first), str(cases), str(path)]
            ended = subprocess.run(
                [sys.executable, "-m", f"{__package__}.worker", *arguments],
                stderr=subprocess.PIPE,
                text=True,
            )
            if not path.exists():
                raise RuntimeError(f"the process of {room} did not start:\n{ended.stderr}")
            for line in path.read_text().splitlines():
                tally.add(first, json.loads(line))
                first += 1
        if first < cases:
            # the next case is the one that it was at
            how = f"exit code {ended.returncode}"
            if ended.returncode < 0:
                how = signal.Signals(-ended.returncode).name
            said = " ".join(ended.stderr.strip().splitlines()[-3:])
            tally.add(first, f"ended the process: {how} {said}")
            first += 1
    return tally


def main(
    cases: Annotated[int, typer.Option(help="Cases of each room.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    room: Annotated[list[str] | None, typer.Option(help="Only these; may be repeated.")] = None,
    case: Annotated[int | None, typer.Option(help="Only this one, in words.")] = None,
) -> None:
    """Call every public function with odd inputs, and tell what none may do."""
    rooms = room or [*ROOMS]
    unknown = [each for each in rooms if each not in ROOMS]
    if unknown:
        raise typer.BadParameter(f"room must be one of {', '.join(ROOMS)}, got {unknown[0]}")
    if case is not None:
        poison()
        for each in rooms:
            console.print(explain(each, seed, case, enormous=True), markup=False)
            console.print(try_case(each, seed, case, enormous=True), markup=False)
        return
    table = Table("room", "cases", "returned", "refused", "faults", "seconds")
    wrong = 0
    for each in rooms:
        begin = time.perf_counter()
        tally = drive(each, seed, cases)
        seconds = time.perf_counter() - begin
        for number, fault in sorted(tally.faults.items()):
            console.print(f"[bold]--room {each} --case {number} --seed {seed}[/bold]")
            console.print(f"    {fault}", markup=False)
        counts = [tally.counts[kind] for kind in ("returned", "refused", "fault")]
        wrong += counts[-1]
        table.add_row(each, *(f"{count:,}" for count in (sum(counts), *counts)), f"{seconds:.0f}")
    console.print(table)
    raise typer.Exit(1 if wrong else 0)


if __name__ == "__main__":
    typer.run(main)
