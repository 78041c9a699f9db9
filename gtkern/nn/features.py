"""The first layer of a model of graphs: features of any kind to C channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["FeatureEncoder"]


class FeatureEncoder(nn.Module):
    """Features of nodes or edges to C channels, whatever their kind.

    Float features go through a linear layer; of integer ones each column has a table of C channels
    a value, and what the columns look up adds up, as OGB's atom and bond encoders do. Where there
    are no features, every row is one learned vector.

    Args:
        features: F for float features [rows, F]; or the number of values of each column of integer
            features [rows, columns]; or None.
        width: C.

    Reference: Hu et al. 2020 (OGB), section 4.
    """

    offset: Tensor

    def __init__(self, features: int | Sequence[int] | None, width: int) -> None:
        super().__init__()
        self.features = tuple(features) if isinstance(features, Sequence) else features
        self.width = width
        sizes = (features,) if isinstance(features, int) else features or (1,)
        if min(sizes) < 1:
            raise ValueError(f"features must be at least 1 each, got {features}")
        self.linear = nn.Linear(features, width) if isinstance(features, int) else None
        self.table = None if isinstance(features, int) else nn.Embedding(sum(sizes), width)
        offset = torch.tensor((0, *sizes[:-1])).cumsum(0)
        self.register_buffer("offset", offset, persistent=False)

    def forward(self, x: Tensor | None, rows: int, name: str = "x") -> Tensor:
        """Encode features.

        Args:
            x: [rows, F] floats or [rows, columns] integers, as `features` says; one column may come
                without its axis. Not read where there are none.
            rows: R.
            name: of x, for messages.

        Returns:
            [R, C].

        Raises:
            TypeError, ValueError: x is of another kind or size. Values are compared with
                `features` on a CPU only; elsewhere that would wait for the device.
        """
        if self.features is None:
            assert self.table is not None
            return self.table.weight.expand(rows, self.width)
        if x is None:
            raise ValueError(f"{name} must be given: the model was made for features, got None")
        x = x[:, None] if x.dim() == 1 else x
        columns = self.features if isinstance(self.features, int) else len(self.features)
        if x.dim() != 2 or x.size(0) != rows or x.size(1) != columns:
            raise ValueError(
                f"{name} must have shape [rows, features] = [{rows}, {columns}], "
                f"got {list(x.shape)}"
            )
        if self.linear is not None:
            if not x.is_floating_point():
                raise TypeError(
                    f"{name} must be of floats, for the model was made for {columns} float "
                    f"features, got {x.dtype}"
                )
            out: Tensor = self.linear(x.to(self.linear.weight.dtype))
            return out
        return self._looked_up(x, name)

    def _looked_up(self, x: Tensor, name: str) -> Tensor:
        assert self.table is not None and isinstance(self.features, tuple)
        if x.is_floating_point() or x.dtype == torch.bool:
            raise TypeError(
                f"{name} must be of integers, for the model was made for integer features of "
                f"sizes {list(self.features)}, got {x.dtype}"
            )
        if x.device.type == "cpu" and x.size(0):
            low, high = x.amin(0), x.amax(0)
            wrong = (low < 0) | (high >= torch.tensor(self.features))
            if bool(wrong.any()):
                column = int(wrong.nonzero()[0])
                value = int(low[column]) if low[column] < 0 else int(high[column])
                raise ValueError(
                    f"{name} must be 0 .. {self.features[column] - 1} in column {column}, "
                    f"got {value}"
                )
        entries = x.long() + self.offset
        if len(self.features) == 1:
            return functional.embedding(entries[:, 0], self.table.weight)
        return functional.embedding_bag(entries, self.table.weight, mode="sum")

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.features}, {self.width}"
