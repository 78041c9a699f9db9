"""Limits of the machine, measured in the same run as the cases they are compared with."""

from __future__ import annotations

import ctypes
import functools
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable

import torch

__all__ = ["Limits"]

_SOURCE = pathlib.Path(__file__).with_name("limits.c")
_COPY_BYTES = 256 << 20
_GATHER_BYTES = 512 << 20
_GATHER_ROWS = (20_000, 8_000_000)
_MATMUL_SIZE = {"cpu": 2048, "cuda": 8192}


class Limits:
    """Copy bandwidth, gather bandwidth and matrix product rate of one device.

    CPU: limits.c, compiled on first use, with as many threads as torch has. CUDA: torch's copy,
    and a Triton kernel that only reads rows. Each figure is the best of a few runs: a limit, not
    a typical value. `reason` tells why a figure is NaN.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.reason: str | None = None

    @functools.cached_property
    def copy(self) -> float:
        """Bytes read plus bytes written per second of a large copy."""
        if self.device.type == "cpu":
            return self._native("copy_bandwidth", _COPY_BYTES, self._threads(), 5)
        size = 8 * _COPY_BYTES
        source = torch.ones(size, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return 2 * size / _fastest(lambda: target.copy_(source), self.device)

    @functools.cache  # noqa: B019 - one object for each run
    def matmul(self, dtype: str = "float32") -> float:
        """Operations per second of torch's product of two square matrices.

        Args:
            dtype: name of a torch dtype.
        """
        size = _MATMUL_SIZE[self.device.type]
        matrix = torch.randn(size, size, device=self.device).to(getattr(torch, dtype))
        out = torch.empty_like(matrix)
        call = functools.partial(torch.mm, matrix, matrix, out=out)
        return 2.0 * size**3 / _fastest(call, self.device)

    @functools.cache  # noqa: B019 - one object for each run
    def gather(self, row_bytes: int, table_bytes: int) -> float:
        """Bytes per second of reading uniformly random rows of a table, and nothing else.

        Args:
            row_bytes: size of a row, a multiple of 4.
            table_bytes: size of the whole table.
        """
        rows = max(1, table_bytes // row_bytes)
        count = min(max(_GATHER_BYTES // row_bytes, _GATHER_ROWS[0]), _GATHER_ROWS[1])
        generator = torch.Generator().manual_seed(0)
        index = torch.randint(rows, (count,), dtype=torch.int32, generator=generator)
        if self.device.type == "cpu":
            return self._native(
                "gather_bandwidth", row_bytes, rows * row_bytes, index.data_ptr(), count,
                self._threads(), 3,
            )  # fmt: skip
        try:
            from bench.limits_gpu import read_rows
        except ImportError as error:
            self.reason = f"the gather limit needs triton ({error})"
            return float("nan")
        table = torch.ones(rows, row_bytes // 4, device=self.device)
        on_device = index.to(self.device)
        return count * row_bytes / _fastest(lambda: read_rows(table, on_device), self.device)

    @staticmethod
    def _threads() -> int:
        return min(torch.get_num_threads(), 256)

    def _native(self, name: str, *arguments: int) -> float:
        library = self._library
        if library is None:
            return float("nan")
        function = library[name]
        function.restype = ctypes.c_double
        numbers = [ctypes.c_int64(value) for value in arguments]
        return float(function(*numbers)) or float("nan")

    @functools.cached_property
    def _library(self) -> ctypes.CDLL | None:
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            self.reason = "the limits of the CPU need a C compiler (cc, gcc or clang)"
            return None
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/limits.so"
            command = [
                compiler, "-O3", "-march=native", "-shared", "-fPIC", "-pthread", "-o", path,
                str(_SOURCE),
            ]  # fmt: skip
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode:
                self.reason = f"limits.c does not compile: {result.stderr.strip().splitlines()[0]}"
                return None
            return ctypes.CDLL(path)


def _fastest(call: Callable[[], object], device: torch.device) -> float:
    from bench.harness import Clock, replayed

    if device.type == "cuda":
        call = replayed(call, device)
    clock = Clock(device, queued=True)
    clock.time(call)
    return min(clock.time(call) for _ in range(7))
