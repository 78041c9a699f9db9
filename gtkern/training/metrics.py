"""Losses and metrics: of classes, of several 0/1 tasks, of numbers."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping

from torch import Tensor
from torch.nn import functional

__all__ = ["ERRORS", "METRICS", "better", "evaluate", "known", "loss", "ogb_metric"]

METRICS = ("accuracy", "roc_auc")
"""Metrics of node classification."""

ERRORS = ("rmse", "mae")
"""Metrics of which less is better."""

_LOSSES: Mapping[str, Callable[..., Tensor]] = {
    "auto": functional.binary_cross_entropy_with_logits,
    "mse": functional.mse_loss,
    "l1": functional.l1_loss,
}


def known(y: Tensor) -> int:
    """How many labels y [N] or [N, tasks] has."""
    return y.numel() if y.dim() == 1 else int((~y.isnan()).sum())


def loss(logits: Tensor, y: Tensor, count: int | None = None, kind: str = "auto") -> Tensor:
    """Loss of predictions where labels are known.

    The sum over the labels, divided by `count`; default: by their number, which gives the mean.

    Args:
        logits: [N, classes] or [N, tasks].
        y: int64 [N], classes; or [N, tasks], NaN where unknown.
        count: see above.
        kind: "auto": cross entropy of classes, or of independent 0/1 tasks; of numbers "mse",
            squared, or "l1", absolute errors.
    """
    count = max(1, known(y) if count is None else count)
    if y.dim() == 1:
        return functional.cross_entropy(logits, y, reduction="sum") / count
    told = ~y.isnan()
    return _LOSSES[kind](logits[told], y[told], reduction="sum") / count


def better(metric: str, value: float, than: float) -> bool:
    """Whether a value is better than another, or the other is no number."""
    return than != than or (value < than if metric in ERRORS else value > than)


def evaluate(metric: str, logits: Tensor, y: Tensor) -> float:
    """The metric of logits [N, classes] or [N, tasks] against y.

    Args:
        metric: "accuracy"; "roc_auc": area under the ROC curve of two classes, or the mean over 0/1
            tasks [N, tasks] that have both labels; "average_precision": the same of the area under
            the curve of precision over recall; "rmse", "mae": of numbers, the mean over the tasks.
    """
    if metric == "accuracy":
        from torchmetrics.functional.classification import multiclass_accuracy

        share = multiclass_accuracy(logits, y, num_classes=logits.size(1), average="micro")
        return float(share)
    if metric in ERRORS:
        return _mean_of_tasks(_error(metric), logits, y, lambda truth: truth.numel() > 0)
    area = _area(metric)
    if y.dim() == 1:
        # softmax of two logits grows with their difference; sigmoid keeps torchmetrics' range
        return area(logits[:, 1] - logits[:, 0], y)
    return _mean_of_tasks(area, logits, y, lambda truth: 0 < int(truth.sum()) < truth.numel())


def ogb_metric(name: str) -> Callable[[Tensor, Tensor], float]:
    """The metric of a data set of OGB, by its own Evaluator: of predictions and y [N, tasks].

    Args:
        name: as OGB knows it, "ogbg-molhiv".

    Raises:
        ValueError: OGB does not know it.
    """
    from ogb.graphproppred import Evaluator

    evaluator = Evaluator(name)

    def measure(predictions: Tensor, y: Tensor) -> float:
        truth, found = y.double().cpu().numpy(), predictions.double().cpu().numpy()
        return float(evaluator.eval({"y_true": truth, "y_pred": found})[evaluator.eval_metric])

    return measure


def _area(metric: str) -> Callable[[Tensor, Tensor], float]:
    from torchmetrics.functional.classification import binary_auroc, binary_average_precision

    areas: dict[str, Callable[..., Tensor]] = {
        "roc_auc": binary_auroc,
        "average_precision": binary_average_precision,
    }
    area = areas[metric]
    return lambda score, truth: float(area(score.double().sigmoid(), truth.long()))


def _error(metric: str) -> Callable[[Tensor, Tensor], float]:
    from torchmetrics.functional.regression import mean_absolute_error, mean_squared_error

    if metric == "mae":
        return lambda found, truth: float(mean_absolute_error(found, truth))
    return lambda found, truth: float(mean_squared_error(found, truth, squared=False))


def _mean_of_tasks(
    measure: Callable[[Tensor, Tensor], float],
    logits: Tensor,
    y: Tensor,
    usable: Callable[[Tensor], bool],
) -> float:
    values = []
    for task in range(y.size(1)):
        told = ~y[:, task].isnan()
        if usable(y[told, task]):
            values.append(measure(logits[told, task].contiguous(), y[told, task].contiguous()))
    return statistics.fmean(values) if values else float("nan")
