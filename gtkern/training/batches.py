"""Batches of nodes: shuffled, shared out over processes, and prepared ahead of the training."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Batch", "NodeBatches"]

SMALLEST_BATCH = 2
"""Nodes that a batch must have: the BatchNorm of a single one is not defined."""


class Batch(NamedTuple):
    """What a step works on.

    Attributes:
        targets: int64 [M]; this process's nodes.
        known: labels that the batch has in all processes together: what its loss is a mean over.
        inputs: what the method prepared for the targets.
    """

    targets: Tensor
    known: int
    inputs: Any


class NodeBatches:
    """Nodes in batches, shuffled anew every epoch when `epoch` is given, and made into a Batch.

    A last batch of a single node is joined to the one before. Preparing ahead changes nothing but
    the time: `make` is called for the same nodes in the same order.

    Args:
        nodes: int64 [M].
        batch_size: nodes in a batch; at least M: one batch in the given order.
        make: what becomes of a batch's nodes.
        seed: of the shuffling.
        epoch: tells the current epoch.
        ahead: batches that a thread of its own prepares while others are used; 0: none.
    """

    def __init__(
        self,
        nodes: Tensor,
        batch_size: int,
        make: Callable[[Tensor], Batch],
        *,
        seed: int = 0,
        epoch: Callable[[], int] | None = None,
        ahead: int = 0,
    ) -> None:
        self.nodes = nodes
        self.batch_size = batch_size
        self.make = make
        self.seed = seed
        self.epoch = epoch
        self.ahead = ahead

    def __len__(self) -> int:
        full, rest = divmod(self.nodes.numel(), self.batch_size)
        return max(1, full + (rest >= SMALLEST_BATCH))

    def __iter__(self) -> Iterator[Batch]:
        if self.ahead and len(self) > 1:
            return self._prepared()
        return map(self.make, self.split())

    def split(self) -> Iterator[Tensor]:
        """The nodes of each batch."""
        nodes = self.nodes
        if self.epoch is not None and len(self) > 1:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch())
            nodes = nodes[torch.randperm(nodes.numel(), generator=generator)]
        last = len(self) - 1
        for number in range(last):
            yield nodes[number * self.batch_size : (number + 1) * self.batch_size]
        yield nodes[last * self.batch_size :]

    def _prepared(self) -> Iterator[Batch]:
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
            waiting: deque[Future[Batch]] = deque()
            for nodes in self.split():
                waiting.append(thread.submit(self.make, nodes))
                if len(waiting) > self.ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
