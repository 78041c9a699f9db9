"""Attention blocks: left out at random while the model trains, the most redundant ones for good."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gtkern.methods.gtsp.pruner import (
    AttentionSite,
    Pruner,
    Schedule,
    attention_sites,
    check_ratio,
)
from gtkern.methods.gtsp.similarity import linear_cka

__all__ = ["DroppableAttention", "LayerPruner"]


class DroppableAttention(nn.Module):
    """Attention that is left out of some training steps, for the whole batch, or for good.

    Formula, in training with the rate p::

        0 with probability p, else attention(x) / (1 - p)

    In evaluation nothing is left out, but what is gone for good.

    Args:
        attention: RaggedMultiheadAttention, or a module of the same call.

    Attributes:
        rate: p, in [0, 1).
        kept: False: gone for good. Part of the state dict.

    Reference: Huang et al. 2016 (stochastic depth).
    """

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention
        self.rate = 0.0
        self.kept = True

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        """See RaggedMultiheadAttention; zeros where the block is left out."""
        if not self.kept:
            return torch.zeros_like(x)
        rate = self.rate if self.training else 0.0
        # without a rate no draw: the other random numbers are then those of the dense model
        if rate and float(torch.rand(())) < rate:
            return torch.zeros_like(x)
        out: Tensor = self.attention(x, *rest)
        return out / (1 - rate) if rate else out

    def get_extra_state(self) -> Tensor:
        """Whether the block is there still."""
        return torch.tensor(self.kept)

    def set_extra_state(self, state: Tensor) -> None:
        """Take up what `get_extra_state` gave."""
        self.kept = bool(state)

    def extra_repr(self) -> str:
        """The rate, and whether it is there."""
        return f"rate={self.rate}, kept={self.kept}"


class LayerPruner(Pruner):
    """Keeps a share of the layers' attention blocks.

    Up to the schedule's end a block is left out of a training step with a rate that rises to
    `drop`. At the end the blocks of those layers go whose output is most like their input, by
    linear CKA over the nodes of a batch, a mean over the schedule's actions; the rest is trained on
    without dropping.

    Deviations from the released code: it drops attention for each node by itself, at a rate that
    does not change, and removes nothing; here it is the whole block. The measure of likeness is
    this project's choice.

    Args:
        ratio: of the blocks that are kept, in (0, 1]; int(ratio L), at least one.
        schedule: begin: blocks are left out from then on; every: steps between measurements; end:
            blocks are removed.
        drop: the rate that is reached, in [0, 1).

    Attributes:
        similarity: of each layer's input and output, by the layer's name, so far.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or range.

    Reference: Liu et al. 2023 (GTSP), section 4.3; Huang et al. 2016.
    """

    kind = "layers"

    def __init__(self, ratio: float, schedule: Schedule, *, drop: float = 0.5) -> None:
        super().__init__(schedule)
        self.ratio = check_ratio("ratio", ratio)
        if not 0 <= drop < 1:
            raise ValueError(f"drop must be in [0, 1), got {drop}")
        self.drop = float(drop)
        self._sums: dict[str, float] = {}
        self._measured = 0
        self._blocks: list[tuple[AttentionSite, DroppableAttention]] = []
        self._ends: dict[str, tuple[Tensor, Tensor]] = {}
        self._hooks: list[Any] = []

    @property
    def similarity(self) -> Mapping[str, float]:
        """See the class."""
        return {name: value / max(self._measured, 1) for name, value in self._sums.items()}

    def kept(self) -> Mapping[str, float]:
        """1 for each layer whose block is there, else 0."""
        return {site.name: float(block.kept) for site, block in self._blocks}

    def state_dict(self) -> dict[str, Any]:
        """The steps, and the measurements."""
        return {**super().state_dict(), "sums": dict(self._sums), "measured": self._measured}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        super().load_state_dict(state)
        self._sums, self._measured = dict(state["sums"]), int(state["measured"])
        self._set_rates()

    def _prepare(self, model: nn.Module) -> None:
        sites = attention_sites(model)
        for site in sites:
            held = site.layer.attention
            if held is None or isinstance(held, DroppableAttention):
                why = "its attention is gone" if held is None else "its attention is already"
                raise ValueError(f"{site.name} cannot be pruned: {why}; prune the dense model")
        if int(self.ratio * len(sites) + 1e-9) < 1:
            raise ValueError(
                f"ratio must keep one of the {len(sites)} layers {sites[0].name} .. "
                f"{sites[-1].name} at least, {1 / len(sites):g}, got {self.ratio}"
            )
        for site in sites:
            held = site.layer.attention
            assert isinstance(held, nn.Module)
            block = DroppableAttention(held).train(held.training)
            site.wrap(block)
            self._blocks.append((site, block))
            self._hooks.append(site.layer.register_forward_hook(self._watch(site.name)))
        self._set_rates()

    def _watch(self, name: str) -> Any:
        def hook(module: nn.Module, given: tuple[Any, ...], out: Any) -> None:
            if module.training and self._measuring():
                after = out[0] if isinstance(out, tuple) else out
                self._ends[name] = (given[0].detach(), after.detach())

        return hook

    def _measuring(self) -> bool:
        assert self.schedule is not None
        return self.schedule.due(self.steps + 1)

    def _set_rates(self) -> None:
        assert self.schedule is not None
        rate = self.drop * self.schedule.share(self.steps)
        # what is left out is like nothing that could be measured
        idle = self.settled or self._measuring()
        for _, block in self._blocks:
            block.rate = 0.0 if idle else rate

    def _step(self, optimizer: torch.optim.Optimizer | None) -> None:
        if self._ends:
            for name, (before, after) in self._ends.items():
                self._sums[name] = self._sums.get(name, 0.0) + linear_cka(before, after)
            self._measured += 1
            self._ends = {}
        assert self.schedule is not None
        if self.steps == self.schedule.end:
            self._remove()
        self._set_rates()

    def _remove(self) -> None:
        count = len(self._blocks) - int(self.ratio * len(self._blocks) + 1e-9)
        # of equals the deeper one goes
        order = sorted(
            range(len(self._blocks)),
            key=lambda at: (self._sums.get(self._blocks[at][0].name, 0.0), at),
            reverse=True,
        )
        for at in order[:count]:
            self._blocks[at][1].kept = False

    def _compact(self) -> None:
        for hook in self._hooks:
            hook.remove()
        for site, block in self._blocks:
            if block.kept:
                site.wrap(block.attention)
            else:
                site.replace(None)
        self._blocks, self._hooks = [], []
