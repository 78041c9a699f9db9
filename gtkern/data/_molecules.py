"""Readers of the molecules of OGB and MoleculeNet."""

from __future__ import annotations

import contextlib
import csv
import functools
import gzip
import io
import math
import pathlib
from typing import Any, NamedTuple

import numpy as np
import torch

from gtkern.data._sources import Problem, Raw, Source
from gtkern.data.molecule import feature_sizes, from_smiles, scaffold
from gtkern.data.packed import PackedGraphs
from gtkern.data.splits import Split

_MOLHIV_FILES = (
    "raw/edge.csv.gz",
    "raw/edge-feat.csv.gz",
    "raw/graph-label.csv.gz",
    "raw/node-feat.csv.gz",
    "raw/num-edge-list.csv.gz",
    "raw/num-node-list.csv.gz",
    "split/scaffold/train.csv.gz",
    "split/scaffold/valid.csv.gz",
    "split/scaffold/test.csv.gz",
    "mapping/mol.csv.gz",
)


def read_molhiv(place: pathlib.Path) -> Raw:
    """ogbg-molhiv by OGB's own reader of raw files, with OGB's scaffold split."""
    atoms, bonds = feature_sizes()
    found = _read_ogb(place / "raw")
    labels = _numbers(place / "raw" / "graph-label.csv.gz")
    with gzip.open(place / "mapping" / "mol.csv.gz", "rt", newline="", encoding="utf-8") as file:
        smiles = [row["smiles"] for row in csv.DictReader(file)]
    for what, size in (("graph-label.csv.gz", len(labels)), ("mol.csv.gz", len(smiles))):
        if size != len(found):
            raise ValueError(f"{what} of {place} must have {len(found)} rows, got {size}")
    for what, key in (("node-feat.csv.gz", "node_feat"), ("edge-feat.csv.gz", "edge_feat")):
        if found[0][key].dtype.kind != "i":
            raise ValueError(f"{what} of {place} must hold integers, got {found[0][key].dtype}")

    problems = []
    for number, graph in enumerate(found):
        reason = _reason(graph, atoms, bonds)
        if reason is not None:
            problems.append(Problem(number, reason))
    bad = {problem.graph for problem in problems}
    good = [number for number in range(len(found)) if number not in bad]
    kept = [found[number] for number in good]
    nodes, edges = (
        np.concatenate(([0], np.cumsum([graph[key].shape[axis] for graph in kept])))
        for key, axis in (("node_feat", 0), ("edge_index", 1))
    )
    shift = np.repeat(nodes[:-1], np.diff(edges))
    packed = PackedGraphs(
        torch.from_numpy(np.concatenate([graph["node_feat"] for graph in kept])),
        torch.from_numpy(np.concatenate([graph["edge_index"] for graph in kept], axis=1) + shift),
        torch.from_numpy(nodes),
        torch.from_numpy(edges),
        y=torch.from_numpy(labels[good].astype(np.float32)),
        edge_attr=torch.from_numpy(np.concatenate([graph["edge_feat"] for graph in kept])),
        node_categories=atoms,
        edge_categories=bonds,
    )
    split = _published_split(place / "split" / "scaffold", len(found), good)
    return Raw(packed, tuple(smiles[number] for number in good), (), split, tuple(problems))


def _read_ogb(folder: pathlib.Path) -> list[dict[str, Any]]:
    from ogb.io.read_graph_raw import read_csv_graph_raw

    # it tells its progress on both
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        graphs: list[dict[str, Any]] = read_csv_graph_raw(str(folder), add_inverse_edge=True)
    return graphs


def _reason(graph: dict[str, Any], atoms: tuple[int, ...], bonds: tuple[int, ...]) -> str | None:
    """What is wrong with a graph; None when nothing is."""
    edges, x, attr = graph["edge_index"], graph["node_feat"], graph["edge_feat"]
    nodes = graph["num_nodes"]
    if nodes < 1:
        return f"it must have at least one node, got {nodes}"
    for name, table, rows, sizes in (
        ("node-feat.csv.gz", x, nodes, atoms),
        ("edge-feat.csv.gz", attr, edges.shape[1], bonds),
    ):
        if table.shape != (rows, len(sizes)):
            return f"{name} must have {rows} rows of {len(sizes)} for it, got {table.shape}"
        if rows > 0 and (table.min() < 0 or (table.max(axis=0) >= sizes).any()):
            return f"{name} must have categories below {sizes}, got {table.max(axis=0).tolist()}"
    if edges.shape[1] > 0 and (edges.min() < 0 or edges.max() >= nodes):
        wrong = edges.min() if edges.min() < 0 else edges.max()
        return f"edge.csv.gz must have nodes 0 .. {nodes - 1} for it, got {wrong}"
    return None


def _published_split(folder: pathlib.Path, graphs: int, good: list[int]) -> Split:
    """The parts of the split, without the graphs that were left out."""
    number = np.full(graphs, -1, dtype=np.int64)
    number[good] = np.arange(len(good))
    parts, seen = [], np.zeros(graphs, dtype=np.int64)
    for part in ("train", "valid", "test"):
        chosen = _numbers(folder / f"{part}.csv.gz")[:, 0].astype(np.int64)
        if chosen.size > 0 and not 0 <= chosen.min() <= chosen.max() < graphs:
            raise ValueError(f"{folder / part}.csv.gz must have numbers 0 .. {graphs - 1}")
        np.add.at(seen, chosen, 1)
        kept = number[chosen]
        parts.append(torch.from_numpy(kept[kept >= 0]))
    if (seen > 1).any():
        raise ValueError(f"{folder} has graph {int(seen.argmax())} in two parts of the split")
    return Split(*parts)


def _numbers(path: pathlib.Path) -> np.ndarray:
    try:
        table: np.ndarray = np.loadtxt(path, delimiter=",", ndmin=2)
    except ValueError as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    return table


class _Table(NamedTuple):
    """The file of a MoleculeNet set, its column of SMILES, and those that are no labels."""

    file: str
    smiles: str
    labels: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


def _read_moleculenet(table: _Table, task: str, place: pathlib.Path) -> Raw:
    path = place / "raw" / table.file
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = (row for row in csv.reader(file) if row)
    missing = {table.smiles, *table.labels} - set(header)
    if missing:
        raise ValueError(f"{path} must have the column {min(missing)!r}, got {header}")
    not_labels = {table.smiles, *table.others}
    names = table.labels or [name for name in header if name not in not_labels]
    columns = [header.index(name) for name in names]
    where = header.index(table.smiles)
    graphs, smiles, scaffolds, labels, problems = [], [], [], [], []
    for number, row in enumerate(rows):
        try:
            if len(row) != len(header):
                raise ValueError(f"its row must have {len(header)} fields, got {len(row)}")
            text = row[where].strip()
            label = [_label(row[column], task) for column in columns]
            graph, group = from_smiles(text), scaffold(text)
        except ValueError as error:
            problems.append(Problem(number, str(error)))
            continue
        graphs.append(graph)
        smiles.append(text)
        scaffolds.append(group)
        labels.append(label)
    if not graphs:
        raise ValueError(f"{path} has no molecule that can be read: {problems[:1]}")
    for graph, label in zip(graphs, labels, strict=True):
        graph.y = torch.tensor([label], dtype=torch.float32)
    atoms, bonds = feature_sizes()
    packed = PackedGraphs.from_data_list(graphs, node_categories=atoms, edge_categories=bonds)
    return Raw(packed, tuple(smiles), tuple(scaffolds), None, tuple(problems))


def _label(text: str, task: str) -> float:
    """The number, NaN where nothing stands."""
    if not text.strip():
        return math.nan
    value = float(text)
    if task == "multilabel" and value not in (0, 1):
        raise ValueError(f"a label must be 0, 1 or nothing, got {text!r}")
    if not math.isfinite(value):
        raise ValueError(f"a label must be a finite number, got {text!r}")
    return value


_MANY = "multilabel"
_TABLES = {
    "bace": (_Table("bace.csv", "mol", ("Class",)), _MANY),
    "bbbp": (_Table("BBBP.csv", "smiles", ("p_np",)), _MANY),
    "clintox": (_Table("clintox.csv", "smiles", ("FDA_APPROVED", "CT_TOX")), _MANY),
    "esol": (
        _Table("delaney-processed.csv", "smiles", ("measured log solubility in mols per litre",)),
        "regression",
    ),
    "freesolv": (_Table("SAMPL.csv", "smiles", ("expt",)), "regression"),
    "lipo": (_Table("Lipophilicity.csv", "smiles", ("exp",)), "regression"),
    "sider": (_Table("sider.csv", "smiles"), _MANY),
    "tox21": (_Table("tox21.csv", "smiles", others=("mol_id",)), _MANY),
    "toxcast": (_Table("toxcast_data.csv", "smiles"), _MANY),
}


def _moleculenet(name: str) -> Source:
    table, task = _TABLES[name]
    return Source(
        "MoleculeNet",
        name,
        (f"raw/{table.file}",),
        functools.partial(_read_moleculenet, table, task),
        task,
        "rmse" if task == "regression" else "roc_auc",
        libraries=("ogb", "rdkit"),
    )


MOLECULE_SETS = {
    "molhiv": Source(
        "ogb",
        "ogbg_molhiv",
        _MOLHIV_FILES,
        read_molhiv,
        _MANY,
        "roc_auc",
        "ogbg-molhiv",
        ("ogb",),
    ),
    **{name: _moleculenet(name) for name in _TABLES},
}
