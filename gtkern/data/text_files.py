"""A graph of texts from the user's own tables of nodes and edges."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gtkern.data._raw import undirected
from gtkern.data._tables import TABLES, import_pandas, read_columns
from gtkern.data.node import stratified_split
from gtkern.data.text_graph import TextGraph, check_text_graph

__all__ = ["read_text_graph"]

_PARTS = ("train", "val", "test")
_SPLIT = "split"


def read_text_graph(
    nodes: str | os.PathLike[str],
    edges: str | os.PathLike[str],
    *,
    id: str = "id",
    text: str | Sequence[str] = "text",
    label: str = "label",
    split: str | None = _SPLIT,
    edge_columns: tuple[str, str] | None = None,
    separator: str = ". ",
    seed: int = 0,
) -> TextGraph:
    """Read a graph of texts from two files.

    Args:
        nodes: a table (.csv, .csv.gz, .parquet) with a row for each node.
        edges: a table with two columns of ids, its first line their names; or a .npy array of
            integer ids, [2, E], or [E, 2] with E other than 2. Directions and repetitions do not
            count.
        id: the column of ids, each once; they are compared as strings.
        text: the column of texts; or several, joined by `separator` where they are not empty.
        label: the column of classes; an empty one is not known. Classes are numbered in the order
            of their names, of whole numbers in the order of the numbers.
        split: the column that says train, val, test, or nothing for a node in no part. None, or a
            table without a column "split" where no other is named: 60/20/20 at random, the same
            shares in every class.
        edge_columns: the two columns of a table of edges that has more.
        separator: between several texts.
        seed: of the random split.

    Returns:
        The graph, named as the file of nodes, checked by `check_text_graph`.

    Raises:
        FileNotFoundError: a file is not there. ValueError: a column is not there (lists those that
            are), an id is there twice, an edge has an unknown id, an unknown word for a part, a
            node without text, or what `check_text_graph` refuses. ImportError: pandas or pyarrow
            is missing.
    """
    nodes, edges = pathlib.Path(nodes).expanduser(), pathlib.Path(edges).expanduser()
    text_columns = [text] if isinstance(text, str) else list(text)
    if not text_columns:
        raise ValueError("text must name at least one column, got none")
    needed = [id, *text_columns, label]
    optional = []
    if split == _SPLIT:
        optional.append(split)
    elif split is not None:
        needed.append(split)
    columns = read_columns(nodes, needed, optional)
    ids = columns[id]
    if not ids.size:
        raise ValueError(f"{nodes} must have at least one node, got none")
    rows = import_pandas().Index(ids)
    if not rows.is_unique:
        twice = rows[rows.duplicated()]
        raise ValueError(
            f"{nodes}: every id must be there once, got {twice.nunique()} ids more than once, the "
            f"first {twice[0]!r}"
        )
    texts = [
        separator.join(part for part in map(str.strip, parts) if part)
        for parts in zip(*(columns[name] for name in text_columns), strict=True)
    ]
    names, y = _classes(columns[label])
    if split in columns:
        masks = _given_split(columns[split], nodes, ids)
    else:
        masks = stratified_split(y, (0.6, 0.2), torch.Generator().manual_seed(seed))
    found = _edges(edges, ids, edge_columns)
    edge_index = undirected(torch.from_numpy(found.astype(np.int64)), len(texts))
    name = nodes.name.removesuffix(next(end for end in TABLES if nodes.name.endswith(end)))
    data = TextGraph(texts, y, edge_index, *masks, class_names=names, name=name)
    try:
        return check_text_graph(data)
    except ValueError as error:
        raise ValueError(f"{nodes}: {error}") from error


def _classes(labels: np.ndarray) -> tuple[tuple[str, ...], Tensor]:
    words = [str(label).strip() for label in labels]
    names: list[str] = sorted(set(words) - {""})
    if all(name.isascii() and name.isdigit() for name in names):
        names.sort(key=int)
    number = {name: at for at, name in enumerate(names)}
    return tuple(names), torch.tensor([number.get(word, -1) for word in words])


def _given_split(
    values: np.ndarray, path: pathlib.Path, ids: np.ndarray
) -> tuple[Tensor, Tensor, Tensor]:
    words = [str(value).strip() for value in values]
    for row, word in enumerate(words):
        if word not in (*_PARTS, ""):
            raise ValueError(
                f"{path}: split must be train, val, test or empty, got {word!r} for the node "
                f"{ids[row]!r}"
            )
    train, val, test = (torch.tensor([word == part for word in words]) for part in _PARTS)
    return train, val, test


def _edges(path: pathlib.Path, ids: np.ndarray, edge_columns: tuple[str, str] | None) -> np.ndarray:
    """Rows of the nodes that each edge joins, [2, E]."""
    if path.suffix == ".npy":
        ends = _array(path)
    else:
        columns = read_columns(path, edge_columns)
        if len(columns) != 2:
            raise ValueError(
                f"{path} must have two columns of ids, got {', '.join(columns)}; edge_columns "
                "names two of more"
            )
        if all(name in ids for name in columns):
            raise ValueError(
                f"{path}: the first line must name the columns, got two ids: {', '.join(columns)}"
            )
        ends = np.stack(list(columns.values()))
    index = import_pandas().Index(ids)
    rows = np.stack([index.get_indexer(side) for side in ends])
    unknown = (rows < 0).nonzero()
    if unknown[0].size:
        raise ValueError(
            f"{path}: every edge must join ids of the nodes, got {unknown[0].size} that are not "
            f"there, the first {ends[unknown[0][0], unknown[1][0]]!r} in edge {unknown[1][0]}"
        )
    return rows


def _array(path: pathlib.Path) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"expected the array {path}, and it is not there")
    ends: np.ndarray = np.load(path)
    if ends.ndim == 2 and ends.shape[0] != 2 and ends.shape[1] == 2:
        ends = ends.T
    if ends.ndim != 2 or ends.shape[0] != 2 or ends.dtype.kind not in "iu":
        raise ValueError(
            f"{path} must be integers of shape [2, E] or [E, 2], got {ends.dtype} "
            f"{list(ends.shape)}"
        )
    ids: np.ndarray = ends.astype(str).astype(object)
    return ids
