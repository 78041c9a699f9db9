"""Calls of gtkern.transforms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from gtkern import transforms

from ..draw import Draw
from ..judge import Case, promise


def packed(draw: Draw) -> dict[str, Any]:
    """Several graphs in one edge_index, and where each begins."""
    ragged = draw.ragged()
    edges = [torch.empty(2, 0, dtype=torch.int64)]
    for first, size in zip(ragged.ptr.tolist(), ragged.sizes().tolist(), strict=False):
        edges.append(draw.edges(size, size, draw.random.randint(0, 9)) + first)
    return {"edge_index": torch.cat(edges, 1), "ptr": ragged.ptr}


def pairs_of(arguments: Mapping[str, Any]) -> int:
    return int(arguments["ptr"].diff().square().sum())


def hops(draw: Draw) -> Case:
    arguments = {**packed(draw), "max_hops": draw.one((1, 3, 32766))}
    names = (*arguments, "max_nodes")
    twisted = draw.twist(arguments)
    return Case(transforms.hop_distances, twisted, expect_hops, backends=False, names=names)


def expect_hops(results: Any, arguments: Mapping[str, Any]) -> None:
    promise(results, [pairs_of(arguments)], torch.int16)
    assert bool(((results >= 0) & (results <= arguments["max_hops"] + 1)).all())


def paths(draw: Draw) -> Case:
    arguments = {**packed(draw), "max_length": draw.one((1, 3, 9))}
    names = (*arguments, "max_nodes")
    twisted = draw.twist(arguments)
    return Case(transforms.shortest_path_edges, twisted, expect_paths, backends=False, names=names)


def expect_paths(results: Any, arguments: Mapping[str, Any]) -> None:
    promise(results, [pairs_of(arguments), arguments["max_length"]], torch.int32)
    assert bool(((results >= -1) & (results < max(arguments["edge_index"].size(1), 1))).all())


def walks(draw: Draw) -> Case:
    arguments = {**packed(draw), "steps": draw.one((1, 3, 16))}
    twisted = draw.twist(arguments)
    ptr = twisted["ptr"]
    if isinstance(ptr, torch.Tensor) and not ptr.is_meta and ptr.layout == torch.strided:
        large = not ptr.is_complex() and bool((ptr.double().flatten().diff() > 2**12).any())
        # the time grows with the square of the nodes
        twisted["ptr"] = ptr.clamp(max=9) if large else ptr
    return Case(transforms.random_walk_encoding, twisted, expect_walks, backends=False)


def expect_walks(results: Any, arguments: Mapping[str, Any]) -> None:
    promise(results, [int(arguments["ptr"][-1]), arguments["steps"]], torch.float32)
    assert bool(((results >= 0) & (results <= 1 + 1e-5)).all())


def degrees(draw: Draw) -> Case:
    nodes = draw.size()
    arguments = {"edge_index": draw.edges(nodes, nodes, 9), "num_nodes": nodes}
    twisted = draw.twist(arguments)
    if isinstance(twisted["num_nodes"], int) and 2**20 < twisted["num_nodes"] < 2**31:
        twisted["num_nodes"] = 2**31
    return Case(transforms.degrees, twisted, expect_degrees, backends=False)


def expect_degrees(results: Any, arguments: Mapping[str, Any]) -> None:
    for value in results:
        promise(value, [arguments["num_nodes"]], torch.int64)
        assert int(value.sum()) == arguments["edge_index"].size(1)


def expander(draw: Draw) -> Case:
    arguments = {
        "num_nodes": draw.one((0, 1, 9, 11, 30)),
        "degree": draw.one((1, 2, 5, 40)),
        "algorithm": draw.one(("hamiltonian", "random_d", "random_d_2")),
        "seed": draw.one((0, 5, -9, None)),
        "remove_duplicates": draw.chance(0.3),
        "max_tries": draw.one((1, 5)),
    }
    twisted = draw.twist(arguments)
    if twisted["num_nodes"] in (2**20, 2**31 - 1):
        twisted["num_nodes"] = 2**31
    return Case(transforms.expander_edges, twisted, expect_expander, backends=False)


def expect_expander(results: Any, arguments: Mapping[str, Any]) -> None:
    promise(results, [2, results.size(1)], torch.int64)
    if results.numel():
        assert int(results.min()) >= 0 and int(results.max()) < arguments["num_nodes"]


def gap(draw: Draw) -> Case:
    nodes = max(draw.size(), 1)
    half = draw.edges(nodes, nodes, 12)
    arguments = {"edge_index": torch.cat((half, half.flip(0)), 1), "num_nodes": nodes}
    twisted = draw.twist(arguments)
    if isinstance(twisted["num_nodes"], int) and 2**20 < twisted["num_nodes"] < 2**31:
        twisted["num_nodes"] = 2**31
    return Case(transforms.spectral_gap, twisted, expect_gap, backends=False)


def expect_gap(results: Any, arguments: Mapping[str, Any]) -> None:
    assert isinstance(results, float) and results >= 0


CASES = (hops, paths, walks, degrees, expander, gap)
