"""How every test runs: poisoned fresh memory, fixed seeds, and the backends this machine has."""

from __future__ import annotations

import os
from collections.abc import Iterator

# OpenMP reads this when torch is imported. Test processes share the cores, and a thread that spins
# while it waits takes one from the thread it waits for: tests would take several times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

# Triton reads this when a kernel's module is imported: without a GPU its interpreter runs them
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import hypothesis
import pytest
from triton_interpreter import patch_language_once_per_launch

from gtkern import _backends, _native

hypothesis.settings.register_profile(
    "house",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.differing_executors,
    ],
)
hypothesis.settings.load_profile("house")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--emulated-library",
        metavar="PATH",
        help="the CUDA kernels compiled for the host: backend 'cuda' is then tested on CPU tensors",
    )
    parser.addoption(
        "--require",
        metavar="BACKENDS",
        default="",
        help="comma-separated backends that must run: a test fails where it would skip one",
    )


def pytest_configure(config: pytest.Config) -> None:
    for marker in (
        "large: needs gigabytes of address space or memory",
        "slow: takes a minute alone, and starts before all others",
        "sizes(*names): the sizes of sample that a claim of the contract is proved on",
        "interpreted(*names): the sizes on which an interpreter or emulator proves the claim",
        "once(*backends): backends that prove the claim on their first sample alone",
        "kernels: the claim is about compiled backends, not the reference",
        "gpu: the claim is about tensors on a GPU",
    ):
        config.addinivalue_line("markers", marker)
    required = _required(config)
    unknown = sorted(set(required) - set(_backends.BACKENDS))
    if unknown:
        raise pytest.UsageError(
            f"--require must name backends of {', '.join(_backends.BACKENDS)}, got {unknown[0]!r}"
        )
    stale = _native.stale_reason()
    if stale:
        config.issue_config_time_warning(UserWarning(stale), stacklevel=1)
    library = config.getoption("--emulated-library")
    if library:
        _native.load_emulated(library)
    patch_language_once_per_launch()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first: the other workers would have to wait for one that starts last."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_report_header(config: pytest.Config) -> list[str]:
    lines = []
    for backend in _backends.BACKENDS:
        reasons = [_backends.unavailable_reason(backend, device) for device in devices()]
        runs = any(reason is None for reason in reasons)
        lines.append(f"backend {backend}: {'runs' if runs else f'skipped: {reasons[-1]}'}")
    return lines


def _required(config: pytest.Config) -> list[str]:
    return [name for name in config.getoption("--require").split(",") if name]


def devices() -> list[torch.device]:
    """The devices tests run on."""
    return [torch.device(name) for name in ("cpu", "cuda")[: 1 + torch.cuda.is_available()]]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Every test starts with two threads, whatever the one before did."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(2)


@pytest.fixture(params=[str(device) for device in devices()])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device of this machine in turn."""
    return torch.device(request.param)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, with the reason, where a test's backend cannot run; fail where it is required."""
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    if "backend" not in parameters or "device" not in parameters:
        return
    backend, device = parameters["backend"], torch.device(parameters["device"])
    reason = _backends.unavailable_reason(backend, device)
    if reason is None:
        return
    if backend in _required(item.config):
        pytest.fail(f"backend {backend!r} is required and cannot run on {device}: {reason}")
    pytest.skip(f"backend {backend!r} cannot run on {device}: {reason}")
