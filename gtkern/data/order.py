"""The order in which an epoch visits graphs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from gtkern import _check

__all__ = ["BatchOrder"]


class BatchOrder(Sampler[Tensor]):
    """Which graphs make up each batch of an epoch: a function of seed and epoch only.

    A plain loop goes on to the next epoch each time it starts; `set_epoch` (which Lightning calls)
    says which comes next.

    Args:
        chosen: int64 [n], numbers of graphs.
        batch_size: at least 1.
        shuffle, seed, drop_last: as in `PackedGraphs.loader`.
    """

    def __init__(
        self, chosen: Tensor, batch_size: int, *, shuffle: bool, seed: int, drop_last: bool
    ) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int):
            raise TypeError(f"batch_size must be an integer, got {type(batch_size).__name__}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.chosen, self.batch_size = chosen, batch_size
        self.shuffle, self.drop_last = shuffle, drop_last
        self.seed = int(_check.seed("seed", seed)) % 2**63
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next loop is."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches in an epoch."""
        graphs = self.chosen.numel()
        return graphs // self.batch_size if self.drop_last else -(-graphs // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        order = self.chosen
        if self.shuffle:
            # two draws from one stream, so that neighbouring seeds and epochs share nothing
            generator = torch.Generator().manual_seed(self.seed)
            epochs = torch.randint(2**63 - 1, (epoch + 1,), generator=generator)
            generator.manual_seed(int(epochs[epoch]))
            order = order[torch.randperm(order.numel(), generator=generator)]
        for batch in range(len(self)):
            yield order[batch * self.batch_size : (batch + 1) * self.batch_size]
