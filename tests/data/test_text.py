"""Graphs of texts: generated, published, and from the user's own files."""

from __future__ import annotations

import gzip
import pathlib
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pandas
import pytest
import torch

from gtkern.data import (
    DataNotFoundError,
    TextGraph,
    check_text_graph,
    fewer_labels,
    load_text_graph,
    read_text_graph,
    undirected,
    word_graph,
)


def small(**changes: Any) -> TextGraph:
    """Six nodes of two classes in a ring."""
    ring = torch.stack((torch.arange(6), (torch.arange(6) + 1) % 6))
    data = TextGraph(
        [f"text {row}" for row in range(6)],
        torch.tensor([0, 1, 0, 1, 0, -1]),
        undirected(ring, 6),
        torch.tensor([True, True, False, False, False, False]),
        torch.tensor([False, False, True, False, False, False]),
        torch.tensor([False, False, False, True, True, False]),
        ("first", "second"),
    )
    return replace(data, **changes)


def mask(*rows: int) -> torch.Tensor:
    found = torch.zeros(6, dtype=torch.bool)
    found[list(rows)] = True
    return found


def test_a_sound_graph_passes() -> None:
    data = check_text_graph(small())
    assert (data.num_nodes, data.num_classes) == (6, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"texts": ["a", " ", "b", "c", "", "d"]}, r"got 2 without one among 6: rows 1, 4$"),
        ({"texts": ["a"] * 5}, r"data.y must have shape \[N\] with N = 5 \(texts\), got \[6\]"),
        ({"texts": []}, "at least one node, got none"),
        ({"train_mask": mask(0, 4), "test_mask": mask(3)}, "training node, got none of 'second'"),
        ({"train_mask": mask(0, 1, 2)}, "train_mask and data.val_mask must not overlap.*: row 2"),
        ({"val_mask": mask()}, "data.val_mask must select at least one node, got none"),
        ({"test_mask": mask(5)}, "test_mask must select nodes with a label.*: row 5"),
        ({"y": torch.tensor([0, 1, 0, 1, 0, 2])}, r"a class in 0 .. 1, got 0 .. 2"),
        ({"class_names": ("a", "a")}, "at least two different names, got 1 in 2"),
        ({"edge_index": torch.tensor([[0, 6], [6, 0]])}, r"must be in 0 .. 5, got 0 .. 6"),
        ({"edge_index": torch.tensor([[0], [1]])}, "in both directions.*: 2 columns, got 1"),
        ({"edge_index": torch.tensor([[0, 1, 0], [1, 0, 1]])}, "once each.*2 columns, got 3"),
        ({"edge_index": torch.tensor([[0], [0]])}, "no self loops: 0 columns, got 1"),
        ({"edge_index": torch.zeros(3, 2, dtype=torch.int64)}, r"shape \[2, E\], got \[3, 2\]"),
    ],
)
def test_an_unsound_graph_is_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_text_graph(small(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"texts": ("a",) * 6}, "data.texts must be a list of strings"),
        ({"class_names": ["a", "b"]}, "data.class_names must be a tuple of strings"),
        ({"y": torch.zeros(6)}, "data.y must be torch.int64, got torch.float32"),
        ({"val_mask": [True] * 6}, "data.val_mask must be a tensor, got list"),
    ],
)
def test_a_wrong_type_is_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        check_text_graph(small(**changes))
    with pytest.raises(TypeError, match="data must be a TextGraph, got dict"):
        check_text_graph({})


def test_the_generated_graph_is_read_better_with_its_neighbours() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    data = load_text_graph("synthetic", seed=3)
    again = load_text_graph("synthetic", seed=3)
    assert data.texts == again.texts
    assert torch.equal(data.edge_index, again.edge_index)
    assert load_text_graph("synthetic", seed=4).texts != data.texts
    own = TfidfVectorizer().fit_transform(data.texts).toarray()
    near = np.eye(data.num_nodes)
    near[data.edge_index[1], data.edge_index[0]] = 1
    near = near / near.sum(1, keepdims=True) @ own
    accuracy = []
    for x in (own, near):
        model = LogisticRegression(C=30).fit(x[data.train_mask], data.y[data.train_mask])
        accuracy.append(model.score(x[data.test_mask], data.y[data.test_mask]))
    # chance is a quarter
    assert 0.5 < accuracy[0] < 0.9
    assert accuracy[1] > accuracy[0] + 0.05
    with pytest.raises(ValueError, match=r"other_share must be in 0 .. 1, got 1.2"):
        word_graph(own_share=0.6, other_share=0.6)


def test_fewer_labels_are_kept_in_every_class() -> None:
    data = load_text_graph("synthetic")
    few = load_text_graph("synthetic", labels_per_class=3)
    assert torch.bincount(few.y[few.train_mask]).tolist() == [3, 3, 3, 3]
    assert not bool((few.train_mask & ~data.train_mask).any())
    assert torch.equal(few.test_mask, data.test_mask)
    share = load_text_graph("synthetic", label_share=0.1)
    assert torch.bincount(share.y[share.train_mask]).tolist() == [9, 9, 9, 9]
    assert int(fewer_labels(data, label_share=1e-6).train_mask.sum()) == 4
    other = fewer_labels(data, labels_per_class=3, seed=1)
    assert not torch.equal(other.train_mask, few.train_mask)
    with pytest.raises(ValueError, match=r"at least 91 training nodes.*got 90 of 'class 0'"):
        fewer_labels(data, labels_per_class=91)
    with pytest.raises(ValueError, match="only one of labels_per_class and label_share"):
        fewer_labels(data, labels_per_class=3, label_share=0.1)


def write_cora(folder: pathlib.Path, num_nodes: int = 1700) -> torch.Tensor:
    """A set in the layout of cora-text; returns the rows in Planetoid's order."""
    folder.mkdir()
    order = torch.randperm(num_nodes, generator=torch.Generator().manual_seed(0))
    table = {
        "id": range(num_nodes),
        "name": [f"paper{row}" for row in range(num_nodes)],
        "label": [("Theory", "Agents")[row % 2] for row in range(num_nodes)],
        "text": [f'Title: "row", {row}' for row in range(num_nodes)],
        "planetoid_index": order.argsort().tolist(),
    }
    pandas.DataFrame(table).to_csv(folder / "nodes.csv.gz", index=False)
    np.save(folder / "edges.npy", np.array([[0, 1, 1, 2], [1, 0, 1, 5]], dtype=np.int32))
    parts = {"train": np.arange(10), "val": np.arange(10, 20), "test": np.arange(20, 40)}
    np.savez(folder / "split.npz", **parts)
    return order


def test_a_folder_of_nodes_edges_and_split_is_read(tmp_path: pathlib.Path) -> None:
    order = write_cora(tmp_path / "cora-text")
    data = load_text_graph("cora-text", tmp_path)
    assert data.texts[7] == 'Title: "row", 7'
    assert data.class_names == ("Agents", "Theory")
    assert data.y[:4].tolist() == [1, 0, 1, 0]
    assert data.edge_index.tolist() == [
        [0, 1, 2, 5],
        [1, 0, 5, 2],
    ]
    assert data.val_mask.nonzero().flatten().tolist() == list(range(10, 20))
    public = load_text_graph("cora-text", tmp_path / "cora-text", split="public")
    parts = (public.train_mask, public.val_mask, public.test_mask)
    assert [int(part.sum()) for part in parts] == [140, 500, 1000]
    assert bool(public.train_mask[order[:140]].all())
    assert bool(public.test_mask[order[-1000:]].all())


def test_arxiv_is_read_in_its_layout(tmp_path: pathlib.Path) -> None:
    place = tmp_path / "ogbn_arxiv"
    tables = {
        "raw/node-label.csv.gz": "0\n1\n0\n1\n",
        "raw/edge.csv.gz": "0,1\n1,2\n",
        "mapping/nodeidx2paperid.csv.gz": "node idx,paper id\n0,70\n1,71\n2,72\n3,73\n",
        "mapping/labelidx2arxivcategeory.csv.gz": "label idx,arxiv category\n0,cs na\n1,cs mm\n",
        "split/time/train.csv.gz": "0\n1\n",
        "split/time/valid.csv.gz": "2\n",
        "split/time/test.csv.gz": "3\n",
    }
    for name, content in tables.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(gzip.compress(content.encode()))
    with pytest.raises(DataNotFoundError, match=r"titleabs.tsv or .* of titles and abstracts"):
        load_text_graph("arxiv-text", tmp_path)
    lines = ["titleabs.tsv padding 70", "73\tD\td", '71\tB\t"b', "9\tX\tx", "70\tA\ta", "72\tC\tc"]
    (place / "titleabs.tsv").write_text("\n".join(lines))
    data = load_text_graph("arxiv-text", tmp_path)
    assert data.texts == ["A. a", 'B. "b', "C. c", "D. d"]
    assert data.class_names == ("cs na", "cs mm")
    assert data.edge_index.tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]
    assert data.test_mask.tolist() == [False, False, False, True]
    (place / "titleabs.tsv").write_text("70\tA\ta\n")
    with pytest.raises(ValueError, match="a line for every node, got none for 3"):
        load_text_graph("arxiv-text", tmp_path)


def test_wrong_names_and_places_are_told(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="name must be one of arxiv-text, cora-text"):
        load_text_graph("citeseer", tmp_path)
    with pytest.raises(ValueError, match="split 'public' is there for cora-text, got it for syn"):
        load_text_graph("synthetic", split="public")
    with pytest.raises(DataNotFoundError, match=r"expected \S*cora-text/nodes.csv.gz$"):
        load_text_graph("cora-text", tmp_path)
    with pytest.raises(DataNotFoundError, match="root must name the folder of its files"):
        load_text_graph("cora-text")


NODES = {
    "paper": ["p1", "p2", "p3", "p4", "p5", "p6"],
    "title": ["One", "Two", "NA", "Four", "Five", "Six"],
    "abstract": ["a, b", "", "c", "d", "e", "f"],
    "field": ["10", "9", "10", "9", "10", ""],
    "split": ["train", "train", "val", "test", "test", ""],
}
EDGES = {"from": ["p1", "p2", "p2", "p6"], "to": ["p2", "p1", "p3", "p6"]}
COLUMNS: dict[str, Any] = {"id": "paper", "text": ("title", "abstract"), "label": "field"}


def write(folder: pathlib.Path, end: str, **changes: list[str]) -> pathlib.Path:
    """Tables of nodes and edges; returns the one of nodes."""
    for name, table in (("nodes", NODES), ("edges", EDGES)):
        frame = pandas.DataFrame({key: changes.get(key, value) for key, value in table.items()})
        if end == ".parquet":
            frame.to_parquet(folder / f"{name}{end}")
        else:
            frame.to_csv(folder / f"{name}{end}", index=False)
    return folder / f"nodes{end}"


@pytest.mark.parametrize("end", [".csv", ".csv.gz", ".parquet"])
def test_own_tables_become_a_graph(tmp_path: pathlib.Path, end: str) -> None:
    nodes = write(tmp_path, end)
    data = read_text_graph(nodes, tmp_path / f"edges{end}", **COLUMNS)
    assert data.texts == ["One. a, b", "Two", "NA. c", "Four. d", "Five. e", "Six. f"]
    # whole numbers in their own order
    assert data.class_names == ("9", "10")
    assert data.y.tolist() == [1, 0, 1, 0, 1, -1]
    assert data.edge_index.tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]
    assert data.train_mask.tolist() == [True, True, False, False, False, False]
    assert data.name == "nodes"


def test_parquet_keeps_whole_numbers_beside_missing_ones(tmp_path: pathlib.Path) -> None:
    frame = pandas.DataFrame({**NODES, "paper": [1, 2, 3, 4, 5, 6]})
    frame["field"] = pandas.array([1, 0, 1, 0, 1, None], dtype="Int64")
    frame.to_parquet(tmp_path / "nodes.parquet")
    np.save(tmp_path / "edges.npy", np.array([[1, 2], [2, 3], [3, 4]]))
    data = read_text_graph(tmp_path / "nodes.parquet", tmp_path / "edges.npy", **COLUMNS)
    assert data.class_names == ("0", "1")
    assert data.edge_index.size(1) == 6


def test_without_parts_the_split_is_drawn_in_every_class(tmp_path: pathlib.Path) -> None:
    count = 100
    table = {
        "id": [f"n{row}" for row in range(count)],
        "text": [f"text {row}" for row in range(count)],
        "label": [("rare" if row % 5 == 0 else "common") for row in range(count)],
    }
    pandas.DataFrame(table).to_csv(tmp_path / "nodes.csv", index=False)
    (tmp_path / "edges.csv").write_text("source,target\nn0,n1\n")
    files = (tmp_path / "nodes.csv", tmp_path / "edges.csv")
    data = read_text_graph(*files, seed=1)
    for part, expected in (
        (data.train_mask, [48, 12]),
        (data.val_mask, [16, 4]),
        (data.test_mask, [16, 4]),
    ):
        assert torch.bincount(data.y[part]).tolist() == expected
    assert torch.equal(read_text_graph(*files, seed=1).train_mask, data.train_mask)
    assert not torch.equal(read_text_graph(*files, seed=2).train_mask, data.train_mask)
    with pytest.raises(ValueError, match="must have the column 'part', got id, text, label"):
        read_text_graph(*files, split="part")


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"label": "class"}, "column 'class', got paper, title, abstract, field, split"),
        ({"paper": ["p1", "p2", "p3", "p4", "p5", "p1"]}, {}, "got 1 ids .*the first 'p1'"),
        ({"split": ["train", "dev", "", "", "", ""]}, {}, "got 'dev' for the node 'p2'"),
        ({"title": ["", "", "", "", "", ""]}, {}, "got 1 without one among 6: row 1"),
        (
            {"to": ["p2", "p9", "p3", "p8"]},
            {},
            "got 2 that are not there, the first 'p9' in edge 1",
        ),
        ({}, {"edge_columns": ("from", "at")}, "must have the column 'at', got from, to"),
        ({"split": ["train"] * 5 + [""]}, {}, "val_mask must select at least one node"),
    ],
)
def test_bad_tables_are_told(
    tmp_path: pathlib.Path, changes: dict[str, list[str]], options: dict[str, Any], message: str
) -> None:
    nodes = write(tmp_path, ".csv", **changes)
    with pytest.raises(ValueError, match=message):
        read_text_graph(nodes, tmp_path / "edges.csv", **{**COLUMNS, **options})


def test_bad_files_are_told(tmp_path: pathlib.Path) -> None:
    nodes, edges = write(tmp_path, ".csv"), tmp_path / "edges.csv"
    with pytest.raises(ValueError, match=r"must end in .csv, .csv.gz, .parquet, got \S*nodes.txt"):
        read_text_graph(tmp_path / "nodes.txt", edges, **COLUMNS)
    with pytest.raises(FileNotFoundError, match=r"expected the table \S*none.csv"):
        read_text_graph(tmp_path / "none.csv", edges, **COLUMNS)
    edges.write_text("p1,p2\np2,p3\n")
    with pytest.raises(ValueError, match="first line must name the columns, got two ids: p1, p2"):
        read_text_graph(nodes, edges, **COLUMNS)
    edges.write_text("from,to,weight\np1,p2,1\n")
    with pytest.raises(ValueError, match="two columns of ids, got from, to, weight; edge_columns"):
        read_text_graph(nodes, edges, **COLUMNS)
    assert read_text_graph(nodes, edges, **COLUMNS, edge_columns=("from", "to")).num_nodes == 6
    np.save(tmp_path / "edges.npy", np.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"shape \[2, E\] or \[E, 2\], got float64 \[3, 3\]"):
        read_text_graph(nodes, tmp_path / "edges.npy", **COLUMNS)
    (tmp_path / "bad.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"cannot read the table \S*bad.parquet"):
        read_text_graph(tmp_path / "bad.parquet", edges, **COLUMNS)


def test_missing_pandas_names_the_extra(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = write(tmp_path, ".csv")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install 'gtkern\[language\]'"):
        read_text_graph(nodes, tmp_path / "edges.csv", **COLUMNS)
