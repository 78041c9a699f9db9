"""Measures one case: gtkern's backends and the peers in one race, each checked before."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bench import harness
from bench.harness import Case, Clock, Peer, Problem, Room, Samples, Unsupported
from bench.limits import Limits
from bench.records import Record

__all__ = ["exact_results", "measure"]

_REFERENCE_COPIES = 6
"""Of a row for each edge, at the peak of the reference's forward and backward."""
LARGEST_ERROR = {"float64": 1e-6, "float32": 1e-3, "bfloat16": 5e-2, "float16": 1e-2}


@dataclass
class _Side:
    name: str
    call: harness.Call | None
    record: Record
    backend: str = ""
    peer: Peer | None = None


def measure(
    room: Room,
    problem: Problem,
    passes: str,
    *,
    backends: Sequence[str],
    peers: Sequence[str],
    clock: Clock,
    limits: Limits,
    budget_s: float,
    most: int = 30,
    exact: Any = None,
) -> list[Record]:
    """Measure one pass of one case: gtkern's backends and the peers, in one race.

    Args:
        room, problem, passes: what.
        backends: of gtkern; the first one is what ratios refer to.
        peers: names from the room.
        clock, budget_s, most: see harness.race.
        limits: of the same device.
        exact: what `exact_results` gave, for backends to be held to before they are timed.

    Returns:
        One record for each side, backends first. A backend that fails or is wrong is not timed,
        and its note says so.
    """
    case = problem.case
    if any(room.peers[name].compiled for name in peers):
        # else torch's limit of variants is reached some cases later, and peers run uncompiled
        torch.compiler.reset()
    sides: list[_Side] = []
    for backend in backends:
        sides.append(
            _Side(f"gtkern-{backend}", None, Record("", "", "", "", "", ""), backend=backend)
        )
    for name in peers:
        sides.append(_Side(name, None, Record("", "", "", "", "", ""), peer=room.peers[name]))
    for side in sides:
        side.record = Record(
            room.name, case.name, case.describe(), passes, case.dtype, side.name,
            caches=clock.caches, prepare_ms=problem.prepare_s * 1e3, published=case.published,
        )  # fmt: skip
    expected: Any = None
    for side in sides:
        expected = _first_call(side, room, problem, passes, expected, exact)
    del expected

    runners = [side for side in sides if side.call is not None]
    calls = [side.call for side in runners if side.call is not None]
    samples = dict(
        zip(
            (side.name for side in runners),
            harness.race(calls, clock, budget_s=budget_s, most=most),
            strict=True,
        )
    )
    if clock.device.type == "cuda":
        _time_kernels(runners, clock, budget_s, most)
    cost = room.cost(problem, passes)
    limit = limits.gather(cost.row_bytes, cost.table_bytes) if cost.row_bytes else math.nan
    for side in runners:
        record, own = side.record, samples[side.name]
        record.ms, record.iqr_ms, record.turns = own.median * 1e3, own.spread * 1e3, len(own.turns)
        # launching is no part of what a rate or a limit says
        seconds = own.median if math.isnan(record.kernel_ms) else record.kernel_ms / 1e3
        record.gflop_s = cost.flops / seconds / 1e9 if cost.flops else math.nan
        record.medge_s = cost.edges / seconds / 1e6 if cost.edges else math.nan
        if side.backend:
            record.gb_s = cost.bytes / seconds / 1e9
            record.gather_limit_gb_s = limit / 1e9
            record.gather_fraction = cost.bytes / seconds / limit
            record.copy_fraction = cost.bytes / seconds / limits.copy
            if room.bound == "matmul":
                record.matmul_fraction = cost.flops / seconds / limits.matmul(case.dtype)
            record.bound, record.bound_goal = room.bound, case.bound_goals.get(passes, math.nan)
            record.rate_goal = case.rate_goals.get(passes, math.nan)
    rivals = case.rivals or room.goal_peers
    _fill_ratios(sides, samples, rivals, case.goals.get(passes, math.nan))
    return [side.record for side in sides]


def exact_results(room: Room, case: Case, passes: str, device: torch.device) -> Any:
    """What the reference computes in float64 from the case's values, for `measure` to compare.

    Returns:
        The results; None where the device has too little memory for the reference, and backends
        are compared with each other alone.
    """
    rows = case.graph.num_edges or case.graph.num_dst * case.sizes.get("K", 0)
    numbers = rows * case.sizes.get("H", 0) * case.sizes.get("D", 1)
    if 8 * _REFERENCE_COPIES * numbers > harness.available_memory(device):
        return None
    try:
        problem = room.prepare(dataclasses.replace(case, exact=room.widens), device)
        return room.own(problem, passes, "reference")()
    except torch.OutOfMemoryError:
        return None
    finally:
        problem = None
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _time_kernels(sides: list[_Side], clock: Clock, budget_s: float, most: int) -> None:
    """Fill in `kernel_ms` of the sides whose calls a CUDA graph can hold."""
    replays: list[tuple[_Side, harness.Call]] = []
    for side in sides:
        assert side.call is not None
        peer = side.peer
        if peer is not None and (peer.numpy or not peer.replays):
            continue
        gc.collect()
        torch.cuda.empty_cache()
        # each graph keeps the memory of its call
        if side.record.peak_mib * 2**20 * 2 > harness.available_memory(clock.device):
            continue
        # what waits for the device cannot be captured, and has no such time
        with contextlib.suppress(Exception):
            replays.append((side, harness.replayed(side.call, clock.device)))
    calls = [call for _, call in replays]
    queued = Clock(clock.device, cold=clock.cold, queued=True)
    samples = harness.race(calls, queued, budget_s=budget_s, most=most)
    for (side, _), own in zip(replays, samples, strict=True):
        side.record.kernel_ms = own.median * 1e3


def _first_call(
    side: _Side, room: Room, problem: Problem, passes: str, expected: Any, exact: Any
) -> Any:
    """Warm up, measure memory, compare the result; a side that cannot run loses its call.

    Returns:
        What later sides are compared with.
    """
    peer = side.peer
    largest = LARGEST_ERROR[problem.case.dtype]
    try:
        if peer is not None:
            if side.name in problem.case.skips:
                raise Unsupported("is measured on other cases")
            needed, there = peer.memory(problem, passes), harness.available_memory(problem.device)
            if needed > 0.9 * there:
                raise Unsupported(
                    f"needs {needed / 2**30:.1f} GiB of memory, {there / 2**30:.1f} GiB are there"
                )
            side.call = peer.make(problem, passes)
            if peer.compiled:
                side.call()
        else:
            side.call = room.own(problem, passes, side.backend)
        result, peak = harness.peak_memory(
            side.call, problem.device, numpy=peer is not None and peer.numpy
        )
        side.record.peak_mib = peak / 2**20
        if peer is None and exact is not None:
            side.record.error = harness.relative_error(result, exact)
        apart = 0.0
        if room.same and expected is not None:
            apart = harness.relative_error(result, expected)
    except Unsupported as reason:
        side.call, side.record.note = None, str(reason)
        return expected
    except Exception as error:
        # a side may fail in ways of its own; the row says so, and the others are still measured
        text = str(error).strip().splitlines() or [""]
        side.call, side.record.note = None, f"{type(error).__name__}: {text[0]}"[:200]
        return expected
    if peer is None and exact is not None and not side.record.error <= largest:
        side.call = None
        side.record.note = f"wrong by {side.record.error:.1e}, at most {largest:.0e} is allowed"
        return expected
    if not room.same:
        return None
    if not apart <= largest:
        side.record.note = f"result differs from gtkern's by {apart:.1e}"
    return result if expected is None else expected


def _fill_ratios(
    sides: list[_Side], samples: dict[str, Samples], rivals: Sequence[str], goal: float
) -> None:
    base = next((samples[side.name] for side in sides if side.backend and side.call), None)
    fastest = [samples[name] for name in rivals if name in samples]
    for side in sides:
        if side.name not in samples:
            continue
        if side.peer is not None:
            side.record.ratio = math.nan if base is None else samples[side.name].ratio_to(base)
        elif fastest:
            side.record.goal = goal
            side.record.ratio = min(rival.ratio_to(samples[side.name]) for rival in fastest)
