"""Calls of propagate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from gtkern import ops
from gtkern.ops import Report

from ..draw import FLOATS, Draw
from ..judge import Case, promise


def case(draw: Draw) -> Case:
    given = draw.chance(0.4)
    graph = draw.graph(square=True) if given else draw.symmetric_graph()
    nodes, channels = graph.num_dst_nodes, draw.one((0, 1, 1, 3, 17, 40))
    kind = draw.one((torch.float32, *FLOATS))
    arguments: dict[str, Any] = {
        "graph": graph,
        "x": draw.floats(nodes, channels, dtype=kind),
        "alpha": draw.one((0.1, 0.5, 0.95, 0.02)),
        "return_report": draw.chance(0.3),
        "backend": draw.backend(),
    }
    if given:
        # rows that sum to 1 at most, so that the plain sweep contracts
        degree = graph.degree().clamp(min=1)
        weight = (1.0 / degree)[graph.edge_index()[1]]
        arguments["weight"] = weight.to(draw.one((torch.float32, *FLOATS)))
        arguments["method"] = "power"
    elif draw.chance(0.5):
        arguments["method"] = draw.one(("chebyshev", "power"))
    steps = draw.chance(0.6)
    if not steps:
        # a tolerance is relative to x
        arguments["x"] = draw.floats(nodes, channels, dtype=kind, usual=True)
    if steps:
        arguments["steps"] = draw.random.randint(1, 12)
    elif kind != torch.float64 or draw.chance(0.5):
        # float32 sums need not reach the default
        arguments["tol"] = draw.one((1e-3, 1e-4, 2e-5))
        arguments["max_iter"] = draw.one((20_000, 100_000))
    for start, share in (("z0", "beta"), ("g0", "theta")):
        if draw.chance(0.3):
            arguments[start] = draw.floats(nodes, channels, dtype=kind)
            arguments[share] = draw.one((0.0, 0.3, 1, torch.rand(nodes, generator=draw.generator)))
    learn = ("x",) if draw.chance(0.6) else ()
    twisted = draw.twist(arguments)
    alpha = twisted["alpha"]
    if isinstance(alpha, float) and 0 < alpha < 1e-3:
        # so many sweeps that the default limit allows them
        twisted.setdefault("steps", 5)
        twisted.pop("tol", None)
        twisted.pop("max_iter", None)
    # residuals stop backends at different sweeps
    oracle = twisted.get("steps") is not None and "g0" not in arguments
    # a node's own loops count as one, which cancels where it has many
    loops = 4 + graph.num_edges
    return Case(ops.propagate, twisted, expect, gradients=learn, oracle=oracle, growth=loops)


def expect(results: Any, arguments: Mapping[str, Any]) -> None:
    x = arguments["x"]
    if arguments["return_report"]:
        results, report = results
        assert isinstance(report, Report)
        assert report.sweeps >= 0
        if arguments.get("steps") is not None and x.numel():
            assert report.sweeps == arguments["steps"]
    promise(results, [*x.shape], x.dtype)


CASES = (case,)
