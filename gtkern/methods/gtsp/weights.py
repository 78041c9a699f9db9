"""Weights: pruned by magnitude and regrown by gradient, one by one or in blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gtkern.methods.gtsp.pruner import Pruner, Schedule, check_ratio, hold_at_zero
from gtkern.nn import BlockSparseLinear

__all__ = ["WeightPruner", "largest"]

_LAST_EXCHANGE = 0.005


class WeightPruner(Pruner):
    """Gradual magnitude pruning with regrowth, over the weights of any torch.nn model.

    At each action the largest weights of all layers together are kept, as many as the schedule
    wants; then in every layer a share of the kept ones, the smallest, is exchanged for as many that
    have the largest gradient. The share falls in half a cosine to 0.005 at the schedule's end. With
    `block` whole blocks of linear layers are pruned, by their root mean square, and compact()
    puts a gtkern.nn.BlockSparseLinear in their place. Single weights stay zeros in dense layers,
    which is as fast as before.

    What is pruned is 0 after every step, and so are the optimiser's moments there.

    Deviations from the released code: the optimiser steps once for each batch; masks hold after
    every step; the last action reaches the ratio, where there it is just missed; as many weights
    are kept as the ratio says, where equal ones are all lost there.

    Args:
        ratio: of the weights that are kept, in (0, 1].
        schedule: when weights are pruned and exchanged.
        exchange: share of a layer's kept weights that is exchanged at first, in [0, 1]; 0: none.
        block: None: single weights of all parameters with two axes or more, tables of embeddings
            among them; (rows, columns): blocks of linear layers.
        only: names of modules or parameters to prune, and of what is inside them; None: all.
        without: names to leave as they are.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or range.

    Reference: Liu et al. 2023 (GTSP), section 4.4; Zhu and Gupta 2017; Liu et al. 2021 (GraNet).
    """

    kind = "weights"

    def __init__(
        self,
        ratio: float,
        schedule: Schedule,
        *,
        exchange: float = 0.5,
        block: tuple[int, int] | None = None,
        only: Sequence[str] | None = None,
        without: Sequence[str] = (),
    ) -> None:
        super().__init__(schedule)
        self.ratio = check_ratio("ratio", ratio)
        if not 0 <= exchange <= 1:
            raise ValueError(f"exchange must be in [0, 1], got {exchange}")
        if block is not None and (len(block) != 2 or min(block) < 1):
            raise ValueError(f"block must be (rows, columns), both at least 1, got {block}")
        self.exchange, self.block = float(exchange), block
        self.only = None if only is None else tuple(only)
        self.without = tuple(without)
        self._parameters: dict[str, nn.Parameter] = {}
        self._masks: dict[str, Tensor] = {}
        self._whole: dict[str, Tensor] = {}

    def kept(self) -> Mapping[str, float]:
        """The share of kept weights, or blocks, by parameter."""
        return {name: int(mask.sum()) / mask.numel() for name, mask in self._masks.items()}

    def state_dict(self) -> dict[str, Any]:
        """The steps and the masks."""
        masks = {name: mask.clone() for name, mask in self._masks.items()}
        return {**super().state_dict(), "masks": masks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        super().load_state_dict(state)
        self._set({name: mask.clone() for name, mask in state["masks"].items()})

    def restored(self) -> None:
        """Take what is 0 for pruned."""
        super().restored()
        masks = {}
        for name, parameter in self._parameters.items():
            masks[name] = self._scores(parameter.detach()) > 0
        self._set(masks)

    def _prepare(self, model: nn.Module) -> None:
        self._parameters = self._chosen(model)
        masks = {}
        for name, parameter in self._parameters.items():
            masks[name] = torch.ones_like(self._scores(parameter.detach()), dtype=torch.bool)
        self._set(masks)

    def _chosen(self, model: nn.Module) -> dict[str, nn.Parameter]:
        able, unable = {}, {}
        linear = {
            f"{name}.weight" if name else "weight"
            for name, module in model.named_modules()
            if type(module) is nn.Linear
        }
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2:
                unable[name] = f"it has {parameter.dim()} axis, not two or more"
            elif self.block is not None and name not in linear:
                unable[name] = "blocks are of torch.nn.Linear layers"
            else:
                able[name] = parameter
        for group, names in (("only", self.only or ()), ("without", self.without)):
            for name in names:
                if not any(_inside(known, name) for known in (*able, *unable)):
                    raise ValueError(f"{group} must name parameters of the model, got {name!r}")
        chosen = {
            name: parameter
            for name, parameter in able.items()
            if (self.only is None or any(_inside(name, part) for part in self.only))
            and not any(_inside(name, part) for part in self.without)
        }
        for part in self.only or ():
            if not any(_inside(name, part) for name in chosen):
                name = next((name for name in unable if _inside(name, part)), part)
                raise ValueError(
                    f"{name} cannot be pruned: {unable.get(name, 'it is in `without` too')}"
                )
        if not chosen:
            raise TypeError(
                f"model must have weights that can be pruned, got {type(model).__name__} without "
                + ("torch.nn.Linear" if self.block else "parameters of two axes or more")
            )
        return chosen

    def _step(self, optimizer: torch.optim.Optimizer | None) -> None:
        assert self.schedule is not None
        if self.schedule.due(self.steps):
            self._act()
        for name, parameter in self._parameters.items():
            # pruned weights have gradients still, and so would have moments
            hold_at_zero(optimizer, parameter, self._whole[name])

    def _act(self) -> None:
        assert self.schedule is not None
        scores = {
            name: self._scores(value.detach()).masked_fill(~self._masks[name], -1.0)
            for name, value in self._parameters.items()
        }
        total = sum(score.numel() for score in scores.values())
        # what was pruned before does not come back by magnitude
        most = sum(int(mask.sum()) for mask in self._masks.values())
        count = min(round(self.schedule.kept(self.steps, self.ratio) * total), most)
        chosen = largest(torch.cat([score.flatten() for score in scores.values()]), count)
        masks = {}
        for (name, score), mask in zip(
            scores.items(), chosen.split([score.numel() for score in scores.values()]), strict=True
        ):
            gradient = self._parameters[name].grad
            mask = mask.view_as(score)
            if gradient is not None:
                mask = self._exchanged(mask, score, self._scores(gradient.detach()))
            masks[name] = mask
        self._set(masks)

    def _exchanged(self, mask: Tensor, score: Tensor, growth: Tensor) -> Tensor:
        assert self.schedule is not None
        begin, end = self.schedule.begin, self.schedule.end
        progress = (self.steps - begin) / (end - begin) if end > begin else 1.0
        low = min(_LAST_EXCHANGE, self.exchange)
        share = low + 0.5 * (self.exchange - low) * (1 + math.cos(math.pi * progress))
        alive = int(mask.sum())
        count = min(math.ceil(share * alive - 1e-9), mask.numel() - alive)
        if count == 0:
            return mask
        stay = largest(score.masked_fill(~mask, -1.0).flatten(), alive - count)
        grown = largest(growth.flatten().masked_fill(stay, -1.0), count)
        return (stay | grown).view_as(mask)

    def _scores(self, value: Tensor) -> Tensor:
        """How large weights are: of each, or of each block [block rows, block columns]."""
        if self.block is None:
            return value.abs()
        rows, columns = self.block
        squares = value.square()
        padded = functional.pad(squares, (0, -value.size(1) % columns, 0, -value.size(0) % rows))
        sums = padded.unfold(0, rows, rows).unfold(1, columns, columns).sum((2, 3))
        sizes = _cuts(value.size(0), rows)[:, None] * _cuts(value.size(1), columns)
        return (sums / sizes.to(sums)).sqrt()

    def _set(self, masks: dict[str, Tensor]) -> None:
        self._masks = masks
        self._whole = {}
        for name, parameter in self._parameters.items():
            mask = masks[name].to(parameter.device)
            if self.block is not None:
                for axis, size in enumerate(self.block):
                    mask = mask.repeat_interleave(size, axis)
                mask = mask[: parameter.size(0), : parameter.size(1)]
            self._whole[name] = mask.to(parameter.dtype)

    def _compact(self) -> None:
        for name, parameter in self._parameters.items():
            hold_at_zero(None, parameter, self._whole[name])
        if self.block is not None:
            self._compact_blocks(self._prepared(), self.block)
        self._parameters, self._masks, self._whole = {}, {}, {}

    def _compact_blocks(self, model: nn.Module, block: tuple[int, int]) -> None:
        # names may have changed since, by what was put around attention
        masks = {id(value): self._masks[name] for name, value in self._parameters.items()}
        for name, module in list(model.named_modules()):
            mask = masks.get(id(module.weight)) if type(module) is nn.Linear else None
            if mask is not None and not bool(mask.all()):
                sparse = BlockSparseLinear.from_linear(module, block, mask=mask)
                model.set_submodule(name, sparse.train(module.training))


def largest(score: Tensor, count: int) -> Tensor:
    """Which entries are the largest ones, bool [M]; of equal entries the first.

    Args:
        score: [M]. count: how many.
    """
    size = score.numel()
    if count <= 0 or count >= size:
        return torch.full_like(score, count > 0, dtype=torch.bool)
    # linear in the size, where sorting is not: a network may have 10^8 weights
    bound = score.kthvalue(size - count + 1).values
    mask = score > bound
    equal = (score == bound).nonzero().flatten()
    mask[equal[: count - int(mask.sum())]] = True
    return mask


def _inside(name: str, part: str) -> bool:
    return name == part or name.startswith(part + ".")


def _cuts(size: int, block: int) -> Tensor:
    """The sizes of the blocks that an axis is cut into."""
    starts = torch.arange(0, size, block)
    return (size - starts).clamp(max=block)
