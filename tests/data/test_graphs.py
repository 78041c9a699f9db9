"""Sets of graphs: the readers agree with PyG, splits are whole, caches are never stale."""

from __future__ import annotations

import pathlib
import re
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from gtkern.data import GRAPH_SETS, DataNotFoundError, GraphDataset, Split, load_graphs, motifs
from gtkern.data.motifs import MOTIFS
from gtkern.data.splits import folds, scaffold_split

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "data.md"

FILES = {
    "A": "1,2\n2,1\n2,3\n3,2\n4,5\n5,4\n4,4\n7,8\n8,7\n7,8\n",
    "graph_indicator": "1\n1\n1\n2\n2\n3\n4\n4\n",
    "graph_labels": "-1\n1\n1\n-1\n",
    "node_labels": "3\n5\n3\n4\n3\n5\n5\n4\n",
    "edge_labels": "1\n1\n0\n0\n2\n2\n1\n1\n1\n1\n",
}


def write_mutag(root: pathlib.Path, **changes: str) -> pathlib.Path:
    """Four small graphs in the layout of MUTAG: a self loop, a repeated edge, a lone node."""
    raw = root / "TUDataset" / "MUTAG" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for stem, text in {**FILES, **changes}.items():
        (raw / f"MUTAG_{stem}.txt").write_text(text)
    return root


def test_synthetic_needs_no_files_and_is_decided_by_its_seed() -> None:
    first, same, other = (load_graphs("synthetic", seed=seed) for seed in (1, 1, 2))
    assert (first.task, first.num_outputs, first.metric) == ("classification", 4, "accuracy")
    assert torch.equal(first.graphs.x, same.graphs.x)
    assert torch.equal(first.graphs.edge_index, same.graphs.edge_index)
    assert not torch.equal(first.graphs.x[:100], other.graphs.x[:100])


def rings() -> Iterator[tuple[int, str, list[int]]]:
    """Of each motif graph: its class, the ring as a string, all its nodes' categories."""
    graphs = motifs(5, graphs=40)
    for number in range(len(graphs)):
        graph = graphs[number]
        ring = graph.edge_index[:, graph.edge_attr[:, 0] == 1]
        node, before, nodes = int(ring[0, 0]), -1, []
        for _ in range(6):
            nodes.append(node)
            following = [n for n in ring[1, ring[0] == node].tolist() if n != before]
            before, node = node, following[0]
        assert node == nodes[0]
        letters = "".join("ABC"[int(graph.x[node])] for node in nodes)
        yield int(graph.y), letters, graph.x[:, 0].tolist()


def test_the_order_of_the_ring_is_the_class() -> None:
    for label, letters, categories in rings():
        turned = [letters[i:] + letters[:i] for i in range(6)]
        assert MOTIFS[label] in (*turned, *(word[::-1] for word in turned))
        # what a bag of nodes shows is the same in every class
        assert [categories.count(category) for category in range(3)] == [2, 2, 2]


def test_motif_classes_are_of_equal_size_and_no_motif_is_another_turned() -> None:
    assert torch.bincount(motifs(0, graphs=41).y).sort()[0].tolist() == [10, 10, 10, 11]
    for label, motif in enumerate(MOTIFS):
        turned = [motif[i:] + motif[:i] for i in range(6)]
        others = MOTIFS[:label] + MOTIFS[label + 1 :]
        assert not set(others) & {*turned, *(word[::-1] for word in turned)}


def test_motif_graphs_are_connected_and_undirected() -> None:
    graphs = motifs(3, graphs=20)
    for number in range(20):
        graph = graphs[number]
        assert graph.is_undirected()
        assert graph.num_edges == 2 * graph.num_nodes
        reached = {0}
        for _ in range(graph.num_nodes):
            reached |= {t for s, t in graph.edge_index.T.tolist() if s in reached}
        assert len(reached) == graph.num_nodes


@pytest.mark.parametrize("sizes", [{"graphs": 0}, {"min_nodes": 5}, {"max_nodes": 11}])
def test_bad_motif_sizes_are_named(sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(sizes))):
        motifs(0, **sizes)


@pytest.mark.parametrize("place", ["", "TUDataset", "TUDataset/MUTAG"])
def test_tu_files_are_read_as_pyg_reads_them(tmp_path: pathlib.Path, place: str) -> None:
    from torch_geometric.datasets import TUDataset

    write_mutag(tmp_path)
    ours = load_graphs("mutag", tmp_path / place)
    theirs = TUDataset(str(tmp_path / "TUDataset"), "MUTAG")
    assert (len(ours.graphs), ours.num_outputs, ours.graphs.num_features) == (4, 2, 3)
    for number, graph in enumerate(theirs):
        mine = ours.graphs[number]
        assert torch.equal(mine.x, graph.x)
        assert torch.equal(mine.edge_index, graph.edge_index)
        assert torch.equal(mine.y, graph.y)
        if number < 3:  # PyG adds up the labels of the repeated edge
            assert torch.equal(mine.edge_attr, graph.edge_attr)


BAD = {
    "an edge between two graphs": (FILES["A"] + "5,6\n", "1\n", "the edge 5 -> 6"),
    "a node that is not there": (FILES["A"] + "4,99\n", "1\n", "the edge 4 -> 99"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_graph_is_named_or_left_out(tmp_path: pathlib.Path, kind: str) -> None:
    edges, label, message = BAD[kind]
    write_mutag(tmp_path, A=edges, edge_labels=FILES["edge_labels"] + label)
    for _ in range(2):  # anew, and from the cache
        with pytest.raises(ValueError, match=rf"mutag, graph 1: {message} \(line 11 of MUTAG_A"):
            load_graphs("mutag", tmp_path)
        with pytest.warns(UserWarning, match="left out graph 1"):
            found = load_graphs("mutag", tmp_path, on_bad="skip")
    assert [problem.graph for problem in found.skipped] == [1]
    good = load_graphs("mutag", write_mutag(tmp_path)).graphs
    assert len(found.graphs) == 3
    for mine, theirs in ((0, 0), (1, 2), (2, 3)):
        assert torch.equal(found.graphs[mine].edge_index, good[theirs].edge_index)
        assert torch.equal(found.graphs[mine].x, good[theirs].x)
        assert torch.equal(found.graphs[mine].y, good[theirs].y)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"A": FILES["A"].replace("2,1", "98,99")},
            "MUTAG_A.txt must join nodes 1 .. 8, got 98, 99 in line 2",
        ),
        ({"A": "1,2\n1,b\n"}, "cannot read .*MUTAG_A.txt"),
        ({"A": "1\n2\n"}, "MUTAG_A.txt must have 2 numbers in a line, got 1"),
        ({"graph_indicator": "1\n2\n1\n"}, "graph_indicator.txt must rise from 1.* line 3"),
        ({"graph_labels": "1\n"}, "graph_labels.txt must have a line for each of 4 graphs, got 1"),
        ({"node_labels": "1\n"}, "node_labels.txt must have a line for each of 8 nodes, got 1"),
        ({"edge_labels": "1\n"}, "edge_labels.txt must have a line for each of 10 edges, got 1"),
    ],
)
def test_a_spoilt_file_is_named(
    tmp_path: pathlib.Path, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_graphs("mutag", write_mutag(tmp_path, **changes))


def test_the_second_load_reads_the_cache(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_graphs("mutag", write_mutag(tmp_path))
    monkeypatch.setattr("gtkern.data._tu._table", None)
    second = load_graphs("mutag", tmp_path)
    assert torch.equal(first.graphs.x, second.graphs.x)
    assert torch.equal(first.graphs.edge_index, second.graphs.edge_index)
    with pytest.raises(TypeError):
        load_graphs("mutag", tmp_path, cache=False)


def test_a_changed_raw_file_is_read_anew(tmp_path: pathlib.Path) -> None:
    before = load_graphs("mutag", write_mutag(tmp_path)).graphs.y.tolist()
    write_mutag(tmp_path, graph_labels="1\n1\n1\n-1\n")
    assert load_graphs("mutag", tmp_path).graphs.y.tolist() != before


def test_another_version_of_the_reader_reads_anew(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_graphs("mutag", write_mutag(tmp_path))
    monkeypatch.setattr("gtkern.data.graphs.FORMAT", -1)
    monkeypatch.setattr("gtkern.data._tu._table", None)
    with pytest.raises(TypeError):
        load_graphs("mutag", tmp_path)


def test_the_cache_may_lie_elsewhere_or_nowhere(tmp_path: pathlib.Path) -> None:
    write_mutag(tmp_path)
    before = set(tmp_path.rglob("*"))
    load_graphs("mutag", tmp_path, cache=False)
    assert set(tmp_path.rglob("*")) == before
    load_graphs("mutag", tmp_path, cache=tmp_path / "cache")
    assert {path.name for path in set(tmp_path.rglob("*")) - before} == {
        "cache",
        "gtkern-mutag.safetensors",
    }


def test_a_cache_that_cannot_be_written_is_told(tmp_path: pathlib.Path) -> None:
    write_mutag(tmp_path)
    (tmp_path / "TUDataset/MUTAG/processed").write_text("a file, not a folder")
    with pytest.warns(UserWarning, match="mutag is read anew each time: cannot write"):
        assert len(load_graphs("mutag", tmp_path).graphs) == 4


def test_nothing_is_warned_of_in_a_good_set(tmp_path: pathlib.Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_graphs("mutag", write_mutag(tmp_path)).skipped == ()


def is_whole(split: Split, graphs: int) -> bool:
    return torch.cat(split).sort()[0].tolist() == list(range(graphs))


def test_a_random_split_is_decided_by_its_seed() -> None:
    data = load_graphs("synthetic")
    first, same, other = (data.split(seed) for seed in (4, 4, 5))
    assert [part.numel() for part in first] == [800, 100, 100]
    assert is_whole(first, 1000)
    assert torch.equal(first.test, same.test)
    assert not torch.equal(first.test, other.test)


def test_scaffolds_stay_together_and_the_largest_train() -> None:
    # at most 6 and 3 of 13: a (5) trains, b (3) does not fit there, nor c and d (2 each) anywhere;
    # e (1) is the last to train
    split = scaffold_split("aaaabbbccddae", (6 / 13, 3 / 13))
    assert split.train.tolist() == [0, 1, 2, 3, 11, 12]
    assert split.val.tolist() == [4, 5, 6]
    assert split.test.tolist() == [9, 10, 7, 8]


@pytest.mark.parametrize("k", [3, 10])
def test_folds_test_every_graph_once_and_share_out_the_classes(k: int) -> None:
    classes = torch.tensor([0] * 60 + [1] * 31)
    splits = folds(91, k, 7, classes)
    assert len(splits) == k
    assert torch.cat([split.test for split in splits]).sort()[0].tolist() == list(range(91))
    for number, split in enumerate(splits):
        assert is_whole(split, 91)
        assert torch.equal(split.val, splits[(number + 1) % k].test)
        ones = int(classes[split.test].sum())
        assert 31 // k <= ones <= -(-31 // k)
    assert torch.equal(splits[0].test, folds(91, k, 7, classes)[0].test)
    assert not torch.equal(splits[0].test, folds(91, k, 8, classes)[0].test)


@pytest.mark.parametrize("name", [name for name in GRAPH_SETS if name != "synthetic"])
def test_a_missing_file_is_named(tmp_path: pathlib.Path, name: str) -> None:
    with pytest.raises(DataNotFoundError, match=rf"{name} is not under .*expected .*raw"):
        load_graphs(name, tmp_path)
    with pytest.raises(DataNotFoundError, match=f"{name} is not generated: root must name"):
        load_graphs(name)


def dataset() -> GraphDataset:
    return load_graphs("synthetic")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load_graphs("nci2"), r"name must be one of .*nci1.*got 'nci2'"),
        (lambda: load_graphs("nci1", ".", on_bad="drop"), "on_bad must be 'raise' or 'skip'"),
        (lambda: dataset().split(kind="scaffold"), "kind must be one of random for synthetic"),
        (lambda: dataset().folds(2), "k must be 3 .. 1000"),
        (lambda: dataset().folds(2.5), "k must be an integer, got float"),
    ],
)
def test_bad_arguments_are_named(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_the_examples_of_the_page_run(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs, texts = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    found: dict[str, Any] = {}
    exec(graphs, found)
    assert found["batch"].num_graphs == 800 % 128
    monkeypatch.chdir(tmp_path)
    rows = [f"{node},title,abstract,{'ab'[node % 2]}" for node in range(20)]
    pathlib.Path("papers.csv").write_text("\n".join(["id,title,abstract,field", *rows]))
    pathlib.Path("citations.csv").write_text("from,to\n0,1\n2,1\n")
    exec(texts, found)
    assert found["own"].texts[3] == "title. abstract"
    assert found["own"].edge_index.size(1) == 4


def test_the_page_names_every_set() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert set(GRAPH_SETS) <= named
