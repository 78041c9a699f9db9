"""The process that makes the calls of one room, and says before each which it is."""

from __future__ import annotations

import json
import pathlib
import re
import resource
import signal
import sys
import warnings
from collections import Counter
from dataclasses import dataclass, field

import torch

from .draw import Draw
from .judge import Case, Fault, describe, judge
from .rooms import ROOMS

SECONDS = 60
"""A call that takes longer hangs."""
HEADROOM = 2**30
"""Bytes that enormous cases may take beyond what the process has."""


@dataclass
class Tally:
    """What came of some cases.

    Attributes:
        counts: of "returned", "refused" and "fault". faults: the first of each sort, by case.
    """

    counts: Counter[str] = field(default_factory=Counter)
    faults: dict[int, str] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    def add(self, number: int, verdict: str) -> None:
        """Count "returned", "refused" or the words of a fault, kept unless one like it is."""
        if verdict in ("returned", "refused"):
            self.counts[verdict] += 1
            return
        self.counts["fault"] += 1
        sort = re.sub(r"\d+", "", verdict)[:120]
        if sort not in self.seen:
            self.seen.add(sort)
            self.faults[number] = verdict


def make(room: str, seed: int, number: int, *, enormous: bool = False) -> tuple[Case, list[str]]:
    """A case of a room, the same every time; and what is odd about it."""
    draw = Draw(seed, number, enormous=enormous)
    torch.manual_seed(number)
    case = draw.one(ROOMS[room])(draw)
    return case, draw.twists


def try_case(room: str, seed: int, number: int, *, enormous: bool = False) -> str:
    """Make the call; returns what judge.judge does, or a fault's words."""
    # torch's, about sparse layouts
    warnings.simplefilter("ignore")
    try:
        case, twists = make(room, seed, number, enormous=enormous)
    except Exception as error:
        return f"could not be made: {type(error).__name__}: {error}"
    try:
        return judge(case, plain=not twists)
    except Fault as fault:
        name = getattr(case.function, "__qualname__", repr(case.function))
        return f"{name} {fault} ({'; '.join(twists) or 'a plain call'})"


def run(room: str, seed: int, numbers: range) -> Tally:
    """Try many cases in this process."""
    tally = Tally()
    for number in numbers:
        tally.add(number, try_case(room, seed, number))
    return tally


def poison() -> None:
    """Fill fresh memory with NaN: what nobody wrote shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True


def limit_memory() -> None:
    """Let the process have so much more address space than it has."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + HEADROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def explain(room: str, seed: int, number: int, *, enormous: bool) -> str:
    """A case in words."""
    case, twists = make(room, seed, number, enormous=enormous)
    name = getattr(case.function, "__qualname__", repr(case.function))
    lines = [f"{name}: {'; '.join(twists) or 'a plain call'}"]
    lines += [f"    {key} = {describe(value)}" for key, value in case.arguments.items()]
    return "\n".join(lines)


def main() -> None:
    """Run by __main__.py: room, seed, first, end, file; the file gets a line for each case."""
    room, seed, first, end, path = sys.argv[1:]
    poison()
    limit_memory()
    with pathlib.Path(path).open("w") as file:
        for number in range(int(first), int(end)):
            # without a handler: it ends native code too
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            file.write(json.dumps(try_case(room, int(seed), number, enormous=True)) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
