"""Peak memory of a stretch of a run."""

from __future__ import annotations

import ctypes
import pathlib
import resource

import torch

__all__ = ["keep_freed_memory", "peak_bytes", "reset_peak", "resident_bytes"]

# parameters of glibc's mallopt
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4

_PROCESS = pathlib.Path("/proc/self")


def keep_freed_memory() -> None:
    """Let the process reuse the memory of freed arrays instead of giving it back at once.

    glibc maps every large array anew, and the system fills its pages with zeros when they are first
    touched: on arrays of tens of MiB that takes as long as the arithmetic. It holds for the whole
    process, hence for programs to call and not for libraries. Without glibc nothing happens.
    """
    try:
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, -1)
    except (AttributeError, OSError, TypeError):
        pass


def reset_peak(device: torch.device) -> None:
    """Start a new measurement: of the process's memory on a CPU, of torch's on a GPU.

    Where the system cannot forget its high-water mark (not Linux), the mark of the whole process
    stays.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        # give freed memory back first, or it would count as still in use
        ctypes.CDLL(None).malloc_trim(0)
        (_PROCESS / "clear_refs").write_text("5")
    except (AttributeError, OSError):
        pass


def peak_bytes(device: torch.device) -> int:
    """The largest memory in use since `reset_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident_bytes(device: torch.device) -> int:
    """The memory in use now; 0 where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _status("VmRSS")


def _status(key: str) -> int:
    try:
        for line in (_PROCESS / "status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
