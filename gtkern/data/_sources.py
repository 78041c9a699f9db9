"""Where a set of graphs lies, what its reader returns, and how bad graphs are told."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import NamedTuple

from gtkern.data.packed import PackedGraphs
from gtkern.data.published import DataNotFoundError
from gtkern.data.splits import Split


class Problem(NamedTuple):
    """A graph that cannot be used: its number in the files, from 0, and why."""

    graph: int
    reason: str


class Raw(NamedTuple):
    """What the files of a set hold; graphs with problems are left out of everything else."""

    graphs: PackedGraphs
    smiles: tuple[str, ...] = ()
    scaffolds: tuple[str, ...] = ()
    split: Split | None = None
    problems: tuple[Problem, ...] = ()


class Source(NamedTuple):
    """Where a set lies, its files in there, what reads them, and what is asked about the graphs."""

    loader: str
    folder: str
    files: tuple[str, ...]
    read: Callable[[pathlib.Path], Raw]
    task: str
    metric: str
    ogb: str | None = None
    libraries: tuple[str, ...] = ()

    def find(self, name: str, root: pathlib.Path) -> pathlib.Path:
        """The set's folder, with all its files.

        Raises:
            DataNotFoundError: a file is missing; names it.
        """
        places = [root / self.folder, root / self.loader / self.folder, root]
        for place in places:
            if (place / self.files[0]).is_file():
                for file in self.files:
                    if not (place / file).is_file():
                        raise DataNotFoundError(f"expected the file {place / file} of {name}")
                return place
        raise DataNotFoundError(
            f"{name} is not under {root}: expected {places[0] / self.files[0]} "
            f"or {places[1] / self.files[0]}"
        )
