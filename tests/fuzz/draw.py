"""Draw: valid arguments by a seed, and what may be wrong with them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from gtkern import Graph, Ragged

T = TypeVar("T")
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
DTYPES = (
    *FLOATS,
    torch.int8,
    torch.uint8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.bool,
    torch.complex64,
)
HUGE_INTEGERS = (2**31, 2**40, 2**63 - 1, 2**63, 2**64, -(2**31) - 1, -(2**63) - 1, 10**400)
NOT_A_TENSOR = (None, 3, 0.5, "x", [0.0, 1.0], (), {}, True, b"q", object(), Tensor)
NOT_AN_INTEGER = (None, 1.0, 2.5, math.nan, True, "3", [1], (), torch.tensor(2), {}, object())
NOT_A_NUMBER = (None, "0.5", True, [0.5], torch.tensor(0.5), {}, 1j, object())
NOT_A_NAME = ("", "AUTO", "none", 3, None, ["cpu"], {}, b"cpu", True, object(), torch.zeros(2))
NOT_A_FLAG = (None, 2, "yes", [], torch.tensor([True, False]), 0.0)


class Odd(Tensor):
    """A subclass of Tensor that changes nothing."""


class Draw:
    """Random values that a seed and a number fix.

    Args:
        seed: of the run.
        number: of the case.
        enormous: also draw sizes for which no memory suffices; the process must be limited.

    Attributes:
        twists: what was made wrong, or merely unusual, in words; empty: the case is a plain one.
    """

    def __init__(self, seed: int, number: int, *, enormous: bool = False) -> None:
        self.random = random.Random(f"{seed}/{number}")
        self.generator = torch.Generator().manual_seed(self.random.getrandbits(62))
        self.enormous = enormous
        self.twists: list[str] = []

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def one(self, values: Sequence[T]) -> T:
        return self.random.choice(values)

    def size(self, most: int = 9) -> int:
        """Mostly small; 0 and 1 are as likely as all others together."""
        return self.one((0, 1, 1, *(self.random.randint(1, most) for _ in range(5))))

    def maybe(self, probability: float, make: Callable[[], T]) -> T | None:
        return make() if self.chance(probability) else None

    def floats(
        self, *shape: int, dtype: torch.dtype = torch.float32, usual: bool = False
    ) -> Tensor:
        """Values that every dtype has exactly; unless `usual`, sometimes all zeros or denormal."""
        values = torch.randn(shape, generator=self.generator).to(torch.bfloat16).to(dtype)
        if usual:
            return values
        if self.chance(0.05):
            values = torch.zeros_like(values)
        elif self.chance(0.05) and dtype != torch.float64:
            values = values * torch.finfo(dtype).tiny / 8
        return values

    def integers(self, low: int, high: int, *shape: int, dtype: torch.dtype) -> Tensor:
        """Uniform in low .. high - 1; without elements where there is no such number."""
        if high <= low:
            return torch.zeros(*(0 for _ in shape), dtype=dtype)
        return torch.randint(low, high, shape, generator=self.generator).to(dtype)

    def edges(self, num_src: int, num_dst: int, count: int) -> Tensor:
        """int64 [2, E], with duplicates and self loops, and some nodes without edges."""
        if not (num_src and num_dst):
            count = 0
        last_src, last_dst = (
            self.random.randint(1, max(size, 1)) if self.chance(0.3) else max(size, 1)
            for size in (num_src, num_dst)
        )
        source = torch.randint(last_src, (count,), generator=self.generator)
        destination = torch.randint(last_dst, (count,), generator=self.generator)
        if self.chance(0.15):
            source = destination.clamp(max=max(num_src - 1, 0))
        return torch.stack((source, destination))

    def graph(self, *, square: bool = False, typed: bool | None = None) -> Graph:
        num_src = self.size()
        num_dst = num_src if square or self.chance(0.5) else self.size()
        edges = self.edges(num_src, num_dst, self.one((0, 1, 5, 20, 60)))
        kinds = None
        if self.chance(0.4) if typed is None else typed:
            kinds = torch.randint(4, (edges.size(1),), generator=self.generator)
        return Graph.from_edge_index(edges, (num_src, num_dst), edge_type=kinds)

    def symmetric_graph(self) -> Graph:
        nodes = self.size()
        edges = self.edges(nodes, nodes, self.one((0, 1, 5, 20)))
        return Graph.from_edge_index(torch.cat((edges, edges.flip(0)), 1), nodes)

    def ragged(self) -> Ragged:
        sizes = [self.size(6) for _ in range(self.size(5))]
        return Ragged.from_ptr(torch.tensor([0, *sizes]).cumsum(0))

    def backend(self) -> str:
        return self.one(("cpu", "cpu", "cpu", "auto", "reference"))

    def seed(self) -> Any:
        """Of an op: a number, a tensor or None."""
        return self.one((0, 7, 2**62, -5, torch.tensor(11), torch.tensor(2**40)))

    def twist(self, arguments: dict[str, Any], probability: float = 0.65) -> dict[str, Any]:
        """The arguments, of which one or two may have become odd."""
        if not self.chance(probability):
            return arguments
        result = dict(arguments)
        for _ in range(self.one((1, 1, 1, 2))):
            name = self.one(sorted(result))
            result[name] = self.odd(name, result[name])
        return result

    def odd(self, name: str, value: Any) -> Any:
        """Something else in place of a value."""
        if isinstance(value, Tensor):
            how, changed = self._odd_tensor(value)
        elif isinstance(value, bool):
            how, changed = "no flag", self.one(NOT_A_FLAG)
        elif isinstance(value, int):
            how, changed = "odd integer", self.odd_integer()
        elif isinstance(value, float):
            how, changed = "odd number", self.odd_number()
        elif isinstance(value, str):
            how, changed = "no name", self.one(NOT_A_NAME)
        elif isinstance(value, (list, tuple)) and value and not hasattr(value, "_fields"):
            at = self.random.randrange(len(value))
            inner = [*value]
            inner[at] = self.odd(f"{name}[{at}]", inner[at])
            return type(value)(inner) if self.chance(0.8) else self.one(NOT_A_TENSOR)
        else:
            how, changed = "another kind", self.one(NOT_A_TENSOR)
        self.twists.append(f"{name}: {how}")
        return changed

    def odd_integer(self) -> Any:
        return self.one((-1, 0, -7, *HUGE_INTEGERS, *NOT_AN_INTEGER))

    def odd_number(self) -> Any:
        sizes = (math.nan, math.inf, -math.inf, 0.0, -0.0, -1.0, 5e-324, 1e308, 1, -3, 10**400)
        return self.one((*sizes, *NOT_A_NUMBER))

    def _odd_tensor(self, value: Tensor) -> tuple[str, Any]:
        if value.layout != torch.strided:
            return "dense", value.to_dense()
        changes = [
            self._other_dtype,
            self._other_rank,
            self._other_size,
            self._other_values,
            self._other_values,
            self._other_strides,
            self._other_strides,
            self._other_kind,
        ]
        return self.one(changes)(value)

    def _other_dtype(self, value: Tensor) -> tuple[str, Any]:
        dtype = self.one(DTYPES)
        return f"as {dtype}", value.detach().to(dtype)

    def _other_rank(self, value: Tensor) -> tuple[str, Any]:
        value = value.detach()
        if value.dim() == 0 or self.chance(0.5):
            return "one more dimension", torch.stack((value, value), self.one((0, -1)))
        if self.chance(0.5) and value.size(0):
            return "one dimension less", value[0]
        return "flat", value.flatten()

    def _other_size(self, value: Tensor) -> tuple[str, Any]:
        if value.dim() == 0:
            return "expanded", value.detach().expand(2)
        axis = self.random.randrange(value.dim())
        size = value.size(axis)
        wanted = self.one((0, max(size - 1, 0), size + 1, 1, 2 * size, 257))
        places = torch.arange(wanted) % max(size, 1)
        if size == 0 and wanted:
            shape = [*value.shape]
            shape[axis] = wanted
            return f"size {wanted} at {axis}", value.new_zeros(shape)
        return f"size {wanted} at {axis}", value.detach().index_select(axis, places)

    def _other_values(self, value: Tensor) -> tuple[str, Any]:
        value = value.detach().clone(memory_format=torch.contiguous_format)
        flat = value.view(-1)
        if not flat.numel():
            return "unchanged", value
        places = self.random.sample(range(flat.numel()), self.one((1, flat.numel())))
        if value.is_floating_point():
            largest = torch.finfo(value.dtype).max
            filling = self.one((math.nan, math.inf, -math.inf, largest, -largest, -0.0, -1.0))
        elif value.dtype == torch.bool or value.is_complex():
            filling = True
        else:
            limits = torch.iinfo(value.dtype)
            choices = (-1, -2, limits.min, limits.max, 2**20, 7)
            filling = self.one([each for each in choices if limits.min <= each <= limits.max])
        flat[places] = filling
        return f"{len(places)} of {flat.numel()} values {filling}", value

    def _other_strides(self, value: Tensor) -> tuple[str, Any]:
        """The same values in another layout; nothing that may be refused."""
        value = value.detach()
        kind = self.one(("gaps", "turned", "expanded", "offset", "negated", "reversed twice"))
        if kind == "turned" and value.dim() > 1:
            return kind, value.transpose(0, -1).contiguous().transpose(0, -1)
        if kind == "expanded" and value.dim() and value.size(0):
            return "rows repeated without a copy", value[:1].expand_as(value)
        if kind == "offset":
            return kind, torch.cat((value.new_zeros(1), value.flatten()))[1:].view(value.shape)
        if kind == "negated" and value.is_floating_point():
            return "lazily negated", torch._neg_view(-value)
        if kind == "reversed twice" and value.dim():
            return kind, value.flip(0).flip(0)
        doubled = torch.stack((value, value), dim=-1).flatten(-2) if value.dim() else value
        return "gaps", doubled[..., ::2] if value.dim() else value

    def _other_kind(self, value: Tensor) -> tuple[str, Any]:
        value = value.detach()
        if value.is_meta:
            return "unchanged", value
        kind = self.one(("meta", "subclass", "parameter", "sparse", "numpy", "list", "else"))
        if kind == "meta":
            return "on meta", value.to("meta")
        if kind == "subclass":
            return "a subclass", value.as_subclass(Odd)
        if kind == "parameter" and value.is_floating_point():
            return "a Parameter", torch.nn.Parameter(value)
        if kind == "sparse" and value.dim() and type(value) is Tensor:
            return "sparse", value.to_sparse()
        if kind == "numpy" and value.dtype != torch.bfloat16 and not value.is_neg():
            return "a NumPy array", value.numpy()
        if kind == "list":
            return "a list", value.tolist()
        return "another kind", self.one(NOT_A_TENSOR)
