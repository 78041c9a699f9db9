"""Molecules: OGB's features, files of OGB and MoleculeNet, what is refused."""

from __future__ import annotations

import gzip
import pathlib
import sys
from typing import Any

import pytest
import torch

from gtkern.data import GRAPH_SETS, from_smiles, load_graphs
from gtkern.data._molecules import MOLECULE_SETS
from gtkern.data.molecule import feature_sizes, scaffold

pytest.importorskip("rdkit")
pytest.importorskip("ogb")


def test_a_molecule_has_ogb_s_features() -> None:
    from ogb.utils.features import atom_feature_vector_to_dict, bond_feature_vector_to_dict

    graph = from_smiles("O=C[O-]")
    atoms = [atom_feature_vector_to_dict(row) for row in graph.x.tolist()]
    assert [atom["atomic_num"] for atom in atoms] == [8, 6, 8]
    assert [atom["formal_charge"] for atom in atoms] == [0, 0, -1]
    assert graph.edge_index.tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]
    bonds = [bond_feature_vector_to_dict(row)["bond_type"] for row in graph.edge_attr.tolist()]
    assert bonds == ["DOUBLE", "DOUBLE", "SINGLE", "SINGLE"]


def test_a_lone_atom_has_no_edges() -> None:
    graph = from_smiles("[Na+]")
    assert (graph.x.shape, graph.edge_index.shape, graph.edge_attr.shape) == (
        (1, 9),
        (2, 0),
        (0, 3),
    )


def test_categories_are_below_their_sizes() -> None:
    atoms, bonds = feature_sizes()
    graph = from_smiles("C[C@H](N)C(=O)O.[Pt+2].c1ccccc1/C=C/Br")
    assert bool((graph.x < torch.tensor(atoms)).all())
    assert bool((graph.edge_attr < torch.tensor(bonds)).all())


@pytest.mark.parametrize(
    ("smiles", "message"),
    [
        ("C1CC", "got 'C1CC': its syntax is not that of SMILES"),
        ("CC(C)(C)(C)C", r"got 'CC\(C\)\(C\)\(C\)C': Explicit valence for atom # 1 C"),
        ("", "smiles must have at least one atom, got ''"),
    ],
)
def test_a_bad_molecule_is_told_why(
    smiles: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=message):
        from_smiles(smiles)
    assert capfd.readouterr().err == ""
    with pytest.raises(TypeError, match="smiles must be a string, got NoneType"):
        from_smiles(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("library", ["rdkit", "ogb.utils.features"])
def test_a_missing_library_is_told(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=r"pip install 'gtkern\[molecules\]'"):
        from_smiles("C")


def test_scaffolds_are_rings_without_what_hangs_on_them() -> None:
    assert scaffold("CC(=O)Oc1ccccc1C(=O)O") == scaffold("Cc1ccccc1") == "c1ccccc1"
    assert scaffold("CCO") == ""


def write(path: pathlib.Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        with gzip.open(path, "wt") as file:
            file.write(text)
    else:
        path.write_text(text)


MOLHIV = {
    "raw/num-node-list.csv.gz": "2\n1\n3\n",
    "raw/num-edge-list.csv.gz": "1\n0\n2\n",
    "raw/edge.csv.gz": "0,1\n0,1\n2,1\n",
    "raw/edge-feat.csv.gz": "0,0,0\n1,2,0\n0,0,1\n",
    "raw/node-feat.csv.gz": "".join(f"{n + 5},0,1,5,0,0,2,0,0\n" for n in range(6)),
    "raw/graph-label.csv.gz": "0\n1\n0\n",
    "mapping/mol.csv.gz": "HIV_active,smiles\n0,CC\n1,C\n0,CCC\n",
    "split/scaffold/train.csv.gz": "2\n",
    "split/scaffold/valid.csv.gz": "1\n",
    "split/scaffold/test.csv.gz": "0\n",
}


def write_molhiv(root: pathlib.Path, **changes: str) -> pathlib.Path:
    """Three molecules in OGB's raw layout."""
    for name, text in MOLHIV.items():
        stem = pathlib.Path(name).name.split(".")[0].replace("-", "_")
        write(root / "ogb" / "ogbg_molhiv" / name, changes.get(stem, text))
    return root


def test_molhiv_is_read_through_ogb(
    tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    load = torch.load
    data = load_graphs("molhiv", write_molhiv(tmp_path))
    assert torch.load is load
    assert capfd.readouterr() == ("", "")
    assert (data.task, data.metric, data.ogb) == ("multilabel", "roc_auc", "ogbg-molhiv")
    assert data.graphs.y.tolist() == [[0], [1], [0]]
    assert data.graphs.node_categories == feature_sizes()[0]
    assert data.smiles == ("CC", "C", "CCC")
    graph = data.graphs[2]
    assert graph.x[:, 0].tolist() == [8, 9, 10]
    assert graph.edge_index.tolist() == [[0, 1, 2, 1], [1, 0, 1, 2]]
    assert graph.edge_attr.tolist() == [[1, 2, 0], [1, 2, 0], [0, 0, 1], [0, 0, 1]]
    for _ in range(2):  # anew, and from the cache
        assert [part.tolist() for part in load_graphs("molhiv", tmp_path).split()] == [
            [2],
            [1],
            [0],
        ]


def test_ogb_s_evaluator_knows_the_set() -> None:
    from ogb.graphproppred import Evaluator

    for source in MOLECULE_SETS.values():
        if source.ogb is not None:
            assert Evaluator(source.ogb).eval_metric == source.metric.replace("_", "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edge": "0,1\n0,3\n2,1\n"}, r"graph 2: edge.csv.gz must have nodes 0 .. 2 for it, got 3"),
        (
            {"edge_feat": "0,0,0\n9,2,0\n0,0,1\n"},
            r"graph 2: edge-feat.csv.gz must have categories below .*got \[9, 2, 1\]",
        ),
        (
            {"node_feat": MOLHIV["raw/node-feat.csv.gz"][:-19]},
            r"graph 2: node-feat.csv.gz must have 3 rows of 9 for it, got \(2, 9\)",
        ),
    ],
)
def test_a_bad_graph_of_molhiv_is_named_or_left_out(
    tmp_path: pathlib.Path, changes: dict[str, str], message: str
) -> None:
    write_molhiv(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        load_graphs("molhiv", tmp_path)
    with pytest.warns(UserWarning, match=rf"molhiv: left out graph 2; molhiv, {message}"):
        data = load_graphs("molhiv", tmp_path, on_bad="skip")
    assert data.smiles == ("CC", "C")
    assert [part.tolist() for part in data.split()] == [[], [1], [0]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"graph_label": "0\n"}, "graph-label.csv.gz of .* must have 3 rows, got 1"),
        ({"mol": "HIV_active,smiles\n0,CC\n"}, "mol.csv.gz of .* must have 3 rows, got 1"),
        ({"node_feat": "1.5\n" * 6}, "node-feat.csv.gz of .* must hold integers, got float32"),
        ({"train": "7\n"}, r"train.csv.gz must have numbers 0 .. 2"),
        ({"train": "1\n"}, "has graph 1 in two parts of the split"),
    ],
)
def test_a_spoilt_file_of_molhiv_is_named(
    tmp_path: pathlib.Path, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_graphs("molhiv", write_molhiv(tmp_path, **changes))


TOX21 = (
    "NR-AR,SR-p53,mol_id,smiles\n"
    "0,1,T1,CCO\n"
    ',0,"T2, also T3",c1ccccc1C\n'
    "1,,T4,c1ccccc1CC\n"
    "0,0,T5,C1CCCCC1 \n"
)


def write_tox21(root: pathlib.Path, text: str = TOX21) -> pathlib.Path:
    write(root / "MoleculeNet" / "tox21" / "raw" / "tox21.csv", text)
    return root


def test_moleculenet_files_are_read_as_pyg_reads_them(tmp_path: pathlib.Path) -> None:
    from torch_geometric.datasets import MoleculeNet

    write_tox21(tmp_path)
    data = load_graphs("tox21", tmp_path)
    assert (data.task, data.num_outputs, data.metric) == ("multilabel", 2, "roc_auc")
    assert data.smiles == ("CCO", "c1ccccc1C", "c1ccccc1CC", "C1CCCCC1")
    columns = {"tox21": ("Tox21", "", "tox21", -1, slice(0, 2))}

    class Small(MoleculeNet):  # type: ignore[misc]
        names = columns

    theirs = Small(str(tmp_path / "MoleculeNet"), "tox21", from_smiles=from_smiles)
    assert len(theirs) == len(data.graphs)
    for number, graph in enumerate(theirs):
        mine = data.graphs[number]
        assert torch.equal(mine.x, graph.x)
        assert torch.equal(mine.edge_index, graph.edge_index)
        assert torch.equal(mine.edge_attr, graph.edge_attr)
        assert torch.equal(mine.y.nan_to_num(-1), graph.y.nan_to_num(-1))


def test_scaffold_and_random_splits_of_moleculenet(tmp_path: pathlib.Path) -> None:
    for _ in range(2):  # anew, and from the cache
        data = load_graphs("tox21", write_tox21(tmp_path))
        assert data.splits == ("scaffold", "random")
        # at most 3.2 train: both benzenes, then of the single ones the last
        assert [part.tolist() for part in data.split()] == [[1, 2, 3], [], [0]]
        assert torch.equal(data.split(5).test, data.split(6).test)
        assert [part.numel() for part in data.split(5, "random")] == [3, 0, 1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0,1,T,C1CC", "got 'C1CC': its syntax is not that of SMILES"),
        ("0,2,T,CC", "a label must be 0, 1 or nothing, got '2'"),
        ("0,x,T,CC", "could not convert string to float: 'x'"),
        ("0,1,CC", "its row must have 4 fields, got 3"),
    ],
)
def test_a_bad_molecule_is_named_or_left_out(
    tmp_path: pathlib.Path, row: str, message: str
) -> None:
    lines = TOX21.splitlines()
    text = "\n".join((*lines[:2], row, *lines[2:]))
    for _ in range(2):  # anew, and from the cache
        with pytest.raises(ValueError, match=f"tox21, graph 1: .*{message}"):
            load_graphs("tox21", write_tox21(tmp_path, text))
        with pytest.warns(UserWarning, match="tox21: left out graph 1;"):
            data = load_graphs("tox21", tmp_path, on_bad="skip")
    assert data.smiles == ("CCO", "c1ccccc1C", "c1ccccc1CC", "C1CCCCC1")
    assert [problem.graph for problem in data.skipped] == [1]
    assert message in data.skipped[0].reason


def test_a_missing_column_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"tox21.csv must have the column 'smiles', got \['a'"):
        load_graphs("tox21", write_tox21(tmp_path, "a,b\n1,2\n"))


HEADERS: dict[str, Any] = {
    "bace": ("bace.csv", "mol,CID,Class", "CC,x,1", [1.0]),
    "esol": (
        "delaney-processed.csv",
        "Compound ID,ESOL predicted log solubility in mols per litre,"
        "measured log solubility in mols per litre,smiles",
        '"a, b",-0.9,-0.77,CC',
        [-0.77],
    ),
    "freesolv": ("SAMPL.csv", "iupac,smiles,expt,calc", ",CC,-11.5,", [-11.5]),
}


@pytest.mark.parametrize("name", HEADERS)
def test_labels_come_from_the_named_column(tmp_path: pathlib.Path, name: str) -> None:
    file, header, row, label = HEADERS[name]
    write(tmp_path / "MoleculeNet" / name / "raw" / file, f"{header}\n{row}\n")
    data = load_graphs(name, tmp_path)
    assert data.graphs.y[0].tolist() == pytest.approx(label)
    assert data.metric == ("roc_auc" if name == "bace" else "rmse")


def test_all_sets_of_molecules_are_offered() -> None:
    assert set(MOLECULE_SETS) < set(GRAPH_SETS)
