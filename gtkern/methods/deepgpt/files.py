"""Prompts in a file of their own, which knows the backbone they were trained on."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gtkern.methods.deepgpt.backbone import prompt_sites
from gtkern.methods.deepgpt.tuner import PromptTuner

__all__ = ["PROMPTS_FORMAT", "Fingerprint", "load_prompts", "open_prompts", "save_prompts"]

PROMPTS_FORMAT = 1
"""The version of the file; it grows when an entry is renamed or removed."""

_HEAD = "head."


class Fingerprint(NamedTuple):
    """What a network is: its class, and a digest of each of its parameters and buffers.

    Attributes:
        model: name of the class.
        parts: by name: dtype, shape and digest of the values, as one string.
    """

    model: str
    parts: Mapping[str, str]

    @classmethod
    def of(cls, model: nn.Module, *, head: bool = False) -> Fingerprint:
        """Of a network.

        Args:
            model: the network.
            head: whether its head counts.
        """
        parts = {
            name: _described(value)
            for name, value in model.state_dict().items()
            if head or not name.startswith(_HEAD)
        }
        return cls(type(model).__name__, parts)

    def difference(self, other: Fingerprint) -> str | None:
        """What distinguishes the other, in words; None: nothing."""
        if self.model != other.model:
            return f"model must be {self.model}, got {other.model}"
        for name, part in self.parts.items():
            if name not in other.parts:
                return f"{name} must be there, and is not"
            mine, theirs = (each.rsplit(" ", 1) for each in (part, other.parts[name]))
            if mine[0] != theirs[0]:
                return f"{name} must be {mine[0]}, got {theirs[0]}"
            if mine != theirs:
                return f"{name} has other values"
        more = next((name for name in other.parts if name not in self.parts), None)
        return None if more is None else f"{more} is there, and must not be"


def _described(value: Tensor) -> str:
    plain = value.detach().cpu().contiguous()
    digest = hashlib.blake2b(digest_size=8)
    if plain.numel():
        digest.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    kind = str(plain.dtype).removeprefix("torch.")
    return f"{kind} {list(plain.shape)} {digest.hexdigest()}"


def save_prompts(path: str | os.PathLike[str], tuner: PromptTuner) -> None:
    """Write what was trained, folded, and the backbone's fingerprint: one safetensors file.

    Args:
        path: of the file.
        tuner: whose prompts and head are written.
    """
    prompts = tuner.prompts
    head = tuner.head
    entries = {} if head is None else {f"{_HEAD}{n}": v for n, v in head.state_dict().items()}
    for name, value in (("prefix", prompts.folded()), ("vector", prompts.vector)):
        if value is not None:
            entries[name] = value
    fingerprint = Fingerprint.of(tuner.model, head=head is None)
    about = {
        "format": str(PROMPTS_FORMAT),
        "settings": json.dumps(_settings(tuner)),
        "backbone": json.dumps({"model": fingerprint.model, "parts": fingerprint.parts}),
    }
    target = pathlib.Path(path)
    part = target.with_name(f".{target.name}.part")
    plain = {name: value.detach().cpu().contiguous() for name, value in entries.items()}
    save_file(plain, part, about)
    os.replace(part, target)


def load_prompts(path: str | os.PathLike[str], tuner: PromptTuner) -> None:
    """Put what `save_prompts` wrote into a tuner of the same backbone and settings.

    Args:
        path: of the file.
        tuner: changed in place; its prompts are folded then.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of another backbone, of other settings, or broken; names the first
            difference.
    """
    settings, fingerprint, entries = _read(path)
    _check_backbone(path, fingerprint, tuner.model)
    own = _settings(tuner)
    for name, value in settings.items():
        if own.get(name) != value:
            raise ValueError(f"{path} has prompts with {name} {value}, the tuner {own.get(name)}")
    _fill(path, tuner, entries)


def open_prompts(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    fingerprint: Fingerprint | None = None,
    **options: Any,
) -> PromptTuner:
    """A tuner of a backbone with the settings, the prompts and the head of a file.

    Args:
        path: of the file.
        model: the backbone; its head need not have the outputs of the file's.
        fingerprint: of the model with its head, where it was computed before; None: it is now.
        options: backbone_dropout and dropout of the tuner.

    Raises:
        FileNotFoundError, ValueError: see load_prompts. TypeError: the model is no backbone.
    """
    settings, expected, entries = _read(path)
    prompt_sites(model)
    _check_backbone(path, expected, model, fingerprint)
    head = settings.pop("head")
    tuner = PromptTuner(model, **settings, train_head=head, **options)
    if tuner.head is not None:
        tuner.head = _fitted(tuner.head, entries)
    _fill(path, tuner, entries)
    return tuner


def _settings(tuner: PromptTuner) -> dict[str, Any]:
    prompts = tuner.prompts
    return {
        "prefix_tokens": prompts.prefix_tokens,
        "graph_prompt": prompts.graph_prompt,
        "layers": list(prompts.layers),
        "head": tuner.head is not None,
    }


def _read(
    path: str | os.PathLike[str],
) -> tuple[dict[str, Any], Fingerprint, dict[str, Tensor]]:
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"{path} is not there: path must name a file of prompts")
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            entries = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        version = int(about["format"])
        if version > PROMPTS_FORMAT:
            raise ValueError(f"format must be at most {PROMPTS_FORMAT}, got {version}")
        settings = json.loads(about["settings"])
        backbone = json.loads(about["backbone"])
        return settings, Fingerprint(backbone["model"], backbone["parts"]), entries
    except (KeyError, SafetensorError, ValueError) as error:
        raise ValueError(f"cannot read prompts in {path}: {error}") from error


def _check_backbone(
    path: str | os.PathLike[str],
    expected: Fingerprint,
    model: nn.Module,
    known: Fingerprint | None = None,
) -> None:
    whole = any(name.startswith(_HEAD) for name in expected.parts)
    got = Fingerprint.of(model, head=whole) if known is None else known
    if known is not None and not whole:
        parts = {name: part for name, part in known.parts.items() if not name.startswith(_HEAD)}
        got = Fingerprint(known.model, parts)
    difference = expected.difference(got)
    if difference is not None:
        raise ValueError(f"{path} has prompts of another backbone: {difference}")


def _fill(path: str | os.PathLike[str], tuner: PromptTuner, entries: dict[str, Tensor]) -> None:
    prompts = tuner.prompts.fold()
    own: dict[str, Tensor] = {
        name: value
        for name, value in (("prefix", prompts.prefix), ("vector", prompts.vector))
        if value is not None
    }
    if tuner.head is not None:
        own |= {f"{_HEAD}{name}": value for name, value in tuner.head.state_dict().items()}
    for name in sorted(own.keys() | entries.keys()):
        shapes = [
            list(tensors[name].shape) if name in tensors else None for tensors in (own, entries)
        ]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{path}: {name} must have shape {shapes[0]}, got {shapes[1]}")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(entries[name])


def _fitted(head: nn.Module, entries: Mapping[str, Tensor]) -> nn.Module:
    """The head with linear layers of the shapes that a file has."""
    head = copy.deepcopy(head)
    for name, part in list(head.named_modules()):
        if not isinstance(part, nn.Linear):
            continue
        weight = entries.get(f"{_HEAD}{name}.weight" if name else f"{_HEAD}weight")
        if weight is None or weight.shape == part.weight.shape or weight.dim() != 2:
            continue
        made = nn.Linear(weight.size(1), weight.size(0), part.bias is not None)
        made.to(part.weight.device, part.weight.dtype)
        if not name:
            return made
        head.set_submodule(name, made)
    return head
