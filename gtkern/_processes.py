"""The processes of a distributed run; with one process every function is the identity.

Each function is called by all processes, in the same order, or all of them wait for ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = [
    "any_of",
    "barrier",
    "count",
    "from_first",
    "gather_objects",
    "gather_rows",
    "lost",
    "rank",
    "rows_at_first",
    "total",
]


def count() -> int:
    """How many processes take part."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this one, from 0."""
    return dist.get_rank() if count() > 1 else 0


def barrier() -> None:
    """Wait until all are here."""
    if count() > 1:
        dist.barrier()


def any_of(*flags: bool) -> tuple[bool, ...]:
    """For each flag, whether it is set in any process."""
    if count() == 1:
        return flags
    raised = torch.tensor(flags, dtype=torch.int32, device=_device())
    dist.all_reduce(raised, dist.ReduceOp.MAX)
    return tuple(bool(flag) for flag in raised.tolist())


def from_first(x: Tensor) -> Tensor:
    """What the first process has of a tensor that all have in one shape; on any device."""
    if count() == 1:
        return x
    sent = x.to(_device()).contiguous()
    dist.broadcast(sent, 0)
    return sent.to(x.device)


def gather_objects(value: Any) -> list[Any]:
    """The value of every process, by rank; small things only, for they are pickled."""
    values: list[Any] = [value] * count()
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def total(x: Tensor) -> Tensor:
    """The sum over the processes, in each; differentiable, for a loss that is summed over them."""
    result: Tensor = x if count() == 1 else _Total.apply(x)
    return result


def gather_rows(x: Tensor) -> Tensor:
    """The rows of all processes, by rank, in each of them; x [M, ...], and M may differ.

    Differentiable, in the sense of `total`.
    """
    result: Tensor = x if count() == 1 else _GatherRows.apply(x)
    return result


def lost(error: RuntimeError) -> bool:
    """Whether an error says that another process is gone."""
    # gloo throws a plain RuntimeError when a connection breaks
    return count() > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error).lower())


def rows_at_first(x: Tensor) -> Iterator[Tensor]:
    """The rows of every process in turn, x [M, ...], but at the first process alone.

    Only one piece is there at a time; the other processes send theirs and are given nothing.
    """
    if rank() > 0:
        _send(x)
        return
    yield x
    for other in range(1, count()):
        yield _receive(x, other)


def _device() -> torch.device:
    """Where the processes' link takes tensors from."""
    on_gpu = dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def _send(x: Tensor) -> None:
    dist.send(torch.tensor([x.size(0)], device=x.device), 0)
    if x.size(0):
        dist.send(x.contiguous(), 0)


def _receive(like: Tensor, sender: int) -> Tensor:
    size = torch.empty(1, dtype=torch.int64, device=like.device)
    dist.recv(size, sender)
    rows = like.new_empty(int(size), *like.shape[1:])
    if rows.numel():
        dist.recv(rows, sender)
    return rows


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        result = x.contiguous().clone()
        dist.all_reduce(result)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        mine = torch.tensor([x.size(0)], device=x.device)
        each = [torch.empty_like(mine) for _ in range(count())]
        dist.all_gather(each, mine)
        sizes = torch.cat(each).tolist()
        # the back ends gather equal sizes only
        padded = x.new_zeros(max(sizes), *x.shape[1:])
        padded[: x.size(0)] = x
        gathered = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(gathered, padded)
        ctx.begin, ctx.size = sum(sizes[: rank()]), x.size(0)
        return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad.narrow(0, ctx.begin, ctx.size)
