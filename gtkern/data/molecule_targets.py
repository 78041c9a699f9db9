"""What rdkit computes of a molecule for nothing: targets to pre-train on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gtkern.data._sources import Problem
from gtkern.data.molecule import parse_smiles

__all__ = ["DESCRIPTORS", "MoleculeTargets", "molecule_targets"]

_PLAIN = (
    "MolWt",
    "MolLogP",
    "MolMR",
    "TPSA",
    "LabuteASA",
    "HeavyAtomCount",
    "NumHeteroatoms",
    "NumHAcceptors",
    "NumHDonors",
    "NHOHCount",
    "NOCount",
    "NumValenceElectrons",
    "NumRadicalElectrons",
    "NumRotatableBonds",
    "RingCount",
    "NumAromaticRings",
    "NumAromaticCarbocycles",
    "NumAromaticHeterocycles",
    "NumAliphaticRings",
    "NumAliphaticCarbocycles",
    "NumAliphaticHeterocycles",
    "NumSaturatedRings",
    "NumSaturatedCarbocycles",
    "NumSaturatedHeterocycles",
    "FractionCSP3",
    "MaxPartialCharge",
    "MinPartialCharge",
    "BalabanJ",
    "HallKierAlpha",
    *(f"Chi{order}" for order in ("0", "0n", "0v", "1", "1n", "1v", "2n", "2v", "3n", "3v")),
    *(f"Kappa{order}" for order in (1, 2, 3)),
)
_SURFACES = (("PEOE_VSA", 14), ("SMR_VSA", 10), ("SlogP_VSA", 12), ("EState_VSA", 11))

DESCRIPTORS: tuple[str, ...] = (
    *_PLAIN,
    *(f"{name}{number}" for name, count in _SURFACES for number in range(1, count + 1)),
)
"""The descriptors by rdkit's names: size, polarity, charge, rings, shape, and shares of surface."""


class MoleculeTargets(NamedTuple):
    """Of the M molecules that could be read.

    Attributes:
        kept: int64 [M], their numbers among the given ones.
        descriptors: float32 [M, D], by the names DESCRIPTORS; NaN where one is not defined.
        fingerprint: uint8 [M, F], 0 and 1.
        skipped: the others, and why.
    """

    kept: Tensor
    descriptors: Tensor
    fingerprint: Tensor
    skipped: tuple[Problem, ...] = ()


def molecule_targets(
    smiles: Sequence[str], *, bits: int = 512, radius: int = 2, on_bad: str = "raise"
) -> MoleculeTargets:
    """Compute descriptors and Morgan fingerprints, some hundred molecules a second.

    Args:
        smiles: the molecules.
        bits: F. radius: bonds from the middle of a fingerprint's environments.
        on_bad: "raise" on a molecule that rdkit refuses; "skip": leave it out.

    Raises:
        ValueError: a molecule cannot be read; says which and why. ImportError: rdkit or OGB is
            missing.

    Reference: Rogers and Hahn 2010, "Extended-connectivity fingerprints".
    """
    if bits < 1 or radius < 0:
        raise ValueError(f"bits must be at least 1 and radius at least 0, got {bits} and {radius}")
    if on_bad not in ("raise", "skip"):
        raise ValueError(f"on_bad must be 'raise' or 'skip', got {on_bad!r}")
    kept, molecules, problems = [], [], []
    for number, text in enumerate(smiles):
        try:
            molecules.append(parse_smiles(text))
        except ValueError as error:
            if on_bad == "raise":
                raise ValueError(f"molecule {number}: {error}") from error
            problems.append(Problem(number, str(error)))
            continue
        kept.append(number)
    # not before parse_smiles, which tells what to install where it is missing
    from rdkit import rdBase
    from rdkit.Chem import Descriptors, rdFingerprintGenerator

    functions = dict(Descriptors.descList)
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=radius, fpSize=bits)
    descriptors = torch.full((len(molecules), len(DESCRIPTORS)), torch.nan)
    fingerprint = torch.zeros(len(molecules), bits, dtype=torch.uint8)
    with rdBase.BlockLogs():
        for row, molecule in enumerate(molecules):
            found = [functions[name](molecule) for name in DESCRIPTORS]
            descriptors[row] = torch.tensor(found, dtype=torch.float64).float()
            fingerprint[row] = torch.from_numpy(generator.GetFingerprintAsNumPy(molecule))
    descriptors[~descriptors.isfinite()] = torch.nan
    return MoleculeTargets(torch.tensor(kept), descriptors, fingerprint, tuple(problems))
