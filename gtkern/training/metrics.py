"""Losses and metrics of node classification."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["METRICS", "evaluate", "known", "loss"]

METRICS = ("accuracy", "roc_auc")


def known(y: Tensor) -> int:
    """How many labels y [N] or [N, tasks] has."""
    return y.numel() if y.dim() == 1 else int((~y.isnan()).sum())


def loss(logits: Tensor, y: Tensor, count: int | None = None) -> Tensor:
    """Cross-entropy of classes [N], or of independent 0/1 tasks [N, tasks] where they are known.

    The sum over the labels, divided by `count`; default: by their number, which gives the mean.
    """
    count = max(1, known(y) if count is None else count)
    if y.dim() == 1:
        return functional.cross_entropy(logits, y, reduction="sum") / count
    told = ~y.isnan()
    total = functional.binary_cross_entropy_with_logits(logits[told], y[told], reduction="sum")
    return total / count


def evaluate(metric: str, logits: Tensor, y: Tensor) -> float:
    """The metric of logits [N, classes] against y, in 0 .. 1.

    Args:
        metric: "accuracy"; or "roc_auc": area under the ROC curve of two classes, or the mean over
            0/1 tasks [N, tasks] that have both labels.
    """
    from torchmetrics.functional.classification import binary_auroc, multiclass_accuracy

    if metric == "accuracy":
        share = multiclass_accuracy(logits, y, num_classes=logits.size(1), average="micro")
        return float(share)
    if y.dim() == 1:
        # softmax of two logits grows with their difference; sigmoid keeps torchmetrics' range
        margin = (logits[:, 1] - logits[:, 0]).double().sigmoid()
        return float(binary_auroc(margin, y))
    areas = []
    for task in range(y.size(1)):
        known = ~y[:, task].isnan()
        truth = y[known, task].long()
        if 0 < int(truth.sum()) < truth.numel():
            areas.append(float(binary_auroc(logits[known, task].double().sigmoid(), truth)))
    return float(torch.tensor(areas).mean()) if areas else float("nan")
