"""Ragged: which rows of a packed batch belong to which graph; PairIndex: a bias table's entries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from gtkern import _check

__all__ = ["PairIndex", "Ragged"]

_INTEGERS = (torch.int32, torch.int64)
_MAX_NODES = 2**31 - 1
_MAX_GRAPHS = _MAX_NODES - 1


class Ragged:
    """The graphs of a packed batch: graph g owns the rows ptr[g] .. ptr[g + 1].

    Made and checked once, then not changed. A *pair* is a query i and a key j of one graph, i = j
    among them; graph g has n_g² pairs. They are numbered graph by graph, and inside a graph row by
    row: that of the local nodes i and j is pair_ptr[g] + i * n_g + j.

    Make one with `Ragged.from_ptr` or `Ragged.from_batch`.

    Attributes:
        ptr: int64 [G + 1].
        pair_ptr: int64 [G + 1]; the sums of n_g² before each graph.
        host_ptr: ptr on the CPU: sizes are known there without waiting for a device.
        num_graphs: G, empty ones included.
        num_nodes: N.
        num_pairs: Σ n_g².
        max_nodes: the largest n_g; 0 without graphs.
    """

    def __init__(
        self,
        ptr: Tensor,
        pair_ptr: Tensor,
        max_nodes: int,
        *,
        host_ptr: Tensor | None = None,
        num_pairs: int | None = None,
    ) -> None:
        self.ptr, self.pair_ptr, self.max_nodes = ptr, pair_ptr, max_nodes
        self.host_ptr = ptr.cpu() if host_ptr is None else host_ptr
        self.num_graphs = ptr.numel() - 1
        self.num_nodes = int(self.host_ptr[-1])
        self.num_pairs = int(pair_ptr[-1]) if num_pairs is None else num_pairs

    @classmethod
    def from_ptr(cls, ptr: Tensor) -> Ragged:
        """From the first row of each graph.

        Args:
            ptr: int32 or int64 [G + 1], from 0 to N, never falling (PyG's `Batch.ptr`). Equal
                neighbours make an empty graph.

        Raises:
            TypeError: no tensor, or another dtype.
            ValueError: another shape, not from 0, or falling.
        """
        _check.tensor("ptr", ptr)
        if ptr.dtype not in _INTEGERS:
            raise TypeError(f"ptr must be int32 or int64, got {ptr.dtype}")
        _check.rank("ptr", ptr, "G + 1")
        _check.has_values("ptr", ptr)
        if ptr.numel() == 0:
            raise ValueError("ptr must have at least 1 entry (graphs + 1), got 0")
        # graphs are few: on the host the checks cost one transfer
        host = ptr.detach().to("cpu", torch.int64, copy=True)
        if int(host[0]) != 0:
            raise ValueError(f"ptr must begin with 0, got {int(host[0])}")
        falls = _check.falls(host)
        if bool(falls.any()):
            at = int(falls.nonzero()[0])
            raise ValueError(
                f"ptr must not fall, got {int(host[at])} then {int(host[at + 1])} "
                f"at position {at + 1}"
            )
        if int(host[-1]) > _MAX_NODES:
            raise ValueError(f"ptr must end at {_MAX_NODES} nodes at most, got {int(host[-1])}")
        return cls.from_host(host, host.to(ptr.device))

    @classmethod
    def from_host(cls, host_ptr: Tensor, ptr: Tensor) -> Ragged:
        """From the first row of each graph, known to be right, on the CPU and on the device.

        Args:
            host_ptr: int64 [G + 1] on the CPU, rising from 0 to N.
            ptr: the same on any device; kept, as host_ptr is.
        """
        sizes = host_ptr.diff()
        pair_ptr = torch.cat((host_ptr.new_zeros(1), sizes.square().cumsum(0)))
        largest = int(sizes.max()) if sizes.numel() else 0
        num_pairs = int(pair_ptr[-1])
        return cls(ptr, pair_ptr.to(ptr.device), largest, host_ptr=host_ptr, num_pairs=num_pairs)

    @classmethod
    def from_batch(cls, batch: Tensor, num_graphs: int | None = None) -> Ragged:
        """From the graph of each node.

        Args:
            batch: int32 or int64 [N], rising (PyG's `Batch.batch`).
            num_graphs: G; default: one more than the last entry.

        Raises:
            TypeError: no tensor, or another dtype.
            ValueError: another shape, not sorted, or a graph outside 0 .. num_graphs - 1.
        """
        _check.tensor("batch", batch)
        if batch.dtype not in _INTEGERS:
            raise TypeError(f"batch must be int32 or int64, got {batch.dtype}")
        _check.rank("batch", batch, "N")
        _check.has_values("batch", batch)
        falls = _check.falls(batch).nonzero()
        if falls.numel():
            at = int(falls[0])
            raise ValueError(
                f"batch must be sorted, got {int(batch[at])} then {int(batch[at + 1])} "
                f"at position {at + 1}"
            )
        low, high = (int(batch[0]), int(batch[-1])) if batch.numel() else (0, -1)
        if num_graphs is None:
            num_graphs = min(max(high + 1, 0), _MAX_GRAPHS)
        num_graphs = _check.integer("num_graphs", num_graphs, 0, _MAX_GRAPHS)
        if low < 0 or high >= num_graphs:
            raise ValueError(
                f"batch must be 0 .. {num_graphs - 1} (num_graphs - 1), "
                f"got {low if low < 0 else high}"
            )
        graphs = torch.arange(num_graphs + 1, device=batch.device, dtype=batch.dtype)
        return cls.from_ptr(torch.searchsorted(batch.contiguous(), graphs))

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
        return self.ptr.device

    def to(self, device: torch.device | str) -> Ragged:
        """The same on another device."""
        device = torch.device(device)
        if device == self.device:
            return self
        return Ragged(
            self.ptr.to(device),
            self.pair_ptr.to(device),
            self.max_nodes,
            host_ptr=self.host_ptr,
            num_pairs=self.num_pairs,
        )

    def sizes(self) -> Tensor:
        """int64 [G]: the number of nodes of each graph."""
        return self.ptr.diff()

    def batch(self) -> Tensor:
        """int64 [N]: the graph of each node."""
        graphs = torch.arange(self.num_graphs, device=self.device)
        return torch.repeat_interleave(graphs, self.sizes(), output_size=self.num_nodes)

    def pairs(self) -> tuple[Tensor, Tensor]:
        """The query and the key of every pair, in order: two of int64 [num_pairs], as rows.

        As large as the pairs: for tests and plain PyTorch, not for kernels.
        """
        sizes = self.sizes()
        graphs = torch.arange(self.num_graphs, device=self.device)
        graph = torch.repeat_interleave(graphs, sizes.square(), output_size=self.num_pairs)
        local = torch.arange(self.num_pairs, device=self.device) - self.pair_ptr[graph]
        first, size = self.ptr[graph], sizes[graph]
        return first + local // size, first + local % size

    def __repr__(self) -> str:
        return (
            f"Ragged(num_graphs={self.num_graphs}, num_nodes={self.num_nodes}, "
            f"max_nodes={self.max_nodes}, device={self.device})"
        )


class PairIndex:
    """For every pair of nodes of a graph, an entry of a bias table; or MASKED.

    A masked pair takes no part in attention: its key is not there for its query, whatever other
    indices say of the pair. Made and checked once, then not changed.

    Make one with `PairIndex.from_tensor`.

    Attributes:
        MASKED: by dtype, the value that masks a pair.
        index: uint8 or int16 [num_pairs], in the order of the pairs of a `Ragged`.
        num_entries: every other value is below this.
    """

    # a plain dict: torch.compile does not follow a read-only view of one
    MASKED: ClassVar[Mapping[torch.dtype, int]] = {torch.uint8: 255, torch.int16: -1}

    def __init__(self, index: Tensor, num_entries: int) -> None:
        self.index, self.num_entries = index, num_entries

    @classmethod
    def from_tensor(cls, index: Tensor, ragged: Ragged, num_entries: int) -> PairIndex:
        """Check an index against the batch it is for.

        Args:
            index: uint8 or int16 [num_pairs]: 0 .. num_entries - 1, or PairIndex.MASKED[dtype].
            ragged: the batch.
            num_entries: 1 .. 255 for uint8, 1 .. 32767 for int16.

        Raises:
            TypeError: an argument of another kind or dtype.
            ValueError: another shape or device, or an entry out of range.
        """
        _check.tensor("index", index)
        if index.dtype not in cls.MASKED:
            raise TypeError(f"index must be uint8 or int16, got {index.dtype}")
        if not isinstance(ragged, Ragged):
            raise TypeError(f"ragged must be a Ragged, got {type(ragged).__name__}")
        if isinstance(num_entries, bool) or not isinstance(num_entries, int):
            raise TypeError(f"num_entries must be an integer, got {type(num_entries).__name__}")
        most = torch.iinfo(index.dtype).max
        if not 1 <= num_entries <= most:
            raise ValueError(
                f"num_entries must be 1 .. {most} for {index.dtype}, "
                f"got {_check.short(num_entries)}"
            )
        _check.shape("index", index, "num_pairs", (ragged.num_pairs,))
        _check.same_device(ragged=ragged.ptr, index=index)
        _check.has_values("index", index)
        masked = cls.MASKED[index.dtype]
        low, high = torch.aminmax(index) if index.numel() else (0, 0)
        if int(low) < 0 or int(high) >= num_entries:
            # masked pairs look so too
            wrong = ((index < 0) | (index >= num_entries)) & (index != masked)
            if bool(wrong.any()):
                at = int(wrong.nonzero()[0])
                raise ValueError(
                    f"index must be 0 .. {num_entries - 1} (num_entries - 1) or {masked} (masked), "
                    f"got {int(index[at])} at pair {at}"
                )
        # a copy only of what is not contiguous: an index is as large as the pairs
        return cls(index.detach().contiguous(), num_entries)

    @property
    def device(self) -> torch.device:
        """Where the index lies."""
        return self.index.device

    @property
    def num_pairs(self) -> int:
        """Σ n_g² of the batch it was made for."""
        return self.index.numel()

    def to(self, device: torch.device | str) -> PairIndex:
        """The same on another device."""
        device = torch.device(device)
        return self if device == self.device else PairIndex(self.index.to(device), self.num_entries)

    def __repr__(self) -> str:
        return (
            f"PairIndex(num_pairs={self.num_pairs}, num_entries={self.num_entries}, "
            f"dtype={self.index.dtype}, device={self.device})"
        )
