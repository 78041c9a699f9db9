"""A generated graph whose degrees follow a power law; of any size, for it lies in files."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterator

import numpy as np
import torch

from gtkern.data.node import NodeData

__all__ = ["power_law"]

FORMAT = 1
"""Grows when the same arguments give another graph."""

TRAIN, VAL, TEST = 0, 1, 2

_CHUNK = 1 << 20
_FILES = ("x.npy", "y.npy", "edge_index.npy", "split.npy")
_ABOUT = "about.json"


def power_law(
    folder: str | os.PathLike[str],
    seed: int = 0,
    *,
    nodes: int = 1_000_000,
    mean_degree: float = 19.0,
    exponent: float = 2.5,
    locality: float = 0.5,
    reach: int = 64,
    homophily: float = 0.8,
    classes: int = 10,
    features: int = 64,
    signal: float = 1.0,
) -> NodeData:
    """Draw a graph with planted classes, or map the one that an earlier call left in `folder`.

    Stretches of 16 * reach consecutive nodes are of one class. One end of every edge is drawn from
    all nodes, in proportion to weights (rank + 1) ** (-1 / (exponent - 1)) by the rank of a node in
    a random order of its class. The other end is, with probability `locality`, one of the `reach`
    nodes before or after it; otherwise a node drawn by weight, of the same class with probability
    `homophily` and else of any. Every edge stands there in both directions; repeated edges may
    occur, self loops do not.

    The features of a node are standard normal noise plus `signal` times a vector of length 1 that
    belongs to its class: one node tells little, the mean over its neighbours tells much. Half of
    the nodes are for training, a quarter each for validation and test.

    Args:
        folder: where the files are, or will be; x.npy, y.npy, edge_index.npy, split.npy and
            about.json with the arguments. Files of other arguments are replaced.
        seed: of everything random.
        nodes: N, at least 4 and at least `classes`.
        mean_degree: edges into a node, on average; N * mean_degree / 2 is rounded.
        exponent: of the law of degrees, > 2; smaller: heavier hubs.
        locality: share of edges between nodes of near numbers, which lie close together in memory;
            in [0, 1].
        reach: how near, at least 1.
        homophily: in [0, 1].
        classes: at least 2.
        features: F, at least 1.
        signal: at least 0; 0: nothing to learn.

    Returns:
        NodeData whose x, y and edge_index (int32) are memory maps of the files, copied on write.

    Raises:
        ValueError: an argument is out of range. OSError: the files cannot be written or read.
    """
    _check(nodes, mean_degree, exponent, locality, reach, homophily, classes, features, signal)
    folder = pathlib.Path(folder)
    about = {
        "format": FORMAT,
        "seed": seed,
        "nodes": nodes,
        "mean_degree": mean_degree,
        "exponent": exponent,
        "locality": locality,
        "reach": reach,
        "homophily": homophily,
        "classes": classes,
        "features": features,
        "signal": signal,
    }
    if _read_about(folder) != about:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _ABOUT).unlink(missing_ok=True)
        rng = np.random.default_rng(seed)
        y = _draw_classes(rng, nodes, classes, 16 * reach)
        np.save(folder / "y.npy", y)
        _write_split(folder, rng, nodes)
        _write_features(folder, rng, y, classes, features, signal)
        ends = _Ends(rng, y, classes, exponent)
        half = round(nodes * mean_degree / 2)
        _write_edges(folder, rng, y, ends, half, locality, reach, homophily)
        # last, for it says that the others are whole
        (folder / _ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    x, y, edges, split = (np.load(folder / name, mmap_mode="c") for name in _FILES)
    masks = [torch.from_numpy(np.asarray(split == part)) for part in (TRAIN, VAL, TEST)]
    return NodeData(torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(edges), *masks)


def _check(
    nodes: int,
    mean_degree: float,
    exponent: float,
    locality: float,
    reach: int,
    homophily: float,
    classes: int,
    features: int,
    signal: float,
) -> None:
    for name, value, low, high in (
        ("classes", classes, 2, 2**31 - 1),
        ("nodes", nodes, max(4, classes), 2**31 - 1),
        ("mean_degree", mean_degree, 0, 2**31 - 1),
        ("locality", locality, 0, 1),
        ("reach", reach, 1, nodes - 1),
        ("homophily", homophily, 0, 1),
        ("features", features, 1, 2**31 - 1),
    ):
        if not low <= value <= high:
            raise ValueError(f"{name} must be {low} .. {high}, got {value}")
    if not exponent > 2:
        raise ValueError(f"exponent must be > 2, got {exponent}")
    if not signal >= 0:
        raise ValueError(f"signal must be >= 0, got {signal}")


def _read_about(folder: pathlib.Path) -> object:
    """What the files in the folder were made by; None when they are not all there."""
    if not all((folder / name).is_file() for name in (*_FILES, _ABOUT)):
        return None
    try:
        return json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
    except ValueError:
        return None


def _draw_classes(rng: np.random.Generator, nodes: int, classes: int, stretch: int) -> np.ndarray:
    """int64 [N]; every class has a node."""
    # short stretches where there are few nodes, so that every class gets several
    stretch = max(1, min(stretch, nodes // (4 * classes)))
    count = -(-nodes // stretch)
    drawn = rng.permutation(np.arange(count) % classes)
    return np.repeat(drawn, stretch)[:nodes].astype(np.int64)


def _write_split(folder: pathlib.Path, rng: np.random.Generator, nodes: int) -> None:
    split = np.full(nodes, TEST, np.uint8)
    split[: nodes // 2] = TRAIN
    split[nodes // 2 : nodes // 2 + nodes // 4] = VAL
    rng.shuffle(split)
    np.save(folder / "split.npy", split)


def _write_features(
    folder: pathlib.Path,
    rng: np.random.Generator,
    y: np.ndarray,
    classes: int,
    features: int,
    signal: float,
) -> None:
    centre = rng.standard_normal((classes, features), dtype=np.float32)
    centre *= signal / np.linalg.norm(centre, axis=1, keepdims=True)
    x = _create(folder / "x.npy", np.float32, (y.size, features))
    for begin, end in _chunks(y.size, max(1, _CHUNK // features)):
        noise = rng.standard_normal((end - begin, features), dtype=np.float32)
        x[begin:end] = noise + centre[y[begin:end]]
    x.flush()


class _Ends:
    """Draws nodes of given classes in proportion to their weights."""

    def __init__(
        self, rng: np.random.Generator, y: np.ndarray, classes: int, exponent: float
    ) -> None:
        self.rng = rng
        order = rng.permutation(y.size)
        # the nodes of class c, by rank, are members[first[c] : first[c + 1]]
        self.members = order[np.argsort(y[order], kind="stable")].astype(np.int32)
        self.sizes = np.bincount(y, minlength=classes)
        self.first = np.cumsum(self.sizes) - self.sizes
        self.power = 1.0 - 1.0 / (exponent - 1.0)

    def draw(self, classes: np.ndarray) -> np.ndarray:
        """int32: a node of each class, by inverting the integral of the weights."""
        size = self.sizes[classes]
        most = (size + 1.0) ** self.power
        place = (1.0 + self.rng.random(classes.size) * (most - 1.0)) ** (1.0 / self.power) - 1.0
        rank = np.minimum(place.astype(np.int64), size - 1)
        drawn: np.ndarray = self.members[self.first[classes] + rank]
        return drawn


def _write_edges(
    folder: pathlib.Path,
    rng: np.random.Generator,
    y: np.ndarray,
    ends: _Ends,
    half: int,
    locality: float,
    reach: int,
    homophily: float,
) -> None:
    nodes = y.size
    edges = _create(folder / "edge_index.npy", np.int32, (2, 2 * half))
    for begin, end in _chunks(half, _CHUNK):
        count = end - begin
        source = ends.draw(y[rng.integers(nodes, size=count)]).astype(np.int64)
        classes = y[source]
        other = rng.random(count) >= homophily
        classes[other] = y[rng.integers(nodes, size=int(other.sum()))]
        destination = ends.draw(classes).astype(np.int64)
        near = rng.random(count) < locality
        step = rng.integers(1, reach + 1, size=count) * rng.choice((-1, 1), size=count)
        destination[near] = (source + step)[near] % nodes
        loops = destination == source
        destination[loops] = (source[loops] + 1) % nodes
        edges[0, begin:end] = edges[1, half + begin : half + end] = source
        edges[1, begin:end] = edges[0, half + begin : half + end] = destination
    edges.flush()


def _create(path: pathlib.Path, dtype: type, shape: tuple[int, ...]) -> np.memmap:
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)


def _chunks(count: int, size: int) -> Iterator[tuple[int, int]]:
    for begin in range(0, count, size):
        yield begin, min(count, begin + size)
