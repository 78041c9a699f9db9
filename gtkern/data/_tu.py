"""The text files of the TU collection.

Reference: Morris et al. 2020, "TUDataset: a collection of benchmark datasets for learning with
graphs".
"""

from __future__ import annotations

import pathlib

import numpy as np
import torch

from gtkern.data._sources import Problem, Raw, Source
from gtkern.data.packed import PackedGraphs


def read_tu(place: pathlib.Path) -> Raw:
    """Read `<place>/raw/<name>_*.txt`; x and edge_attr are the labels, one-hot, as PyG has them."""
    stem = place / "raw" / place.name
    graph = _table(stem, "graph_indicator")[:, 0] - 1
    if graph.size == 0 or graph[0] < 0 or (np.diff(graph) < 0).any():
        line = 1 if graph.size == 0 or graph[0] < 0 else int((np.diff(graph) < 0).argmax()) + 2
        raise ValueError(
            f"{stem}_graph_indicator.txt must rise from 1, and does not in line {line}"
        )
    label = _table(stem, "graph_labels")[:, 0]
    graphs = label.size
    if graph[-1] >= graphs:
        raise ValueError(
            f"{stem}_graph_labels.txt must have a line for each of {graph[-1] + 1} graphs, "
            f"got {graphs}"
        )
    nodes = np.bincount(graph, minlength=graphs)
    ptr = np.concatenate(([0], np.cumsum(nodes)))
    node_label = _labels(stem, "node_labels", graph.size, "node")
    source, target = _table(stem, "A", columns=2).T - 1
    edge_label = None
    if pathlib.Path(f"{stem}_edge_labels.txt").is_file():
        edge_label = _labels(stem, "edge_labels", source.size, "edge")

    owner, problems = _owners(stem.name, graph, ptr, source, target)
    good = np.ones(graphs, dtype=bool)
    good[[problem.graph for problem in problems]] = False
    # both ends of an edge that stays are known to lie in its graph
    kept = good[owner] & (source != target)
    key = source[kept] * graph.size + target[kept]
    _, first = np.unique(key, return_index=True)
    edges = np.flatnonzero(kept)[first]

    kept_node = good[graph]
    number = np.cumsum(kept_node) - 1
    edge_counts = np.bincount(owner[edges], minlength=graphs)[good]
    classes = np.unique(label, return_inverse=True)[1]
    packed = PackedGraphs(
        _one_hot(node_label)[torch.from_numpy(kept_node)],
        torch.from_numpy(np.stack((number[source[edges]], number[target[edges]]))),
        torch.from_numpy(np.concatenate(([0], np.cumsum(nodes[good])))),
        torch.from_numpy(np.concatenate(([0], np.cumsum(edge_counts)))),
        y=torch.from_numpy(classes[good]),
        edge_attr=None if edge_label is None else _one_hot(edge_label)[torch.from_numpy(edges)],
    )
    return Raw(packed, problems=tuple(problems))


def _owners(
    name: str, graph: np.ndarray, ptr: np.ndarray, source: np.ndarray, target: np.ndarray
) -> tuple[np.ndarray, list[Problem]]:
    """The graph of each edge, and the first wrong edge of each graph that has one."""
    known = [(ends >= 0) & (ends < graph.size) for ends in (source, target)]
    lost = np.flatnonzero(~(known[0] | known[1]))
    if lost.size > 0:
        line = int(lost[0])
        raise ValueError(
            f"{name}_A.txt must join nodes 1 .. {graph.size}, "
            f"got {source[line] + 1}, {target[line] + 1} in line {line + 1}"
        )
    owner = graph[np.where(known[0], source, target)]
    inside = (source >= ptr[owner]) & (source < ptr[owner + 1])
    inside &= (target >= ptr[owner]) & (target < ptr[owner + 1])
    problems: dict[int, Problem] = {}
    for line in np.flatnonzero(~inside).tolist():
        mine = int(owner[line])
        problems.setdefault(
            mine,
            Problem(
                mine,
                f"the edge {source[line] + 1} -> {target[line] + 1} (line {line + 1} of "
                f"{name}_A.txt) leaves it: its nodes are {ptr[mine] + 1} .. {ptr[mine + 1]}",
            ),
        )
    return owner, [problems[number] for number in sorted(problems)]


def _table(stem: pathlib.Path, kind: str, columns: int = 1) -> np.ndarray:
    path = f"{stem}_{kind}.txt"
    try:
        table = np.loadtxt(path, delimiter=",", dtype=np.int64, ndmin=2)
    except ValueError as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if table.shape[1] < columns:
        raise ValueError(f"{path} must have {columns} numbers in a line, got {table.shape[1]}")
    return table


def _labels(stem: pathlib.Path, kind: str, rows: int, what: str) -> np.ndarray:
    labels: np.ndarray = _table(stem, kind)[:, 0]
    if labels.size != rows:
        raise ValueError(
            f"{stem}_{kind}.txt must have a line for each of {rows} {what}s, got {labels.size}"
        )
    from_zero: np.ndarray = labels - labels.min()
    return from_zero


def _one_hot(labels: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.from_numpy(labels)).to(torch.float32)


def _source(name: str, *files: str) -> Source:
    stems = ("A", "graph_indicator", "graph_labels", "node_labels", *files)
    paths = tuple(f"raw/{name}_{stem}.txt" for stem in stems)
    return Source("TUDataset", name, paths, read_tu, "classification", "accuracy")


TU_SETS = {
    "mutag": _source("MUTAG", "edge_labels"),
    "nci1": _source("NCI1"),
    "ptc_mr": _source("PTC_MR", "edge_labels"),
}
