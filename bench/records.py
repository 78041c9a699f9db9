"""The rows that a run keeps: what they hold, their CSV, and their tables for people."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import importlib
import math
import os
import pathlib
import platform
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table

from bench.harness import Case
from bench.limits import Limits

__all__ = ["Record", "conditions", "finished", "save", "slug", "table"]

ROOT = pathlib.Path(__file__).resolve().parents[1]
BOUNDS = ("gather", "copy", "matmul")
KEY = ("room", "case", "passes", "side", "caches")


@dataclass
class Record:
    """One row of results: one side of one case and pass. NaN: not known or of no meaning.

    Attributes:
        side: "gtkern-<backend>" or the name of a peer.
        ms, iqr_ms: median and interquartile range over `turns` turns.
        gb_s: bytes the algorithm moves (harness.Cost) per second, in 10^9.
        gather_limit_gb_s: what reading random rows of this size from a table of this size reaches.
        gather_fraction: gb_s over that limit.
        copy_fraction: gb_s over what a large copy reaches.
        matmul_fraction: gflop_s over what torch's product of large matrices of `dtype` reaches, in
            rooms that it bounds.
        gflop_s: useful operations per second, in 10^9.
        medge_s: edges per second, in 10^6.
        peak_mib: allocated above the inputs, results included, in 2^20 bytes.
        ratio: a peer's time over gtkern's (the first backend); on gtkern's own rows the time of
            the fastest peer that the goal speaks of over its own.
        goal: for `ratio`, where one is stated.
        bound, bound_goal: the limit that matters, and the share of it to reach, where one is
            stated.
        rate_goal: for medge_s, where one is stated.
        prepare_ms: paid once for each graph and not part of ms.
        kernel_ms: median of the kernels alone, replayed by a CUDA graph.
        error: of gtkern's result against the reference in float64, by 2-norms; the largest of
            output and gradients.
        published: figures of others, from another machine.
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
    copy_fraction: float = math.nan
    matmul_fraction: float = math.nan
    gflop_s: float = math.nan
    medge_s: float = math.nan
    peak_mib: float = math.nan
    ratio: float = math.nan
    goal: float = math.nan
    bound: str = ""
    bound_goal: float = math.nan
    rate_goal: float = math.nan
    prepare_ms: float = math.nan
    kernel_ms: float = math.nan
    error: float = math.nan
    published: str = ""
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
        return tuple(str(getattr(self, name)) for name in KEY)

    def as_text(self) -> dict[str, str]:
        """The fields as a CSV holds them."""
        values = dataclasses.asdict(self)
        return {name: _text(value) for name, value in values.items()}


def _text(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    return str(value)


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
    # a copy without its history is told which it is
    commit = os.environ.get("GTKERN_COMMIT") or _git("rev-parse", "--short", "HEAD")
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "copy_limit_gb_s": limits.copy / 1e9,
        "matmul_gflop_s": limits.matmul() / 1e9,
        "torch": torch.__version__,
        "triton": triton,
        "gtkern": gtkern.__version__,
        "commit": commit + changed if commit else "",
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def finished(path: pathlib.Path, shared: dict[str, Any]) -> set[tuple[str, ...]]:
    """The keys of a file's rows that were measured under the same conditions.

    Rows of a checkout with changes, or of an unknown commit, are never among them.

    Args:
        path: of the CSV; it need not be there.
        shared: what `conditions` says of this run.
    """
    if not path.exists() or not shared["commit"] or shared["commit"].endswith("-changed"):
        return set()
    same = {name: str(shared[name]) for name in ("device", "threads", "torch", "commit")}
    with path.open(newline="") as file:
        return {
            tuple(row[name] for name in KEY)
            for row in csv.DictReader(file)
            if all(row[name] == value for name, value in same.items())
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
                key = tuple(row[name] for name in KEY)
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
    first = records[0]
    once = "" if math.isnan(first.prepare_ms) else f"; graph made once in {first.prepare_ms:.1f} ms"
    limit = first.gather_limit_gb_s
    bound = "" if math.isnan(limit) else f"; gather limit {limit:.1f} GB/s"
    others = f"\non other machines: {case.published}" if case.published else ""
    cold = ", caches emptied" if first.caches == "cold" else ""
    view = Table(
        title=f"{first.room} {case.name} {passes}{cold}\n{case.describe()}{once}{bound}{others}",
        title_justify="left",
        title_style="bold",
    )
    columns = {
        "ms": [_number(record.ms, "{:.2f}") for record in records],
        "± IQR": [_number(record.iqr_ms, "{:.2f}") for record in records],
        "kernels": [_number(record.kernel_ms, "{:.3f}") for record in records],
        "error": [_number(record.error, "{:.1e}") for record in records],
        "GB/s": [_number(record.gb_s, "{:.1f}") for record in records],
        "of gather": [_number(record.gather_fraction, "{:.0%}") for record in records],
        "of copy": [_number(record.copy_fraction, "{:.0%}") for record in records],
        "GFLOP/s": [_number(record.gflop_s, "{:.1f}") for record in records],
        "of matmul": [_number(record.matmul_fraction, "{:.0%}") for record in records],
        "Medge/s": [_number(record.medge_s, "{:.1f}") for record in records],
        "peak MiB": [_number(record.peak_mib, "{:.1f}") for record in records],
        "ratio": [_number(record.ratio, "{:.1f}x") for record in records],
        "goal": [_goals(record) for record in records],
    }
    other = {"of copy", "of matmul"} - {f"of {first.bound}"}
    shown = {head: cells for head, cells in columns.items() if any(cells) and head not in other}
    view.add_column("side", no_wrap=True)
    for head in shown:
        view.add_column(head, justify="right", no_wrap=True)
    view.add_column("note", max_width=48)
    for at, record in enumerate(records):
        view.add_row(record.side, *(cells[at] for cells in shown.values()), record.note)
    return view


def _goals(record: Record) -> str:
    goals = []
    if not math.isnan(record.goal):
        goals.append(f"{record.goal:g}x {'met' if record.ratio >= record.goal else 'missed'}")
    if not math.isnan(record.bound_goal):
        fractions = (record.gather_fraction, record.copy_fraction, record.matmul_fraction)
        reached = dict(zip(BOUNDS, fractions, strict=True))[record.bound]
        word = "met" if reached >= record.bound_goal else "missed"
        goals.append(f"{record.bound_goal:.0%} of {record.bound} {word}")
    if not math.isnan(record.rate_goal):
        word = "met" if record.medge_s >= record.rate_goal else "missed"
        goals.append(f"{record.rate_goal:,.0f} Medge/s {word}")
    return ", ".join(goals)


def _number(value: float, form: str) -> str:
    return "" if math.isnan(value) else form.format(value)
