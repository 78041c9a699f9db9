"""Molecules as graphs, with OGB's features; needs rdkit and OGB."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch_geometric.data import Data

__all__ = ["feature_sizes", "from_smiles", "parse_smiles", "scaffold"]

_NEEDED = "molecules need rdkit and OGB: pip install 'gtkern[molecules]'"


def from_smiles(smiles: str) -> Data:
    """Make the graph of a molecule, its hydrogen atoms left out.

    Args:
        smiles: the molecule.

    Returns:
        A PyG Data with x int64 [atoms, 9], edge_index int64 [2, 2 * bonds], each bond in both
        directions, next to each other, edge_attr int64 [2 * bonds, 3], and smiles. The columns are
        categories; `feature_sizes` says how many.

    Raises:
        ValueError: the molecule cannot be read, or has no atoms; says why. ImportError: rdkit or
            OGB is missing.

    Reference: Hu et al. 2020 (Open Graph Benchmark), section 5.1.
    """
    parse_smiles(smiles)
    from ogb.utils.mol import smiles2graph
    from rdkit import rdBase
    from torch_geometric.data import Data

    with rdBase.BlockLogs():
        graph = smiles2graph(smiles)
    return Data(
        x=torch.from_numpy(graph["node_feat"]),
        edge_index=torch.from_numpy(graph["edge_index"]),
        edge_attr=torch.from_numpy(graph["edge_feat"]),
        smiles=smiles,
    )


def feature_sizes() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How many categories each of the 9 columns of atoms has, and each of the 3 of bonds.

    Raises:
        ImportError: OGB is missing.
    """
    try:
        from ogb.utils.features import get_atom_feature_dims, get_bond_feature_dims
    except ImportError as error:
        raise ImportError(_NEEDED) from error
    return tuple(get_atom_feature_dims()), tuple(get_bond_feature_dims())


def scaffold(smiles: str) -> str:
    """The Bemis-Murcko scaffold of a molecule, without chirality, as SMILES; empty without rings.

    Raises:
        ValueError, ImportError: as for `from_smiles`.

    Reference: Bemis and Murcko 1996, "The properties of known drugs. 1. Molecular frameworks".
    """
    molecule = parse_smiles(smiles)
    from rdkit.Chem.Scaffolds.MurckoScaffold import MurckoScaffoldSmiles

    return str(MurckoScaffoldSmiles(mol=molecule, includeChirality=False))


def parse_smiles(smiles: str) -> Any:
    """rdkit's molecule of a SMILES.

    Raises:
        ValueError: it cannot be read, or has no atoms; says why. TypeError: no string. ImportError:
            rdkit or OGB is missing.
    """
    if not isinstance(smiles, str):
        raise TypeError(f"smiles must be a string, got {type(smiles).__name__}")
    try:
        import ogb.utils.features  # noqa: F401
        from rdkit import Chem, rdBase
    except ImportError as error:
        raise ImportError(_NEEDED) from error
    # its own account of a failure would go to stderr
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
        if molecule is None:
            raise ValueError(f"smiles must be a molecule, got {smiles!r}: {_why(Chem, smiles)}")
    if molecule.GetNumAtoms() == 0:
        raise ValueError(f"smiles must have at least one atom, got {smiles!r}")
    return molecule


def _why(chem: Any, smiles: str) -> str:
    unchecked = chem.MolFromSmiles(smiles, sanitize=False)
    if unchecked is None:
        return "its syntax is not that of SMILES"
    try:
        chem.SanitizeMol(unchecked)
    except ValueError as error:
        return str(error)
    return "rdkit refuses it"
