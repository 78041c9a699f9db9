"""The experiments of GTSP's paper on one data set: a table and a plot each."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from gtkern.data.graphs import GraphDataset
from gtkern.methods.gtsp.joint import with_ratios
from gtkern.methods.gtsp.run import PruneRun
from gtkern.methods.gtsp.settings import DIMENSIONS, PruneSettings
from gtkern.training import plots
from gtkern.training import settings as settings_of
from gtkern.training.errors import UserError
from gtkern.training.fit import evaluate
from gtkern.training.graph import GraphTask
from gtkern.training.graph_run import GraphRun, build_network, splits
from gtkern.training.graph_settings import GraphSettings
from gtkern.training.kept_runs import KeptRuns
from gtkern.training.run import RunFolder
from gtkern.training.tables import mean, rows_table, spread

__all__ = ["EXPERIMENTS", "SPLITS", "PruningExperiments"]

DENSE = "dense"
SPLITS: Mapping[str, tuple[float, ...]] = {
    "even": (1.0, 1.0, 1.0, 1.0),
    "heads-weights": (0.0, 1.0, 0.0, 1.0),
    "tokens-weights": (1.0, 0.0, 0.0, 1.0),
    "mostly-attention": (1.0, 1.0, 1.0, 0.25),
    "mostly-weights": (0.25, 0.25, 0.25, 1.0),
}
"""How `budget` splits the FLOPs among tokens, heads, layers and weights."""

ORDERS: Mapping[str, tuple[str, ...]] = {
    "together": (),
    "weights-first": ("weights", "heads", "layers", "tokens"),
    "attention-first": ("tokens", "heads", "layers", "weights"),
    "layers-first": ("layers", "heads", "tokens", "weights"),
}
"""Which dimension follows which in `order`."""

_COLUMNS = {
    "variant": "",
    "test": ".4f",
    "std": ".4f",
    "val": ".4f",
    "gap": ".4f",
    "parameters": ",.0f",
    "mflop": ",.1f",
    "flops": ".3f",
    "time": ".3f",
    "training_time": ".3f",
    "ratios": "",
}


class PruningExperiments:
    """The experiments on one data set with one model, in one folder.

    Every run is kept: what is finished there is not run again; see KeptRuns.

    Args:
        base: of the dense network.
        settings: of pruning; what an experiment varies is replaced.
        data: the graphs.
        folder: for runs, tables and plots.
        seeds: every variant is run with each.
        dataset: name of the data in tables.
        dimensions: those that `ratios` varies.
        device: where to train. backend: of the ops. command: for the summaries.
        console: for progress.

    Raises:
        UserError: several processes run. ValueError: there is no such dimension.
    """

    def __init__(
        self,
        base: GraphSettings,
        settings: PruneSettings,
        data: GraphDataset,
        folder: RunFolder,
        seeds: Sequence[int],
        *,
        dataset: str,
        dimensions: Sequence[str] = DIMENSIONS,
        device: torch.device | str = "cpu",
        backend: str = "auto",
        command: str = "",
        console: Console | None = None,
    ) -> None:
        self.base = base
        self.settings = settings
        self.data = data
        self.folder = folder
        self.seeds = tuple(seeds)
        self.dataset = dataset
        unknown = [name for name in dimensions if name not in DIMENSIONS]
        if unknown:
            raise ValueError(f"dimensions must be some of {DIMENSIONS}, got {unknown[0]!r}")
        self.dimensions = tuple(name for name in DIMENSIONS if name in dimensions)
        self.console = console or Console(stderr=True)
        self.options: dict[str, Any] = {
            "device": torch.device(device),
            "backend": backend,
            "dataset": dataset,
            "command": command,
            "console": self.console,
        }
        about = {
            "dataset": dataset,
            "device": str(device),
            "backend": backend,
            "model": base.model,
            "network": json.dumps(asdict(base.network)),
        }
        self.kept = KeptRuns(folder, about, self.console)

    def run(self, name: str, ratios: Sequence[float]) -> Table:
        """Do an experiment, and write NAME.csv, NAME.png and NAME-gap.png.

        Args:
            name: one of EXPERIMENTS.
            ratios: what is kept, for "ratios"; budgets for "budget"; the ratio of all dimensions
                for "order".

        Raises:
            UserError: a run in the folder has other settings, or cannot be done.
            InterruptedRunError: the user stopped; the same call goes on.
        """
        variants = EXPERIMENTS[name](self, tuple(ratios))
        # what cannot be read should not start
        for seed in self.seeds:
            self._seeded(self.base, seed)
        dense = [self._dense(seed) for seed in self.seeds]
        tests = {DENSE: [each["test"] for each in dense]}
        found: dict[str, list[dict[str, Any]]] = {}
        for variant, settings in variants.items():
            for seed in self.seeds:
                found.setdefault(variant, []).append(self._pruned(variant, settings, seed))
        rows = [_dense_row(dense, found)]
        for variant, reports in found.items():
            tests[variant] = [report["compact"]["test"] for report in reports]
            rows.append(_row(variant, reports))
        metric = self.data.metric
        self.folder.write_rows(f"{name}.csv", rows)
        with self.folder.replacing(f"{name}.png") as part:
            plots.spreads(part, tests, f"test {metric}")
        with self.folder.replacing(f"{name}-gap.png") as part:
            _draw_gap(part, rows, metric)
        title = f"GTSP on {self.dataset}, {self.base.model}, {name}: {metric}; of one batch"
        return rows_table(title, rows, _COLUMNS)

    def ratios(self, ratios: tuple[float, ...]) -> dict[str, PruneSettings]:
        """Each dimension by itself at each ratio."""
        gone = self._impossible(ratios)
        names = [name for name in self.dimensions if name not in gone]
        if not names:
            raise UserError("no dimension is left to vary")
        return {
            f"{name}-{ratio:g}": with_ratios(
                self.settings, {**dict.fromkeys(DIMENSIONS, 1.0), name: ratio}
            )
            for name in names
            for ratio in ratios
        }

    def budget(self, budgets: tuple[float, ...]) -> dict[str, PruneSettings]:
        """Each way to split a budget; the best on validation is the one to take."""
        self._needs_structure()
        return {
            f"{name}-{budget:g}": replace(self.settings, budget=budget, split=split)
            for name, split in SPLITS.items()
            for budget in budgets
        }

    def order(self, ratios: tuple[float, ...]) -> dict[str, PruneSettings]:
        """All dimensions at one ratio, at the same time or one behind the other."""
        return {
            f"{name}-{ratio:g}": replace(
                with_ratios(self.settings, dict.fromkeys(DIMENSIONS, ratio)),
                stretch=replace(self.settings.stretch, order=order),
            )
            for name, order in ORDERS.items()
            for ratio in ratios
        }

    def _impossible(self, ratios: Sequence[float]) -> tuple[str, ...]:
        """Dimensions of which a ratio would leave nothing."""
        sizes = {"heads": self.base.network.heads, "layers": self.base.network.layers}
        least = min(ratios)
        gone = [
            name
            for name, size in sizes.items()
            if name in self.dimensions and int(least * size + 1e-9) < 1
        ]
        for name in gone:
            self.console.print(
                f"{name} are left out: of {sizes[name]} a ratio of {least:g} keeps none",
                highlight=False,
            )
        return tuple(gone)

    def _needs_structure(self) -> None:
        if self.settings.weights.structure == "single":
            raise UserError(
                "a budget needs weights.structure=neurons or blocks: single weights save no FLOPs "
                "that run"
            )

    def _seeded(self, settings: Any, seed: int) -> Any:
        return settings_of.read(type(settings), {**asdict(settings), "seed": seed})

    def _dense(self, seed: int) -> dict[str, float]:
        """The metrics of the dense network on all splits."""
        base = self._seeded(self.base, seed)

        def make(folder: RunFolder) -> Callable[[bool], object]:
            run = GraphRun(base, self.data, folder, **self.options)
            return lambda resume: run.run(resume=resume)

        name = f"{DENSE}/seed-{seed}"
        summary = self.kept.train(name, f"{DENSE}, seed {seed}", base, make)
        found = {part: float(summary[part][self.data.metric]) for part in ("val", "test")}
        path = self.folder / name / "train.json"
        if not path.is_file():
            network = build_network(base, self.data, self.options["backend"])
            network.load_state_dict(load_file(path.parent / "checkpoints/training.safetensors"))
            train, _, test = splits(base, self.data)
            task = GraphTask(network, self.data, (train, train, test), base.training, seed=seed)
            value = evaluate(task, device=self.options["device"])[0]
            RunFolder(path.parent).write_text(path.name, json.dumps({"train": value}) + "\n")
        return {**found, **json.loads(path.read_text(encoding="utf-8"))}

    def _pruned(self, variant: str, settings: PruneSettings, seed: int) -> dict[str, Any]:
        base, chosen = self._seeded(self.base, seed), self._seeded(settings, seed)

        def make(folder: RunFolder) -> Callable[[bool], object]:
            weights = None
            if chosen.start == "trained":
                path = self.folder / f"{DENSE}/seed-{seed}/checkpoints/training.safetensors"
                weights = load_file(path)
            run = PruneRun(chosen, base, self.data, folder, weights=weights, **self.options)
            return lambda resume: run.run(resume=resume)

        name = f"{variant}/seed-{seed}"
        self.kept.train(name, f"{variant}, seed {seed}", chosen, make)
        report: dict[str, Any] = json.loads(
            (self.folder / name / "report.json").read_text(encoding="utf-8")
        )
        return report


def _dense_row(
    metrics: Sequence[Mapping[str, float]], found: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    network = next(iter(found.values()))[0]["dense"]
    tests = [each["test"] for each in metrics]
    return {
        "variant": DENSE,
        "test": mean(tests),
        "std": spread(tests),
        "val": mean([each["val"] for each in metrics]),
        "gap": mean([each["train"] - each["test"] for each in metrics]),
        "parameters": network["parameters"],
        "mflop": network["flops"] / 1e6,
        "flops": 1.0,
        "time": 1.0,
        "training_time": 1.0,
        "ratios": "",
    }


def _row(variant: str, reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    compact = [report["compact"] for report in reports]
    dense = [report["dense"] for report in reports]

    def share(key: str) -> float:
        return mean([a[key] / b[key] for a, b in zip(compact, dense, strict=True)])

    tests = [each["test"] for each in compact]
    ratios = reports[0]["ratios"]
    return {
        "variant": variant,
        "test": mean(tests),
        "std": spread(tests),
        "val": mean([each["val"] for each in compact]),
        "gap": mean([each["train"] - each["test"] for each in compact]),
        "parameters": mean([each["nonzero"] for each in compact]),
        "mflop": mean([each["flops"] for each in compact]) / 1e6,
        "flops": share("flops"),
        "time": share("seconds"),
        "training_time": share("training_seconds"),
        "ratios": " ".join(f"{name} {value:.2f}" for name, value in ratios.items() if value < 1),
    }


def _draw_gap(path: pathlib.Path, rows: Sequence[Mapping[str, Any]], metric: str) -> None:
    """The gap between the metric of training and test graphs against what is kept."""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        name, _, ratio = str(row["variant"]).rpartition("-")
        if name:
            points.setdefault(name, []).append((100 * (1 - float(ratio)), row["gap"]))
    for line in points.values():
        line.append((0.0, rows[0]["gap"]))
    ticks = sorted({x for line in points.values() for x, _ in line})
    panel = plots.Panel(
        "overfitting",
        "pruned, %",
        f"{metric} of training graphs - test graphs",
        {name: sorted(line) for name, line in points.items()},
        ticks,
    )
    plots.lines(path, [panel])


EXPERIMENTS: Mapping[
    str, Callable[[PruningExperiments, tuple[float, ...]], dict[str, PruneSettings]]
] = {
    "ratios": PruningExperiments.ratios,
    "budget": PruningExperiments.budget,
    "order": PruningExperiments.order,
}
"""What each experiment varies."""
