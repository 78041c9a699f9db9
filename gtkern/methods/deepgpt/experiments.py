"""Tunings that stand beside each other, and the experiments of DeepGPT's paper."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from gtkern.data import GraphDataset
from gtkern.methods.deepgpt.pretrained import Backbone
from gtkern.methods.deepgpt.run import PHASE, TuneRun
from gtkern.methods.deepgpt.settings import MODES, TuneSettings
from gtkern.training import plots
from gtkern.training import settings as settings_of
from gtkern.training.errors import UserError
from gtkern.training.kept_runs import KeptRuns
from gtkern.training.run import RunFolder
from gtkern.training.tables import mean, rows_table, spread

__all__ = ["DEPTHS", "EXPERIMENTS", "PREFIXES", "Tuning", "Tunings"]

DEPTHS = (1, 2, 4, 8)
"""Of how many layers, the last ones, `depth` gives prompts; all of them come on top."""

PREFIXES = (1, 2, 5, 10, 20, 40)
"""The tokens of `prefixes`."""

MIB = 2**20
_WHOLE = "deepgpt"

_COLUMNS = {
    "dataset": "",
    "variant": "",
    "test": ".4f",
    "std": ".4f",
    "last": ".4f",
    "prompts": ",.0f",
    "share": ".2%",
    "seconds_per_epoch": ".2f",
}
"""What the printed tables have of the rows."""


class Tuning(NamedTuple):
    """A data set to tune on.

    Attributes:
        settings: of the tuning; experiments vary them.
        data: the graphs. name: of the data in tables.
    """

    settings: TuneSettings
    data: GraphDataset
    name: str


class Tunings:
    """Tunings of one backbone, in one folder, as DATASET/VARIANT/seed-N-fold-M.

    Every run is kept: what is finished there is not run again; see KeptRuns.

    Args:
        backbone: what is tuned.
        sets: data sets.
        folder: for runs, tables and plots.
        seeds: every variant is run with each; with folds, on each of them.
        device: where to train. backend: of the ops. command: for the summaries.
        console: for progress.

    Raises:
        UserError: several processes run.
    """

    def __init__(
        self,
        backbone: Backbone,
        sets: Sequence[Tuning],
        folder: RunFolder,
        seeds: Sequence[int],
        *,
        device: torch.device | str = "cpu",
        backend: str = "auto",
        command: str = "",
        console: Console | None = None,
    ) -> None:
        self.backbone = backbone
        self.sets = tuple(sets)
        self.folder = folder
        self.seeds = tuple(seeds)
        self.console = console or Console(stderr=True)
        self.options: dict[str, Any] = {
            "device": torch.device(device),
            "backend": backend,
            "command": command,
            "console": self.console,
        }
        about = {
            "backbone": backbone.digest(),
            "device": str(device),
            "backend": backend,
            "network": json.dumps(asdict(backbone.settings)),
        }
        self.kept = KeptRuns(folder, about, self.console)

    def tune(self) -> Table:
        """Do the runs of the settings as they are; writes DATASET-MODE.csv and .png.

        Raises:
            UserError: a run in the folder has other settings, or cannot be done.
            InterruptedRunError: the user stopped; the same call goes on.
        """
        rows: list[dict[str, Any]] = []
        for each in self.sets:
            mode = each.settings.train
            summaries = self._runs(each, mode, each.settings)
            own = [
                {"dataset": each.name, "variant": title, **_figures([summary])}
                for title, summary in summaries.items()
            ]
            middle = {"dataset": each.name, "variant": "mean"}
            own.append({**middle, **_figures(list(summaries.values()))})
            stem = f"{each.settings.dataset}-{mode}"
            self.folder.write_rows(f"{stem}.csv", own)
            curves = {title: self._epochs(each, mode, title) for title in summaries}
            with self.folder.replacing(f"{stem}.png") as part:
                plots.repeated_curves(part, curves, each.data.metric)
            rows += own
        return rows_table(self._title(self.sets[0].settings.train), rows, _COLUMNS)

    def run(self, name: str, sizes: Sequence[int] = ()) -> Table:
        """Do an experiment, and write NAME.csv and its plots.

        Args:
            name: one of EXPERIMENTS.
            sizes: tokens of "prefixes", layers of "depth"; default: PREFIXES, DEPTHS.

        Raises:
            UserError, InterruptedRunError: as `tune`.
        """
        rows = []
        tests: dict[str, dict[str, list[float]]] = {}
        for each in self.sets:
            variants = EXPERIMENTS[name](self, each.settings, tuple(sizes))
            for variant, settings in variants.items():
                summaries = list(self._runs(each, variant, settings).values())
                row = {"dataset": each.name, "variant": variant}
                rows.append({**row, **_figures(summaries), "size": self._size(name, settings)})
                tests.setdefault(each.settings.dataset, {})[variant] = [
                    float(summary["test"][each.data.metric]) for summary in summaries
                ]
        self.folder.write_rows(f"{name}.csv", rows)
        self._draw(name, rows, tests)
        return rows_table(self._title(name), rows, _COLUMNS)

    def main(self, settings: TuneSettings, _: tuple[int, ...]) -> dict[str, TuneSettings]:
        """DeepGPT, all parameters, and the head alone."""
        return {mode: replace(settings, train=mode) for mode in ("deepgpt", "head", "full")}

    def parts(self, settings: TuneSettings, _: tuple[int, ...]) -> dict[str, TuneSettings]:
        """Both kinds of prompts, each by itself, and none."""
        modes = [mode for mode in MODES if mode != "full"]
        return {mode: replace(settings, train=mode) for mode in modes}

    def prefixes(self, settings: TuneSettings, sizes: tuple[int, ...]) -> dict[str, TuneSettings]:
        """Numbers of prefix tokens."""
        given = settings.prompts.prefix_tokens
        return {
            _WHOLE if size == given else f"prefix-{size}": replace(
                settings,
                train=_WHOLE,
                prompts=replace(settings.prompts, prefix_tokens=size),
            )
            for size in sizes or PREFIXES
        }

    def depth(self, settings: TuneSettings, sizes: tuple[int, ...]) -> dict[str, TuneSettings]:
        """How many layers have prompts: the last ones, as the paper's ablation has it."""
        count = self.backbone.settings.layers
        found = {
            f"last-{size}": replace(
                settings,
                train=_WHOLE,
                prompts=replace(settings.prompts, layers=(count - size, count)),
            )
            for size in sizes or DEPTHS
            if size < count
        }
        whole = replace(settings, train=_WHOLE, prompts=replace(settings.prompts, layers=None))
        return {**found, _WHOLE: whole}

    def _title(self, name: str) -> str:
        metrics = {each.name: each.data.metric for each in self.sets}
        measured = ", ".join(f"{metric} of {dataset}" for dataset, metric in metrics.items())
        return f"{name} over {self.backbone.model}: {measured}"

    def _size(self, name: str, settings: TuneSettings) -> int | None:
        """The number that an experiment varies."""
        if name == "prefixes":
            return settings.prompts.prefix_tokens
        if name == "depth":
            layers = settings.prompts.layers or (0, self.backbone.settings.layers)
            return layers[1] - layers[0]
        return None

    def _runs(
        self, each: Tuning, variant: str, settings: TuneSettings
    ) -> dict[str, dict[str, Any]]:
        """The summaries of all seeds and folds, by "seed N, fold M"."""
        folds = settings.folds if settings.split == "folds" else 1
        found = {}
        for seed in self.seeds:
            for fold in range(folds):
                values = {**asdict(settings), "seed": seed, "fold": fold}
                chosen = settings_of.read(TuneSettings, values)
                title = f"seed {seed}, fold {fold}" if folds > 1 else f"seed {seed}"
                found[title] = self.kept.train(
                    self._name(each, variant, title),
                    f"{each.name}, {variant}, {title}",
                    chosen,
                    self._make(chosen, each),
                )
        return found

    def _name(self, each: Tuning, variant: str, title: str) -> str:
        run = title.replace(", ", "-").replace(" ", "-")
        return f"{each.settings.dataset}/{variant}/{run}"

    def _make(
        self, settings: TuneSettings, each: Tuning
    ) -> Callable[[RunFolder], Callable[[bool], object]]:
        def make(folder: RunFolder) -> Callable[[bool], object]:
            try:
                run = TuneRun(
                    settings,
                    self.backbone,
                    each.data,
                    folder,
                    dataset=each.name,
                    **self.options,
                )
            except (NotImplementedError, TypeError, ValueError) as error:
                raise UserError(str(error)) from error
            return lambda resume: run.run(resume=resume)

        return make

    def _epochs(self, each: Tuning, variant: str, title: str) -> list[dict[str, float]]:
        path = self.folder / f"{self._name(each, variant, title)}/checkpoints/{PHASE}.json"
        rows: list[dict[str, float]] = json.loads(path.read_text(encoding="utf-8"))["rows"]
        return rows

    def _draw(
        self,
        name: str,
        rows: Sequence[Mapping[str, Any]],
        tests: Mapping[str, Mapping[str, Sequence[float]]],
    ) -> None:
        """NAME-DATASET.png of variants without an order, NAME.png of sizes."""
        metrics = {each.settings.dataset: each.data.metric for each in self.sets}
        if name not in ("prefixes", "depth"):
            for dataset, values in tests.items():
                with self.folder.replacing(f"{name}-{dataset}.png") as part:
                    plots.spreads(part, values, f"test {metrics[dataset]}")
            return
        label = {"prefixes": "prefix tokens", "depth": "layers with prompts"}[name]
        panels = []
        for each in self.sets:
            own = sorted(
                (row for row in rows if row["dataset"] == each.name), key=lambda row: row["size"]
            )
            points = {
                column: [(float(row["size"]), row[column]) for row in own]
                for column in ("test", "last")
            }
            ticks = [row["size"] for row in own]
            panels.append(plots.Panel(each.name, label, each.data.metric, points, ticks))
        with self.folder.replacing(f"{name}.png") as part:
            plots.lines(part, panels)


def _figures(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a row says of some runs that differ in seed and fold alone."""
    phases = [summary["phases"][0] for summary in summaries]
    ((metric, _),) = summaries[0]["test"].items()
    tests = [summary["test"][metric] for summary in summaries]
    last = [phase["details"]["last"][metric] for phase in phases]
    details = phases[0]["details"]
    return {
        "metric": metric,
        "test": mean(tests),
        "std": spread(tests),
        "last": mean(last),
        "last_std": spread(last),
        "prompts": details["prompts"],
        "head": details["head"],
        "share": details["share"],
        "epochs": phases[0]["epochs"],
        "seconds_per_epoch": mean([phase["seconds_per_epoch"] for phase in phases]),
        "mib": max(summary["peak_bytes"] for summary in summaries) / MIB,
    }


EXPERIMENTS: Mapping[
    str, Callable[[Tunings, TuneSettings, tuple[int, ...]], dict[str, TuneSettings]]
] = {
    "main": Tunings.main,
    "prefixes": Tunings.prefixes,
    "depth": Tunings.depth,
    "parts": Tunings.parts,
}
"""What each experiment varies."""
