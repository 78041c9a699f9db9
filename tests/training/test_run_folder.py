"""Files of a run: whole or not there."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from gtkern.training import memory, metrics
from gtkern.training.errors import UserError
from gtkern.training.run import RunFolder, process_seconds, read_summary


def test_an_interrupted_write_leaves_what_was_there(tmp_path: pathlib.Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.write_text("file.txt", "before")

    def rows() -> Iterator[np.ndarray]:
        yield np.zeros(3, np.float32)
        raise KeyboardInterrupt

    def interrupted() -> None:
        with folder.replacing("file.txt") as part:
            part.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(KeyboardInterrupt):
        folder.write_arrays("scores.npy", (2, 3), rows())
    assert [path.name for path in folder.path.iterdir()] == ["file.txt"]
    assert (folder / "file.txt").read_text() == "before"


def test_rows_become_one_array(tmp_path: pathlib.Path) -> None:
    folder = RunFolder(tmp_path)
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    folder.write_arrays("deep/er/scores.npy", (2, 3), iter(rows))
    assert np.array_equal(np.load(folder / "deep/er/scores.npy", mmap_mode="r"), rows)


def test_pieces_of_any_size_fill_an_array(tmp_path: pathlib.Path) -> None:
    folder = RunFolder(tmp_path)
    numbers = np.arange(6, dtype=np.float32)
    folder.write_arrays("scores.npy", (2, 3), iter((numbers[:4], numbers[4:4], numbers[4:])))
    assert np.array_equal(np.load(folder / "scores.npy"), numbers.reshape(2, 3))
    with pytest.raises(ValueError, match=r"pieces must fill \[2, 3\], got 4 numbers"):
        folder.write_arrays("scores.npy", (2, 3), iter((numbers[:4],)))
    assert np.array_equal(np.load(folder / "scores.npy"), numbers.reshape(2, 3))


def test_a_process_that_only_reads_makes_no_folder(tmp_path: pathlib.Path) -> None:
    RunFolder(tmp_path / "run", writes=False)
    assert not (tmp_path / "run").exists()


def test_freed_memory_is_kept_when_asked() -> None:
    code = (
        "import torch; from gtkern.training import memory; memory.keep_freed_memory();"
        "torch.ones(2**26); print(memory.resident_bytes(torch.device('cpu')) > 2**28)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "True"


def test_csv_has_the_keys_of_all_rows(tmp_path: pathlib.Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_rows("metrics.csv", [{"a": 1}, {"a": 2, "b": 3}])
    assert (folder / "metrics.csv").read_text() == "a,b\n1,\n2,3\n"


@pytest.mark.parametrize("name", ["file", "file/deeper"])
def test_a_folder_that_cannot_be_is_a_users_mistake(tmp_path: pathlib.Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write to the run folder"):
        RunFolder(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_a_users_mistake(tmp_path: pathlib.Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot write to the run folder"):
        RunFolder(tmp_path)


def test_a_summary_of_a_newer_format_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match="format must be at most 1, got 99"):
        read_summary(path)


def test_peak_memory_sees_a_large_array() -> None:
    cpu = torch.device("cpu")
    memory.reset_peak(cpu)
    before = memory.resident_bytes(cpu)
    block = np.ones(2**26, np.uint8)
    del block
    assert memory.peak_bytes(cpu) - before > 0.9 * 2**26


def test_the_process_is_older_than_a_moment() -> None:
    assert 0 < process_seconds() < 1e6


def test_roc_auc_counts_ordered_pairs() -> None:
    score = torch.tensor([0.1, 0.4, 0.4, 0.9, -3.0])
    logits = torch.stack((torch.zeros(5), score), dim=1)
    truth = torch.tensor([0, 1, 0, 1, 0])
    positive, negative = score[truth == 1], score[truth == 0]
    pairs = (positive[:, None] > negative).double() + 0.5 * (positive[:, None] == negative)
    assert metrics.evaluate("roc_auc", logits, truth) == pytest.approx(float(pairs.mean()))


def test_roc_auc_does_not_saturate() -> None:
    logits = torch.tensor([[0.0, 30.0], [0.0, 31.0]])
    assert metrics.evaluate("roc_auc", logits, torch.tensor([0, 1])) == 1.0


def test_tasks_with_unknown_labels_are_averaged() -> None:
    nan = float("nan")
    truth = torch.tensor([[1.0, 1.0, nan], [0.0, 1.0, 1.0], [nan, 0.0, 1.0]])
    logits = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0], [9.0, 1.0, 0.0]])
    assert metrics.evaluate("roc_auc", logits, truth) == pytest.approx((1.0 + 0.5) / 2)
    known = ~truth.isnan()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits[known], truth[known])
    assert torch.equal(metrics.loss(logits, truth), expected)


def test_accuracy_is_the_share_of_right_classes() -> None:
    logits = torch.eye(4)[[0, 1, 2, 2]]
    truth = torch.tensor([0, 1, 2, 3])
    assert metrics.evaluate("accuracy", logits, truth) == 0.75
