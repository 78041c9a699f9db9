"""What tests of kernels need: error budgets per dtype and random graphs by degree law.

The tests of gtkern use these, and so can the tests of code built on it::

    graph = testing.random_graph("power_law", 1_000, 8_000, seed=0)
    actual = my_attention(q, k, v, graph)
    expected = my_attention(q.double(), k.double(), v.double(), graph)
    testing.assert_within_budget(actual, expected, name="my_attention")
"""

from __future__ import annotations

from types import MappingProxyType

import torch
from torch import Tensor

from gtkern.graph import Graph

__all__ = [
    "ERROR_BUDGET",
    "LAWS",
    "assert_within_budget",
    "error_budget",
    "random_edges",
    "random_graph",
    "relative_error",
]

ERROR_BUDGET = MappingProxyType(
    {
        torch.float64: 1e-13,
        torch.float32: 1e-5,
        torch.float16: 4e-3,
        torch.bfloat16: 3.2e-2,
    }
)
"""The largest relative error (see `relative_error`) of an op against float64 maths on the same
inputs. Half types are read exactly, summed in float32 and rounded on the way out; backward reads
rounded outputs again: their budgets are eight units of rounding. One table for every op and
backend."""

LAWS = ("hub", "power_law", "regular", "uniform")
"""The degree laws of `random_edges`."""


def error_budget(dtype: torch.dtype) -> float:
    """The largest relative error that a result of `dtype` may have.

    Raises:
        ValueError: no budget is known for `dtype`.
    """
    if dtype not in ERROR_BUDGET:
        known = ", ".join(str(name) for name in ERROR_BUDGET)
        raise ValueError(f"dtype must be one of {known}, got {dtype}")
    return ERROR_BUDGET[dtype]


def relative_error(actual: Tensor, expected: Tensor, *, unit: float = 0.0) -> float:
    """The largest absolute difference, relative to the largest expected value.

    Args:
        actual: the result under test, any floating dtype.
        expected: its float64 reference, same shape.
        unit: the size below which a difference is not magnified: the error is divided by
            max(unit, max |expected|). Gradients that cancel to zero need one; 0 is strict.

    Returns:
        max |actual - expected| / max(unit, max |expected|); 0 for equal or empty tensors; inf where
        one is NaN or infinite and the other is not the same.

    Raises:
        ValueError: the shapes differ.
    """
    if actual.shape != expected.shape:
        raise ValueError(
            f"actual must have the shape of expected {list(expected.shape)}, "
            f"got {list(actual.shape)}"
        )
    if actual.numel() == 0:
        return 0.0
    actual, expected = actual.detach().double(), expected.detach().to(actual.device).double()
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    if bool(same.all()):
        return 0.0
    if not bool((same | (actual.isfinite() & expected.isfinite())).all()):
        return float("inf")
    difference = torch.where(same, 0.0, actual - expected).abs().max().item()
    finite = torch.where(expected.isfinite(), expected, 0.0)
    size = max(unit, finite.abs().max().item())
    return difference / size if size > 0 else float("inf")


def assert_within_budget(
    actual: Tensor,
    expected: Tensor,
    *,
    name: str = "actual",
    dtype: torch.dtype | None = None,
    unit: float = 0.0,
) -> None:
    """Fail unless `actual` is as close to `expected` as its dtype allows.

    Args:
        actual, expected, unit: as `relative_error`.
        name: what is compared, for the message.
        dtype: whose budget holds; default: that of `actual`. Name the input's dtype for a wider
            result that was computed from narrow values.

    Raises:
        AssertionError: too far apart; the message says how far, where, and both values.
        ValueError: the shapes differ, or the dtype has no budget.
    """
    dtype = actual.dtype if dtype is None else dtype
    budget = error_budget(dtype)
    error = relative_error(actual, expected, unit=unit)
    if error <= budget:
        return
    a, b = actual.detach().double(), expected.detach().to(actual.device).double()
    gap = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs())
    at = int(gap.nan_to_num(nan=torch.inf).argmax())
    where = [int(part) for part in torch.unravel_index(torch.tensor(at), a.shape)]
    raise AssertionError(
        f"{name} is off by {error:.3g} of its size, the budget of {dtype} is {budget:.3g}: "
        f"worst at {where}, got {a.flatten()[at].item():.9g}, "
        f"expected {b.flatten()[at].item():.9g}"
    )


def random_edges(
    law: str,
    num_nodes: int | tuple[int, int],
    num_edges: int,
    *,
    seed: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw an edge list by a degree law; duplicates and self loops occur as they fall.

    Args:
        law: "uniform": both ends at random. "regular": destinations in turn, sources at random.
            "power_law": the node of rank r is an end with probability proportional to (r + 1)^-0.8,
            ranks shuffled for each end. "hub": half of the edges come into destination 0 and a
            quarter leave source 0, the other ends at random.
        num_nodes: N, or (N_src, N_dst) for a bipartite graph.
        num_edges: E.
        seed: of the draw; the same on every device.
        device: where the result goes.

    Returns:
        int64 [2, E]: sources, then destinations, in random order.

    Raises:
        ValueError: an unknown law, a negative size, or edges without nodes.
    """
    if law not in LAWS:
        raise ValueError(f"law must be one of {', '.join(LAWS)}, got {law!r}")
    num_src, num_dst = num_nodes if isinstance(num_nodes, tuple) else (num_nodes, num_nodes)
    if min(num_src, num_dst, num_edges) < 0:
        raise ValueError(
            f"num_nodes and num_edges must not be negative, got {num_nodes} and {num_edges}"
        )
    if num_edges and not (num_src and num_dst):
        raise ValueError(f"num_nodes must be positive where there are edges, got {num_nodes}")
    generator = torch.Generator().manual_seed(seed)
    if num_edges == 0:
        return torch.empty(2, 0, dtype=torch.int64, device=device)
    source = torch.randint(num_src, (num_edges,), generator=generator)
    destination = torch.randint(num_dst, (num_edges,), generator=generator)
    if law == "regular":
        destination = torch.arange(num_edges) % num_dst
    elif law == "power_law":
        source = _by_rank(num_src, num_edges, generator)
        destination = _by_rank(num_dst, num_edges, generator)
    elif law == "hub":
        destination[: num_edges // 2] = 0
        source[num_edges // 2 : num_edges // 2 + num_edges // 4] = 0
    order = torch.randperm(num_edges, generator=generator)
    return torch.stack((source, destination))[:, order].to(device)


def random_graph(
    law: str,
    num_nodes: int | tuple[int, int],
    num_edges: int,
    *,
    num_edge_types: int = 0,
    seed: int,
    device: torch.device | str = "cpu",
) -> Graph:
    """A graph from `random_edges`, with uniformly drawn edge types where num_edge_types > 0.

    Every type occurs where there are enough edges.

    Raises:
        ValueError: as `random_edges`, or num_edge_types outside 0 .. 256.
    """
    if not 0 <= num_edge_types <= 256:
        raise ValueError(f"num_edge_types must be 0 .. 256, got {num_edge_types}")
    edges = random_edges(law, num_nodes, num_edges, seed=seed, device=device)
    edge_type = None
    if num_edge_types:
        generator = torch.Generator().manual_seed(seed + 1)
        edge_type = torch.randint(num_edge_types, (num_edges,), generator=generator)
        every = min(num_edge_types, num_edges)
        edge_type[:every] = torch.arange(num_edge_types - every, num_edge_types)
        edge_type = edge_type.to(device)
    return Graph.from_edge_index(edges, num_nodes, edge_type=edge_type)


def _by_rank(num_nodes: int, count: int, generator: torch.Generator) -> Tensor:
    weight = torch.arange(1, num_nodes + 1, dtype=torch.float64) ** -0.8
    rank = torch.multinomial(weight, count, replacement=True, generator=generator)
    return torch.randperm(num_nodes, generator=generator)[rank]
