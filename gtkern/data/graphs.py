"""Data sets of many graphs, by name: read from their public files, or generated."""

from __future__ import annotations

import os
import pathlib
import warnings
from dataclasses import dataclass
from typing import Any

import torch

from gtkern.data import _files
from gtkern.data._molecules import MOLECULE_SETS
from gtkern.data._raw import DataNotFoundError
from gtkern.data._sources import Problem, Raw, Source
from gtkern.data._tu import TU_SETS
from gtkern.data.motifs import motifs
from gtkern.data.packed import PackedGraphs
from gtkern.data.splits import Split, folds, random_graph_split, scaffold_split

__all__ = ["GRAPH_SETS", "GraphDataset", "load_graphs"]

FORMAT = 1
"""Grows when the same files give other tensors."""

_SOURCES: dict[str, Source] = {**TU_SETS, **MOLECULE_SETS}
GRAPH_SETS = tuple(sorted((*_SOURCES, "synthetic")))
"""The names `load_graphs` knows."""


@dataclass(frozen=True, repr=False)
class GraphDataset:
    """Graphs, what is asked about them, and how they are split.

    Attributes:
        name: one of GRAPH_SETS.
        graphs: all graphs.
        task: "classification", y int64 [G]; "multilabel", y float32 [G, tasks] of 0 and 1, NaN
            where unknown; "regression", y float32 [G, tasks].
        num_outputs: width of a prediction: classes of a classification, else tasks.
        metric: "accuracy", "roc_auc", "average_precision" or "rmse".
        ogb: the name OGB's Evaluator knows the set by, if any.
        smiles: of each molecule, where the files have it.
        skipped: what is wrong with the graphs that were left out.
    """

    name: str
    graphs: PackedGraphs
    task: str
    num_outputs: int
    metric: str
    ogb: str | None = None
    smiles: tuple[str, ...] = ()
    skipped: tuple[Problem, ...] = ()
    _scaffolds: tuple[str, ...] = ()
    _published: Split | None = None

    def __repr__(self) -> str:
        return f"GraphDataset({self.name}, {self.task}, {self.graphs})"

    @property
    def splits(self) -> tuple[str, ...]:
        """The kinds of split the set has, the usual one first."""
        if self._published is not None:
            return ("published", "random")
        return ("scaffold", "random") if self._scaffolds else ("random",)

    def split(self, seed: int = 0, kind: str | None = None) -> Split:
        """Split into training, validation and test.

        Args:
            seed: of a random split, 80/10/10; the other kinds are fixed.
            kind: one of `splits`; default: the first.
        """
        kind = self.splits[0] if kind is None else kind
        if kind not in self.splits:
            raise ValueError(
                f"kind must be one of {', '.join(self.splits)} for {self.name}, got {kind!r}"
            )
        if kind == "published":
            assert self._published is not None
            return self._published
        if kind == "scaffold":
            return scaffold_split(self._scaffolds)
        return random_graph_split(len(self.graphs), seed)

    def folds(self, k: int = 10, seed: int = 0) -> list[Split]:
        """Split for k-fold cross-validation; classes are shared out evenly.

        Args:
            k: folds, at least 3.
            seed: decides the parts.
        """
        classes = self.graphs.y if self.task == "classification" else None
        return folds(len(self.graphs), k, seed, classes)


def load_graphs(
    name: str,
    root: str | os.PathLike[str] | None = None,
    *,
    on_bad: str = "raise",
    cache: str | os.PathLike[str] | bool = True,
    seed: int = 0,
) -> GraphDataset:
    """Read a set of graphs from its public files, or generate it; nothing is downloaded.

    What was read is kept in one file, which serves as long as the raw files and the libraries that
    read them are the same.

    Args:
        name: one of GRAPH_SETS.
        root: the folder given to the set's PyG or OGB loader, or the folder above it that holds one
            folder for each loader (`TUDataset`, `ogb`, `MoleculeNet`). Not for "synthetic".
        on_bad: "raise" on a graph or molecule that cannot be read; "skip": go on, warn, and list
            it in `skipped`.
        cache: True: in `processed` beside the raw files; a folder; or False.
        seed: of a generated set.

    Raises:
        ValueError: no such name, or a bad graph; names it. DataNotFoundError: a file is missing;
            names it. ImportError: a library is missing; says which extra has it.
    """
    if name not in GRAPH_SETS:
        raise ValueError(f"name must be one of {', '.join(GRAPH_SETS)}, got {name!r}")
    if on_bad not in ("raise", "skip"):
        raise ValueError(f"on_bad must be 'raise' or 'skip', got {on_bad!r}")
    if name == "synthetic":
        graphs = motifs(seed)
        return GraphDataset(name, graphs, "classification", int(graphs.y.max()) + 1, "accuracy")
    source = _SOURCES[name]
    if root is None:
        raise DataNotFoundError(f"{name} is not generated: root must name the folder of its files")
    place = source.find(name, pathlib.Path(root).expanduser())
    raw = _cached(name, source, place, cache)
    if raw.problems:
        _report(name, raw.problems, on_bad)
    outputs = raw.graphs.num_tasks
    if source.task == "classification":
        outputs = int(raw.graphs.y.max()) + 1
    return GraphDataset(
        name,
        raw.graphs,
        source.task,
        outputs,
        source.metric,
        source.ogb,
        raw.smiles,
        raw.problems,
        raw.scaffolds,
        raw.split,
    )


def _report(name: str, problems: tuple[Problem, ...], on_bad: str) -> None:
    first = f"{name}, graph {problems[0].graph}: {problems[0].reason}"
    if on_bad == "raise":
        more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ValueError(f"{first}{more}; on_bad='skip' leaves such graphs out")
    numbers = ", ".join(str(problem.graph) for problem in problems)
    warnings.warn(f"{name}: left out graph {numbers}; {first}", stacklevel=3)


def _cached(
    name: str, source: Source, place: pathlib.Path, cache: str | os.PathLike[str] | bool
) -> Raw:
    if cache is False:
        return source.read(place)
    folder = place / "processed" if cache is True else pathlib.Path(cache)
    path = folder / f"gtkern-{name}.safetensors"
    made_by = _files.as_json(
        {
            "format": FORMAT,
            "files": _files.digest(place / file for file in source.files),
            "libraries": {library: _files.version(library) for library in source.libraries},
        }
    )
    found = _files.read(path)
    if found is not None and found[1].get("made_by") == made_by:
        return _from_file(*found)
    raw = source.read(place)
    tensors, facts = raw.graphs.to_tensors()
    if raw.split is not None:
        tensors |= {f"split.{part}": numbers for part, numbers in raw.split._asdict().items()}
    facts |= {
        "made_by": made_by,
        "smiles": raw.smiles,
        "scaffolds": raw.scaffolds,
        "problems": raw.problems,
    }
    try:
        _files.write(path, tensors, facts)
    except OSError as error:
        warnings.warn(f"{name} is read anew each time: cannot write {path}: {error}", stacklevel=3)
    return raw


def _from_file(tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> Raw:
    split = None
    if "split.train" in tensors:
        split = Split(*(tensors[f"split.{part}"] for part in Split._fields))
    return Raw(
        PackedGraphs.from_tensors(tensors, facts),
        tuple(facts["smiles"]),
        tuple(facts["scaffolds"]),
        split,
        tuple(Problem(*problem) for problem in facts["problems"]),
    )
