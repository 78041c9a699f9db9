"""Odd inputs, the short form; `make fuzz` tries thousands of each room."""

from __future__ import annotations

import pytest
import torch
from fuzz import judge
from fuzz.rooms import ROOMS
from fuzz.worker import run

CASES = 120


@pytest.mark.parametrize("room", ROOMS)
def test_odd_inputs_are_served_or_refused_in_plain_words(room: str) -> None:
    # what is tried is small: threads would only wait for each other
    torch.set_num_threads(1)
    tally = run(room, 0, range(CASES))
    listed = "\n".join(f"--case {number}: {fault}" for number, fault in tally.faults.items())
    assert not tally.faults, f"PYTHONPATH=tests python -m fuzz --room {room}:\n{listed}"
    # both kinds were tried
    assert min(tally.counts["returned"], tally.counts["refused"]) > CASES // 10


def _quiet(q: int) -> int:
    return q


def _raising(q: int) -> int:
    raise KeyError(q)


@pytest.mark.parametrize(
    ("function", "expect", "message"),
    [
        (_raising, lambda results, arguments: None, "raised KeyError"),
        (_quiet, lambda results, arguments: 1 / 0, "does not promise"),
    ],
)
def test_the_judge_finds_faults(function: object, expect: object, message: str) -> None:
    case = judge.Case(function, {"q": 3}, expect, backends=False)  # type: ignore[arg-type]
    with pytest.raises(judge.Fault, match=message):
        judge.judge(case, plain=True)


def test_words_of_torch_are_no_refusal() -> None:
    case = judge.Case(torch.arange, {"end": "x"}, lambda *_: None, backends=False)
    with pytest.raises(judge.Fault, match="in words that are not gtkern's"):
        judge.judge(case, plain=False)
