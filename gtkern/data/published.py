"""Readers of published data sets: raw files where PyG's and OGB's loaders keep them, only read."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from gtkern.data._raw import existing, find_folder, numbers, ogb_split, undirected
from gtkern.data.node import NodeData, random_split

__all__ = ["PUBLISHED", "load_published"]


class _Source(NamedTuple):
    """Where a set lies: the loader's folder, the set's folder in it, one file, and its reader."""

    loader: str
    folder: str
    file: str
    read: Callable[[pathlib.Path], NodeData]


def load_published(name: str, root: str | pathlib.Path) -> NodeData:
    """Read a published data set.

    Args:
        name: one of PUBLISHED.
        root: the folder given to the set's PyG or OGB loader, or the folder above it that holds one
            folder for each loader (`HeterophilousGraphDataset`, `Amazon`, ...). Nothing is
            downloaded and nothing is written.

    Raises:
        ValueError: no such name. DataNotFoundError: a file is missing; names it.
    """
    if name not in _SOURCES:
        raise ValueError(f"name must be one of {', '.join(PUBLISHED)}, got {name!r}")
    source = _SOURCES[name]
    folder = find_folder(name, root, source.loader, source.folder, source.file)
    return source.read(folder)


def _heterophilous(stem: str) -> Callable[[pathlib.Path], NodeData]:
    def read(place: pathlib.Path) -> NodeData:
        with np.load(existing(place / "raw" / f"{stem}.npz")) as raw:
            x = torch.from_numpy(raw["node_features"]).to(torch.float32)
            y = torch.from_numpy(raw["node_labels"]).to(torch.int64)
            edges = torch.from_numpy(raw["edges"]).to(torch.int64).t()
            # the papers use the first of ten splits
            masks = [torch.from_numpy(raw[f"{part}_masks"][0]) for part in ("train", "val", "test")]
        return NodeData(x, y, undirected(edges, x.size(0)), *(mask.bool() for mask in masks))

    return read


def _shchur(file: str) -> Callable[[pathlib.Path], NodeData]:
    """The npz of Shchur et al. 2018: sparse binary features, no split; 60/20/20 at random."""

    def read(place: pathlib.Path) -> NodeData:
        with np.load(existing(place / "raw" / file)) as raw:
            y = torch.from_numpy(raw["labels"]).to(torch.int64)
            attr_ptr, attr = raw["attr_indptr"], raw["attr_indices"]
            row = np.repeat(np.arange(y.numel()), np.diff(attr_ptr))
            x = torch.zeros(tuple(int(size) for size in raw["attr_shape"]))
            # the loaders of the papers keep only whether a word occurs
            x[torch.from_numpy(row), torch.from_numpy(attr).long()] = torch.from_numpy(
                (raw["attr_data"] > 0).astype(np.float32)
            )
            source = np.repeat(np.arange(y.numel()), np.diff(raw["adj_indptr"]))
            edges = torch.from_numpy(np.stack((source, raw["adj_indices"])).astype(np.int64))
        split = random_split(y.numel(), (0.6, 0.2), torch.Generator().manual_seed(0))
        return NodeData(x, y, undirected(edges, y.numel()), *split)

    return read


def _actor(place: pathlib.Path) -> NodeData:
    """The text files of Geom-GCN, first of ten splits."""
    raw = place / "raw"
    rows = existing(raw / "out1_node_feature_label.txt").read_text().splitlines()[1:]
    nodes = [line.split("\t") for line in rows]
    features = [np.array(words.split(","), dtype=np.int64) for _, words, _ in nodes]
    x = torch.zeros(len(nodes), 1 + max(int(words.max()) for words in features))
    y = torch.zeros(len(nodes), dtype=torch.int64)
    for (number, _, label), words in zip(nodes, features, strict=True):
        x[int(number), torch.from_numpy(words)] = 1
        y[int(number)] = int(label)
    edges = np.loadtxt(existing(raw / "out1_graph_edges.txt"), skiprows=1, dtype=np.int64, ndmin=2)
    with np.load(existing(raw / "film_split_0.6_0.2_0.npz")) as split:
        masks = [torch.from_numpy(split[f"{part}_mask"]) for part in ("train", "val", "test")]
    keys = torch.from_numpy(edges.T[0] * len(nodes) + edges.T[1]).unique()
    edge_index = torch.stack((keys // len(nodes), keys % len(nodes)))
    return NodeData(x, y, edge_index, *(mask.bool() for mask in masks))


def _arxiv(place: pathlib.Path) -> NodeData:
    x = torch.from_numpy(numbers(place / "raw" / "node-feat.csv.gz", np.float32))
    y = torch.from_numpy(numbers(place / "raw" / "node-label.csv.gz", np.int64)[:, 0])
    edges = torch.from_numpy(numbers(place / "raw" / "edge.csv.gz", np.int64).T.copy())
    split = ogb_split(place, "time", x.size(0))
    return NodeData(x, y, undirected(edges, x.size(0)), *split)


def _amazon2m(place: pathlib.Path) -> NodeData:
    """ogbn-products under a random 50/25/25 split."""
    x = torch.from_numpy(numbers(place / "raw" / "node-feat.csv.gz", np.float32))
    y = torch.from_numpy(numbers(place / "raw" / "node-label.csv.gz", np.int64)[:, 0])
    edges = torch.from_numpy(numbers(place / "raw" / "edge.csv.gz", np.int64).T.copy())
    split = random_split(x.size(0), (0.5, 0.25), torch.Generator().manual_seed(0))
    return NodeData(x, y, undirected(edges, x.size(0)), *split)


def _proteins(place: pathlib.Path) -> NodeData:
    """ogbn-proteins: the features of a node are the mean of those of its edges; 112 tasks."""
    y = torch.from_numpy(numbers(place / "raw" / "node-label.csv.gz", np.float32))
    half = torch.from_numpy(numbers(place / "raw" / "edge.csv.gz", np.int64).T.copy())
    attr = torch.from_numpy(numbers(place / "raw" / "edge-feat.csv.gz", np.float32))
    edge_index = torch.cat((half, half.flip(0)), dim=1)
    total = torch.zeros(y.size(0), attr.size(1))
    total.index_add_(0, half[0], attr).index_add_(0, half[1], attr)
    degree = torch.bincount(edge_index[1], minlength=y.size(0)).clamp(min=1)
    split = ogb_split(place, "species", y.size(0))
    return NodeData(total / degree[:, None], y, edge_index, *split)


def _pokec(place: pathlib.Path) -> NodeData:
    """pokec.mat of the LINKX data sets under a random 10/10/80 split; unlabelled nodes in none."""
    import scipy.io

    raw = scipy.io.loadmat(str(existing(place / "raw" / "pokec.mat")))
    x = torch.from_numpy(np.asarray(raw["node_feat"], dtype=np.float32))
    label = np.asarray(raw["label"]).ravel().astype(np.int64)
    edges = torch.from_numpy(np.asarray(raw["edge_index"], dtype=np.int64))
    labelled = np.flatnonzero(label >= 0)
    order = np.random.default_rng(123).permutation(labelled)
    tenth = round(0.1 * order.size)
    masks = []
    for chosen in (order[:tenth], order[tenth : 2 * tenth], order[2 * tenth :]):
        mask = torch.zeros(label.size, dtype=torch.bool)
        mask[torch.from_numpy(chosen)] = True
        masks.append(mask)
    y = torch.from_numpy(label.clip(min=0))
    return NodeData(x, y, edges, *masks)


_EDGE = "raw/edge.csv.gz"
_SOURCES = {
    "actor": _Source("Actor", "actor", "raw/out1_node_feature_label.txt", _actor),
    "amazon2m": _Source("ogb", "ogbn_products", _EDGE, _amazon2m),
    "arxiv": _Source("ogb", "ogbn_arxiv", _EDGE, _arxiv),
    "computers": _Source(
        "Amazon",
        "Computers",
        "raw/amazon_electronics_computers.npz",
        _shchur("amazon_electronics_computers.npz"),
    ),
    "cs": _Source("Coauthor", "CS", "raw/ms_academic_cs.npz", _shchur("ms_academic_cs.npz")),
    "minesweeper": _Source(
        "HeterophilousGraphDataset",
        "minesweeper",
        "raw/minesweeper.npz",
        _heterophilous("minesweeper"),
    ),
    "photo": _Source(
        "Amazon",
        "Photo",
        "raw/amazon_electronics_photo.npz",
        _shchur("amazon_electronics_photo.npz"),
    ),
    "physics": _Source(
        "Coauthor", "Physics", "raw/ms_academic_phy.npz", _shchur("ms_academic_phy.npz")
    ),
    "pokec": _Source("LINKXDataset", "pokec", "raw/pokec.mat", _pokec),
    "proteins": _Source("ogb", "ogbn_proteins", _EDGE, _proteins),
    "tolokers": _Source(
        "HeterophilousGraphDataset", "tolokers", "raw/tolokers.npz", _heterophilous("tolokers")
    ),
}
PUBLISHED = tuple(_SOURCES)
"""The names `load_published` knows."""
