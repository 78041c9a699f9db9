"""Tables of figures over several runs: rows for a CSV, and the same rows to read."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

__all__ = ["mean", "rows_table", "spread"]


def mean(values: Sequence[float]) -> float:
    """The mean."""
    return statistics.fmean(values)


def spread(values: Sequence[float]) -> float | None:
    """The standard deviation of a sample (n - 1); None for a single value."""
    return statistics.stdev(values) if len(values) > 1 else None


def rows_table(title: str, rows: Sequence[Mapping[str, Any]], formats: Mapping[str, str]) -> Table:
    """Rows as a table.

    Args:
        title: above it.
        rows: values by column; a column that is missing or None stays empty.
        formats: format specification by shown column, in order; "" for text. A column's heading
            is its name with the words below each other; only the column "note" may wrap.
    """
    result = Table(title=title, box=box.SIMPLE_HEAD, padding=0)
    for column, form in formats.items():
        justify: Any = "right" if form else "left"
        result.add_column(column.replace("_", "\n"), justify=justify, no_wrap=column != "note")
    for row in rows:
        cells = (row.get(column) for column in formats)
        result.add_row(
            *(
                "" if cell is None else format(cell, form)
                for cell, form in zip(cells, formats.values(), strict=True)
            )
        )
    return result
