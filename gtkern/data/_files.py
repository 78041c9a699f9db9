"""Tensors and facts in one safetensors file, which is there whole or not at all."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import pathlib
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

_FACTS = "gtkern"


def as_json(value: Any) -> Any:
    """`value` as it comes back from JSON: tuples are lists, keys are strings."""
    return json.loads(json.dumps(value))


def write(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> None:
    """Write beside the place, then rename: no reader ever sees half a file.

    Args:
        path: the file; its folder is made.
        tensors: contiguous.
        facts: of JSON's types.
    """
    from safetensors.torch import save_file

    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        # a part of a larger tensor would be refused
        own = {
            name: value if value.untyped_storage().nbytes() == value.nbytes else value.clone()
            for name, value in tensors.items()
        }
        save_file(own, str(unfinished), {_FACTS: json.dumps(facts)})
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The tensors and facts of a file; None where there is none, or not a whole one of ours."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            facts = json.loads((file.metadata() or {})[_FACTS])
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118
    except (FileNotFoundError, SafetensorError, KeyError, ValueError):
        return None


def digest(paths: Iterable[pathlib.Path]) -> dict[str, str]:
    """The sha256 of each file, by its name."""
    return {path.name: digest_of(path.read_bytes()) for path in paths}


def digest_of(content: bytes) -> str:
    """The sha256 of some bytes."""
    return hashlib.sha256(content).hexdigest()


def version(library: str) -> str:
    """The version of an installed library; "none" without it."""
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "none"
