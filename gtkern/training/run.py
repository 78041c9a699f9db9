"""What a run leaves: files that are whole or not there, a summary for scripts, a table to read."""

from __future__ import annotations

import csv
import io
import json
import os
import pathlib
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from rich import box
from rich.table import Table

from gtkern.training.errors import UserError

__all__ = [
    "SUMMARY_FORMAT",
    "Comparison",
    "Phase",
    "RunFolder",
    "Summary",
    "comparison_table",
    "process_seconds",
    "read_summary",
    "table",
    "versions",
]

SUMMARY_FORMAT = 1
"""The version of summary.json; it grows when a key is renamed or removed, not when one is added."""


@dataclass
class Phase:
    """One stretch of training.

    Attributes:
        name: of the phase.
        parameters: trained numbers.
        epochs: done.
        seconds: of all of the phase; seconds_per_epoch: median over the epochs, with evaluation.
        peak_bytes: largest memory of the process (of torch on a GPU) in the phase.
        val, test: metric by its name, of the best epoch.
        best_epoch: from 1.
        edges_kept: sampled edges over edges without self loops, mean over layers; 1: all.
        details: what the method adds.
    """

    name: str
    parameters: int
    epochs: int
    seconds: float
    seconds_per_epoch: float
    peak_bytes: int
    val: dict[str, float]
    test: dict[str, float]
    best_epoch: int
    edges_kept: float
    details: dict[str, Any] = field(default_factory=dict)


@dataclass
class Comparison:
    """The same phase on our ops and on a peer's, in one process.

    Attributes:
        phase, peer: names.
        seconds_per_epoch, peer_seconds_per_epoch: medians, with evaluation, without the first.
        peak_bytes, peer_peak_bytes: largest memory above that at the start.
        loss, peer_loss: of the first epoch, which must agree.
    """

    phase: str
    peer: str
    seconds_per_epoch: float
    peer_seconds_per_epoch: float
    peak_bytes: int
    peer_peak_bytes: int
    loss: float
    peer_loss: float


@dataclass
class Summary:
    """summary.json: the figures of a run. The final metrics are those of the last phase.

    Attributes:
        command: as typed. method, dataset, seed, backend, device: as resolved.
        versions: of gtkern, torch, Python and others.
        val, test: metric by its name.
        seconds: from the start of the process to the summary.
        peak_bytes: the largest of the phases.
        trained_parameters, total_parameters: over all phases.
        phases: in order. comparison: with other code, where asked for.
        processes: that shared the work.
        format: SUMMARY_FORMAT.
    """

    command: str
    method: str
    dataset: str
    seed: int
    backend: str
    device: str
    versions: dict[str, str]
    test: dict[str, float]
    val: dict[str, float]
    seconds: float
    peak_bytes: int
    trained_parameters: int
    total_parameters: int
    phases: list[Phase]
    comparison: list[Comparison] = field(default_factory=list)
    processes: int = 1
    format: int = SUMMARY_FORMAT


class RunFolder:
    """The folder of a run. Every file is written under another name and then renamed.

    Args:
        path: made when missing.
        writes: False for the processes that only read.

    Raises:
        UserError: the folder cannot be made or written to.
    """

    def __init__(self, path: str | os.PathLike[str], *, writes: bool = True) -> None:
        self.path = pathlib.Path(path).expanduser()
        if not writes:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".write-test-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"cannot write to the run folder {self.path}: {error.strerror or error}"
            ) from error

    def __truediv__(self, name: str) -> pathlib.Path:
        return self.path / name

    @contextmanager
    def replacing(self, name: str) -> Iterator[pathlib.Path]:
        """A path to write to; it becomes `name` when the block ends well, else it is removed."""
        final = self.path / name
        final.parent.mkdir(parents=True, exist_ok=True)
        part = final.with_name(f".{final.stem}.part{final.suffix}")
        try:
            yield part
            os.replace(part, final)
        finally:
            part.unlink(missing_ok=True)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file."""
        with self.replacing(name) as part:
            part.write_text(text, encoding="utf-8")

    def write_rows(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write a CSV; the columns are the keys of all rows in the order of their appearance."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self.write_text(name, text.getvalue())

    def write_arrays(self, name: str, shape: tuple[int, ...], pieces: Iterator[np.ndarray]) -> None:
        """Write a .npy of `shape` from pieces that fill it one behind the other, in C order.

        It is written through a memory map: never whole in memory.
        """
        with self.replacing(name) as part:
            array, filled = None, 0
            for piece in pieces:
                if array is None:
                    array = np.lib.format.open_memmap(
                        part, mode="w+", dtype=piece.dtype, shape=shape
                    )
                array.reshape(-1)[filled : filled + piece.size] = piece.reshape(-1)
                filled += piece.size
            if array is None or filled != array.size:
                raise ValueError(f"pieces must fill {list(shape)}, got {filled} numbers")
            array.flush()
            del array

    def write_array(self, name: str, array: np.ndarray) -> None:
        """Write a .npy."""
        with self.replacing(name) as part:
            np.save(part, array)

    def write_summary(self, summary: Summary) -> None:
        """Write summary.json."""
        self.write_text("summary.json", json.dumps(asdict(summary), indent=2) + "\n")


def read_summary(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a summary.json.

    Raises:
        ValueError: of a newer format than this version knows.
    """
    summary: dict[str, Any] = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    if summary.get("format", 0) > SUMMARY_FORMAT:
        raise ValueError(f"format must be at most {SUMMARY_FORMAT}, got {summary['format']}")
    return summary


def versions() -> dict[str, str]:
    """The versions that decide what a run gives."""
    import lightning

    import gtkern

    return {
        "gtkern": gtkern.__version__,
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def process_seconds() -> float:
    """Seconds since this process started; since Python's first clock reading where unknown."""
    try:
        fields = pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, AttributeError, ValueError):
        return time.process_time()


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """What a peer takes, and how many times more that is."""
    title = f"the same model here and on {comparisons[0].peer}"
    result = Table(title=title, box=box.SIMPLE_HEAD, padding=0)
    result.add_column("phase", no_wrap=True)
    for heading in ("s/epoch", "peer", "ratio", "MiB", "peer", "ratio", "loss", "peer"):
        result.add_column(heading, justify="right", no_wrap=True)
    for row in comparisons:
        result.add_row(
            row.phase,
            f"{row.seconds_per_epoch:.4f}",
            f"{row.peer_seconds_per_epoch:.4f}",
            f"{row.peer_seconds_per_epoch / row.seconds_per_epoch:.1f}x",
            f"{row.peak_bytes / 2**20:,.0f}",
            f"{row.peer_peak_bytes / 2**20:,.0f}",
            f"{row.peer_peak_bytes / max(1, row.peak_bytes):.1f}x",
            f"{row.loss:.5f}",
            f"{row.peer_loss:.5f}",
        )
    return result


def table(summary: Summary) -> Table:
    """The figures of a run, one row for each phase; metrics are of its best epoch."""
    metric = next(iter(summary.test))
    title = f"{summary.method} on {summary.dataset}, seed {summary.seed}; val and test: {metric}"
    result = Table(title=title, box=box.SIMPLE_HEAD, padding=0)
    result.add_column("phase", no_wrap=True)
    headings = ["weights", "epochs", "best", "seconds", "s/epoch", "MiB", "val", "test"]
    samples = any(phase.edges_kept < 1 for phase in summary.phases)
    if samples:
        headings.append("edges kept")
    for heading in headings:
        result.add_column(heading, justify="right", no_wrap=True)
    for phase in summary.phases:
        cells = [
            f"{phase.parameters:,}",
            f"{phase.epochs}",
            f"{phase.best_epoch}",
            f"{phase.seconds:.1f}",
            f"{phase.seconds_per_epoch:.3f}",
            f"{phase.peak_bytes / 2**20:,.0f}",
            f"{phase.val[metric]:.4f}",
            f"{phase.test[metric]:.4f}",
        ]
        result.add_row(phase.name, *cells, *([f"{phase.edges_kept:.1%}"] if samples else []))
    return result
