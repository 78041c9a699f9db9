"""Data: the rules of the generated graph, the layouts of published files, what is refused."""

from __future__ import annotations

import gzip
import pathlib
from collections.abc import Callable

import numpy as np
import pytest
import torch

from gtkern.data import (
    PUBLISHED,
    DataNotFoundError,
    NodeData,
    check_node_data,
    load_published,
    minesweeper,
    random_split,
)


def test_minesweeper_has_the_published_sizes() -> None:
    data = minesweeper(0)
    assert data.x.shape == (10_000, 7)
    assert data.edge_index.shape == (2, 78_804)
    assert int(data.y.sum()) == 2_000
    assert int(data.x[:, 0].sum()) == 5_000
    masks = (data.train_mask, data.val_mask, data.test_mask)
    assert [int(mask.sum()) for mask in masks] == [5_000, 2_500, 2_500]
    assert all(0.17 < float(data.y[mask].float().mean()) < 0.23 for mask in masks)
    assert bool((sum(mask.int() for mask in masks) == 1).all())


def test_minesweeper_shows_the_mines_around_a_cell() -> None:
    rows, data = 12, minesweeper(3, rows=12)
    mines = torch.nn.functional.pad(data.y.view(rows, rows), (1, 1, 1, 1))
    assert bool((data.x.sum(1) == 1).all())
    for cell in range(rows * rows):
        row, column = divmod(cell, rows)
        around = int(mines[row : row + 3, column : column + 3].sum() - data.y[cell])
        shown = int(data.x[cell].argmax())
        assert shown in (0, 1 + min(around, 5))


def test_minesweeper_joins_each_pair_of_neighbours_twice() -> None:
    data = minesweeper(0, rows=5)
    pairs = {tuple(pair) for pair in data.edge_index.T.tolist()}
    assert len(pairs) == data.edge_index.size(1)
    assert all((second, first) in pairs for first, second in pairs)
    apart = [
        max(abs(first // 5 - second // 5), abs(first % 5 - second % 5)) for first, second in pairs
    ]
    assert set(apart) == {1}


def test_minesweeper_is_decided_by_its_seed() -> None:
    first, same, other = (minesweeper(seed, rows=20) for seed in (1, 1, 2))
    assert torch.equal(first.x, same.x)
    assert not torch.equal(first.y, other.y)


def write_heterophilous(root: pathlib.Path, name: str = "minesweeper") -> NodeData:
    """A small file in the published layout, and what it holds."""
    data = minesweeper(0, rows=10)
    half = data.edge_index[:, data.edge_index[0] < data.edge_index[1]]
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    np.savez(
        folder / f"{name}.npz",
        node_features=data.x.numpy(),
        node_labels=data.y.numpy(),
        edges=half.T.numpy(),
        train_masks=data.train_mask[None].numpy(),
        val_masks=data.val_mask[None].numpy(),
        test_masks=data.test_mask[None].numpy(),
    )
    return data


@pytest.mark.parametrize("above", [False, True])
def test_published_files_are_found_and_only_read(tmp_path: pathlib.Path, above: bool) -> None:
    root = tmp_path / "HeterophilousGraphDataset" if above else tmp_path
    expected = write_heterophilous(root)
    before = sorted(tmp_path.rglob("*"))
    data = load_published("minesweeper", tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    assert torch.equal(data.y, expected.y)
    assert torch.equal(data.val_mask, expected.val_mask)
    assert {tuple(pair) for pair in data.edge_index.T.tolist()} == {
        tuple(pair) for pair in expected.edge_index.T.tolist()
    }


def test_photo_layout_is_read(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "Amazon" / "Photo" / "raw"
    folder.mkdir(parents=True)
    np.savez(
        folder / "amazon_electronics_photo.npz",
        adj_data=np.ones(3),
        adj_indices=np.array([1, 2, 2]),
        adj_indptr=np.array([0, 1, 2, 3, 3]),
        adj_shape=np.array([4, 4]),
        attr_data=np.array([2.0, 1.0]),
        attr_indices=np.array([0, 4]),
        attr_indptr=np.array([0, 1, 1, 2, 2]),
        attr_shape=np.array([4, 5]),
        labels=np.array([0, 1, 1, 0]),
    )
    data = load_published("photo", tmp_path)
    assert data.edge_index.tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]  # no self loop, both ways
    assert data.x.nonzero().tolist() == [[0, 0], [2, 4]]
    assert float(data.x.max()) == 1


def write_csv(path: pathlib.Path, rows: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") as file:
        file.write(rows)


def test_arxiv_layout_is_read(tmp_path: pathlib.Path) -> None:
    root = tmp_path / "ogbn_arxiv"
    write_csv(root / "raw/edge.csv.gz", "0,1\n2,1\n")
    write_csv(root / "raw/node-feat.csv.gz", "0.5,1\n0,0\n1,1\n")
    write_csv(root / "raw/node-label.csv.gz", "4\n0\n1\n")
    for number, part in enumerate(("train", "valid", "test")):
        write_csv(root / f"split/time/{part}.csv.gz", f"{number}\n")
    data = load_published("arxiv", tmp_path)
    assert data.edge_index.tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]
    assert data.y.tolist() == [4, 0, 1]
    assert data.val_mask.tolist() == [False, True, False]


def test_proteins_take_the_mean_of_their_edges(tmp_path: pathlib.Path) -> None:
    root = tmp_path / "ogbn_proteins"
    write_csv(root / "raw/edge.csv.gz", "0,1\n1,2\n")
    write_csv(root / "raw/edge-feat.csv.gz", "1,0\n3,4\n")
    write_csv(root / "raw/node-label.csv.gz", "1,0\n0,1\n1,1\n")
    for number, part in enumerate(("train", "valid", "test")):
        write_csv(root / f"split/species/{part}.csv.gz", f"{number}\n")
    data = check_node_data(load_published("proteins", tmp_path))
    assert data.x.tolist() == [[1, 0], [2, 2], [3, 4]]
    assert data.num_classes == 2


def test_actor_layout_is_read(tmp_path: pathlib.Path) -> None:
    raw = tmp_path / "Actor" / "raw"
    raw.mkdir(parents=True)
    nodes = "node_id\tfeature\tlabel\n0\t1,3\t0\n1\t0\t2\n2\t3\t1\n"
    (raw / "out1_node_feature_label.txt").write_text(nodes)
    (raw / "out1_graph_edges.txt").write_text("a\tb\n0\t1\n2\t1\n")
    masks = np.eye(3, dtype=np.int64)
    np.savez(
        raw / "film_split_0.6_0.2_0.npz",
        train_mask=masks[0],
        val_mask=masks[1],
        test_mask=masks[2],
    )
    data = load_published("actor", tmp_path)
    assert data.x.tolist() == [[0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 1]]
    assert data.y.tolist() == [0, 2, 1]
    assert data.edge_index.tolist() == [[0, 2], [1, 1]]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_missing_file_is_named(tmp_path: pathlib.Path, name: str) -> None:
    with pytest.raises(DataNotFoundError, match=rf"{name} is not under .*expected .*raw"):
        load_published(name, tmp_path)


def test_an_unknown_name_lists_the_known_ones(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"minesweeper.*got 'chess'"):
        load_published("chess", tmp_path)


def test_a_pyg_data_serves_as_well() -> None:
    pyg = pytest.importorskip("torch_geometric.data")
    data = minesweeper(0, rows=5)
    assert torch.equal(check_node_data(pyg.Data(**vars(data))).y, data.y)


def spoil(change: Callable[[NodeData], None]) -> NodeData:
    data = minesweeper(0, rows=5)
    change(data)
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (spoil(lambda data: data.x.fill_(float("nan"))), "data.x must be finite"),
        (spoil(lambda data: data.y.fill_(-1)), "data.y must be classes from 0, got -1"),
        (spoil(lambda data: data.val_mask.fill_(False)), "data.val_mask must select at least one"),
        (spoil(lambda data: setattr(data, "y", data.y[:3])), r"data.y must have shape \[N\]"),
        (spoil(lambda data: setattr(data, "x", data.x[0])), r"data.x must have shape \[N, F\]"),
        (spoil(lambda data: setattr(data, "x", data.x[:0])), "not empty"),
    ],
)
def test_bad_values_are_named(data: NodeData, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_node_data(data)


def test_a_missing_attribute_is_named() -> None:
    with pytest.raises(TypeError, match=r"data\.x must be a tensor, got NoneType"):
        check_node_data(object())


def test_a_random_split_takes_every_node_once() -> None:
    masks = random_split(101, (0.6, 0.2), torch.Generator().manual_seed(4))
    assert [int(mask.sum()) for mask in masks] == [61, 20, 20]
    assert bool((sum(mask.int() for mask in masks) == 1).all())
