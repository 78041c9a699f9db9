"""Runs over two processes: the gradients of one, and an end when one of them dies."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import processes_worker
import pytest
import torch

ROOT = pathlib.Path(__file__).parents[2]
PATIENCE = 120.0
"""Seconds after which processes that wait for each other fail a test."""


@contextmanager
def torchrun(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Two processes on this machine; killed if they are still there at the end."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    process = subprocess.Popen(
        [*command, *(str(argument) for argument in arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for worker in workers(process.pid):
            os.kill(worker, signal.SIGKILL)
        process.kill()
        process.wait()


def workers(parent: int) -> list[int]:
    """The processes torchrun started."""
    try:
        text = pathlib.Path(f"/proc/{parent}/task/{parent}/children").read_text()
    except OSError:
        return []
    return [int(number) for number in text.split()]


def rank_of(process: int) -> str:
    variables = pathlib.Path(f"/proc/{process}/environ").read_text().split("\0")
    ranks = [entry[5:] for entry in variables if entry.startswith("RANK=")]
    return ranks[0] if ranks else ""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What one process gives, and each of two."""
    folder = tmp_path_factory.mktemp("processes")
    script = ROOT / "tests/methods/processes_worker.py"
    with torchrun(script, folder) as process:
        torch.set_num_threads(1)
        alone = {
            name: processes_worker.train(task) for name, task in processes_worker.cases().items()
        }
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors[-3000:]
    return [alone, *(torch.load(folder / f"{rank}.pt") for rank in range(2))]


CASES = ("phase 1", "phase 1, BatchNorm", "phase 2", "phase 2, evaluation by layers")


@pytest.mark.parametrize("case", [*CASES, "leading"])
def test_unequal_shares_have_the_gradient_of_the_whole_batch(
    results: list[dict[str, Any]], case: str
) -> None:
    alone, *two = (result[case]["gradients"] for result in results)
    assert any(bool(gradient.abs().max() > 1e-3) for gradient in alone.values())
    for gradients in two:
        assert gradients.keys() == alone.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, alone[name], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("case", [*CASES, "leading"])
def test_loss_and_metrics_are_of_all_nodes(results: list[dict[str, Any]], case: str) -> None:
    alone, *two = (result[case]["row"] for result in results)
    for row in two:
        assert row == pytest.approx(alone, rel=1e-4)


def test_every_process_has_all_rows_of_the_memories(results: list[dict[str, Any]]) -> None:
    alone, *two = (result["leading"]["memories"] for result in results)
    for memories in two:
        for found, expected in zip(memories, alone, strict=True):
            assert bool(expected.any())
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_norms_have_the_statistics_of_all_shares(results: list[dict[str, Any]], case: str) -> None:
    alone, *two = (result[case]["norms"] for result in results)
    assert alone
    for norms in two:
        torch.testing.assert_close(norms, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES[:2])
def test_the_first_process_gets_all_scores_in_order(
    results: list[dict[str, Any]], case: str
) -> None:
    alone, first, second = (result[case]["scores"] for result in results)
    assert second == []
    assert len(first) == 2 * len(alone)
    torch.testing.assert_close(torch.cat(first), torch.cat(alone), rtol=1e-3, atol=1e-6)


def test_a_killed_process_ends_the_run_and_it_can_go_on(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "run"
    arguments = [
        *("-m", "gtkern", "train", "spexphormer", "--out", out, "--devices=cpu"),
        *("--dataset=power-law", "--set=power_law.nodes=400", "--set=power_law.features=4"),
        *("--set=power_law.mean_degree=4", "--set=expander.degree=2", "--set=phase2.width=8"),
        *("--epochs=30,2", "--set=phase2.batch_size=100"),
    ]
    checkpoint = out / "checkpoints/phase1.ckpt"
    with torchrun(*arguments) as process:
        deadline = time.monotonic() + PATIENCE
        while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert checkpoint.exists(), process.communicate(timeout=PATIENCE)[1][-3000:]
        (second,) = (worker for worker in workers(process.pid) if rank_of(worker) == "1")
        os.kill(second, signal.SIGKILL)
        shown, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert not shown
    assert not (out / "summary.json").exists()
    epoch = torch.load(checkpoint, weights_only=False)["epoch"]
    assert epoch < 29

    with torchrun(*arguments, "--resume") as process:
        shown, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors[-3000:]
    assert shown.count("everything is in") == 1
    summary = json.loads((out / "summary.json").read_text())
    assert summary["processes"] == 2
    assert [phase["epochs"] for phase in summary["phases"]] == [30, 2]
    rows = (out / "metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + 32
