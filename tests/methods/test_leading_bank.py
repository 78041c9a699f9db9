"""The memory bank: stamps, drift, files that survive, and when rows are due."""

from __future__ import annotations

import json
import pathlib
import signal
import subprocess
import sys
from typing import Any

import pytest
import torch

from gtkern.methods.leading.bank import BANK_DTYPES, MemoryBank

PLACES = ("memory", "file")


def make(place: str, folder: pathlib.Path, **options: Any) -> MemoryBank:
    """A bank of ten rows of four numbers."""
    settings: dict[str, Any] = {"dtype": "float32", "identity": "graph 1", **options}
    path = None if place == "memory" else folder / "rows.bank"
    return MemoryBank(10, 4, path=path, **settings)


def rows(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int64)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", sorted(BANK_DTYPES))
def test_what_is_written_is_read(place: str, dtype: str, tmp_path: pathlib.Path) -> None:
    bank = make(place, tmp_path, dtype=dtype)
    values = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    bank.write(rows(7, 0, 3), values, step=5)
    found = bank.read(rows(3, 7, 3))
    assert found.dtype == torch.float32
    assert not found.requires_grad
    expected = values.detach().to(BANK_DTYPES[dtype]).float()[[2, 0, 2]]
    assert torch.equal(found, expected)
    assert bank.age(rows(0, 3), 9).tolist() == [4, 4]


@pytest.mark.parametrize("place", PLACES)
def test_a_row_of_zeros_counts_as_written_and_others_do_not(
    place: str, tmp_path: pathlib.Path
) -> None:
    bank = make(place, tmp_path)
    bank.write(rows(2), torch.zeros(1, 4), step=0)
    assert bank.visited(rows(1, 2)).tolist() == [False, True]
    with pytest.raises(ValueError, match="written before they are read, got 2 of 3 that never"):
        bank.read(rows(1, 2, 4))
    with pytest.raises(ValueError, match="got 1 of 1 that never were"):
        bank.age(rows(1), 3)


def test_wrong_arguments_are_told() -> None:
    bank = MemoryBank(10, 4, dtype="float16", identity="graph")
    for row, value, step, kind, message in (
        (rows(0, 0), torch.zeros(2, 4), 0, ValueError, "once each, got 1 different ones in 2"),
        (rows(10), torch.zeros(1, 4), 0, IndexError, r"in 0 .. 9, got 10 .. 10"),
        (rows(0).int(), torch.zeros(1, 4), 0, TypeError, "rows must be int64, got torch.int32"),
        (rows(0), torch.zeros(1, 5), 0, ValueError, r"\[m, width\] = \[1, 4\], got \[1, 5\]"),
        (rows(0), torch.zeros(1, 4).long(), 0, TypeError, "values must be floating point"),
        (rows(0), torch.full((1, 4), 7e4), 0, ValueError, r"finite in float16.*\(65504\)"),
        (rows(0), torch.zeros(1, 4), -1, ValueError, "step must be at least 0, got -1"),
    ):
        with pytest.raises(kind, match=message):
            bank.write(row, value, step=step)
    assert not bool(bank.visited(torch.arange(10)).any())
    with pytest.raises(ValueError, match="dtype must be one of float16, bfloat16, float32, got"):
        MemoryBank(10, 4, dtype="int8", identity="graph")
    with pytest.raises(ValueError, match="num_rows and width must be at least 1, got 0 and 4"):
        MemoryBank(0, 4, identity="graph")


def test_drift_is_the_cosine_to_the_row_before() -> None:
    bank = MemoryBank(10, 2, dtype="float32", identity="graph")
    bank.write(rows(0, 1, 2), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]), step=0)
    assert bank.statistics(3) == (3, 3.0, 3, 0, 1.0, 1.0)
    bank.write(rows(0, 1, 2, 5), torch.tensor([[2.0, 0], [0, 1], [0, 0], [1, 1]]), step=4)
    found = bank.statistics(6)
    assert (found.visited, found.mean_age, found.max_age) == (4, 2.0, 2)
    # of the rows 0, 1 and 2; row 5 is new
    assert (found.rewritten, found.min_drift) == (3, 0.0)
    assert found.mean_drift == pytest.approx(2 / 3)
    bank.reset_drift()
    assert bank.statistics(6)[3:] == (0, 1.0, 1.0)


def test_a_frozen_bank_is_only_read() -> None:
    bank = MemoryBank(10, 4, identity="graph")
    bank.write(rows(1), torch.ones(1, 4), step=0)
    with bank.frozen():
        assert bank.read(rows(1)).sum() == 4
        with pytest.raises(RuntimeError, match="the bank is frozen"):
            bank.write(rows(1), torch.ones(1, 4), step=1)
    bank.write(rows(1), torch.ones(1, 4), step=1)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("how", ["state", "save"])
def test_a_checkpoint_brings_everything_back(place: str, how: str, tmp_path: pathlib.Path) -> None:
    bank = make(place, tmp_path)
    values = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    bank.write(rows(1, 2), values[:2], step=1)
    bank.write(rows(2, 3), values[2:], step=2)
    state = bank.state_dict()
    bank.save(tmp_path / "copy.bank")
    before = bank.read(rows(1, 2, 3)), bank.statistics(4)
    bank.write(rows(1, 5), torch.ones(2, 4), step=3)
    if how == "state":
        bank.load_state_dict(state)
    else:
        bank.load(tmp_path / "copy.bank")
    assert torch.equal(bank.read(rows(1, 2, 3)), before[0])
    assert bank.statistics(4) == before[1]
    assert bank.visited(rows(0, 1, 5)).tolist() == [False, True, False]
    other = MemoryBank(10, 4, dtype="float32", identity="graph 2")
    with pytest.raises(ValueError, match="identity must be 'graph 2', got 'graph 1'"):
        other.load_state_dict(state)
    with pytest.raises(ValueError, match=r"copy.bank is of another memory bank: identity"):
        other.load(tmp_path / "copy.bank")
    assert {path.name for path in tmp_path.iterdir()} <= {"copy.bank", "rows.bank"}


def test_a_file_is_gone_on_with(tmp_path: pathlib.Path) -> None:
    bank = make("file", tmp_path)
    bank.write(rows(4), torch.ones(1, 4), step=6)
    bank.write(rows(4), torch.ones(1, 4), step=7)
    del bank
    again = make("file", tmp_path)
    assert again.read(rows(4)).tolist() == [[1.0] * 4]
    assert again.statistics(8)[:4] == (1, 1.0, 1, 1)


def test_a_file_of_another_bank_is_told(tmp_path: pathlib.Path) -> None:
    make("file", tmp_path)
    path = tmp_path / "rows.bank"
    for sizes, options, difference in (
        ((10, 4), {"identity": "graph 2"}, "identity must be 'graph 2', got 'graph 1'"),
        ((11, 4), {}, "num_rows must be 11, got 10"),
        ((10, 8), {}, "width must be 8, got 4"),
        ((10, 4), {"dtype": "bfloat16"}, "dtype must be 'bfloat16', got 'float32'"),
    ):
        settings: dict[str, Any] = {"identity": "graph 1", "dtype": "float32", **options}
        with pytest.raises(ValueError, match=f"is of another memory bank: {difference}"):
            MemoryBank(*sizes, path=path, **settings)
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=f"must have {len(content)} bytes, got .* not whole"):
        make("file", tmp_path)
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="must be the file of a memory bank, and is not"):
        make("file", tmp_path)


WRITER = """
import sys, torch
from gtkern.methods.leading.bank import MemoryBank
bank = MemoryBank(64, 4096, dtype="float32", path=sys.argv[1], identity="killed")
step = 0
while True:
    some = (step * 8 + torch.arange(8)) % 64
    bank.write(some, torch.full((8, 4096), float(step)), step=step)
    if step == 8:
        print("writing", flush=True)
    step += 1
"""


def test_a_killed_writer_leaves_only_whole_rows(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "killed.bank"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        writer.send_signal(signal.SIGKILL)
    bank = MemoryBank(64, 4096, dtype="float32", path=path, identity="killed")
    every = torch.arange(64)
    kept = every[bank.visited(every)]
    # eight at most were being written
    assert kept.numel() >= 56
    # a row says which step wrote it, and is of that step from end to end
    steps = 10**6 - bank.age(kept, 10**6)
    assert torch.equal(bank.read(kept), steps[:, None].float().expand(-1, 4096))


def test_bytes_change_only_while_the_stamp_is_away(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = make("file", tmp_path)
    bank.write(rows(1), torch.ones(1, 4), step=0)
    order: list[tuple[bool, float]] = []
    plain = torch.Tensor.__setitem__

    def watched(self: torch.Tensor, index: Any, value: Any) -> None:
        plain(self, index, value)
        with bank.frozen():
            order.append((bool(bank.visited(rows(1))), float(bank._values[1, 0])))

    monkeypatch.setattr(torch.Tensor, "__setitem__", watched)
    bank.write(rows(1), torch.full((1, 4), 2.0), step=1)
    monkeypatch.undo()
    changes = order[-3:]
    assert changes == [(False, 1.0), (False, 2.0), (True, 2.0)]


def filled() -> MemoryBank:
    """Rows 0 .. 5 written at steps 0 .. 5; 6 .. 9 never."""
    bank = MemoryBank(10, 4, identity="graph")
    for step in range(6):
        bank.write(rows(step), torch.ones(1, 4), step=step)
    return bank


def test_the_head_of_a_file_says_what_it_is(tmp_path: pathlib.Path) -> None:
    make("file", tmp_path)
    head = (tmp_path / "rows.bank").read_bytes()[:4064]
    assert json.loads(head)["identity"] == "graph 1"
    with pytest.raises(ValueError, match="identity must be shorter, got 5000 characters"):
        MemoryBank(10, 4, path=tmp_path / "long.bank", identity="x" * 5000)
