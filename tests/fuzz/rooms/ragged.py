"""Calls of what makes a Ragged or a PairIndex."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from gtkern import PairIndex, Ragged

from ..draw import Draw
from ..judge import Case


def from_ptr(draw: Draw) -> Case:
    ptr = draw.ragged().ptr.to(draw.one((torch.int32, torch.int64)))
    return Case(Ragged.from_ptr, draw.twist({"ptr": ptr}), expect_ragged, backends=False)


def expect_ragged(results: Any, arguments: Mapping[str, Any]) -> None:
    assert isinstance(results, Ragged)
    assert int(results.sizes().sum()) == results.num_nodes
    assert int(results.sizes().square().sum()) == results.num_pairs
    if results.num_pairs < 10_000:
        assert results.batch().numel() == results.num_nodes
        queries, keys = results.pairs()
        assert queries.numel() == keys.numel() == results.num_pairs
    repr(results)


def from_batch(draw: Draw) -> Case:
    made = draw.ragged()
    arguments: dict[str, Any] = {"batch": made.batch().to(draw.one((torch.int32, torch.int64)))}
    if draw.chance(0.6):
        arguments["num_graphs"] = made.num_graphs
    twisted = draw.twist(arguments)
    count = twisted.get("num_graphs")
    if isinstance(count, int) and 2**20 < count < 2**40 and not draw.enormous:
        twisted["num_graphs"] = 2**40
    batch = twisted["batch"]
    if not draw.enormous and isinstance(batch, torch.Tensor) and not batch.is_meta:
        dense = batch.to_dense() if batch.layout != torch.strided else batch
        if dense.numel() and not dense.is_complex() and bool((dense > 2**20).any()):
            twisted["num_graphs"] = 3
    return Case(Ragged.from_batch, twisted, expect_ragged, backends=False)


def pair_index(draw: Draw) -> Case:
    made = draw.ragged()
    kind = draw.one((torch.uint8, torch.int16))
    entries = draw.one((1, 3, 255))
    arguments = {
        "index": draw.integers(0, entries, made.num_pairs, dtype=kind),
        "ragged": made,
        "num_entries": entries,
    }
    return Case(PairIndex.from_tensor, draw.twist(arguments), expect_index, backends=False)


def expect_index(results: Any, arguments: Mapping[str, Any]) -> None:
    assert isinstance(results, PairIndex)
    assert results.num_pairs == arguments["ragged"].num_pairs
    assert torch.equal(results.index, arguments["index"])


CASES = (from_ptr, from_batch, pair_index)
