"""How alike layers and heads are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["head_distances", "linear_cka", "similarity_matrix"]


def linear_cka(x: Tensor, y: Tensor) -> float:
    """How alike two sets of features of the same rows are, in [0, 1].

    Formula, with the columns of x and y centred::

        |xᵀ y|² / (|xᵀ x| |yᵀ y|)        Frobenius norms

    It does not change when features are rotated or scaled. Features that are the same in every row
    are like nothing: 0.

    Args:
        x: [N, C]. y: [N, C'].

    Reference: Kornblith et al. 2019, eq. 3 with a linear kernel.
    """
    # in fp64: with few rows the products nearly cancel
    x, y = (part.double() - part.double().mean(0) for part in (x, y))
    both = (x.T @ y).square().sum()
    alone = (x.T @ x).square().sum() * (y.T @ y).square().sum()
    return float(both / alone.sqrt()) if alone > 0 else 0.0


def similarity_matrix(features: Sequence[Tensor]) -> Tensor:
    """linear_cka of each two of L sets of features [N, C]: float64 [L, L]."""
    count = len(features)
    matrix = torch.eye(count, dtype=torch.float64)
    for i in range(count):
        for j in range(i):
            matrix[i, j] = matrix[j, i] = linear_cka(features[i], features[j])
    return matrix


def head_distances(outputs: Sequence[Tensor]) -> Tensor:
    """Distances between all heads of several layers: float64 [Σ H, Σ H].

    The distance of two heads is 1 - linear_cka of what they give: 0 where one is the other turned
    and scaled, 1 where they have nothing in common.

    Args:
        outputs: for each layer [N, H, D].
    """
    heads = [head for layer in outputs for head in layer.detach().double().unbind(1)]
    matrix = torch.zeros(len(heads), len(heads), dtype=torch.float64)
    for i, one in enumerate(heads):
        for j, other in enumerate(heads[:i]):
            matrix[i, j] = matrix[j, i] = 1 - linear_cka(one, other)
    return matrix
