"""Neurons: the hidden channels between two linear layers, pruned together with both sides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gtkern.methods.gtsp.pruner import Pruner, Schedule, check_ratio, hold_at_zero
from gtkern.methods.gtsp.weights import largest
from gtkern.models.graphgps import GPSLayer
from gtkern.nn import TransformerLayer

__all__ = ["HiddenPair", "NeuronPruner", "hidden_pairs"]

_ZERO_AT_ZERO = (nn.ReLU, nn.GELU, nn.SiLU, nn.Dropout, nn.Identity)
"""What gives 0 for 0: between two layers it leaves a neuron without weights without effect."""

_MULTIPLE = 8
"""Hidden widths of 64 and more are kept multiples of it, as matrix products like them."""


class HiddenPair(NamedTuple):
    """Two linear layers with nothing between them that mixes channels.

    Attributes:
        first, second: their names in the model.
    """

    first: str
    second: str


def hidden_pairs(model: nn.Module) -> list[HiddenPair]:
    """The feed-forward parts of a model: of its layers, and of every Linear, activation, Linear."""
    return list(_pairs(model))


def _pairs(model: nn.Module) -> Iterator[HiddenPair]:
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, (GPSLayer, TransformerLayer)):
            if type(module.widen) is nn.Linear and type(module.narrow) is nn.Linear:
                yield HiddenPair(f"{prefix}widen", f"{prefix}narrow")
        elif isinstance(module, nn.Sequential):
            parts = list(module.named_children())
            for at, (first, part) in enumerate(parts):
                if type(part) is not nn.Linear:
                    continue
                rest = parts[at + 1 :]
                while rest and isinstance(rest[0][1], _ZERO_AT_ZERO):
                    rest = rest[1:]
                if rest and len(rest) < len(parts) - at - 1 and type(rest[0][1]) is nn.Linear:
                    yield HiddenPair(f"{prefix}{first}", f"{prefix}{rest[0][0]}")


class NeuronPruner(Pruner):
    """Keeps a share of the hidden channels of every feed-forward part, in dense layers.

    A neuron's score is the product of the norms of the weights into it and out of it. At each
    action the largest ones of each part stay; their layers become narrower in compact(), which
    makes any model faster on any device, where single weights and small blocks may not.

    This is the project's own way to prune weights; the paper prunes them one by one.

    Args:
        ratio: of a part's neurons that are kept, in (0, 1]; of 64 and more a multiple of 8, at
            least one.
        schedule: when neurons are pruned.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or range.

    Reference: Han et al. 2015 for the magnitude; Zhu and Gupta 2017 for the schedule.
    """

    kind = "neurons"

    def __init__(self, ratio: float, schedule: Schedule) -> None:
        super().__init__(schedule)
        self.ratio = check_ratio("ratio", ratio)
        self._masks: dict[HiddenPair, Tensor] = {}
        self._layers: dict[HiddenPair, tuple[nn.Linear, nn.Linear]] = {}

    def kept(self) -> Mapping[str, float]:
        """The share of kept neurons by the part's first layer."""
        return {pair.first: int(mask.sum()) / mask.numel() for pair, mask in self._masks.items()}

    def restored(self) -> None:
        """Take neurons whose weights are all 0 for pruned."""
        super().restored()
        for pair in self._masks:
            self._masks[pair] = self._scores(pair) > 0

    def state_dict(self) -> dict[str, Any]:
        """The steps and the masks."""
        masks = {pair.first: mask.clone() for pair, mask in self._masks.items()}
        return {**super().state_dict(), "masks": masks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        super().load_state_dict(state)
        for pair in self._masks:
            self._masks[pair] = state["masks"][pair.first].clone()

    def _prepare(self, model: nn.Module) -> None:
        pairs = hidden_pairs(model)
        if not pairs:
            raise TypeError(
                "model must have a Linear, an activation and a Linear in a row, got "
                f"{type(model).__name__}"
            )
        for pair in pairs:
            first, second = (model.get_submodule(name) for name in pair)
            assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
            self._layers[pair] = first, second
            ones = torch.ones(first.out_features, dtype=torch.bool, device=first.weight.device)
            self._masks[pair] = ones

    def _scores(self, pair: HiddenPair) -> Tensor:
        first, second = self._layers[pair]
        into, out = first.weight.detach(), second.weight.detach()
        norms = torch.linalg.vector_norm
        score: Tensor = norms(into, dim=1) * norms(out, dim=0)
        return score

    def _step(self, optimizer: torch.optim.Optimizer | None) -> None:
        assert self.schedule is not None
        if self.schedule.due(self.steps):
            kept = self.schedule.kept(self.steps, self.ratio)
            for pair, mask in self._masks.items():
                score = self._scores(pair).masked_fill(~mask, -1.0)
                count = min(_rounded(kept, mask.numel()), int(mask.sum()))
                self._masks[pair] = largest(score, count)
        for pair, mask in self._masks.items():
            first, second = self._layers[pair]
            hold_at_zero(optimizer, first.weight, mask[:, None])
            hold_at_zero(optimizer, second.weight, mask)
            if first.bias is not None:
                hold_at_zero(optimizer, first.bias, mask)

    def _compact(self) -> None:
        model = self._prepared()
        for pair, mask in self._masks.items():
            first, second = self._layers[pair]
            at = mask.nonzero().flatten()
            if at.numel() == mask.numel():
                continue
            narrow = _linear(first, first.in_features, at.numel())
            after = _linear(second, at.numel(), second.out_features)
            with torch.no_grad():
                narrow.weight.copy_(first.weight[at])
                after.weight.copy_(second.weight[:, at])
                if first.bias is not None:
                    narrow.bias.copy_(first.bias[at])
                if second.bias is not None:
                    after.bias.copy_(second.bias)
            model.set_submodule(pair.first, narrow)
            model.set_submodule(pair.second, after)
        self._masks, self._layers = {}, {}


def _rounded(ratio: float, size: int) -> int:
    count = ratio * size
    if size >= 64:
        return max(_MULTIPLE, _MULTIPLE * round(count / _MULTIPLE))
    return max(1, round(count))


def _linear(like: nn.Linear, inputs: int, outputs: int) -> nn.Linear:
    weight = like.weight
    made = nn.Linear(
        inputs, outputs, like.bias is not None, device=weight.device, dtype=weight.dtype
    )
    return made.train(like.training)
