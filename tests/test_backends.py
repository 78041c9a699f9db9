"""How a call finds its backend: never silently another one than the user named."""

from __future__ import annotations

import pathlib

import pytest
import torch

from gtkern import Graph, _backends, _native, ops
from gtkern._backends import BACKENDS, resolve, unavailable_reason

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def nothing_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without a compiler, without Triton's interpreter and without emulation."""
    reason = "its native library was not built"
    monkeypatch.setattr(_native, "_missing", {"cpu": reason, "cuda": reason})
    monkeypatch.setattr(_native, "_emulated", False)
    monkeypatch.setenv("TRITON_INTERPRET", "0")


def test_reference_runs_everywhere() -> None:
    assert unavailable_reason("reference", CPU) is None
    assert unavailable_reason("reference", CUDA) is None


def test_unknown_name_lists_the_known_ones() -> None:
    names = "'auto', 'reference', 'cpu', 'triton', 'cuda'"
    with pytest.raises(ValueError, match=f"^backend must be one of {names}, got 'gpu'$"):
        resolve("op", "gpu", BACKENDS, CPU, torch.float32)


@pytest.mark.usefixtures("nothing_built")
def test_auto_without_native_code_is_the_reference() -> None:
    assert resolve("op", "auto", BACKENDS, CPU, torch.float32) == "reference"


@pytest.mark.usefixtures("nothing_built")
@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        ("cpu", "its native library was not built"),
        ("triton", "it takes GPU tensors, and these are on cpu"),
        ("cuda", "it takes CUDA tensors, and these are on cpu"),
    ],
)
def test_a_named_backend_that_cannot_run_says_why_and_what_can(backend: str, reason: str) -> None:
    with pytest.raises(
        NotImplementedError,
        match=rf"^backend '{backend}' cannot run op here: {reason}.*; use backend='reference'$",
    ):
        resolve("op", backend, BACKENDS, CPU, torch.float32)


def test_auto_takes_native_code_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_native._missing, "cpu", None)
    assert resolve("op", "auto", BACKENDS, CPU, torch.float32) == "cpu"
    assert resolve("op", "auto", BACKENDS, CPU, torch.float64) == "cpu"


def test_auto_never_takes_interpreted_or_emulated_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_native._missing, "cpu", "absent")
    monkeypatch.setattr(_native, "_emulated", True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert resolve("op", "auto", BACKENDS, CPU, torch.float32) == "reference"


def test_auto_prefers_cuda_kernels_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_native._missing, "cuda", None)
    assert resolve("op", "auto", BACKENDS, CUDA, torch.float32) == "cuda"
    assert resolve("op", "auto", BACKENDS, CUDA, torch.float64) == "reference"


def test_an_op_without_the_backend_says_so() -> None:
    with pytest.raises(
        NotImplementedError,
        match=r"^backend .cuda. cannot run op here: op has no cuda backend; use backend=",
    ):
        resolve("op", "cuda", ("reference",), CPU, torch.float32)


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_gpu_kernels_have_no_float64(backend: str) -> None:
    with pytest.raises(NotImplementedError, match="it has no float64 kernels; use backend="):
        resolve("op", backend, BACKENDS, CPU, torch.float64)


def test_cpu_kernels_refuse_gpu_tensors() -> None:
    reason = unavailable_reason("cpu", CUDA)
    assert reason is not None and reason.startswith("it takes CPU tensors, and these are on cuda")


def test_triton_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_backends.importlib.util, "find_spec", lambda name: None)
    assert unavailable_reason("triton", CUDA) == "the package triton is not installed"


@pytest.mark.usefixtures("nothing_built")
def test_the_graph_and_the_op_work_without_native_code() -> None:
    graph = Graph.from_edge_index(torch.tensor([[0, 1, 2], [1, 1, 0]]), 3)
    x = torch.ones(3, 1, 2, requires_grad=True)
    out = ops.sparse_attention(x, x, x, graph)
    out.sum().backward()
    assert out[:, 0, 0].tolist() == [1, 1, 0]


def test_a_missing_library_names_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setattr(_native, "LIBRARY_DIR", tmp_path)
    monkeypatch.setattr(_native, "_missing", dict(_native._missing))
    _native.load()
    reason = _native.missing_reason("cpu")
    assert reason is not None
    assert "pip install --no-build-isolation" in reason and "libgtkern_cpu.so" in reason


def test_a_broken_library_is_reported_and_not_raised(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "libgtkern_cpu.so").write_text("no library")
    monkeypatch.setattr(_native, "LIBRARY_DIR", tmp_path)
    monkeypatch.setattr(_native, "_missing", dict(_native._missing))
    _native.load()
    reason = _native.missing_reason("cpu")
    assert reason is not None and reason.startswith("its native library does not load")
