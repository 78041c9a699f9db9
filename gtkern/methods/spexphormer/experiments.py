"""The experiments of Spexphormer's paper on one data set: a table and a plot each."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table

from gtkern.methods.spexphormer import published
from gtkern.methods.spexphormer.kept_runs import FULL, Runs
from gtkern.methods.spexphormer.settings import Settings
from gtkern.models.exphormer import EDGE_TYPES
from gtkern.training import plots
from gtkern.training import settings as settings_of
from gtkern.training.errors import UserError
from gtkern.training.tables import mean, rows_table, spread

__all__ = ["ABLATIONS", "EXPERIMENTS", "Experiments", "Result", "energy_distance"]

ABLATIONS: Mapping[str, tuple[str, ...]] = {
    "uniform-sampling": ("phase2.sampling=uniform",),
    "top-sampling": ("phase2.sampling=top",),
    "no-temperature": ("phase1.temperature_ratio=1.0",),
    "raw-values": ("phase1.normalize_values=false",),
    "no-norm": ("phase1.norm=none",),
}
"""What each ablation sets. The paper's "without layer norm" can be read as either of the last two:
values that are not normalised, or no norm after attention and feed-forward part of phase 1."""

WIDTHS = (4, 8, 16, 32, 64)
BATCHES = 5
"""Batch sizes compared by default: all training nodes, half of them, and so on."""
MIB = 2**20


@dataclass(frozen=True)
class Result:
    """A table, and what draws its plot.

    Attributes:
        title: of the table.
        rows: values by column.
        formats: of the columns to show; see rows_table.
        draw: writes the PNG.
    """

    title: str
    rows: Sequence[Mapping[str, Any]]
    formats: Mapping[str, str]
    draw: Callable[[pathlib.Path], None]

    def table(self) -> Table:
        """To print."""
        return rows_table(self.title, self.rows, self.formats)


class Experiments:
    """The experiments on one data set, in one folder.

    Args:
        runs: the runs, and the folder for tables and plots.
        seeds: every variant is run with each.
    """

    def __init__(self, runs: Runs, seeds: Sequence[int]) -> None:
        self.runs = runs
        self.seeds = tuple(seeds)
        self.settings = runs.settings
        self.dataset = runs.dataset

    def run(self, name: str, sizes: Sequence[int] = ()) -> Result:
        """Do an experiment, and write NAME.csv and NAME.png.

        Args:
            name: one of EXPERIMENTS.
            sizes: widths of `consistency`, batch sizes of `batches`; none: the default ones.

        Raises:
            UserError: `sizes` do not fit, or a run in the folder has other settings.
            InterruptedRunError: the user stopped; the same call goes on.
        """
        if sizes and name not in ("batches", "consistency"):
            raise UserError(f"sizes are for batches and consistency, got them with {name}")
        result = EXPERIMENTS[name](self, tuple(sizes))
        self.runs.folder.write_rows(f"{name}.csv", result.rows)
        with self.runs.folder.replacing(f"{name}.png") as part:
            result.draw(part)
        return result

    def main(self, _: tuple[int, ...]) -> Result:
        """Every seed of the full method, their mean, and the paper's figure."""
        rows: list[dict[str, Any]] = []
        for seed in self.seeds:
            summary = self.runs.train(FULL, seed)
            phases = {phase["name"]: phase for phase in summary["phases"]}
            row: dict[str, Any] = {
                "run": f"seed {seed}",
                "test": self._of(summary["test"]),
                "val": self._of(summary["val"]),
                "best_epoch": phases["phase2"]["best_epoch"],
            }
            for phase, record in phases.items():
                row[f"{phase}_seconds"] = record["seconds"]
                row[f"{phase}_mib"] = record["peak_bytes"] / MIB
            row["seconds"] = sum(record["seconds"] for record in summary["phases"])
            row["mib"] = summary["peak_bytes"] / MIB
            rows.append(row)
        tests = [row["test"] for row in rows]
        columns = [column for column in rows[0] if column != "run"]
        middle = {column: mean([row[column] for row in rows]) for column in columns}
        rows.append({"run": "mean", **middle, "std": spread(tests)})
        figure, reference = published.TEST.get(self.settings.dataset), None
        if figure is not None:
            note = figure.source + self._of_other_data()
            rows.append({"run": "paper", "test": figure.mean, "std": figure.std, "note": note})
            reference = ("paper", figure.mean, figure.std)
        return Result(
            f"Spexphormer on {self.dataset}: test {self.settings.metric} at the best validation",
            rows,
            {
                "run": "",
                "test": ".4f",
                "std": ".4f",
                "val": ".4f",
                "best_epoch": ".0f",
                "seconds": ".1f",
                "mib": ",.0f",
                "note": "",
            },
            lambda path: plots.spreads(
                path, {"Spexphormer": tests}, f"test {self.settings.metric}", reference
            ),
        )

    def ablations(self, _: tuple[int, ...]) -> Result:
        """The full method without one of its parts at a time, and its first network alone."""
        variants = {name: self._changed(changes) for name, changes in ABLATIONS.items()}
        tests: dict[str, list[float]] = {FULL: [], "phase-1-alone": []}
        vals: dict[str, list[float]] = {FULL: [], "phase-1-alone": []}
        for seed in self.seeds:
            full = self.runs.train(FULL, seed)
            for name, record in ((FULL, full), ("phase-1-alone", full["phases"][0])):
                tests[name].append(self._of(record["test"]))
                vals[name].append(self._of(record["val"]))
            for name, settings in variants.items():
                shares = settings.phase1 == self.settings.phase1
                # without annealing, say, the full method may be the same
                same = settings == self.settings
                summary = full if same else self.runs.train(name, seed, settings, scores=shares)
                tests.setdefault(name, []).append(self._of(summary["test"]))
                vals.setdefault(name, []).append(self._of(summary["val"]))
        changed = {
            name: " ".join(ABLATIONS[name]) + (", as in full" if settings == self.settings else "")
            for name, settings in variants.items()
        }
        rows = [
            {
                "variant": name,
                "test": mean(values),
                "std": spread(values),
                "val": mean(vals[name]),
                **{
                    f"test_seed_{seed}": value
                    for seed, value in zip(self.seeds, values, strict=True)
                },
                "changed": changed.get(name, ""),
            }
            for name, values in tests.items()
        ]
        return Result(
            f"Ablations on {self.dataset}: test {self.settings.metric}, {self._seeds()}",
            rows,
            {"variant": "", "test": ".4f", "std": ".4f", "val": ".4f", "changed": ""},
            lambda path: plots.spreads(path, tests, f"test {self.settings.metric}"),
        )

    def edges(self, _: tuple[int, ...]) -> Result:
        """The edges that phase 2 keeps, by layer, averaged over seeds."""
        kept, totals = [], []
        for seed in self.seeds:
            details = self.runs.train(FULL, seed)["phases"][1]["details"]
            kept.append(np.array(details["distinct_edges_by_layer_and_type"], dtype=np.float64))
            types = np.load(self.runs.path(FULL, seed) / "scores/edge_type.npy", mmap_mode="r")
            totals.append(np.bincount(types, minlength=len(EDGE_TYPES)).astype(np.float64))
        distinct, total = np.mean(kept, axis=0), np.mean(totals, axis=0)
        nodes, attention = self.runs.data.x.size(0), total[:2].sum()
        rows: list[dict[str, Any]] = []
        for layer, neighbors in enumerate(self.settings.phase2.neighbors):
            row: dict[str, Any] = {
                "layer": str(layer + 1),
                "neighbors": neighbors,
                "sampled": neighbors * nodes / attention,
                "distinct": distinct[layer].sum() / total.sum(),
            }
            for kind, name in enumerate(EDGE_TYPES):
                column = f"distinct_{name.replace(' ', '_')}"
                row[column] = distinct[layer, kind] / total[kind] if total[kind] else None
            rows.append(row)
        shares = [row["sampled"] for row in rows]
        rows.append({"layer": "mean", "sampled": mean(shares)})
        if self.settings.dataset in published.EDGES_KEPT:
            share = published.EDGES_KEPT[self.settings.dataset]
            note = published.REMEMBERED + self._of_other_data()
            rows.append({"layer": "paper", "sampled": share, "note": note})
        columns = (f"distinct_{name.replace(' ', '_')}" for name in EDGE_TYPES)
        return Result(
            f"Edges kept on {self.dataset}: {attention:,.0f} edges of graph and expander, "
            f"{nodes:,} self loops; {self._seeds()}",
            rows,
            {
                "layer": "",
                "neighbors": "d",
                "sampled": ".1%",
                "distinct": ".1%",
                **dict.fromkeys(columns, ".1%"),
                "note": "",
            },
            lambda path: plots.kept_edges(path, distinct, int(total.sum()), EDGE_TYPES),
        )

    def batches(self, sizes: tuple[int, ...]) -> Result:
        """Time, memory and test metric of phase 2 by its batch size; phase 1 is the full run's."""
        nodes = int(self.runs.data.train_mask.sum())
        sizes = sizes or tuple(sorted({max(2, nodes >> step) for step in range(BATCHES)}))
        variants = {size: self._changed((f"phase2.batch_size={size}",)) for size in sizes}
        rows: list[dict[str, Any]] = []
        for size, settings in variants.items():
            seconds, memory, tests = [], [], []
            for seed in self.seeds:
                self.runs.train(FULL, seed)
                phase = self.runs.train(f"batch-{size}", seed, settings, scores=True)["phases"][1]
                seconds.append(phase["seconds_per_epoch"])
                before = phase["details"]["resident_bytes_before"]
                memory.append((phase["peak_bytes"] - before) / MIB)
                tests.append(self._of(phase["test"]))
            rows.append(
                {
                    "batch_size": size,
                    "steps": max(1, nodes // size + (nodes % size >= 2)),
                    "seconds_per_epoch": mean(seconds),
                    "mib_above_start": mean(memory),
                    "test": mean(tests),
                    "std": spread(tests),
                }
            )
        labels = {
            "seconds_per_epoch": "s per epoch",
            "mib_above_start": "MiB above the start of phase 2",
            "test": f"test {self.settings.metric}",
        }
        panels = [
            plots.Panel(
                "",
                "training nodes in a batch",
                label,
                {label: [(row["batch_size"], row[column]) for row in rows]},
                sizes,
                log_x=True,
            )
            for column, label in labels.items()
        ]
        return Result(
            f"Batch sizes of phase 2 on {self.dataset}, {self._seeds()}",
            rows,
            {
                "batch_size": ",d",
                "steps": ",d",
                "seconds_per_epoch": ".3f",
                "mib_above_start": ",.0f",
                "test": ".4f",
                "std": ".4f",
            },
            lambda path: plots.lines(path, panels),
        )

    def consistency(self, sizes: tuple[int, ...]) -> Result:
        """How near the scores of narrow networks are to those of the widest."""
        widths = tuple(sorted(sizes or WIDTHS))
        if len(widths) < 2:
            raise UserError(f"consistency needs two widths or more, got {list(widths)}")
        variants = {width: self._changed((f"phase1.width={width}",)) for width in widths}
        found: dict[str, list[np.ndarray]] = {}
        for seed in self.seeds:
            for width, settings in variants.items():
                self.runs.train(f"width-{width}", seed, settings, only_scores=True)
            folder = self.runs.path(f"width-{widths[-1]}", seed) / "scores"
            row_ptr = np.load(folder / "row_ptr.npy")
            widest = np.load(folder / "scores.npy", mmap_mode="r")
            for name, scores in self._others(seed, widths[:-1], row_ptr):
                # the scores of a baseline are the same in every layer
                by_layer = np.broadcast_to(scores, widest.shape)
                distances = [
                    energy_distance(one, other, row_ptr).mean()
                    for one, other in zip(by_layer, widest, strict=True)
                ]
                found.setdefault(name, []).append(np.array(distances))
        layers = [f"layer_{layer + 1}" for layer in range(self.settings.phase1.layers)]
        rows: list[dict[str, Any]] = []
        for name, values in found.items():
            by_layer = np.mean(values, axis=0)
            rows.append(
                {
                    "scores": name,
                    "mean": float(by_layer.mean()),
                    "std": spread([float(value.mean()) for value in values]),
                    **dict(zip(layers, by_layer.tolist(), strict=True)),
                }
            )
        ticks = [layer + 1 for layer in range(len(layers))]
        points = {
            row["scores"]: [(tick, row[layer]) for tick, layer in zip(ticks, layers, strict=True)]
            for row in rows
        }
        panel = plots.Panel(
            self.dataset, "layer", f"energy distance to width {widths[-1]}", points, ticks
        )
        return Result(
            f"Scores on {self.dataset}: energy distance to those of width {widths[-1]}, mean over "
            f"nodes, {self._seeds()}",
            rows,
            {"scores": "", "mean": ".4f", "std": ".4f", **dict.fromkeys(layers, ".4f")},
            lambda path: plots.lines(path, [panel]),
        )

    def _others(
        self, seed: int, widths: Sequence[int], row_ptr: np.ndarray
    ) -> list[tuple[str, np.ndarray]]:
        """What is compared with the widest network's scores: [L, E], or [E] for all layers."""
        degree = np.diff(row_ptr)
        uniform = np.repeat(1.0 / degree, degree)
        # exponential draws over their sum: any distribution over a node's edges, equally likely
        draws = np.random.default_rng(seed).standard_exponential(uniform.size)
        random = draws / np.repeat(np.add.reduceat(draws, row_ptr[:-1]), degree)
        paths = {
            width: self.runs.path(f"width-{width}", seed) / "scores/scores.npy" for width in widths
        }
        trained = [(f"width {width}", np.load(path)) for width, path in paths.items()]
        return [*trained, ("uniform", uniform), ("random", random)]

    def _changed(self, changes: Sequence[str]) -> Settings:
        values = settings_of.override(Settings, asdict(self.settings), changes)
        return settings_of.read(Settings, values)

    def _of(self, metrics: Mapping[str, float]) -> float:
        return metrics[self.settings.metric]

    def _seeds(self) -> str:
        return f"seed {self.seeds[0]}" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds"

    def _of_other_data(self) -> str:
        """What to add to a figure that is not of the same data."""
        return "" if self.dataset == self.settings.dataset else "; on the published graph"


EXPERIMENTS: Mapping[str, Callable[[Experiments, tuple[int, ...]], Result]] = {
    "main": Experiments.main,
    "ablations": Experiments.ablations,
    "edges": Experiments.edges,
    "batches": Experiments.batches,
    "consistency": Experiments.consistency,
}
"""The experiments by name."""


def energy_distance(first: np.ndarray, second: np.ndarray, row_ptr: np.ndarray) -> np.ndarray:
    """The energy distance of two distributions over each node's edges.

    Two edges are at distance 1 unless they are the same one, so that for edges e, e' drawn by
    `first` and f, f' by `second`::

        D² = 2 P(e ≠ f) - P(e ≠ e') - P(f ≠ f') = Σ_edges (first - second)²

    Args:
        first, second: [E]; for each node they sum to 1.
        row_ptr: int [N + 1]; node i has the edges row_ptr[i] .. row_ptr[i + 1], at least one.

    Returns:
        float64 [N], 0 .. sqrt(2).

    Reference: Székely and Rizzo 2013, for the discrete metric.
    """
    squares = np.square(first.astype(np.float64) - second)
    return np.sqrt(np.add.reduceat(squares, row_ptr[:-1]))
