"""Molecules of a file of SMILES."""

from __future__ import annotations

import csv
import os
import pathlib
import warnings
from typing import NamedTuple

from gtkern.data._sources import Problem
from gtkern.data.molecule import feature_sizes, from_smiles
from gtkern.data.packed import PackedGraphs

__all__ = ["SmilesFile", "read_smiles"]


class SmilesFile(NamedTuple):
    """What a file of SMILES holds.

    Attributes:
        graphs: of the molecules, without labels; OGB's features.
        smiles: of each of them.
        skipped: the lines that were left out, from 0, and why.
    """

    graphs: PackedGraphs
    smiles: tuple[str, ...]
    skipped: tuple[Problem, ...] = ()


def read_smiles(path: str | os.PathLike[str], *, on_bad: str = "raise") -> SmilesFile:
    """Read the molecules of a file.

    Args:
        path: a table with commas and a column `smiles` where the name ends in .csv; else a line for
            each molecule, of which the first word counts.
        on_bad: "raise" on a molecule that cannot be read; "skip": go on, warn, and list it.

    Raises:
        ValueError: a bad molecule, which is named; no molecule; or a table without that column.
            OSError: the file cannot be read. ImportError: rdkit or OGB is missing.
    """
    if on_bad not in ("raise", "skip"):
        raise ValueError(f"on_bad must be 'raise' or 'skip', got {on_bad!r}")
    path = pathlib.Path(path)
    graphs, smiles, problems = [], [], []
    for number, text in enumerate(_lines(path)):
        try:
            graphs.append(from_smiles(text))
        except ValueError as error:
            if on_bad == "raise":
                raise ValueError(f"{path}, molecule {number}: {error}") from error
            problems.append(Problem(number, str(error)))
            continue
        smiles.append(text)
    if not graphs:
        raise ValueError(f"{path} must have at least one molecule, got none that can be read")
    if problems:
        first = f"molecule {problems[0].graph}: {problems[0].reason}"
        warnings.warn(f"{path}: left out {len(problems)}, the first is {first}", stacklevel=2)
    atoms, bonds = feature_sizes()
    packed = PackedGraphs.from_data_list(graphs, node_categories=atoms, edge_categories=bonds)
    return SmilesFile(packed, tuple(smiles), tuple(problems))


def _lines(path: pathlib.Path) -> list[str]:
    with open(path, newline="", encoding="utf-8") as file:
        if path.suffix != ".csv":
            return [line.split()[0] for line in file if line.strip()]
        reader = csv.DictReader(file)
        if "smiles" not in (reader.fieldnames or ()):
            raise ValueError(f"{path} must have the column 'smiles', got {reader.fieldnames}")
        return [row["smiles"] for row in reader]
