"""The Lightning task of pre-training: properties of whole molecules, and hidden atoms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gtkern.data.packed import PackedGraphs
from gtkern.training import metrics
from gtkern.training.pretrain_settings import PretrainSettings
from gtkern.training.task import Task

__all__ = ["PretrainTask", "Pretraining"]

ELEMENT = 0
"""The column of OGB's features of atoms that is predicted of a hidden one."""


class Pretraining(nn.Module):
    """A network whose outputs are properties of a molecule, and a head for its hidden atoms.

    A hidden atom's features are replaced by a learned vector; its bonds and its degree remain.

    Args:
        backbone: Graphormer or GraphGPS; its own head gives the properties.
        elements: values of the column that is predicted.

    Reference: Hu et al. 2020, "Strategies for pre-training graph neural networks", section 3.1.
    """

    def __init__(self, backbone: nn.Module, elements: int) -> None:
        super().__init__()
        settings: Any = backbone.settings
        self.backbone = backbone
        self.mask = nn.Parameter(torch.randn(settings.width) * settings.width**-0.5)
        self.atom_head = nn.Linear(settings.width, elements)
        self._hidden: Tensor | None = None
        self._states: Tensor | None = None
        layers: Any = backbone.layers
        encoder: Any = backbone.node_encoder
        encoder.register_forward_hook(self._hide)
        layers[-1].register_forward_hook(self._keep)

    def forward(self, data: Any, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The properties, and the elements of hidden atoms.

        Args:
            data: a batch for the backbone.
            hidden: bool [N]; the atoms that are hidden; None: none.

        Returns:
            [G, properties], and logits [hidden atoms, elements].
        """
        self._hidden = hidden
        try:
            properties: Tensor = self.backbone(data)
            states = self._states
        finally:
            self._hidden = self._states = None
        assert states is not None
        if hidden is None:
            return properties, self.atom_head(states[:0])
        rows = hidden.nonzero()[:, 0]
        if states.size(0) > hidden.numel():
            # Graphormer's token comes first in each graph
            rows = rows + 1 + data.batch[rows]
        return properties, self.atom_head(states[rows])

    def _hide(self, _: nn.Module, __: Any, out: Tensor) -> Tensor:
        return out if self._hidden is None else torch.where(self._hidden[:, None], self.mask, out)

    def _keep(self, _: nn.Module, __: Any, out: Tensor | tuple[Tensor, Any]) -> None:
        self._states = out[0] if isinstance(out, tuple) else out


class PretrainTask(Task):
    """Pre-training, evaluated by the root mean square error of the descriptors.

    Molecules without hidden atoms teach descriptors and fingerprint, the others their hidden atoms.
    Evaluated are whole molecules; `report` adds how many hidden elements of validation and test
    molecules are right, and the mean area under the ROC curve of the fingerprint's bits there.

    Args:
        network: whose outputs are descriptors, then the fingerprint's bits.
        graphs: their y has both, the descriptors in units of their standard deviation, NaN where
            one is not defined.
        descriptors: how many there are.
        splits: numbers of training, validation and test molecules.
        settings: see PretrainSettings.
    """

    def __init__(
        self,
        network: Pretraining,
        graphs: PackedGraphs,
        descriptors: int,
        splits: Sequence[Tensor],
        settings: PretrainSettings,
    ) -> None:
        super().__init__(network, settings.training, metric="rmse")
        self.graphs = graphs
        self.settings = settings
        self.descriptors = descriptors
        self._train_graphs, val, test = splits
        self._eval_graphs = torch.cat((val, test))
        self._num_val = val.numel()
        self._outputs: list[Tensor] = []
        self._right: list[Tensor] = []
        self._more: dict[str, float] = {}

    def train_dataloader(self) -> Any:
        """Training molecules, shuffled anew every epoch."""
        size = self.settings.training.batch_size
        return self.graphs.loader(
            self._train_graphs,
            batch_size=size,
            shuffle=True,
            seed=self.settings.seed,
            drop_last=self._train_graphs.numel() > size,
        )

    def val_dataloader(self) -> Any:
        """Validation molecules, then test molecules."""
        return self.graphs.loader(self._eval_graphs, batch_size=self.settings.training.batch_size)

    def training_step(self, batch: Any, _: int) -> Tensor:
        """The weighted sum of the parts of the loss."""
        masking = self.settings.masking
        device = batch.x.device
        chosen = torch.rand(batch.num_graphs, device=device) < masking.graphs
        drawn = torch.rand(batch.x.size(0), device=device) < masking.atoms
        hidden = drawn & chosen[batch.batch]
        properties, atoms = self.network(batch, hidden)
        loss = self._loss(properties[~chosen], batch.y[~chosen])
        weight = self.settings.targets.atoms
        if weight:
            loss = loss + weight * metrics.loss(atoms, batch.x[hidden, ELEMENT])
        self.losses.append(loss.detach())
        return loss

    def _loss(self, found: Tensor, truth: Tensor) -> Tensor:
        targets, split = self.settings.targets, self.descriptors
        errors = metrics.loss(found[:, :split], truth[:, :split], kind="mse")
        bits = functional.binary_cross_entropy_with_logits(
            found[:, split:], truth[:, split:], reduction="sum"
        ) / max(1, truth[:, split:].numel())
        return targets.descriptors * errors + targets.fingerprint * bits

    def validation_step(self, batch: Any, number: int) -> None:
        """Keep the outputs, and which hidden atoms are right; the same ones are always hidden."""
        self._outputs.append(self.network(batch)[0])
        if self.settings.targets.atoms:
            generator = torch.Generator().manual_seed(number)
            drawn = torch.rand(batch.x.size(0), generator=generator).to(batch.x.device)
            hidden = drawn < self.settings.masking.atoms
            atoms = self.network(batch, hidden)[1]
            self._right.append(atoms.argmax(1) == batch.x[hidden, ELEMENT])

    def on_validation_epoch_end(self) -> None:
        """The metrics."""
        outputs = torch.cat(self._outputs).float()
        truth = self.graphs.y[self._eval_graphs].to(outputs.device)
        split = self.descriptors
        val, test = (
            metrics.evaluate("rmse", outputs[part, :split], truth[part, :split])
            for part in (slice(self._num_val), slice(self._num_val, None))
        )
        auc = metrics.evaluate("roc_auc", outputs[:, split:], truth[:, split:])
        self._more = {"fingerprint_roc_auc": auc}
        if self._right:
            self._more["atom_accuracy"] = float(torch.cat(self._right).float().mean())
        self._outputs, self._right = [], []
        self.evaluated(val, test)

    def report(self) -> dict[str, float]:
        """The metrics beside the one by which weights are kept."""
        return self._more
