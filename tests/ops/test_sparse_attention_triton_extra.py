"""The tiles that GPUs get, run in the interpreter, which otherwise takes larger ones."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from gtkern import _backends, ops
from gtkern.testing import assert_within_budget, random_graph


@pytest.mark.skipif(not _backends.triton_interpreted(), reason="a GPU takes these tiles anyway")
@pytest.mark.parametrize(
    ("nodes", "edges", "types", "heads", "width", "edge_width"),
    [
        pytest.param(9, 40, 6, 2, 4, 3, id="rows side by side, two rounds of types"),
        pytest.param(3, 24, 2, 5, 64, 0, id="two groups of heads, one row"),
        pytest.param(3, 16, 0, 5, 64, 5, id="all heads in one program"),
    ],
)
def test_gpu_tiles_give_the_reference(
    nodes: int,
    edges: int,
    types: int,
    heads: int,
    width: int,
    edge_width: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # the package's attribute of this name is the op
    backend = importlib.import_module("gtkern.ops.sparse_attention.triton")
    monkeypatch.setattr(backend, "triton_interpreted", lambda: False)
    graph = random_graph("uniform", nodes, edges, num_edge_types=types, seed=1)
    arguments = {name: torch.randn(nodes, heads, width) for name in ("q", "k", "v")}
    options: dict[str, Any] = {"dropout": 0.3, "seed": 7, "return_scores": True}
    if types:
        arguments["key_scale"] = torch.randn(types, heads, width)
        arguments["bias"] = torch.randn(types, heads)
    if edge_width:
        arguments["edge_query"] = torch.randn(nodes, heads, edge_width)
        arguments["edge_attr"] = torch.randn(edges, edge_width)

    def run(backend: str, dtype: torch.dtype) -> list[torch.Tensor]:
        leaves = {name: value.to(dtype).requires_grad_() for name, value in arguments.items()}
        results = ops.sparse_attention(graph=graph, backend=backend, **leaves, **options)
        torch.manual_seed(1)
        directions = [torch.randn(result.shape).to(result.dtype) for result in results]
        return [*results, *torch.autograd.grad(results, list(leaves.values()), directions)]

    found, expected = run("triton", torch.float32), run("reference", torch.float64)
    for number, (actual, right) in enumerate(zip(found, expected, strict=True)):
        assert_within_budget(actual, right, name=f"result {number}", unit=1.0)
