"""Normalisation over the nodes of a batch or of one graph, in one process or over several."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gtkern import _processes

__all__ = ["BatchNorm", "GraphNorm", "synchronize_norms"]


class BatchNorm(nn.BatchNorm1d):
    """BatchNorm whose statistics can be those of the rows of all processes together.

    torch's SyncBatchNorm runs on GPUs alone; this one runs wherever torch.distributed does. The
    statistics of an empty part, or of one row, are those of the others' rows.

    Attributes:
        synchronized: join the rows of all processes, which then must all call it; False at first.

    Reference: Ioffe and Szegedy 2015.
    """

    synchronized = False

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [N, C]; gives [N, C]."""
        if not (self.synchronized and self.training) or _processes.count() == 1:
            out: Tensor = super().forward(x)
            return out
        mean, count = _joint_mean(x)
        centred = x - mean
        variance = _processes.total(centred.square().sum(0)) / count
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        return torch.addcmul(self.bias, centred, self.weight * (variance + self.eps).rsqrt())


class GraphNorm(nn.Module):
    """Normalise every channel over the nodes of one graph, with a learned share of the mean.

    Formula, with mean and variance over the N nodes::

        c   = x - mean_scale * mean(x)
        out = weight * c / sqrt(mean(c * c) + eps) + bias

    Args:
        width: C, channels.
        eps: added to the variance.

    Attributes:
        synchronized: the graph's nodes lie in all processes, which then must all call it; False at
            first.

    Reference: Cai et al. 2021 (GraphNorm), eq. 5.
    """

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.width = width
        self.eps = eps
        self.synchronized = False
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.mean_scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [N, C]; gives [N, C]."""
        if self.synchronized and _processes.count() > 1:
            mean, count = _joint_mean(x)
            centred = x - self.mean_scale * mean
            variance = _processes.total(centred.square().sum(0)) / count
        else:
            centred = x - self.mean_scale * x.mean(0)
            variance = centred.square().mean(0)
        return torch.addcmul(self.bias, centred, self.weight * (variance + self.eps).rsqrt())

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.width}, eps={self.eps}"


def synchronize_norms(module: nn.Module) -> None:
    """Let every BatchNorm and GraphNorm in `module` join the rows of all processes."""
    for part in module.modules():
        if isinstance(part, (BatchNorm, GraphNorm)):
            part.synchronized = True


def _joint_mean(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [C] over the rows of all processes, and their number."""
    rows = x.new_full((1,), x.size(0))
    sums = _processes.total(torch.cat((x.sum(0), rows)))
    count = sums[-1].detach()
    return sums[:-1] / count, count
