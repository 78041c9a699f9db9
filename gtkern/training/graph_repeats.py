"""A model on one set of graphs with several seeds or folds: a table and a plot."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from gtkern.data.graphs import GraphDataset
from gtkern.training import plots
from gtkern.training import settings as settings_of
from gtkern.training.errors import UserError
from gtkern.training.graph_run import PHASE, GraphRun
from gtkern.training.graph_settings import GraphSettings
from gtkern.training.kept_runs import KeptRuns
from gtkern.training.run import RunFolder
from gtkern.training.tables import mean, rows_table, spread

__all__ = ["NAME", "GraphRepeats"]

NAME = "runs"
"""Of the table and the plot."""

MIB = 2**20

_FORMATS = {
    "run": "",
    "test": ".4f",
    "std": ".4f",
    "val": ".4f",
    "best_epoch": ".0f",
    "seconds": ".1f",
    "seconds_per_epoch": ".3f",
    "mib": ",.0f",
}


class GraphRepeats:
    """Runs that differ in the seed, or in the fold that is their test, each in its own folder.

    A run that is finished there is not run again; one that was stopped goes on: see KeptRuns.

    Args:
        settings: of all runs, but for seed and fold. With folds, every one of them is a run.
        data: the graphs.
        folder: of all the runs.
        dataset: name of the data in tables.
        device: where to train. backend: of the ops.
        command: for the summaries.
        console: for progress.

    Raises:
        UserError: several processes run.
    """

    def __init__(
        self,
        settings: GraphSettings,
        data: GraphDataset,
        folder: RunFolder,
        *,
        dataset: str,
        device: torch.device | str = "cpu",
        backend: str = "auto",
        command: str = "",
        console: Console | None = None,
    ) -> None:
        self.settings = settings
        self.data = data
        self.folder = folder
        self.dataset = dataset
        self.device = torch.device(device)
        self.backend = backend
        self.command = command
        self.console = console or Console(stderr=True)
        about = {"dataset": dataset, "device": str(self.device), "backend": backend}
        self.kept = KeptRuns(folder, about, self.console)

    def run(self, seeds: Sequence[int], *, resume: bool = True) -> Table:
        """Do every run, write runs.csv and runs.png, and return the table.

        Args:
            seeds: of the runs.
            resume: False: forget what is in the folder of each.

        Raises:
            UserError: a run in the folder has other settings. InterruptedRunError: the user
            stopped; the same call goes on.
        """
        chosen = [self._chosen(seed, fold) for seed in seeds for fold in self._folds()]
        # what cannot run should not start
        for settings in chosen:
            self._made(settings, self.folder)
        if not resume:
            for settings in chosen:
                self.kept.forget(_name(settings))
        rows: list[dict[str, Any]] = []
        curves = {}
        for settings in chosen:
            title = _title(settings)
            summary = self.kept.train(_name(settings), title, settings, self._make(settings))
            (phase,) = summary["phases"]
            rows.append(
                {
                    "run": title,
                    "test": summary["test"][self.data.metric],
                    "val": summary["val"][self.data.metric],
                    "best_epoch": phase["best_epoch"],
                    "seconds": phase["seconds"],
                    "seconds_per_epoch": phase["seconds_per_epoch"],
                    "mib": summary["peak_bytes"] / MIB,
                }
            )
            record = self.folder / f"{_name(settings)}/checkpoints/{PHASE}.json"
            curves[title] = json.loads(record.read_text(encoding="utf-8"))["rows"]
        columns = [column for column in rows[0] if column != "run"]
        middle = {column: mean([row[column] for row in rows]) for column in columns}
        deviation = spread([row["test"] for row in rows])
        rows.append({"run": "mean", **middle, "std": deviation})
        self.folder.write_rows(f"{NAME}.csv", rows)
        with self.folder.replacing(f"{NAME}.png") as part:
            plots.repeated_curves(part, curves, self.data.metric)
        title = f"{self.settings.model} on {self.dataset}: test {self.data.metric} at the best val"
        return rows_table(title, rows, _FORMATS)

    def _folds(self) -> range:
        return range(max(1, self.settings.folds))

    def _chosen(self, seed: int, fold: int) -> GraphSettings:
        values = {**asdict(self.settings), "seed": seed, "fold": fold}
        return settings_of.read(type(self.settings), values)

    def _made(self, settings: GraphSettings, folder: RunFolder) -> GraphRun:
        try:
            return GraphRun(
                settings,
                self.data,
                folder,
                device=self.device,
                backend=self.backend,
                dataset=self.dataset,
                command=self.command,
                console=self.console,
            )
        except (NotImplementedError, TypeError, ValueError) as error:
            raise UserError(str(error)) from error

    def _make(self, settings: GraphSettings) -> Callable[[RunFolder], Callable[[bool], object]]:
        def make(folder: RunFolder) -> Callable[[bool], object]:
            run = self._made(settings, folder)
            return lambda resume: run.run(resume=resume)

        return make


def _name(settings: GraphSettings) -> str:
    fold = f"-fold-{settings.fold}" if settings.folds else ""
    return f"seed-{settings.seed}{fold}"


def _title(settings: GraphSettings) -> str:
    return _name(settings).replace("-fold", ", fold").replace("-", " ")
