"""The emulator that runs CUDA kernels on the host: what it computes, which mistakes it reports."""

from __future__ import annotations

import pathlib
import shutil
import subprocess

import pytest
import torch

from gtkern.random import dropout_threshold, philox

ROOT = pathlib.Path(__file__).parent.parent
BLOCKS, THREADS = 3, 96


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """tests/emulator_kernels.cpp with both sanitizers."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    path = tmp_path_factory.mktemp("emulator") / "emulator_kernels"
    include = pathlib.Path(torch.__file__).parent / "include"
    command = [
        compiler, "-std=c++20", "-O1", "-g", "-fno-omit-frame-pointer", "-Wno-unknown-pragmas",
        "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
        "-DGTKERN_EMULATE", f"-I{ROOT / 'csrc'}", "-isystem", str(include),
        str(ROOT / "tests" / "emulator_kernels.cpp"),
        str(ROOT / "csrc" / "emulate" / "emulator.cpp"), "-o", str(path),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return path


def run(program: pathlib.Path, case: str) -> list[str]:
    """The words that a case prints."""
    done = subprocess.run([str(program), case], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.split()


def error(program: pathlib.Path, case: str) -> str:
    """What a case that must fail says."""
    done = subprocess.run([str(program), case], capture_output=True, text=True)
    assert done.returncode != 0
    return done.stderr


def reversed_blocks() -> list[int]:
    blocks = torch.arange(BLOCKS * THREADS).view(BLOCKS, THREADS).flip(1)
    return blocks.flatten().tolist()


@pytest.mark.parametrize("case", ["shared", "shared_fixed_size"])
def test_threads_exchange_shared_memory_across_a_barrier(program: pathlib.Path, case: str) -> None:
    assert [int(word) for word in run(program, case)] == reversed_blocks()


def test_a_missing_barrier_changes_the_result(program: pathlib.Path) -> None:
    assert [int(word) for word in run(program, "missing_barrier")] != reversed_blocks()


def test_warp_instructions_follow_cuda(program: pathlib.Path) -> None:
    rows = torch.tensor([int(word) for word in run(program, "shuffles")]).view(32, 9)
    thirds = sum(1 << bit for bit in range(0, 16, 3))
    for lane in range(32):
        segment = lane % 8
        expected = [
            5,
            lane // 4 * 4 + 1,
            lane ^ 3,
            lane - 2 if segment >= 2 else lane,
            lane + 2 if segment < 6 else lane,
            thirds,
            2,
            sum(range(32)) * 100 + 31 + 1,
            lane ^ 8 if lane < 16 else 0,
        ]
        assert rows[lane].tolist() == expected


def test_groups_sum_their_own_lanes(program: pathlib.Path) -> None:
    groups = torch.arange(32).view(4, 8).sum(1) * 100 + 8
    expected = groups.repeat_interleave(8).tolist()
    assert [int(word) for word in run(program, "group_sums")] == expected


def test_block_fold_keeps_residues_apart(program: pathlib.Path) -> None:
    expected = torch.arange(64).view(16, 4).sum(0).repeat(16).tolist()
    assert [int(word) for word in run(program, "block_sums")] == expected


def test_packets_copy_every_row_of_their_width(program: pathlib.Path) -> None:
    assert run(program, "copies") == ["1"] * 6


@pytest.mark.parametrize(
    ("case", "dtype"), [("rounded_half", torch.float16), ("rounded_bfloat16", torch.bfloat16)]
)
def test_rounding_is_that_of_torch(program: pathlib.Path, case: str, dtype: torch.dtype) -> None:
    values = torch.tensor([0.1, -1234.567, 3.0e-6, 65000.0, 1.00390625])
    words = torch.tensor([float(word) for word in run(program, case)])
    assert torch.equal(words, values.to(dtype).float())


@pytest.mark.parametrize(
    "case", ["product_half", "product_half_turned", "product_bfloat16", "product_tf32"]
)
def test_tensor_cores_multiply_matrices(program: pathlib.Path, case: str) -> None:
    depth, columns = (8, 8) if case == "product_tf32" else (16, 16)
    k = torch.arange(depth)
    a = (3 * torch.arange(16)[:, None] + 5 * k) % 7 - 3
    b = (torch.arange(columns)[:, None] + 2 * k) % 5 - 2
    assert [int(word) for word in run(program, case)] == (a @ b.T).flatten().tolist()


def test_tf32_keeps_ten_bits(program: pathlib.Path) -> None:
    """Halves go away from zero."""
    words = [float(word) for word in run(program, "rounded_tf32")]
    assert words[:3] == [1.0, 1.0009765625, -1.0]
    assert words[3] == pytest.approx(3.0e38, rel=2**-11) and words[3] != 3.0e38


def test_copies_are_made_when_waited_for(program: pathlib.Path) -> None:
    assert [int(word) for word in run(program, "async_copies")] == [-1, 4, -1, 8, 0]


def test_philox_is_that_of_python(program: pathlib.Path) -> None:
    item = 5_000_000_007
    counter = (torch.tensor([item & 0xFFFFFFFF]), torch.tensor([item >> 32]), torch.arange(2), 0)
    words = philox(0x1234567890ABCDEF, counter).flatten()[:6].tolist()
    assert [int(word) for word in run(program, "philox")] == [*words, dropout_threshold(0.3)]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("finish_before_barrier", "waits for the block at"),
        ("barriers_of_two_branches", "the threads diverge"),
        ("lanes_that_do_not_come", "the threads diverge"),
        ("shuffle_from_absent_lane", "a shuffle reads lane 16, which its mask leaves out"),
        ("too_many_threads", "a block must have 1 .. 1024 threads, got 2000"),
        ("write_behind_shared", "heap-buffer-overflow"),
        ("misaligned", "misaligned address"),
    ],
)
def test_mistakes_are_reported(program: pathlib.Path, case: str, message: str) -> None:
    assert message in error(program, case)


def test_a_grid_without_blocks_runs_nothing(program: pathlib.Path) -> None:
    assert run(program, "no_blocks") == []
