"""The tiles that GPUs get, run in the interpreter, which otherwise takes larger ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gtkern import _backends, ops
from gtkern.testing import assert_within_budget, random_graph

if _backends.unavailable_reason("triton", torch.device("cuda")) is None:
    from gtkern.ops import _triton_attention

OPTIONS: dict[str, Any] = {"dropout": 0.3, "seed": 7, "return_scores": True}


@pytest.fixture(autouse=True)
def gpu_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    if not _backends.triton_interpreted():
        pytest.skip("a GPU takes these tiles anyway")
    monkeypatch.setattr(_triton_attention, "triton_interpreted", lambda: False)


def compare(attend: Callable[..., tuple[Tensor, ...]], arguments: dict[str, Tensor]) -> None:
    """Results and gradients of the triton backend against the reference's."""

    def run(backend: str, dtype: torch.dtype) -> list[Tensor]:
        leaves = {name: value.to(dtype).requires_grad_() for name, value in arguments.items()}
        results = attend(backend=backend, **leaves, **OPTIONS)
        torch.manual_seed(1)
        directions = [torch.randn(result.shape).to(result.dtype) for result in results]
        return [*results, *torch.autograd.grad(results, list(leaves.values()), directions)]

    found, expected = run("triton", torch.float32), run("reference", torch.float64)
    for number, (actual, right) in enumerate(zip(found, expected, strict=True)):
        assert_within_budget(actual, right, name=f"result {number}", unit=1.0)


@pytest.mark.parametrize(
    ("nodes", "edges", "types", "heads", "width", "edge_width"),
    [
        pytest.param(9, 40, 6, 2, 4, 3, id="rows side by side, two rounds of types"),
        pytest.param(3, 24, 2, 5, 64, 0, id="two groups of heads, one row"),
        pytest.param(3, 16, 0, 5, 64, 5, id="all heads in one program"),
    ],
)
def test_rows_of_a_graph(
    nodes: int, edges: int, types: int, heads: int, width: int, edge_width: int
) -> None:
    graph = random_graph("uniform", nodes, edges, num_edge_types=types, seed=1)
    arguments = {name: torch.randn(nodes, heads, width) for name in ("q", "k", "v")}
    if types:
        arguments["key_scale"] = torch.randn(types, heads, width)
        arguments["bias"] = torch.randn(types, heads)
    if edge_width:
        arguments["edge_query"] = torch.randn(nodes, heads, edge_width)
        arguments["edge_attr"] = torch.randn(edges, edge_width)
    compare(lambda **leaves: ops.sparse_attention(graph=graph, **leaves), arguments)


@pytest.mark.parametrize(
    ("nodes", "degree", "types", "heads", "width", "edge_width"),
    [
        pytest.param(9, 5, 6, 2, 4, 3, id="rows side by side, two rounds of types"),
        pytest.param(3, 9, 2, 5, 64, 0, id="two groups of heads, one row"),
    ],
)
def test_rows_of_places(
    nodes: int, degree: int, types: int, heads: int, width: int, edge_width: int
) -> None:
    neighbors = torch.randint(-1, nodes, (nodes, degree), dtype=torch.int32)
    kind = torch.randint(types, neighbors.shape, dtype=torch.uint8)
    arguments = {name: torch.randn(nodes, heads, width) for name in ("q", "k", "v")}
    arguments["key_scale"] = torch.randn(types, heads, width)
    arguments["bias"] = torch.randn(nodes, degree, heads)
    if edge_width:
        arguments["edge_query"] = torch.randn(nodes, heads, edge_width)
        arguments["edge_attr"] = torch.randn(nodes, degree, edge_width)
    compare(
        lambda **leaves: ops.sampled_attention(neighbors=neighbors, edge_type=kind, **leaves),
        arguments,
    )
