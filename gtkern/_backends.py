"""The backends of every op: their names, whether each can run here, and what "auto" chooses."""

from __future__ import annotations

import importlib.util
import os

import torch

from gtkern import _native

BACKENDS = ("reference", "cpu", "triton", "cuda")


def triton_interpreted() -> bool:
    """True when Triton kernels run in its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def unavailable_reason(backend: str, device: torch.device) -> str | None:
    """Why `backend` cannot run on tensors of `device` here; None when it can."""
    if backend == "reference":
        return None
    if backend == "cpu":
        if device.type != "cpu":
            return f"it takes CPU tensors, and these are on {device}"
        return _native.missing_reason("cpu")
    if backend == "cuda":
        if device.type == "cpu":
            if _native.emulated():
                return None
            return "it takes CUDA tensors, and these are on cpu"
        if device.type != "cuda":
            return f"it takes CUDA tensors, and these are on {device}"
        return _native.missing_reason("cuda")
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if device.type == "cpu" and not triton_interpreted():
        return (
            "it takes GPU tensors, and these are on cpu (TRITON_INTERPRET=1 runs it there, slowly)"
        )
    return None


def resolve(
    op: str, backend: str, available: tuple[str, ...], device: torch.device, dtype: torch.dtype
) -> str:
    """Return the backend that runs this call; never falls back from one the user named.

    Args:
        op: name of the op, for messages.
        backend: a name from BACKENDS, or "auto".
        available: the backends that `op` has.
        device, dtype: of the call's tensors.

    Raises:
        ValueError: `backend` is no backend's name.
        NotImplementedError: the named backend cannot run this call; says why and which one can.
    """
    if backend == "auto":
        return _choose(available, device, dtype)
    if backend not in BACKENDS:
        names = ", ".join(repr(name) for name in ("auto", *BACKENDS))
        raise ValueError(f"backend must be one of {names}, got {backend!r}")
    if backend not in available:
        reason: str | None = f"{op} has no {backend} backend"
    elif dtype == torch.float64 and backend in ("triton", "cuda"):
        reason = "it has no float64 kernels"
    else:
        reason = unavailable_reason(backend, device)
    if reason is not None:
        nearest = _choose(available, device, dtype)
        raise NotImplementedError(
            f"backend {backend!r} cannot run {op} here: {reason}; use backend={nearest!r}"
        )
    return backend


def _choose(available: tuple[str, ...], device: torch.device, dtype: torch.dtype) -> str:
    """The measured choice: the native CPU code wins everywhere on CPU tensors."""
    order = ("cpu",) if device.type == "cpu" else ("cuda", "triton")
    for backend in order:
        if backend not in available or unavailable_reason(backend, device) is not None:
            continue
        if dtype == torch.float64 and backend != "cpu":
            continue
        return backend
    return "reference"
