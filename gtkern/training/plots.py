"""Plots of a run, as PNG."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["curves", "kept_edges", "score_distribution"]

_COLOURS = ("#3b6fb6", "#d9822b", "#3f9b57", "#8e5ea2")
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


def _figure(width: float, height: float) -> Any:
    """A figure that draws to a file without a display or global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure
