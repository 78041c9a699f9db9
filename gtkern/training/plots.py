"""Plots of a run, as PNG."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = [
    "Matrix",
    "Panel",
    "curves",
    "kept_edges",
    "lines",
    "matrices",
    "repeated_curves",
    "score_distribution",
    "shares",
    "spreads",
]

_COLOURS = ("#3b6fb6", "#d9822b", "#3f9b57", "#8e5ea2", "#b5493f", "#4aa3a2", "#7a7a3a", "#555555")
_LIGHT = "#9aa0a6"


def curves(
    path: pathlib.Path,
    phases: Mapping[str, Sequence[Mapping[str, float]]],
    best: Mapping[str, int],
    metric: str,
) -> None:
    """Loss and metric by epoch, one panel for each phase; the kept epoch is marked.

    Args:
        path: the PNG to write.
        phases: rows of epochs by the phase's name.
        best: kept epoch from 0 by the phase's name.
        metric: name of the metric.
    """
    figure = _figure(5.2 * len(phases), 3.6)
    for number, (name, rows) in enumerate(phases.items()):
        axes = figure.add_subplot(1, len(phases), number + 1)
        epochs = [row["epoch"] + 1 for row in rows]
        axes.plot(epochs, [row["loss"] for row in rows], color=_LIGHT, label="training loss")
        axes.set(title=name, xlabel="epoch", ylabel="training loss")
        right = axes.twinx()
        for part, colour in (("val", _COLOURS[0]), ("test", _COLOURS[1])):
            points = [(row["epoch"] + 1, row[part]) for row in rows if part in row]
            right.plot(*zip(*points, strict=True), color=colour, label=part)
        right.axvline(best[name] + 1, color="black", linewidth=0.8, linestyle=":", label="kept")
        right.set_ylabel(metric)
        lines = [*axes.get_lines(), *right.get_lines()]
        right.legend(lines, [line.get_label() for line in lines], loc="center right", fontsize=8)
    figure.savefig(path)


def repeated_curves(
    path: pathlib.Path, runs: Mapping[str, Sequence[Mapping[str, float]]], metric: str
) -> None:
    """Loss and metric by epoch over several runs: a thin line for each, a thick one of their mean.

    Args:
        path: the PNG to write.
        runs: rows of epochs by the run's name.
        metric: name of the metric.
    """
    figure = _figure(9.6, 3.6)
    panels = (("training loss", ("loss",)), (metric, ("val", "test")))
    for number, (label, columns) in enumerate(panels):
        axes = figure.add_subplot(1, 2, number + 1)
        for column, colour in zip(columns, _COLOURS, strict=False):
            points = [
                {row["epoch"] + 1: row[column] for row in rows if column in row}
                for rows in runs.values()
            ]
            for values in points:
                axes.plot(
                    *zip(*values.items(), strict=True), color=colour, linewidth=0.5, alpha=0.5
                )
            shared = sorted(set.intersection(*(set(values) for values in points)))
            means = [np.mean([values[epoch] for values in points]) for epoch in shared]
            axes.plot(shared, means, color=colour, lw=1.8, label=column)
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(alpha=0.3)
        if len(columns) > 1:
            axes.legend(fontsize=8)
    figure.suptitle(f"{len(runs)} runs and their mean", fontsize=10)
    figure.savefig(path)


def score_distribution(
    path: pathlib.Path, scores: np.ndarray, edge_type: np.ndarray, names: Sequence[str]
) -> None:
    """Distribution of attention scores on a log scale, by edge type, one panel for each layer.

    Args:
        path: the PNG to write.
        scores: [L, E].
        edge_type: [E].
        names: of the edge types.
    """
    layers = scores.shape[0]
    figure = _figure(3.0 * layers + 0.6, 3.2)
    low = max(float(scores[scores > 0].min(initial=1.0)), 1e-8)
    bins = np.linspace(np.log10(low), 0, 61)
    first = None
    for layer in range(layers):
        axes = figure.add_subplot(1, layers, layer + 1, sharey=first)
        first = first or axes
        logs = np.log10(scores[layer].clip(low))
        for kind, name in enumerate(names):
            chosen = logs[edge_type == kind]
            if chosen.size:
                counts, _ = np.histogram(chosen, bins)
                axes.stairs(
                    counts / chosen.size,
                    bins,
                    color=_COLOURS[kind],
                    fill=True,
                    alpha=0.35,
                    label=name,
                )
                axes.stairs(counts / chosen.size, bins, color=_COLOURS[kind], linewidth=1)
        axes.set(title=f"layer {layer + 1}", xlabel="log10 of the score")
        if layer == 0:
            axes.set_ylabel("share of the type's edges")
        else:
            axes.tick_params(labelleft=False)
        if layer == layers - 1:
            axes.legend(fontsize=8)
    figure.savefig(path)


def kept_edges(path: pathlib.Path, kept: np.ndarray, total: int, names: Sequence[str]) -> None:
    """Share of the augmented graph's edges that one sampling keeps, by layer and edge type.

    Args:
        path: the PNG to write.
        kept: [L, T]; different edges kept.
        total: edges of the graph.
        names: of the T edge types.
    """
    layers = kept.shape[0]
    figure = _figure(1.1 * layers + 3.0, 3.4)
    axes = figure.add_subplot()
    places = np.arange(layers)
    bottom = np.zeros(layers)
    for kind, name in enumerate(names):
        height = 100 * kept[:, kind] / total
        axes.bar(places, height, 0.6, bottom=bottom, color=_COLOURS[kind], label=name)
        bottom += height
    for place, top in zip(places, bottom, strict=True):
        axes.annotate(f"{top:.1f} %", (place, top), ha="center", va="bottom", fontsize=9)
    axes.set_xticks(places, [f"layer {layer + 1}" for layer in range(layers)])
    axes.set(ylabel="kept edges, % of all", ylim=(0, 1.15 * bottom.max()))
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    figure.savefig(path)


def spreads(
    path: pathlib.Path,
    values: Mapping[str, Sequence[float]],
    metric: str,
    reference: tuple[str, float, float] | None = None,
) -> None:
    """The values of several runs by name: points, and mean and standard deviation beside them.

    Args:
        path: the PNG to write.
        values: of the runs, by name.
        metric: their name.
        reference: name, mean and standard deviation of a figure to compare with.
    """
    figure = _figure(6.4, 1.3 + 0.45 * (len(values) + (reference is not None)))
    axes = figure.add_subplot()
    names = list(values)
    for place, name in enumerate(names):
        points = np.array(values[name])
        error = points.std(ddof=1) if points.size > 1 else 0.0
        axes.errorbar(points.mean(), place, xerr=error, fmt="o", capsize=4, color=_COLOURS[0])
        axes.plot(points, np.full(points.size, place + 0.18), ".", color=_LIGHT)
    if reference is not None:
        name, middle, error = reference
        axes.errorbar(middle, len(names), xerr=error, fmt="D", capsize=4, color=_COLOURS[1])
        names.append(name)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(metric)
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path)


@dataclass(frozen=True)
class Panel:
    """Lines over one pair of axes: points (x, y) by the line's name."""

    title: str
    x_label: str
    y_label: str
    points: Mapping[str, Sequence[tuple[float, float]]]
    x_ticks: Sequence[float]
    log_x: bool = False


def lines(path: pathlib.Path, panels: Sequence[Panel]) -> None:
    """Panels side by side.

    Args:
        path: the PNG to write.
        panels: from left to right.
    """
    figure = _figure(4.2 * len(panels) + 0.6, 3.6)
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        for kind, (name, points) in enumerate(panel.points.items()):
            colour = _COLOURS[kind % len(_COLOURS)]
            axes.plot(*zip(*points, strict=True), "o-", color=colour, label=name, markersize=4)
        axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
        if panel.log_x:
            axes.set_xscale("log", base=2)
        axes.set_xticks(panel.x_ticks, [f"{tick:,g}" for tick in panel.x_ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        if len(panel.points) > 1:
            axes.legend(fontsize=8)
    figure.savefig(path)


@dataclass(frozen=True)
class Matrix:
    """A square matrix of numbers.

    Attributes:
        title: above it.
        values: [n, n].
        groups: names of the parts that rows and columns consist of, and how many each has.
    """

    title: str
    values: np.ndarray
    groups: Mapping[str, int]


def matrices(path: pathlib.Path, panels: Sequence[Matrix], label: str, high: float) -> None:
    """Matrices side by side on one scale from 0, lines between the groups.

    Args:
        path: the PNG to write.
        panels: from left to right.
        label: of the scale. high: its end.
    """
    figure = _figure(4.4 * len(panels) + 1.0, 4.2)
    every = []
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        every.append(axes)
        image = axes.imshow(panel.values, vmin=0, vmax=high, cmap="viridis")
        counts = np.array(list(panel.groups.values()))
        ends = counts.cumsum()
        for end in ends[:-1]:
            axes.axhline(end - 0.5, color="white", linewidth=1)
            axes.axvline(end - 0.5, color="white", linewidth=1)
        middles = ends - (counts + 1) / 2
        axes.set_xticks(middles, list(panel.groups), rotation=45, ha="right", fontsize=8)
        axes.set_yticks(middles, list(panel.groups), fontsize=8)
        axes.set_title(panel.title)
    figure.colorbar(image, ax=every, label=label, shrink=0.85)
    figure.savefig(path)


def shares(path: pathlib.Path, kept: Mapping[str, Mapping[str, float]]) -> None:
    """What share of each layer is kept: bars, one panel for each group.

    Args:
        path: the PNG to write.
        kept: shares in [0, 1] by group and layer.
    """
    tallest = max(len(values) for values in kept.values())
    figure = _figure(4.8 * len(kept), 1.4 + 0.24 * tallest)
    for number, (name, values) in enumerate(kept.items()):
        axes = figure.add_subplot(1, len(kept), number + 1)
        places = np.arange(len(values))
        widths = 100 * np.array(list(values.values()))
        axes.barh(places, 100, color=_LIGHT, alpha=0.3)
        axes.barh(places, widths, color=_COLOURS[number])
        axes.set_yticks(places, list(values), fontsize=7)
        axes.set_ylim(len(values) - 0.5, -0.5)
        axes.set(title=name, xlabel="kept, %", xlim=(0, 100))
    figure.savefig(path)


def _figure(width: float, height: float) -> Any:
    """A figure that draws to a file without a display or global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure
