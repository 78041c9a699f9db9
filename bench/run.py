"""Runs the cases of bench/ops, prints a table for each, and keeps the rows of record.

python bench/run.py [--device cpu|cuda] [--rooms ...] [--cases ...] [--peers ...] [--quick]
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import importlib
import pathlib
import sys
import time
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    # behind an installed gtkern, so that this checkout's sources do not hide what was built
    sys.path.append(str(ROOT))

import torch  # noqa: E402
from rich.console import Console  # noqa: E402

from bench import plot  # noqa: E402
from bench.harness import Case, Clock, Room  # noqa: E402
from bench.limits import Limits  # noqa: E402
from bench.measure import exact_results, measure  # noqa: E402
from bench.records import Record, conditions, finished, save, slug, table  # noqa: E402

__all__ = ["main", "room_names"]

OPS = pathlib.Path(__file__).with_name("ops")
RESULTS = pathlib.Path(__file__).with_name("results")
UNFINISHED = 3
"""Exit code where --minutes were over before the last case."""


def room_names() -> list[str]:
    """The rooms that have a file in bench/ops."""
    return sorted(path.stem for path in OPS.glob("*.py") if path.stem != "__init__")


def load_room(name: str) -> Room:
    """The description of a room."""
    room: Room = importlib.import_module(f"bench.ops.{name}").ROOM
    return room


def quick_case(case: Case) -> Case:
    """The case in small."""
    small = case.graph.scaled(case.quick)
    return dataclasses.replace(
        case, graph=small, goals={}, bound_goals={}, rate_goals={}, published=""
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench/run.py", description="Measure gtkern's ops and their peers.",
        epilog="bench/README.md says how each figure is measured.",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--rooms", nargs="+", metavar="ROOM", help="default: all")
    parser.add_argument(
        "--cases", nargs="+", metavar="CASE", help="names, room/name or patterns; default: all"
    )
    parser.add_argument(
        "--peers", nargs="+", default=["all"], metavar="PEER", help="all, none, or names"
    )
    parser.add_argument(
        "--backends", nargs="+", metavar="BACKEND",
        help="of gtkern; ratios refer to the first; default: all that run here but reference",
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, nothing kept unless --out"
    )
    parser.add_argument(
        "--caches", default="warm", choices=("warm", "cold", "both"),
        help="cold: emptied before each call (default warm)",
    )  # fmt: skip
    parser.add_argument(
        "--check", action=argparse.BooleanOptionalAction,
        help="compare every backend with the reference in float64 before it is timed; "
        "default: on GPUs",
    )  # fmt: skip
    parser.add_argument(
        "--minutes", type=float, metavar="M",
        help=f"begin no case after so many; ends with code {UNFINISHED} if some are left",
    )  # fmt: skip
    parser.add_argument(
        "--resume", action="store_true",
        help="leave out what the file has from this commit and device",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's")
    parser.add_argument(
        "--budget", type=float, metavar="S",
        help="seconds of turns for each side (1; on GPUs 0.2)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=pathlib.Path, metavar="CSV", help="default: bench/results/<device>.csv"
    )
    parser.add_argument("--list", action="store_true", help="list rooms, cases and peers, and stop")
    return parser


def _chosen_device(parser: argparse.ArgumentParser, name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        parser.error(f"--device must be cpu or cuda, got {name!r}")
    if device.type not in ("cpu", "cuda"):
        parser.error(f"--device must be cpu or cuda, got {name!r}")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            parser.error("--device cuda: torch sees no CUDA device; use --device cpu")
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            parser.error(f"--device {name}: there are {count} CUDA devices, numbered from 0")
    return device


def _chosen_rooms(parser: argparse.ArgumentParser, names: Sequence[str] | None) -> list[str]:
    known = room_names()
    for name in names or ():
        if name not in known:
            parser.error(f"--rooms: no room {name!r}; there are {', '.join(known)}")
    return list(names or known)


def _chosen_cases(
    parser: argparse.ArgumentParser,
    rooms: Sequence[Room],
    patterns: Sequence[str] | None,
    device: torch.device,
) -> list[tuple[Room, Case]]:
    all_cases = [
        (room, case) for room in rooms for case in room.cases if case.device in ("", device.type)
    ]
    if not patterns:
        return all_cases

    def fits(room: Room, case: Case, pattern: str) -> bool:
        name = f"{room.name}/{case.name}" if "/" in pattern else case.name
        return fnmatch.fnmatchcase(name, pattern)

    for pattern in patterns:
        if not any(fits(room, case, pattern) for room, case in all_cases):
            names = ", ".join(f"{room.name}/{case.name}" for room, case in all_cases)
            parser.error(f"--cases: no case {pattern!r}; there are {names}")
    return [
        (room, case)
        for room, case in all_cases
        if any(fits(room, case, pattern) for pattern in patterns)
    ]


def _check_peers(
    parser: argparse.ArgumentParser, rooms: Sequence[Room], names: Sequence[str]
) -> None:
    known = sorted({name for room in rooms for name in room.peers})
    for name in names:
        if name not in known and name not in ("all", "none"):
            parser.error(f"--peers: no peer {name!r}; there are all, none, {', '.join(known)}")


def chosen_backends(room: Room, device: torch.device, names: Sequence[str] | None) -> list[str]:
    """The backends to measure: those named, or backend="auto"'s choice and all others that run.

    The reference is left out unless it is the choice or named.

    Raises:
        ValueError: a named one is none of the room's, or cannot run here.
    """
    from gtkern import _backends

    for name in names or ():
        if name not in room.backends:
            raise ValueError(
                f"no backend {name!r} in {room.name}; there are {', '.join(room.backends)}"
            )
        reason = _backends.unavailable_reason(name, device)
        if reason is not None:
            raise ValueError(f"backend {name!r} cannot run here: {reason}")
    if names:
        return list(names)
    first = _backends.resolve(room.name, "auto", room.backends, device, torch.float32)
    running = [name for name in room.backends if _backends.unavailable_reason(name, device) is None]
    others = [name for name in running if name not in (first, "reference")]
    return [first, *others]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 150)
    device = _chosen_device(parser, options.device)
    rooms = [load_room(name) for name in _chosen_rooms(parser, options.rooms)]
    chosen = _chosen_cases(parser, rooms, options.cases, device)
    _check_peers(parser, rooms, options.peers)
    if options.budget is None:
        options.budget = 1.0 if device.type == "cpu" else 0.2
    if options.budget <= 0:
        parser.error(f"--budget must be more than 0 seconds, got {options.budget:g}")
    if options.minutes is not None and options.minutes <= 0:
        parser.error(f"--minutes must be more than 0, got {options.minutes:g}")
    if options.threads is not None:
        if options.threads < 1:
            parser.error(f"--threads must be at least 1, got {options.threads}")
        torch.set_num_threads(options.threads)
    if options.list:
        for room, case in chosen:
            console.print(f"{room.name}/{case.name}: {case.describe()}", highlight=False)
        for room in rooms:
            console.print(f"peers of {room.name}: {', '.join(room.peers)}", highlight=False)
        return 0
    path: pathlib.Path | None = options.out
    if path is None and not options.quick:
        path = RESULTS / f"{slug(device)}.csv"
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a"):
                pass
        except OSError as error:
            parser.error(f"--out: cannot write {path}: {error.strerror}")
        if path.stat().st_size == 0:
            path.unlink()

    limits = Limits(device)
    shared = conditions(device, limits)
    console.print(
        f"{shared['device']}, {shared['threads']} threads; torch {shared['torch']}, "
        f"gtkern {shared['gtkern']} {shared['commit']}; copy {shared['copy_limit_gb_s']:.1f} GB/s, "
        f"float32 matmul {shared['matmul_gflop_s']:.0f} GFLOP/s",
        highlight=False,
    )
    clocks = [
        Clock(device, cold=caches == "cold")
        for caches in ("warm", "cold")
        if options.caches in (caches, "both")
    ]
    check = device.type == "cuda" if options.check is None else options.check
    done = finished(path, shared) if options.resume and path is not None else set()
    begin = time.monotonic()
    left, failed = 0, []
    for room, case in chosen:
        try:
            backends = chosen_backends(room, device, options.backends)
        except ValueError as error:
            parser.error(f"--backends: {error}")
        peers = _peer_names(room, options.peers)
        own = f"gtkern-{backends[0]}"
        todo = [
            (passes, clock)
            for passes in case.passes
            for clock in clocks
            if (room.name, case.name, passes, own, clock.caches) not in done
        ]
        if options.minutes is not None and time.monotonic() - begin > 60 * options.minutes:
            left += bool(todo)
            continue
        if not todo:
            continue
        sized = quick_case(case) if options.quick else case
        problem, exact = None, {}
        for passes, clock in todo:
            try:
                if problem is None:
                    wanted = dict.fromkeys(name for name, _ in todo) if check else {}
                    exact = {name: exact_results(room, sized, name, device) for name in wanted}
                    problem = room.prepare(sized, device)
                measured = measure(
                    room, problem, passes, backends=backends, peers=peers, clock=clock,
                    limits=limits, budget_s=options.budget, exact=exact.get(passes),
                )  # fmt: skip
            except Exception as error:
                if device.type == "cpu":
                    raise
                # on a GPU the rest of a record is worth more, unless the device is gone too
                note = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                measured = [Record(room.name, case.name, case.describe(), passes, case.dtype, own,
                                   caches=clock.caches, note=note)]  # fmt: skip
            for record in measured:
                for name, value in shared.items():
                    setattr(record, name, value)
            console.print(table(sized, passes, measured))
            failed += [
                f"{record.room}/{record.case} {passes} {record.side}: {record.note}"
                for record in measured
                if record.side.startswith("gtkern-") and not record.turns
            ]
            if path is not None:
                save(path, measured)
            if device.type == "cuda":
                # an error of a kernel's would fail every case to come
                torch.cuda.synchronize(device)
        del problem, exact
    if limits.reason is not None:
        console.print(f"Not measured: {limits.reason}.", highlight=False)
    if path is not None and path.exists():
        image = path.with_suffix(".png")
        plot.draw(path, image)
        console.print(f"Wrote {path} and {image}.", highlight=False)
    if left:
        console.print(
            f"{left} of {len(chosen)} cases are left; the same command with --resume goes on.",
            highlight=False,
        )
    for line in failed:
        console.print(f"FAILED {line}", highlight=False, markup=False)
    return 1 if failed else UNFINISHED if left else 0


def _peer_names(room: Room, names: Sequence[str]) -> list[str]:
    if "none" in names:
        return []
    if "all" in names:
        return list(room.peers)
    return [name for name in names if name in room.peers]


if __name__ == "__main__":
    sys.exit(main())
