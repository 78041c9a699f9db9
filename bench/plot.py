"""A picture of a results file: how many times as long each peer takes, with the conditions below.

python bench/plot.py bench/results/<device>.csv [picture.png]
"""

from __future__ import annotations

import csv
import pathlib
import sys
import textwrap

__all__ = ["draw"]

COLORS = (
    "#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#da8bc3", "#8c8c8c",
    "#ccb974", "#64b5cd", "#2f4b6e", "#8a4a1f",
)  # fmt: skip
WHOLE = "fwd+bwd"


def draw(results: pathlib.Path, image: pathlib.Path) -> None:
    """Draw the ratios of a results file: one group of bars for each case.

    Training steps (fwd+bwd) are shown where a case has them, else forward passes.

    Args:
        results: a CSV that run.py wrote.
        image: PNG to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.artist import Artist
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    with results.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["caches"] == "warm"]
    whole = {(row["room"], row["case"]) for row in rows if row["passes"] == WHOLE}
    rows = [r for r in rows if r["passes"] == WHOLE or (r["room"], r["case"]) not in whole]
    groups = list(dict.fromkeys((row["room"], row["case"]) for row in rows))
    peers = [row for row in rows if not row["side"].startswith("gtkern-") and row["ratio"]]
    names = list(dict.fromkeys(row["side"] for row in peers))
    if not names:
        return
    color = {name: COLORS[at % len(COLORS)] for at, name in enumerate(names)}

    figure, axes = pyplot.subplots(figsize=(10, 1.2 + 0.2 * len(peers) + 0.4 * len(groups)))
    place, ticks = 0.0, []
    for group in groups:
        own = next(
            r for r in rows if (r["room"], r["case"]) == group and r["side"].startswith("gtkern-")
        )
        bars = [row for row in peers if (row["room"], row["case"]) == group]
        if not bars:
            continue
        ticks.append(
            (
                place + (len(bars) - 1) / 2,
                f"{group[0]}\n{group[1]}\ngtkern {_milliseconds(float(own['ms']))}",
            )
        )
        for row in bars:
            ratio = float(row["ratio"])
            axes.barh(place, ratio, color=color[row["side"]], height=0.85)
            axes.text(ratio * 1.04, place, f"{ratio:.3g}x", va="center", fontsize=8)
            place += 1
        if own["goal"]:
            goal = float(own["goal"])
            axes.plot([goal, goal], [place - len(bars) - 0.5, place - 0.5], "k--", linewidth=1)
        # a label has three lines, as tall as three bars
        place += 1.2 + max(0, 3 - len(bars)) * 0.8
    axes.set_yticks([tick for tick, _ in ticks], [label for _, label in ticks], fontsize=8)
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=1)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    axes.set_xlabel("time of the peer / time of gtkern (log scale; more than 1: gtkern is faster)")
    handles: list[Artist] = [Rectangle((0, 0), 1, 1, color=color[name]) for name in names]
    labels = list(names)
    if any(row["goal"] for row in rows):
        handles.append(Line2D([], [], color="black", linestyle="--", linewidth=1))
        labels.append("goal")
    axes.legend(
        handles,
        labels,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=4,
        frameon=False,
        fontsize=8,
    )
    first = rows[0]
    shapes = "; ".join(
        f"{case}: {next(r['shape'] for r in rows if (r['room'], r['case']) == (room, case))}"
        for room, case in groups
    )
    text = (
        f"{first['device']}, {first['threads']} threads. torch {first['torch']}, "
        f"gtkern {first['gtkern']} {first['commit']}, {first['date']}. Medians of runs in turns, "
        f"forward and backward unless a case has no backward; the graph's grouping by destination "
        f"and source is made once and not counted. {shapes}."
    )
    axes.annotate(
        textwrap.fill(text, 150),
        (0, 0),
        xytext=(-100, -42),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=7,
        va="top",
        annotation_clip=False,
    )
    figure.savefig(image, dpi=130, bbox_inches="tight")
    pyplot.close(figure)


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
