"""What every reader of published files does: find the folder, read numbers, make edges whole."""

from __future__ import annotations

import gzip
import io
import pathlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "DataNotFoundError",
    "existing",
    "find_folder",
    "masks",
    "numbers",
    "ogb_split",
    "undirected",
]


class DataNotFoundError(FileNotFoundError):
    """A file of a data set is not under the given folder."""


def find_folder(
    name: str, root: str | pathlib.Path, loader: str, folder: str, file: str
) -> pathlib.Path:
    """The folder of a set, which holds `file`.

    Args:
        name: of the set, for the message.
        root: the folder given to the set's loader, or the one above it.
        loader: the folder of the loader; "" for a set that has none.
        folder: of the set, in that one.
        file: that must be there.

    Raises:
        DataNotFoundError: there is none; names the places.
    """
    root = pathlib.Path(root).expanduser()
    # a set without a loader has two of the places twice
    places = [root / folder, root / loader / folder, root / loader, root]
    for place in places:
        if (place / file).is_file():
            return place
    expected = dict.fromkeys(str(place / file) for place in places[:2])
    raise DataNotFoundError(f"{name} is not under {root}: expected {' or '.join(expected)}")


def existing(path: pathlib.Path) -> pathlib.Path:
    """The path of a file that is there.

    Raises:
        DataNotFoundError: it is not.
    """
    if not path.is_file():
        raise DataNotFoundError(f"expected the file {path}, and it is not there")
    return path


def numbers(path: pathlib.Path, dtype: type[np.generic]) -> np.ndarray:
    """A gzipped table of numbers with commas and no header, [rows, columns]."""
    with gzip.open(existing(path), "rt") as file:
        return np.loadtxt(io.StringIO(file.read()), delimiter=",", dtype=dtype, ndmin=2)


def masks(num_nodes: int, parts: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Masks, bool [N] each, of the nodes for training, validation and test."""
    train, val, test = (torch.zeros(num_nodes, dtype=torch.bool) for _ in range(3))
    for mask, chosen in zip((train, val, test), parts, strict=True):
        mask[chosen] = True
    return train, val, test


def ogb_split(place: pathlib.Path, name: str, num_nodes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Masks of training, validation and test, bool [N] each, in OGB's layout."""
    files = (place / "split" / name / f"{part}.csv.gz" for part in ("train", "valid", "test"))
    return masks(num_nodes, [torch.from_numpy(numbers(file, np.int64)[:, 0]) for file in files])


def undirected(edges: Tensor, num_nodes: int) -> Tensor:
    """Both directions of every edge, once each, without self loops.

    Args:
        edges: integers [2, E]; sources in row 0.
        num_nodes: N; every number in `edges` is below.

    Returns:
        int64 [2, E'], sorted by source, then by target.
    """
    edges = edges[:, edges[0] != edges[1]].to(torch.int64)
    keys = torch.cat((edges[0] * num_nodes + edges[1], edges[1] * num_nodes + edges[0])).unique()
    return torch.stack((keys // num_nodes, keys % num_nodes))
