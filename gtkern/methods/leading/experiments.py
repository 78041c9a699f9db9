"""The experiments on one graph of texts: a table and a plot each."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from gtkern import ops
from gtkern.data.text_graph import TextGraph
from gtkern.graph import Graph
from gtkern.methods.leading.run import TRAINING, LeadingRun
from gtkern.methods.leading.settings import LeadingSettings
from gtkern.training import plots
from gtkern.training.errors import UserError
from gtkern.training.kept_runs import KeptRuns
from gtkern.training.run import RunFolder
from gtkern.training.tables import mean, rows_table, spread

__all__ = ["ALPHAS", "EXPERIMENTS", "PERIODS", "TOLERANCES", "Experiments"]

COMPARED = ("leading", "cascaded", "language-model", "tfidf")
"""What `main` and `labels` compare."""

LABELS: Mapping[str, Mapping[str, Any]] = {
    "20 per class": {"labels_per_class": 20},
    "1 %": {"label_share": 0.01},
    "5 %": {"label_share": 0.05},
    "10 %": {"label_share": 0.1},
}
PERIODS = (1, 2, 4)
ALPHAS = (0.05, 0.1, 0.2)
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
MIB = 2**20

_FORMATS = {
    "variant": "",
    "test": ".4f",
    "std": ".4f",
    "val": ".4f",
    "seconds": ",.0f",
    "ms_per_step": ",.0f",
    "mib": ",.0f",
}
_SWEEP_FORMATS = {"alpha": "g", "tol": ".0e", "power": ".0f", "chebyshev": ".0f", "ratio": ".1f"}

Texts = Callable[[LeadingSettings], TextGraph]
"""The data of settings: which of them are trained on differs between runs."""


class Experiments:
    """Runs beside each other in one folder, each done once; see KeptRuns.

    Args:
        settings: of the full method; experiments vary them.
        texts: gives the data of settings.
        folder: for runs, tables and plots.
        seeds: every variant is run with each.
        dataset: name of the data in tables.
        device, backend, command, console: see PhaseRun.

    Raises:
        UserError: several processes run.
    """

    def __init__(
        self,
        settings: LeadingSettings,
        texts: Texts,
        folder: RunFolder,
        seeds: Sequence[int],
        *,
        dataset: str,
        device: torch.device | str = "cpu",
        backend: str = "auto",
        command: str = "",
        console: Console | None = None,
    ) -> None:
        self.settings = settings
        self.texts = texts
        self.folder = folder
        self.seeds = tuple(seeds)
        self.dataset = dataset
        self.console = console or Console(stderr=True)
        self.options: dict[str, Any] = {
            "device": torch.device(device),
            "backend": backend,
            "command": command,
            "console": self.console,
            "dataset": dataset,
            "cache": folder.path / "cache",
        }
        about = {
            "dataset": dataset,
            "language model": settings.encoder.path,
            "device": str(device),
            "backend": backend,
        }
        self.kept = KeptRuns(folder, about, self.console)

    def run(self, name: str) -> Table:
        """Do an experiment, and write NAME.csv and NAME.png.

        Args:
            name: one of EXPERIMENTS.

        Raises:
            UserError: a run in the folder has other settings, or cannot be done.
            InterruptedRunError: the user stopped; the same call goes on.
        """
        if name == "sweeps":
            return self._sweeps()
        variants = EXPERIMENTS[name](self)
        rows: list[dict[str, Any]] = []
        tests: dict[str, list[float]] = {}
        for variant, settings in variants.items():
            summaries = [self._summary(name, variant, settings, seed) for seed in self.seeds]
            rows.append({"variant": variant, **_figures(summaries)})
            tests[variant] = [float(summary["test"]["accuracy"]) for summary in summaries]
        self.folder.write_rows(f"{name}.csv", rows)
        with self.folder.replacing(f"{name}.png") as part:
            if name == "cost":
                _draw_cost(part, rows)
            else:
                plots.spreads(part, tests, "test accuracy")
        extra = {"staleness": {"refreshed": ",.0f", "cosine": ".4f"}}.get(name, {})
        return rows_table(f"{name} on {self.dataset}", rows, {**_FORMATS, **extra})

    def main(self) -> dict[str, LeadingSettings]:
        """The method and its baselines."""
        return {mode: replace(self.settings, train=mode) for mode in COMPARED}

    def labels(self) -> dict[str, LeadingSettings]:
        """The same with few labels."""
        return {
            f"{regime}, {mode}": replace(
                self.settings, train=mode, text=replace(self.settings.text, **kept)
            )
            for regime, kept in LABELS.items()
            for mode in COMPARED
        }

    def parts(self) -> dict[str, LeadingSettings]:
        """Decoupling and the implicit layer, each alone."""

        def having(train: str, **changes: Any) -> LeadingSettings:
            propagation = replace(self.settings.propagation, **changes)
            return replace(self.settings, train=train, propagation=propagation)

        return {
            "both": having("leading"),
            "solved in every step": having("leading", sweeps=0),
            "decoupling, gcn": having("leading", kind="gcn"),
            "decoupling, gat": having("leading", kind="gat"),
            "implicit, joint": having("joint"),
            "neither: gcn, joint": having("joint", kind="gcn"),
        }

    def staleness(self) -> dict[str, LeadingSettings]:
        """How often the bank is encoded anew."""

        def having(**changes: Any) -> LeadingSettings:
            return replace(
                self.settings,
                train="leading",
                neighbors=replace(self.settings.neighbors, **changes),
            )

        periods = {
            f"every {period} epochs" if period > 1 else "every epoch": having(
                refresh="epoch", period=period
            )
            for period in PERIODS
        }
        return {
            "every step": having(refresh="age", period=1),
            **periods,
            "never": having(refresh="never"),
        }

    def cost(self) -> dict[str, LeadingSettings]:
        """Time and memory of a step, beside those of the language model alone; one epoch."""
        training = replace(self.settings.training, epochs=1)
        return {
            mode: replace(self.settings, train=mode, training=training)
            for mode in ("language-model", "leading", "joint")
        }

    def _sweeps(self) -> Table:
        """How many sweeps each solver needs, by tolerance and alpha."""
        data = self.texts(self.settings)
        graph = Graph.from_edge_index(data.edge_index, data.num_nodes)
        x = torch.randn(
            data.num_nodes,
            self.settings.propagation.width,
            generator=torch.Generator().manual_seed(self.settings.seed),
        )
        rows = []
        points: dict[str, list[tuple[float, float]]] = {}
        for alpha in ALPHAS:
            for tol in TOLERANCES:
                row: dict[str, Any] = {"alpha": alpha, "tol": tol}
                for method in ("power", "chebyshev"):
                    _, report = ops.propagate(
                        graph,
                        x,
                        alpha,
                        tol=tol,
                        method=method,
                        return_report=True,
                        backend=self.options["backend"],
                    )
                    row[method] = report.sweeps
                    line = points.setdefault(f"{method}, alpha {alpha:g}", [])
                    line.append((tol, float(report.sweeps)))
                row["ratio"] = row["power"] / row["chebyshev"]
                rows.append(row)
        self.folder.write_rows("sweeps.csv", rows)
        panel = plots.Panel(
            self.dataset, "relative residual", "sweeps", points, TOLERANCES, log_x=True
        )
        with self.folder.replacing("sweeps.png") as part:
            plots.lines(part, [panel])
        return rows_table(f"sweeps on {self.dataset}", rows, _SWEEP_FORMATS)

    def _summary(
        self, name: str, variant: str, settings: LeadingSettings, seed: int
    ) -> dict[str, Any]:
        chosen = replace(settings, seed=seed, data_seed=seed)

        def make(folder: RunFolder) -> Callable[[bool], object]:
            try:
                run = LeadingRun(chosen, self.texts(chosen), folder, **self.options)
            except (ImportError, NotImplementedError, TypeError, ValueError) as error:
                raise UserError(str(error)) from error
            return lambda resume: run.run(resume=resume)

        words = f"{variant}-seed-{seed}".replace("%", "percent").replace(":", "").replace(",", "")
        folder = f"{name}/{words.replace(' ', '-')}"
        return self.kept.train(folder, f"{variant}, seed {seed}", chosen, make)


def _figures(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a row says of some runs that differ in seed alone."""
    tests = [summary["test"]["accuracy"] for summary in summaries]
    row: dict[str, Any] = {
        "test": mean(tests),
        "std": spread(tests),
        "val": mean([summary["val"]["accuracy"] for summary in summaries]),
        "seconds": mean([sum(p["seconds"] for p in summary["phases"]) for summary in summaries]),
        "mib": max(summary["peak_bytes"] for summary in summaries) / MIB,
    }
    details = [
        phase["details"]
        for summary in summaries
        for phase in summary["phases"]
        if phase["name"] == TRAINING
    ]
    if details:
        row["ms_per_step"] = 1e3 * mean([each["seconds_per_step"] for each in details])
        row["refresh_seconds"] = mean([each["refresh_seconds"] for each in details])
        if "bank" in details[0]:
            row["refreshed"] = mean([each["refreshed"] for each in details])
            row["cosine"] = mean([each["bank"]["mean_drift"] for each in details])
    return row


def _draw_cost(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    plots.spreads(path, {row["variant"]: [row["ms_per_step"]] for row in rows}, "ms per step")


EXPERIMENTS: Mapping[str, Callable[[Experiments], dict[str, LeadingSettings]]] = {
    "main": Experiments.main,
    "labels": Experiments.labels,
    "parts": Experiments.parts,
    "staleness": Experiments.staleness,
    "cost": Experiments.cost,
}
"""What each experiment varies, but for `sweeps`, which trains nothing."""
