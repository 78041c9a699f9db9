"""Normalisation over the nodes of one graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["GraphNorm"]


class GraphNorm(nn.Module):
    """Normalise every channel over the nodes of one graph, with a learned share of the mean.

    Formula, with mean and variance over the N nodes::

        c   = x - mean_scale * mean(x)
        out = weight * c / sqrt(mean(c * c) + eps) + bias

    Args:
        width: C, channels.
        eps: added to the variance.

    Reference: Cai et al. 2021 (GraphNorm), eq. 5.
    """

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.width = width
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.mean_scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [N, C]; gives [N, C]."""
        centred = x - self.mean_scale * x.mean(0)
        variance = centred.square().mean(0)
        return torch.addcmul(self.bias, centred, self.weight * (variance + self.eps).rsqrt())

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.width}, eps={self.eps}"
