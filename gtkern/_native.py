"""Loads the native libraries and remembers why one is missing.

Three shared libraries lie in `gtkern/lib` after a build: `gtkern_cpu`, `gtkern_cuda` (only loaded
where torch has CUDA: it needs symbols of torch's CUDA half), and, for tests, `gtkern_emulated`:
the CUDA kernels compiled for the host.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from typing import Any

import torch

LIBRARY_DIR = pathlib.Path(__file__).parent / "lib"

_missing: dict[str, str | None] = {"cpu": "not loaded", "cuda": "not loaded"}
_emulated = False


def load() -> None:
    """Load what was built and what this machine can run. Never raises and never warns."""
    _missing["cpu"] = _load_library("gtkern_cpu")
    if torch.version.cuda is None:
        _missing["cuda"] = "this torch is built without CUDA"
    elif not torch.cuda.is_available():
        _missing["cuda"] = "torch sees no CUDA device"
    else:
        _missing["cuda"] = _load_library("gtkern_cuda")


def load_emulated(path: str | pathlib.Path) -> None:
    """Load the CUDA kernels compiled for the host, so that backend="cuda" runs on CPU tensors.

    For tests only: correct, and thousands of times slower than a GPU.
    """
    global _emulated
    torch.ops.load_library(str(path))
    _emulated = True


def emulated() -> bool:
    """True when `load_emulated` was called."""
    return _emulated


def ops(backend: str) -> Any:
    """The namespace of the native ops of backend "cpu" or "cuda"."""
    return torch.ops.gtkern_emulated if backend == "cuda" and _emulated else torch.ops.gtkern_C


def missing_reason(library: str) -> str | None:
    """Why the library "cpu" or "cuda" is not there; None when it is loaded."""
    return _missing[library]


def build_facts() -> dict[str, str]:
    """What the libraries were built with, as CMakeLists.txt wrote it; empty when none was built."""
    try:
        facts: dict[str, str] = json.loads((LIBRARY_DIR / "build.json").read_text("utf-8"))
    except FileNotFoundError:
        return {}
    return facts


def stale_reason() -> str | None:
    """Why the libraries do not fit the sources beside the package; None where they do.

    An installed package has no sources beside it, and fits.
    """
    root = LIBRARY_DIR.parent.parent
    built = build_facts().get("sources")
    if built is None or not (root / "CMakeLists.txt").exists():
        return None
    paths = sorted(
        path.relative_to(root).as_posix() for path in (root / "csrc").rglob("*") if path.is_file()
    )
    lines = [f"{path} {_digest((root / path).read_bytes())}\n" for path in paths]
    if _digest("".join(lines).encode()) == built:
        return None
    return "csrc has changed since the native libraries were built; run `make setup`"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _load_library(name: str) -> str | None:
    path = LIBRARY_DIR / f"lib{name}.so"
    if not path.exists():
        return (
            f"its native library was not built ({path.name} is missing); install a C++ compiler "
            "and run `pip install --no-build-isolation .` again"
        )
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"its native library does not load ({error})"
    return None
