"""Which graphs are for training, validation and test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Split", "folds", "random_graph_split", "scaffold_split"]


class Split(NamedTuple):
    """Numbers of graphs, int64; no graph is in two parts."""

    train: Tensor
    val: Tensor
    test: Tensor


def random_graph_split(
    num_graphs: int, seed: int, fractions: tuple[float, float] = (0.8, 0.1)
) -> Split:
    """Split at random.

    Args:
        num_graphs: G.
        seed: decides the split.
        fractions: of training and validation graphs, rounded down; the rest is for the test.
    """
    order = torch.randperm(num_graphs, generator=torch.Generator().manual_seed(seed))
    train, val = (int(fraction * num_graphs) for fraction in fractions)
    return Split(order[:train], order[train : train + val], order[train + val :])


def scaffold_split(scaffolds: Sequence[str], fractions: tuple[float, float] = (0.8, 0.1)) -> Split:
    """Split molecules so that those of one scaffold stay together; the same every time.

    The groups, largest first (of equal ones the one that begins last), go to training while they
    fit, then to validation while they fit, else to the test.

    Args:
        scaffolds: of each molecule.
        fractions: of training and validation molecules at most.

    Reference: Wu et al. 2018 (MoleculeNet), section 3.2; the order is that of DeepChem and OGB.
    """
    groups: dict[str, list[int]] = {}
    for number, scaffold in enumerate(scaffolds):
        groups.setdefault(scaffold, []).append(number)
    most_train = fractions[0] * len(scaffolds)
    most_known = sum(fractions) * len(scaffolds)
    train: list[int] = []
    val: list[int] = []
    test: list[int] = []
    for group in sorted(groups.values(), key=lambda group: (len(group), group[0]), reverse=True):
        if len(train) + len(group) <= most_train:
            train += group
        elif len(train) + len(val) + len(group) <= most_known:
            val += group
        else:
            test += group
    return Split(*(torch.tensor(part, dtype=torch.int64) for part in (train, val, test)))


def folds(num_graphs: int, k: int, seed: int, classes: Tensor | None = None) -> list[Split]:
    """Split for k-fold cross-validation: part i is the test of fold i, part i + 1 its validation.

    Args:
        num_graphs: G.
        k: folds, 3 .. G.
        seed: decides the parts.
        classes: int64 [G]; given, every part has about the same share of each class.
    """
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k must be an integer, got {type(k).__name__}")
    if not 3 <= k <= num_graphs:
        raise ValueError(f"k must be 3 .. {num_graphs} (graphs), got {k}")
    order = torch.randperm(num_graphs, generator=torch.Generator().manual_seed(seed))
    if classes is not None:
        order = order[torch.argsort(classes[order], stable=True)]
    # dealt out like cards: the parts differ by one graph at most, in all and in each class
    parts = [order[part::k] for part in range(k)]
    splits = []
    for fold in range(k):
        val = (fold + 1) % k
        train = [parts[part] for part in range(k) if part not in (fold, val)]
        splits.append(Split(torch.cat(train), parts[val], parts[fold]))
    return splits
