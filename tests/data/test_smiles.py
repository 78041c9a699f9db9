"""Files of SMILES, and what rdkit computes of molecules."""

from __future__ import annotations

import pathlib

import pytest
import torch

from gtkern.data import read_smiles
from gtkern.data.molecule_targets import DESCRIPTORS, molecule_targets

pytest.importorskip("rdkit")
pytest.importorskip("ogb")


def test_a_line_or_a_row_is_a_molecule(tmp_path: pathlib.Path) -> None:
    lines, table = tmp_path / "few.smi", tmp_path / "few.csv"
    lines.write_text("CCO ethanol\n\nc1ccccc1\tbenzene\n")
    table.write_text("name,smiles\nethanol,CCO\nbenzene,c1ccccc1\n")
    for path in (lines, table):
        found = read_smiles(path)
        assert found.smiles == ("CCO", "c1ccccc1")
        assert found.graphs.num_nodes.tolist() == [3, 6]
        assert found.graphs.y.shape == (2, 0)


def test_a_bad_molecule_is_told_or_left_out(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "few.smi"
    path.write_text("CCO\nC1CC\nC\n")
    with pytest.raises(ValueError, match=r"few\.smi, molecule 1: smiles must be a molecule, got"):
        read_smiles(path)
    with pytest.warns(UserWarning, match=r"left out 1, the first is molecule 1: smiles must be"):
        found = read_smiles(path, on_bad="skip")
    assert found.smiles == ("CCO", "C")
    assert [problem.graph for problem in found.skipped] == [1]
    path.write_text("\n")
    with pytest.raises(ValueError, match="must have at least one molecule, got none"):
        read_smiles(path)
    table = tmp_path / "few.csv"
    table.write_text("mol\nC\n")
    with pytest.raises(ValueError, match=r"must have the column 'smiles', got \['mol'\]"):
        read_smiles(table)
    with pytest.raises(ValueError, match="on_bad must be 'raise' or 'skip', got 'drop'"):
        read_smiles(path, on_bad="drop")


def test_targets_are_those_of_rdkit() -> None:
    from rdkit.Chem import MolFromSmiles, rdFingerprintGenerator

    found = molecule_targets(["CCO", "c1ccccc1", "[Na+].[Cl-]"], bits=64)
    assert found.descriptors.shape == (3, len(DESCRIPTORS))
    weight, rings = DESCRIPTORS.index("MolWt"), DESCRIPTORS.index("RingCount")
    assert found.descriptors[:2, weight].tolist() == pytest.approx([46.069, 78.114])
    assert found.descriptors[:, rings].tolist() == [0, 1, 0]
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=64)
    bits = generator.GetFingerprintAsNumPy(MolFromSmiles("CCO"))
    assert found.fingerprint[0].tolist() == bits.tolist()
    # what is not defined is not a number, and nothing is infinite
    assert not bool(found.descriptors.isinf().any())


def test_molecules_that_rdkit_refuses_have_no_targets() -> None:
    with pytest.raises(ValueError, match="molecule 1: smiles must be a molecule"):
        molecule_targets(["C", "C1CC", "CC"])
    found = molecule_targets(["C", "C1CC", "CC"], bits=8, on_bad="skip")
    assert found.kept.tolist() == [0, 2]
    assert found.fingerprint.shape == torch.Size([2, 8])
    assert [problem.graph for problem in found.skipped] == [1]
    with pytest.raises(ValueError, match="bits must be at least 1 and radius at least 0, got 0"):
        molecule_targets(["C"], bits=0)
