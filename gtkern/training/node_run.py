"""What the runs of all methods on one graph share."""

from __future__ import annotations

from typing import Any

import torch
from rich.console import Console

from gtkern.data.node import NodeData, check_node_data
from gtkern.training.phase_run import PhaseRun
from gtkern.training.run import RunFolder

__all__ = ["NodeRun"]


class NodeRun(PhaseRun):
    """A run on the nodes of one graph.

    Args:
        data: NodeData, or a PyG `Data` with the same attributes.
        metric: one of gtkern.training.metrics.METRICS.
        folder, method, dataset, seed, device, backend, command, console: see PhaseRun.

    Raises:
        TypeError, ValueError: `data` does not fit.
    """

    def __init__(
        self,
        data: Any,
        folder: RunFolder,
        *,
        method: str,
        dataset: str,
        seed: int,
        metric: str,
        device: torch.device | str = "cpu",
        backend: str = "auto",
        command: str = "",
        console: Console | None = None,
    ) -> None:
        self.data: NodeData = check_node_data(data)
        if metric == "roc_auc" and self.data.y.dim() == 1 and self.data.num_classes != 2:
            raise ValueError(f"metric roc_auc needs two classes, got {self.data.num_classes}")
        super().__init__(
            folder,
            method=method,
            dataset=dataset,
            seed=seed,
            metric=metric,
            device=device,
            backend=backend,
            command=command,
            console=console,
        )
