"""A row of numbers for each node, kept from step to step, with the step at which it was written."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["BANK_DTYPES", "BankStatistics", "MemoryBank"]

BANK_DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}
"""How a bank can keep its numbers."""

_FORMAT = 1
"""Grows when the bytes of a file mean something else."""

_HEAD = 4096
"""Bytes before the rows: what the file is, then the drift."""

_DRIFT = 4064


class BankStatistics(NamedTuple):
    """What a bank has seen.

    Attributes:
        visited: rows that were written.
        mean_age, max_age: steps since a visited row was written; 0 where there is none.
        rewritten: how often a visited row was written again, since `reset_drift`.
        mean_drift, min_drift: cosine between the row before and after, over those writes, mean and
            smallest; 1 where there is none.
    """

    visited: int
    mean_age: float
    max_age: int
    rewritten: int
    mean_drift: float
    min_drift: float


class MemoryBank:
    """Rows that are written at some steps and read at others, on the CPU.

    Whether a row was written is told by its stamp, not by its numbers. In a file the bank may be
    larger than memory; it has one writer. A row's stamp is taken away before its numbers change and
    comes back after, so that a process that dies leaves no half-written row that counts.

    Args:
        num_rows: N.
        width: numbers in a row.
        dtype: one of BANK_DTYPES, in which they are kept.
        path: of a file that keeps them; made if it is not there, else it must be one of the same
            identity, sizes and dtype, and is gone on with. None: in memory.
        identity: what the rows belong to, for example a digest of the graph and its texts.

    Raises:
        ValueError: a size below 1, an unknown dtype, or a file of another bank; names the
            difference.

    Reference: Xue et al. 2023 (LEADING), section 4, neighbor decoupling.
    """

    def __init__(
        self,
        num_rows: int,
        width: int,
        *,
        dtype: str = "float16",
        path: str | os.PathLike[str] | None = None,
        identity: str,
    ) -> None:
        if num_rows < 1 or width < 1:
            raise ValueError(f"num_rows and width must be at least 1, got {num_rows} and {width}")
        if dtype not in BANK_DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(BANK_DTYPES)}, got {dtype!r}")
        self.num_rows = num_rows
        self.width = width
        self.dtype = dtype
        self.identity = identity
        self.path = None if path is None else pathlib.Path(path).expanduser()
        self._frozen = 0
        if self.path is None:
            self._bytes = torch.zeros(self._size, dtype=torch.uint8)
            self._bytes[:_HEAD] = torch.frombuffer(bytearray(self._head()), dtype=torch.uint8)
        else:
            if not self.path.exists():
                self._make(self.path)
            self._check(self.path)
            self._map: Any = np.memmap(self.path, np.uint8, "r+")
            self._bytes = torch.from_numpy(self._map)
        values = _HEAD + _rounded(8 * num_rows)
        # the step plus one, so that a fresh file, which is all zeros, has never been written
        self._stamps = self._bytes[_HEAD : _HEAD + 8 * num_rows].view(torch.int64)
        self._values = self._bytes[values:].view(BANK_DTYPES[dtype]).view(num_rows, width)
        # sum, smallest, how many
        self._drift = self._bytes[_DRIFT : _DRIFT + 24].view(torch.float64)
        if self._drift[2] == 0:
            self.reset_drift()

    def __repr__(self) -> str:
        place = "" if self.path is None else f", path={str(self.path)!r}"
        return f"MemoryBank({self.num_rows}, {self.width}, dtype={self.dtype!r}{place})"

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers and stamps."""
        return self._size

    def write(self, rows: Tensor, values: Tensor, *, step: int) -> None:
        """Keep new numbers of some rows.

        Args:
            rows: int64 [m], each once; on any device.
            values: floating point [m, width], finite in the bank's dtype; on any device; without
                its gradient.
            step: at which they are written, at least 0.

        Raises:
            RuntimeError: the bank is frozen. TypeError, ValueError, IndexError: see above.
        """
        if self._frozen:
            raise RuntimeError("the bank is frozen: evaluation must not write to it")
        rows = self._checked(rows)
        if step < 0:
            raise ValueError(f"step must be at least 0, got {step}")
        if not values.is_floating_point():
            raise TypeError(f"values must be floating point, got {values.dtype}")
        if list(values.shape) != [rows.numel(), self.width]:
            raise ValueError(
                f"values must have shape [m, width] = [{rows.numel()}, {self.width}], got "
                f"{list(values.shape)}"
            )
        if rows.unique().numel() != rows.numel():
            raise ValueError(
                f"rows must be there once each, got {rows.unique().numel()} different ones in "
                f"{rows.numel()}"
            )
        if not rows.numel():
            return
        kept = values.detach().to("cpu", BANK_DTYPES[self.dtype])
        if not bool(torch.isfinite(kept).all()):
            raise ValueError(
                f"values must be finite in {self.dtype}, got NaN, infinite or larger ones than it "
                f"holds ({torch.finfo(BANK_DTYPES[self.dtype]).max:g})"
            )
        again = self._stamps[rows] > 0
        if bool(again.any()):
            self._note_drift(self._values[rows[again]], kept[again])
        self._stamps[rows] = 0
        self._values[rows] = kept
        self._stamps[rows] = step + 1

    def read(self, rows: Tensor) -> Tensor:
        """The numbers of some rows.

        Args:
            rows: int64 [m], on any device; the same one may be there again.

        Returns:
            float32 [m, width], on the device of `rows`.

        Raises:
            ValueError: a row that was never written; says how many. IndexError: no such row.
        """
        chosen = self._checked(rows)
        self._must_be_visited(chosen)
        return self._values[chosen].float().to(rows.device)

    def visited(self, rows: Tensor) -> Tensor:
        """Whether some rows were ever written, bool [m], on the device of `rows`."""
        return (self._stamps[self._checked(rows)] > 0).to(rows.device)

    def age(self, rows: Tensor, step: int) -> Tensor:
        """Steps since some rows were written, int64 [m], on the device of `rows`.

        Raises:
            ValueError: a row that was never written; says how many.
        """
        chosen = self._checked(rows)
        self._must_be_visited(chosen)
        return (step + 1 - self._stamps[chosen]).to(rows.device)

    def due(
        self, rows: Tensor, step: int, *, older_than: int | None = None, oldest: int = 0
    ) -> Tensor:
        """Which rows should be written anew: those that never were, and old ones.

        Args:
            rows: int64 [m], those that will be read.
            step: now.
            older_than: those written more than so many steps ago; None: none for that.
            oldest: those that were written longest ago, so many with all others that are due; of
                the same age the first ones.

        Returns:
            int64, sorted, each once, on the CPU.
        """
        chosen = self._checked(rows).unique()
        stamps = self._stamps[chosen]
        due = stamps == 0
        if older_than is not None:
            due |= step + 1 - stamps > older_than
        more = oldest - int(due.sum())
        if more > 0:
            # among those that are not due yet
            waiting = (~due).nonzero().flatten()
            due[waiting[stamps[waiting].argsort(stable=True)[:more]]] = True
        result: Tensor = chosen[due]
        return result

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """While it lasts, `write` raises: evaluation reads what training wrote."""
        self._frozen += 1
        try:
            yield
        finally:
            self._frozen -= 1

    def statistics(self, step: int) -> BankStatistics:
        """What the bank has seen until now.

        Args:
            step: now.
        """
        stamps = self._stamps[self._stamps > 0]
        ages = step + 1 - stamps
        total, smallest, count = self._drift.tolist()
        return BankStatistics(
            visited=stamps.numel(),
            mean_age=float(ages.double().mean()) if stamps.numel() else 0.0,
            max_age=int(ages.max()) if stamps.numel() else 0,
            rewritten=int(count),
            mean_drift=total / count if count else 1.0,
            min_drift=smallest,
        )

    def reset_drift(self) -> None:
        """Forget the cosines seen until now, for example at the start of an epoch."""
        self._drift.copy_(torch.tensor([0.0, 1.0, 0.0]))

    def state_dict(self) -> dict[str, Any]:
        """All of it, copied, for a checkpoint; of a large bank `save` makes a file instead."""
        return {
            "about": self._about(),
            "stamps": self._stamps.clone(),
            "values": self._values.clone(),
            "drift": self._drift.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave.

        Raises:
            ValueError: it is of another bank; names the difference.
        """
        self._must_equal(state["about"], "the state")
        self._replace(state["stamps"], state["values"], state["drift"])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a copy to a file, which is there whole or not at all.

        Args:
            path: of the copy.
        """
        target = pathlib.Path(path)
        part = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            if self.path is None:
                with open(part, "wb") as file:
                    self._bytes.numpy().tofile(file)
            else:
                self._map.flush()
                shutil.copyfile(self.path, part)
            with open(part, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Put back what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file. ValueError: it is of another bank; names the
                difference.
        """
        saved = pathlib.Path(path)
        self._check(saved)
        other = torch.from_numpy(np.memmap(saved, np.uint8, "c"))
        with_values = _HEAD + _rounded(8 * self.num_rows)
        self._replace(
            other[_HEAD : _HEAD + 8 * self.num_rows].view(torch.int64),
            other[with_values:].view(BANK_DTYPES[self.dtype]).view_as(self._values),
            other[_DRIFT : _DRIFT + 24].view(torch.float64),
        )

    def _replace(self, stamps: Tensor, values: Tensor, drift: Tensor) -> None:
        self._stamps.zero_()
        self._values.copy_(values)
        self._drift.copy_(drift)
        self._stamps.copy_(stamps)

    def _note_drift(self, before: Tensor, after: Tensor) -> None:
        before, after = before.float(), after.float()
        cosine = torch.nn.functional.cosine_similarity(before, after)
        # a row of zeros that stays one has not moved
        cosine[(before == 0).all(1) & (after == 0).all(1)] = 1.0
        self._drift[0] += cosine.double().sum()
        self._drift[1] = torch.minimum(self._drift[1], cosine.double().min())
        self._drift[2] += cosine.numel()

    def _checked(self, rows: Tensor) -> Tensor:
        if rows.dtype != torch.int64:
            raise TypeError(f"rows must be int64, got {rows.dtype}")
        if rows.dim() != 1:
            raise ValueError(f"rows must have shape [m], got {list(rows.shape)}")
        rows = rows.cpu()
        if rows.numel() and (int(rows.min()) < 0 or int(rows.max()) >= self.num_rows):
            raise IndexError(
                f"rows must be in 0 .. {self.num_rows - 1}, got {int(rows.min())} .. "
                f"{int(rows.max())}"
            )
        return rows

    def _must_be_visited(self, rows: Tensor) -> None:
        never = int((self._stamps[rows] == 0).sum())
        if never:
            raise ValueError(
                f"rows must have been written before they are read, got {never} of {rows.numel()} "
                "that never were"
            )

    def _about(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "identity": self.identity,
            "num_rows": self.num_rows,
            "width": self.width,
            "dtype": self.dtype,
        }

    @property
    def _size(self) -> int:
        numbers = self.num_rows * self.width * BANK_DTYPES[self.dtype].itemsize
        return _HEAD + _rounded(8 * self.num_rows) + numbers

    def _head(self) -> bytes:
        about = json.dumps({"gtkern": "memory bank", **self._about()}).encode()
        if len(about) > _DRIFT:
            raise ValueError(f"identity must be shorter, got {len(self.identity)} characters")
        return about.ljust(_DRIFT) + bytes(_HEAD - _DRIFT)

    def _make(self, path: pathlib.Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            with open(part, "wb") as file:
                file.write(self._head())
                # blocks are taken when they are written
                file.truncate(self._size)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    def _check(self, path: pathlib.Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"expected the file {path} of a memory bank, got none")
        with open(path, "rb") as file:
            head = file.read(_DRIFT)
        try:
            about = json.loads(head)
            about = dict(about) if about.pop("gtkern") == "memory bank" else None
        except (ValueError, AttributeError, KeyError, TypeError):
            about = None
        if about is None:
            raise ValueError(f"{path} must be the file of a memory bank, and is not")
        self._must_equal(about, str(path))
        if path.stat().st_size != self._size:
            raise ValueError(
                f"{path} must have {self._size} bytes, got {path.stat().st_size}: it is not whole"
            )

    def _must_equal(self, about: Mapping[str, Any], what: str) -> None:
        for name, value in self._about().items():
            if about.get(name) != value:
                raise ValueError(
                    f"{what} is of another memory bank: {name} must be {value!r}, got "
                    f"{about.get(name)!r}"
                )


def _rounded(size: int) -> int:
    """Up to whole pages."""
    return -(-size // _HEAD) * _HEAD
