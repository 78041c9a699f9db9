"""When the rows of neighbours are encoded anew."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gtkern.methods.leading.bank import MemoryBank

__all__ = ["REFRESH_POLICIES", "Refresh"]

REFRESH_POLICIES = ("epoch", "rolling", "age")
"""All of them at the start of an epoch; the oldest at every step; those beyond an age."""


@dataclass(frozen=True)
class Refresh:
    """Which rows to encode before they are read. Those never written always are, by every policy.

    Args:
        policy: "epoch": all rows at the start of every `period`-th epoch. "rolling": at every step
            those of its rows that were written longest ago, `limit` in all. "age": at every step
            those of its rows that were written more than `period` steps ago.
        period: in epochs or steps, at least 1; "rolling" has none.
        limit: rows at a step, at least 1; of "rolling" alone.

    Raises:
        ValueError: an unknown policy, or a number that does not go with it.

    Reference: Xue et al. 2023 (LEADING) encode a neighbour about once in an epoch; the schedule is
        not published.
    """

    policy: str = "epoch"
    period: int = 1
    limit: int = 0

    def __post_init__(self) -> None:
        if self.policy not in REFRESH_POLICIES:
            raise ValueError(
                f"policy must be one of {', '.join(REFRESH_POLICIES)}, got {self.policy!r}"
            )
        if self.period < 1:
            raise ValueError(f"period must be at least 1, got {self.period}")
        if self.policy == "rolling":
            if self.limit < 1 or self.period != 1:
                raise ValueError(
                    "policy 'rolling' needs a limit of at least 1 and no period, got limit "
                    f"{self.limit} and period {self.period}"
                )
        elif self.limit:
            raise ValueError(f"limit is of policy 'rolling' alone, got {self.limit}")

    def at_epoch(self, bank: MemoryBank, rows: Tensor, epoch: int, step: int) -> Tensor:
        """The rows to encode at the start of an epoch.

        Args:
            bank: that will hold them.
            rows: int64, all that the epoch will read.
            epoch: from 0.
            step: now, counted over all epochs.

        Returns:
            int64, sorted, each once; by "rolling" and "age" none.
        """
        if self.policy != "epoch":
            return rows.new_empty(0, device="cpu")
        if epoch % self.period == 0:
            every: Tensor = rows.cpu().unique()
            return every
        return bank.due(rows, step)

    def at_step(self, bank: MemoryBank, rows: Tensor, step: int) -> Tensor:
        """The rows to encode before a step reads them.

        Args:
            bank: that will hold them.
            rows: int64, those that the step reads.
            step: now.

        Returns:
            int64, sorted, each once.
        """
        if self.policy == "rolling":
            return bank.due(rows, step, oldest=self.limit)
        return bank.due(rows, step, older_than=self.period if self.policy == "age" else None)
