"""The cases in small under pytest-benchmark, for regression tracking: pytest bench."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench.harness import Case, Room
from bench.run import chosen_backends, load_room, quick_case, room_names

ROOMS = [load_room(name) for name in room_names()]
LINES = [(room, case, passes) for room in ROOMS for case in room.cases for passes in case.passes]


@pytest.mark.parametrize(
    ("room", "case", "passes"), LINES, ids=[f"{r.name}-{c.name}-{p}" for r, c, p in LINES]
)
def test_case(
    benchmark: Callable[[Callable[[], Any]], Any],
    room: Room,
    case: Case,
    passes: str,
    device: torch.device,
) -> None:
    if case.device not in ("", device.type):
        pytest.skip(f"is a case for {case.device}")
    problem = room.prepare(quick_case(case), device)
    call = room.own(problem, passes, chosen_backends(room, device, None)[0])

    def run() -> None:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    benchmark(run)
