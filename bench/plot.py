"""A picture of a results file: how many times as long each peer takes, with the conditions below.

python bench/plot.py bench/results/<device>.csv [picture.png]
"""

from __future__ import annotations

import csv
import pathlib
import sys
import textwrap
from collections.abc import Mapping, Sized
from typing import Any

__all__ = ["draw"]

COLORS = (
    "#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#da8bc3", "#64b5cd",
)  # fmt: skip
MARKERS = "osD^vP"
WHOLE = "fwd+bwd"
ROW, HEAD = 0.2, 0.75
"""Inches that a case takes, and what surrounds a panel."""


def draw(results: pathlib.Path, image: pathlib.Path) -> None:
    """Draw the ratios of a results file: a panel for each room, a line of marks for each case.

    Training steps (fwd+bwd) are shown where a case has them, else forward passes.

    Args:
        results: a CSV that run.py wrote.
        image: PNG to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with results.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["caches"] == "warm"]
    whole = {(row["room"], row["case"]) for row in rows if row["passes"] == WHOLE}
    rows = [r for r in rows if r["passes"] == WHOLE or (r["room"], r["case"]) not in whole]
    rooms = {
        room: cases
        for room in sorted({row["room"] for row in rows})
        if (cases := _cases([row for row in rows if row["room"] == room]))
    }
    if not rooms:
        return
    columns = _columns(rooms)
    heights = [sum(ROW * len(rooms[room]) + HEAD for room in column) for column in columns]
    figure = pyplot.figure(figsize=(6.5 * len(columns), max(heights)))
    for at, column in enumerate(columns):
        top = max(heights)
        for room in column:
            tall = ROW * len(rooms[room])
            place = (
                (at + 0.3) / len(columns),
                (top - HEAD / 2 - tall) / max(heights),
                0.66 / len(columns),
                tall / max(heights),
            )
            _panel(figure.add_axes(place), room, rooms[room])
            top -= tall + HEAD
    first = rows[0]
    dates = sorted({row["date"] for row in rows})
    text = (
        f"Time of the peer / time of gtkern, log scale; right of 1 gtkern is faster. Beside the "
        f"name gtkern's own time; the number is the nearest peer's ratio; the bar | is the goal. "
        f"{first['device']}, {first['threads']} threads, torch {first['torch']}, "
        f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}. Medians of runs in turns, "
        f"forward and backward unless a case has no backward; what is made once for a graph is not "
        f"counted. The results file has shapes, spreads and commits."
    )
    figure.text(0.02, 0.0, textwrap.fill(text, 105 * len(columns)), fontsize=8, va="top")
    figure.savefig(image, dpi=110, bbox_inches="tight")
    pyplot.close(figure)


def _cases(rows: list[dict[str, str]]) -> dict[str, tuple[dict[str, str], list[dict[str, str]]]]:
    """By case gtkern's row and the peers' that have a ratio."""
    found = {}
    for case in dict.fromkeys(row["case"] for row in rows):
        own = [r for r in rows if r["case"] == case and r["side"].startswith("gtkern")]
        peers = [r for r in rows if r["case"] == case and r not in own and r["ratio"]]
        if own and peers:
            found[case] = (own[0], peers)
    return found


def _columns(rooms: Mapping[str, Sized]) -> list[list[str]]:
    """The rooms in two columns of about the same height, or in one."""
    if len(rooms) < 2:
        return [list(rooms)]
    tall = {room: ROW * len(cases) + HEAD for room, cases in rooms.items()}
    columns: list[list[str]] = [[], []]
    for room in sorted(rooms, key=lambda room: -tall[room]):
        min(columns, key=lambda column: sum(tall[each] for each in column)).append(room)
    return [sorted(column) for column in columns]


def _panel(axes: Any, room: str, cases: Mapping[str, tuple[dict[str, str], Any]]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    names = list(dict.fromkeys(row["side"] for _, peers in cases.values() for row in peers))
    for at, name in enumerate(names):
        marks = [
            (float(row["ratio"]), place)
            for place, (_, peers) in enumerate(cases.values())
            for row in peers
            if row["side"] == name
        ]
        axes.scatter(
            *zip(*marks, strict=True),
            s=26,
            color=COLORS[at % len(COLORS)],
            marker=MARKERS[at % len(MARKERS)],
            label=name,
            zorder=3,
        )
    for place, (own, peers) in enumerate(cases.values()):
        ratio = min(float(row["ratio"]) for row in peers)
        axes.annotate(
            f"{ratio:.3g}x",
            (ratio, place),
            xytext=(-6, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=7,
            bbox={"facecolor": "white", "linewidth": 0, "pad": 0.5},
        )
        if own["goal"]:
            axes.plot(float(own["goal"]), place, "k|", markersize=11)
    labels = [f"{case}  {_milliseconds(float(own['ms']))}" for case, (own, _) in cases.items()]
    axes.set_yticks(range(len(cases)), labels, fontsize=7.5)
    axes.set_ylim(len(cases) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=1)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low / 1.6, 0.7), high * 1.1)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}x")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelsize=7.5)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_title(room, fontsize=9, loc="left", x=-0.42, fontweight="bold")
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=len(names),
        frameon=False,
        fontsize=7,
        handletextpad=0.1,
        columnspacing=0.8,
        borderaxespad=0.1,
    )


def _milliseconds(value: float) -> str:
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python bench/plot.py RESULTS.csv [PICTURE.png]")
    source = pathlib.Path(sys.argv[1])
    if not source.is_file():
        print(f"plot.py: no file {source}", file=sys.stderr)
        sys.exit(2)
    draw(source, pathlib.Path(sys.argv[2]) if len(sys.argv) == 3 else source.with_suffix(".png"))
