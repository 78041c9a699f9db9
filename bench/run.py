"""Runs the cases of bench/ops, prints a table for each, and keeps the rows of record.

python bench/run.py [--device cpu|cuda] [--rooms ...] [--cases ...] [--peers ...] [--quick]
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import datetime
import fnmatch
import importlib
import math
import os
import pathlib
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    # behind an installed gtkern, so that this checkout's sources do not hide what was built
    sys.path.append(str(ROOT))

import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from bench import harness, plot  # noqa: E402
from bench.harness import Case, Clock, Peer, Problem, Room, Samples, Unsupported  # noqa: E402
from bench.limits import Limits  # noqa: E402

__all__ = ["Record", "main", "measure", "room_names"]

OPS = pathlib.Path(__file__).with_name("ops")
RESULTS = pathlib.Path(__file__).with_name("results")
LARGEST_ERROR = {"float64": 1e-6, "float32": 1e-3, "bfloat16": 5e-2, "float16": 1e-2}


@dataclass
class Record:
    """One row of results: one side of one case and pass. NaN: not known or of no meaning.

    Attributes:
        side: "gtkern-<backend>" or the name of a peer.
        ms, iqr_ms: median and interquartile range over `turns` turns.
        gb_s: bytes the algorithm moves (harness.Cost) per second, in 10^9.
        gather_limit_gb_s: what reading random rows of this size from a table of this size reaches.
        gather_fraction: gb_s over that limit.
        gflop_s: useful operations per second, in 10^9.
        medge_s: edges per second, in 10^6.
        peak_mib: allocated above the inputs, results included, in 2^20 bytes.
        ratio: a peer's time over gtkern's (the first backend); on gtkern's own rows the time of
            the fastest peer that the goal speaks of over its own.
        goal: for `ratio`, where one is stated.
        prepare_ms: paid once for each graph and not part of ms.
        note: why a side was not timed, or that its result differs.
    """

    room: str
    case: str
    shape: str
    passes: str
    dtype: str
    side: str
    ms: float = math.nan
    iqr_ms: float = math.nan
    turns: int = 0
    gb_s: float = math.nan
    gather_limit_gb_s: float = math.nan
    gather_fraction: float = math.nan
    gflop_s: float = math.nan
    medge_s: float = math.nan
    peak_mib: float = math.nan
    ratio: float = math.nan
    goal: float = math.nan
    prepare_ms: float = math.nan
    note: str = ""
    caches: str = "warm"
    device: str = ""
    threads: int = 0
    copy_limit_gb_s: float = math.nan
    matmul_gflop_s: float = math.nan
    torch: str = ""
    triton: str = ""
    gtkern: str = ""
    commit: str = ""
    date: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        """What a later run replaces."""
        return (self.room, self.case, self.passes, self.side, self.caches)

    def as_text(self) -> dict[str, str]:
        """The fields as a CSV holds them."""
        values = dataclasses.asdict(self)
        return {name: _text(value) for name, value in values.items()}


def _text(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    return str(value)


def room_names() -> list[str]:
    """The rooms that have a file in bench/ops."""
    return sorted(path.stem for path in OPS.glob("*.py") if path.stem != "__init__")


def load_room(name: str) -> Room:
    """The description of a room."""
    room: Room = importlib.import_module(f"bench.ops.{name}").ROOM
    return room


def quick_case(case: Case) -> Case:
    """The case in small."""
    return dataclasses.replace(case, graph=case.graph.scaled(case.quick), goals={})


@dataclass
class _Side:
    name: str
    call: harness.Call | None
    record: Record
    backend: str = ""
    peer: Peer | None = None


def measure(
    room: Room,
    problem: Problem,
    passes: str,
    *,
    backends: Sequence[str],
    peers: Sequence[str],
    clock: Clock,
    limits: Limits,
    budget_s: float,
    most: int = 30,
) -> list[Record]:
    """Measure one pass of one case: gtkern's backends and the peers, in one race.

    Args:
        room, problem, passes: what.
        backends: of gtkern; the first one is what ratios refer to.
        peers: names from the room.
        clock, budget_s, most: see harness.race.
        limits: of the same device.

    Returns:
        One record for each side, backends first.
    """
    case = problem.case
    sides: list[_Side] = []
    for backend in backends:
        side = _Side(
            f"gtkern-{backend}", room.own(problem, passes, backend), Record("", "", "", "", "", "")
        )
        side.backend = backend
        sides.append(side)
    for name in peers:
        sides.append(_Side(name, None, Record("", "", "", "", "", ""), peer=room.peers[name]))
    for side in sides:
        side.record = Record(
            room.name, case.name, case.describe(), passes, case.dtype, side.name,
            caches="cold" if clock.cold else "warm", prepare_ms=problem.prepare_s * 1e3,
        )  # fmt: skip
    expected: Any = None
    for side in sides:
        expected = _first_call(side, problem, passes, expected, room.same)
    del expected

    runners = [side for side in sides if side.call is not None]
    calls = [side.call for side in runners if side.call is not None]
    samples = dict(
        zip(
            (side.name for side in runners),
            harness.race(calls, clock, budget_s=budget_s, most=most),
            strict=True,
        )
    )
    cost = room.cost(problem, passes)
    limit = limits.gather(cost.row_bytes, cost.table_bytes) if cost.row_bytes else math.nan
    for side in runners:
        record, own = side.record, samples[side.name]
        record.ms, record.iqr_ms, record.turns = own.median * 1e3, own.spread * 1e3, len(own.turns)
        if side.backend:
            record.gb_s = cost.bytes / own.median / 1e9
            record.gather_limit_gb_s = limit / 1e9
            record.gather_fraction = cost.bytes / own.median / limit
        record.gflop_s = cost.flops / own.median / 1e9 if cost.flops else math.nan
        record.medge_s = cost.edges / own.median / 1e6 if cost.edges else math.nan
    _fill_ratios(sides, samples, room, case.goals.get(passes, math.nan))
    return [side.record for side in sides]


def _first_call(side: _Side, problem: Problem, passes: str, expected: Any, same: bool) -> Any:
    """Warm up, measure memory, compare the result; a side that cannot run loses its call."""
    peer = side.peer
    try:
        if peer is not None:
            needed, there = peer.memory(problem, passes), harness.available_memory(problem.device)
            if needed > 0.9 * there:
                raise Unsupported(
                    f"needs {needed / 2**30:.1f} GiB of memory, {there / 2**30:.1f} GiB are there"
                )
            side.call = peer.make(problem, passes)
        assert side.call is not None
        if peer is not None and peer.compiled:
            side.call()
        result, peak = harness.peak_memory(
            side.call, problem.device, numpy=peer is not None and peer.numpy
        )
        side.record.peak_mib = peak / 2**20
    except Unsupported as reason:
        side.call, side.record.note = None, str(reason)
        return expected
    except Exception as error:
        if peer is None:
            raise
        # a peer may fail in ways of its own; the row says so, and the others are still measured
        text = str(error).strip().splitlines() or [""]
        side.call, side.record.note = None, f"{type(error).__name__}: {text[0]}"[:200]
        return expected
    if not same:
        return None
    if expected is None:
        return result
    error_found = harness.relative_error(result, expected)
    if not error_found <= LARGEST_ERROR[problem.case.dtype]:
        side.record.note = f"result differs from gtkern's by {error_found:.1e}"
    return expected


def _fill_ratios(sides: list[_Side], samples: dict[str, Samples], room: Room, goal: float) -> None:
    base = samples[sides[0].name]
    rivals = [samples[name] for name in room.goal_peers if name in samples]
    for side in sides:
        if side.name not in samples:
            continue
        if side.peer is not None:
            side.record.ratio = samples[side.name].ratio_to(base)
        elif rivals:
            side.record.goal = goal
            side.record.ratio = min(rival.ratio_to(samples[side.name]) for rival in rivals)


def device_name(device: torch.device) -> str:
    """The device in words: the CPU's model and core count, or the GPU's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as lines:
            model = next(
                line.split(":")[1].strip() for line in lines if line.startswith("model name")
            )
    except (OSError, StopIteration):
        pass
    isa = str(torch.backends.cpu.get_cpu_capability())
    return f"{model}, {os.cpu_count()} cores, {isa}"


def slug(device: torch.device) -> str:
    """`device_name` as part of a file's name."""
    words = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    return f"{device.type}-{words}"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def conditions(device: torch.device, limits: Limits) -> dict[str, Any]:
    """What every row of this run shares."""
    import gtkern

    try:
        triton = importlib.import_module("triton").__version__
    except ImportError:
        triton = ""
    changed = "-changed" if _git("status", "--porcelain", "--untracked-files=no") else ""
    commit = _git("rev-parse", "--short", "HEAD")
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "copy_limit_gb_s": limits.copy / 1e9,
        "matmul_gflop_s": limits.matmul / 1e9,
        "torch": torch.__version__,
        "triton": triton,
        "gtkern": gtkern.__version__,
        "commit": commit + changed if commit else "",
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def save(path: pathlib.Path, records: Iterable[Record]) -> None:
    """Put the records into a CSV; rows of the same room, case, pass, side and caches are replaced.

    The file is replaced as a whole: an interruption leaves the old one.
    """
    fields = [field.name for field in dataclasses.fields(Record)]
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    if path.exists():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                key = (row["room"], row["case"], row["passes"], row["side"], row["caches"])
                rows[key] = {name: row.get(name, "") for name in fields}
    for record in records:
        rows[record.key] = record.as_text()
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".csv.part")
    with unfinished.open("w", newline="") as file:
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows.values())
    unfinished.replace(path)


def table(case: Case, passes: str, records: Sequence[Record]) -> Table:
    """The records of one case and pass, for people."""
    prepared = records[0].prepare_ms
    once = "" if math.isnan(prepared) else f"; graph made once in {prepared:.1f} ms"
    limit = records[0].gather_limit_gb_s
    bound = "" if math.isnan(limit) else f"; gather limit {limit:.1f} GB/s"
    view = Table(
        title=f"{records[0].room} {case.name} {passes}\n{case.describe()}{once}{bound}",
        title_justify="left",
        title_style="bold",
    )
    heads = (
        "side",
        "ms",
        "± IQR",
        "GB/s",
        "of gather",
        "GFLOP/s",
        "Medge/s",
        "peak MiB",
        "ratio",
        "goal",
    )
    for head in heads:
        view.add_column(head, justify="left" if head == "side" else "right", no_wrap=True)
    view.add_column("note", max_width=48)
    for record in records:
        ratio = "" if math.isnan(record.ratio) else f"{record.ratio:.1f}x"
        goal = ""
        if not math.isnan(record.goal):
            goal = f"{record.goal:g}x {'met' if record.ratio >= record.goal else 'missed'}"
        view.add_row(
            record.side,
            _number(record.ms, "{:.2f}"),
            _number(record.iqr_ms, "{:.2f}"),
            _number(record.gb_s, "{:.1f}"),
            _number(record.gather_fraction, "{:.0%}"),
            _number(record.gflop_s, "{:.1f}"),
            _number(record.medge_s, "{:.1f}"),
            _number(record.peak_mib, "{:.1f}"),
            ratio,
            goal,
            record.note,
        )
    return view


def _number(value: float, form: str) -> str:
    return "" if math.isnan(value) else form.format(value)


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
    parser.add_argument("--cold", action="store_true", help="empty the caches before each call")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's")
    parser.add_argument(
        "--budget", type=float, default=1.0, metavar="S", help="seconds of turns for each side (1)"
    )
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
    parser: argparse.ArgumentParser, rooms: Sequence[Room], patterns: Sequence[str] | None
) -> list[tuple[Room, Case]]:
    all_cases = [(room, case) for room in rooms for case in room.cases]
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
    chosen = _chosen_cases(parser, rooms, options.cases)
    _check_peers(parser, rooms, options.peers)
    if options.budget <= 0:
        parser.error(f"--budget must be more than 0 seconds, got {options.budget:g}")
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

    clock = Clock(device, cold=options.cold)
    limits = Limits(device)
    shared = conditions(device, limits)
    console.print(
        f"{shared['device']}, {shared['threads']} threads; torch {shared['torch']}, "
        f"gtkern {shared['gtkern']} {shared['commit']}; copy {shared['copy_limit_gb_s']:.1f} GB/s, "
        f"float32 matmul {shared['matmul_gflop_s']:.0f} GFLOP/s",
        highlight=False,
    )
    records: list[Record] = []
    for room, case in chosen:
        try:
            backends = chosen_backends(room, device, options.backends)
        except ValueError as error:
            parser.error(f"--backends: {error}")
        peers = _peer_names(room, options.peers)
        problem = room.prepare(quick_case(case) if options.quick else case, device)
        for passes in case.passes:
            measured = measure(
                room, problem, passes, backends=backends, peers=peers, clock=clock, limits=limits,
                budget_s=options.budget,
            )  # fmt: skip
            for record in measured:
                for name, value in shared.items():
                    setattr(record, name, value)
            console.print(table(problem.case, passes, measured))
            records += measured
            if path is not None:
                save(path, measured)
        del problem
    if limits.reason is not None:
        console.print(f"Not measured: {limits.reason}.", highlight=False)
    if path is not None:
        image = path.with_suffix(".png")
        plot.draw(path, image)
        console.print(f"Wrote {path} and {image}.", highlight=False)
    return 0


def _peer_names(room: Room, names: Sequence[str]) -> list[str]:
    if "none" in names:
        return []
    if "all" in names:
        return list(room.peers)
    return [name for name in names if name in room.peers]


if __name__ == "__main__":
    sys.exit(main())
