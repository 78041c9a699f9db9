"""Where a set of graphs lies, what its reader returns, and how bad graphs are told."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import NamedTuple

from gtkern.data._raw import DataNotFoundError, find_folder
from gtkern.data.packed import PackedGraphs
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
        place = find_folder(name, root, self.loader, self.folder, self.files[0])
        for file in self.files:
            if not (place / file).is_file():
                raise DataNotFoundError(f"expected the file {place / file} of {name}")
        return place
