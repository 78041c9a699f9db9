"""The generated power-law graph: what it promises, and its files."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
import torch

from gtkern.data import NodeData, check_node_data, power_law


def small(folder: pathlib.Path, seed: int = 0, **changes: Any) -> NodeData:
    return power_law(folder, seed, **{"nodes": 20_000, "features": 8, "mean_degree": 9, **changes})


def same_ends(data: NodeData) -> float:
    source, destination = data.edge_index.long()
    return float((data.y[source] == data.y[destination]).float().mean())


def test_it_is_valid_and_of_the_size_asked_for(tmp_path: pathlib.Path) -> None:
    data = check_node_data(small(tmp_path))
    assert data.x.shape == (20_000, 8)
    assert data.edge_index.shape == (2, 180_000)
    assert data.edge_index.dtype == torch.int32
    assert data.num_classes == 10
    assert (data.train_mask | data.val_mask | data.test_mask).all()
    assert [int(mask.sum()) for mask in (data.train_mask, data.val_mask, data.test_mask)] == [
        10_000,
        5_000,
        5_000,
    ]


def test_every_edge_has_its_reverse_and_none_is_a_loop(tmp_path: pathlib.Path) -> None:
    source, destination = small(tmp_path).edge_index.long()
    keys, reverse = source * 20_000 + destination, destination * 20_000 + source
    assert torch.equal(keys.sort().values, reverse.sort().values)
    assert not (source == destination).any()


def test_degrees_follow_the_law(tmp_path: pathlib.Path) -> None:
    data = small(tmp_path, nodes=200_000, locality=0.0, exponent=2.5)
    degree = data.edge_index[1].bincount().double()
    # a law of exponent 2.5 has twice the nodes above d that it has above 2 ** (1 / 1.5) d
    counts = [int((degree >= bound).sum()) for bound in (50, 100, 200, 400)]
    slopes = np.diff(np.log2(counts))
    assert slopes == pytest.approx(-1.5, abs=0.25)


def test_locality_is_the_share_of_near_ends(tmp_path: pathlib.Path) -> None:
    for locality in (0.0, 0.7, 1.0):
        data = small(tmp_path, locality=locality, reach=16)
        source, destination = data.edge_index.long()
        gap = (source - destination).abs()
        near = torch.minimum(gap, 20_000 - gap) <= 16
        assert float(near.float().mean()) == pytest.approx(locality, abs=0.02)


def test_homophily_joins_nodes_of_a_class(tmp_path: pathlib.Path) -> None:
    assert same_ends(small(tmp_path, locality=0.0, homophily=0.8)) == pytest.approx(0.82, abs=0.02)
    assert same_ends(small(tmp_path, locality=0.0, homophily=0.0)) == pytest.approx(0.10, abs=0.02)


def test_neighbours_tell_more_than_the_node(tmp_path: pathlib.Path) -> None:
    data = small(tmp_path, features=64)
    source, destination = data.edge_index.long()
    mean = torch.zeros_like(data.x).index_add_(0, destination, data.x[source])
    mean /= destination.bincount(minlength=20_000).clamp(min=1)[:, None]
    right = []
    for x in (data.x, mean):
        centre = torch.stack([x[data.train_mask & (data.y == c)].mean(0) for c in range(10)])
        nearest = torch.cdist(x[data.test_mask], centre).argmin(1)
        right.append(float((nearest == data.y[data.test_mask]).float().mean()))
    assert 0.15 < right[0] < 0.6
    assert right[1] > right[0] + 0.2


def test_a_seed_means_one_graph(tmp_path: pathlib.Path) -> None:
    first, again, other = (
        small(tmp_path / name, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    for name in ("x", "y", "edge_index", "train_mask"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))


def test_files_are_kept_for_the_same_arguments_only(tmp_path: pathlib.Path) -> None:
    small(tmp_path)
    before = (tmp_path / "x.npy").stat().st_mtime_ns
    small(tmp_path)
    assert (tmp_path / "x.npy").stat().st_mtime_ns == before
    assert small(tmp_path, nodes=3_000).x.size(0) == 3_000
    assert np.load(tmp_path / "x.npy", mmap_mode="r").shape == (3_000, 8)


def test_half_written_files_are_made_anew(tmp_path: pathlib.Path) -> None:
    expected = small(tmp_path).x.clone()
    (tmp_path / "about.json").unlink()
    (tmp_path / "x.npy").write_bytes(b"half")
    assert torch.equal(small(tmp_path).x, expected)


def test_writing_to_the_tensors_leaves_the_files_alone(tmp_path: pathlib.Path) -> None:
    data = small(tmp_path)
    data.x.zero_()
    assert small(tmp_path).x.abs().sum() > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nodes": 3}, "nodes must be 10 .. 2147483647, got 3"),
        ({"locality": 1.5}, "locality must be 0 .. 1, got 1.5"),
        ({"homophily": -1}, "homophily must be 0 .. 1, got -1"),
        ({"reach": 20_000}, "reach must be 1 .. 19999, got 20000"),
        ({"exponent": 2.0}, "exponent must be > 2, got 2.0"),
        ({"classes": 1}, "classes must be 2"),
        ({"features": 0}, "features must be 1"),
        ({"signal": -1.0}, "signal must be >= 0, got -1.0"),
        ({"mean_degree": -1.0}, "mean_degree must be 0"),
    ],
)
def test_bad_arguments_are_explained(
    tmp_path: pathlib.Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        small(tmp_path, **changes)
    assert list(tmp_path.iterdir()) == []
