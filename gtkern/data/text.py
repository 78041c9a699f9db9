"""Graphs of texts, by name: read from their public files, or generated."""

from __future__ import annotations

import gzip
import pathlib
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from gtkern.data._raw import (
    DataNotFoundError,
    existing,
    find_folder,
    masks,
    numbers,
    ogb_split,
    undirected,
)
from gtkern.data._tables import read_columns
from gtkern.data.text_graph import TextGraph, check_text_graph
from gtkern.data.word_graph import word_graph

__all__ = ["TEXT_SETS", "fewer_labels", "load_text_graph"]


def load_text_graph(
    name: str,
    root: str | pathlib.Path | None = None,
    *,
    split: str = "given",
    labels_per_class: int = 0,
    label_share: float = 0.0,
    seed: int = 0,
) -> TextGraph:
    """Read a graph of texts, or generate one.

    Args:
        name: one of TEXT_SETS. "synthetic" is generated. "cora-text" and "debian-packages" are
            folders of `nodes.csv.gz`, `edges.npy` and `split.npz`. "arxiv-text" is ogbn-arxiv where
            OGB's loader puts it (`ogbn_arxiv/raw`, `/mapping`, `/split`), with OGB's separate file
            of titles and abstracts, `titleabs.tsv` or `titleabs.tsv.gz`, in `ogbn_arxiv`.
        root: the folder that holds the set's own, or the loader's; "synthetic" needs none. Nothing
            is downloaded and nothing is written.
        split: "given": the set's own. "public": Planetoid's, of cora-text alone: rows 0 .. 139 of
            Planetoid's order for training, the next 500 for validation, the last 1,000 for the
            test.
        labels_per_class: keep that many training nodes of each class; 0: all.
        label_share: keep that share of the training nodes of each class, at least one; 0: all.
        seed: decides which training nodes are kept; and all of "synthetic".

    Raises:
        ValueError: no such name or split, both ways to keep fewer labels, or a class with fewer
            training nodes than are to be kept. DataNotFoundError: a file is missing; names it.
            ImportError: pandas is missing.
    """
    if name not in TEXT_SETS:
        raise ValueError(f"name must be one of {', '.join(TEXT_SETS)}, got {name!r}")
    if split not in ("given", "public"):
        raise ValueError(f"split must be 'given' or 'public', got {split!r}")
    if split == "public" and name != "cora-text":
        raise ValueError(f"split 'public' is there for cora-text, got it for {name}")
    if name == "synthetic":
        data = word_graph(seed)
    else:
        if root is None:
            raise DataNotFoundError(
                f"{name} is not generated: root must name the folder of its files"
            )
        source = _SOURCES[name]
        folder = find_folder(name, root, source.loader, source.folder, source.file)
        data = source.read(folder, split)
    data = fewer_labels(data, labels_per_class=labels_per_class, label_share=label_share, seed=seed)
    return check_text_graph(data)


def fewer_labels(
    data: TextGraph, *, labels_per_class: int = 0, label_share: float = 0.0, seed: int = 0
) -> TextGraph:
    """The same graph with fewer training nodes.

    Args:
        data: the graph; it is not changed.
        labels_per_class, label_share, seed: see `load_text_graph`.

    Raises:
        ValueError: both are given, a share outside 0 .. 1, or a class with fewer training nodes
            than are to be kept; names it.
    """
    if labels_per_class < 0 or not 0 <= label_share <= 1:
        raise ValueError(
            "labels_per_class must be at least 0 and label_share in 0 .. 1, got "
            f"{labels_per_class} and {label_share}"
        )
    if labels_per_class and label_share:
        raise ValueError(
            "only one of labels_per_class and label_share can be given, got "
            f"{labels_per_class} and {label_share}"
        )
    if not labels_per_class and not label_share:
        return data
    generator = torch.Generator().manual_seed(seed)
    kept = torch.zeros_like(data.train_mask)
    for label, class_name in enumerate(data.class_names):
        members = (data.train_mask & (data.y == label)).nonzero().flatten()
        count = labels_per_class or max(1, round(label_share * members.numel()))
        if count > members.numel():
            raise ValueError(
                f"every class must have at least {count} training nodes to keep {count} of each, "
                f"got {members.numel()} of {class_name!r}"
            )
        order = torch.randperm(members.numel(), generator=generator)
        kept[members[order[:count]]] = True
    return replace(data, train_mask=kept)


class _Source(NamedTuple):
    """Where a set lies: the loader's folder, the set's folder in it, one file, and its reader."""

    loader: str
    folder: str
    file: str
    read: Callable[[pathlib.Path, str], TextGraph]


def _folder(name: str, label: str) -> Callable[[pathlib.Path, str], TextGraph]:
    """A folder of nodes.csv.gz (with columns text and `label`), edges.npy [2, E] and split.npz."""

    def read(place: pathlib.Path, split: str) -> TextGraph:
        order_column = ("planetoid_index",) if split == "public" else ()
        columns = read_columns(place / "nodes.csv.gz", ("text", label, *order_column))
        texts = [str(text) for text in columns["text"]]
        names, y = np.unique(columns[label].astype(str), return_inverse=True)
        edges = torch.from_numpy(np.load(existing(place / "edges.npy"))).to(torch.int64)
        if split == "public":
            order = torch.from_numpy(columns["planetoid_index"].astype(np.int64)).argsort()
            parts = [order[:140], order[140:640], order[-1000:]]
        else:
            with np.load(existing(place / "split.npz")) as given:
                parts = [torch.from_numpy(given[part]) for part in ("train", "val", "test")]
        return TextGraph(
            texts,
            torch.from_numpy(y.astype(np.int64)),
            undirected(edges, len(texts)),
            *masks(len(texts), parts),
            class_names=tuple(str(name) for name in names),
            name=name,
        )

    return read


def _arxiv(place: pathlib.Path, split: str) -> TextGraph:
    del split  # there is one
    y = torch.from_numpy(numbers(place / "raw" / "node-label.csv.gz", np.int64)[:, 0])
    edges = torch.from_numpy(numbers(place / "raw" / "edge.csv.gz", np.int64).T.copy())
    mapping = place / "mapping"
    # the two columns are a number and what it stands for, under names that OGB has changed
    papers = list(read_columns(existing(mapping / "nodeidx2paperid.csv.gz")).values())
    classes = list(read_columns(existing(mapping / "labelidx2arxivcategeory.csv.gz")).values())
    rows = {str(paper): int(row) for row, paper in zip(*papers, strict=True)}
    names = {int(label): str(category) for label, category in zip(*classes, strict=True)}
    return TextGraph(
        _titles_and_abstracts(place, rows),
        y,
        undirected(edges, y.numel()),
        *ogb_split(place, "time", y.numel()),
        class_names=tuple(names[label] for label in range(len(names))),
        name="arxiv-text",
    )


def _titles_and_abstracts(place: pathlib.Path, rows: dict[str, int]) -> list[str]:
    """The text of every node, from lines of paper, title and abstract with tabs between them."""
    plain, packed = place / "titleabs.tsv", place / "titleabs.tsv.gz"
    path = plain if plain.is_file() else packed
    if not path.is_file():
        raise DataNotFoundError(
            f"expected the file {plain} or {packed} of titles and abstracts, and it is not there"
        )
    texts = [""] * len(rows)
    opened = gzip.open if path is packed else open
    with opened(path, "rt", encoding="utf-8", newline="\n") as file:
        for line in file:
            # papers that are no nodes, and the padding that packing left before and after
            paper, _, text = line.partition("\t")
            if paper in rows:
                title, _, abstract = text.strip("\r\n").partition("\t")
                texts[rows[paper]] = f"{title}. {abstract}"
    missing = sum(not text for text in texts)
    if missing:
        raise ValueError(f"{path} must have a line for every node, got none for {missing}")
    return texts


_SOURCES = {
    "arxiv-text": _Source("ogb", "ogbn_arxiv", "raw/edge.csv.gz", _arxiv),
    "cora-text": _Source("", "cora-text", "nodes.csv.gz", _folder("cora-text", "label")),
    "debian-packages": _Source(
        "", "debian-packages", "nodes.csv.gz", _folder("debian-packages", "section")
    ),
}
TEXT_SETS = (*_SOURCES, "synthetic")
"""The names `load_text_graph` knows."""
