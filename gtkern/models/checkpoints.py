"""What reading other projects' checkpoints has in common."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["CheckpointReport", "Piece", "fill", "read_state", "same"]


@dataclass(frozen=True)
class CheckpointReport:
    """What became of a checkpoint.

    Attributes:
        loaded: the network's parameters that were filled.
        missing: those that were not, or not all of them.
        unexpected: keys of the checkpoint that no parameter reads.
        mismatched: (key, shape that the network needs of it, shape found), which were not read.
        padding: of a Graphormer, keys whose padding row is not 0. The released code adds that row
            for each edge that a path is shorter than the longest of its batch; this network does
            not.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[tuple[str, list[int], list[int]], ...]
    padding: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} parameters loaded"]
        for title, names in (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("padding that is not 0", self.padding),
        ):
            if names:
                lines.append(f"{title}: {', '.join(names)}")
        for key, expected, got in self.mismatched:
            lines.append(f"{key} must give {expected}, has {got}")
        return "\n".join(lines)


class Piece(NamedTuple):
    """A part of a parameter, and where it stands in a checkpoint.

    Attributes:
        name: of the parameter.
        keys: of the checkpoint, without what stands before all of them; one of them is there.
        into: the part, a view of the parameter.
        take: from the checkpoint's tensor to what belongs there; of another shape if it is too
            small.
    """

    name: str
    keys: tuple[str, ...]
    into: Tensor
    take: Callable[[Tensor], Tensor]


def read_state(checkpoint: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name.

    Args:
        checkpoint: a file that torch.save wrote, or a .safetensors file, or what is in it: the
            state dict, or a mapping that has it as "model" or "state_dict".

    Raises:
        ValueError: the file cannot be read as one. FileNotFoundError: there is no such file.
    """
    found: Any = checkpoint
    if not isinstance(checkpoint, Mapping):
        path = os.fspath(checkpoint)
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            found = load_file(path)
        else:
            try:
                found = torch.load(path, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError as error:
                raise ValueError(
                    f"checkpoint {path} must hold tensors alone, and holds other objects; load it "
                    "in a program that you trust it with, and pass its state dict"
                ) from error
    for name in ("model", "state_dict"):
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping):
        raise ValueError(f"checkpoint must be a state dict, got {type(found).__name__}")
    return {str(key): value for key, value in found.items() if isinstance(value, Tensor)}


def fill(
    model: nn.Module, state: Mapping[str, Tensor], pieces: Iterable[Piece]
) -> CheckpointReport:
    """Fill a network's parameters; what does not fit stays as it is and is reported.

    Args:
        model: the network.
        state: of the checkpoint, by the keys of the pieces.
        pieces: of the network's parameters.
    """
    filled: dict[str, bool] = {}
    mismatched: dict[str, tuple[str, list[int], list[int]]] = {}
    used = set()
    with torch.no_grad():
        for piece in pieces:
            key = next((key for key in piece.keys if key in state), None)
            value = None if key is None else piece.take(state[key])
            fits = value is not None and value.shape == piece.into.shape
            filled[piece.name] = filled.get(piece.name, True) and fits
            if key is not None and value is not None:
                used.add(key)
                if fits:
                    piece.into.copy_(value)
                else:
                    shapes = list(piece.into.shape), list(value.shape)
                    mismatched[key] = (key, *shapes)
    names = [name for name, _ in model.named_parameters()]
    return CheckpointReport(
        loaded=tuple(name for name in names if filled.get(name)),
        missing=tuple(name for name in names if not filled.get(name)),
        unexpected=tuple(key for key in state if key not in used),
        mismatched=tuple(mismatched.values()),
    )


def same(value: Tensor) -> Tensor:
    """The value."""
    return value
