"""Prompts of several tasks over one backbone that stays in memory."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gtkern.methods.deepgpt.backbone import GRAPH_BACKBONES
from gtkern.methods.deepgpt.files import Fingerprint, open_prompts
from gtkern.methods.deepgpt.tuner import PromptTuner
from gtkern.nn import Prompt

__all__ = ["PromptLibrary"]


class _Entry(NamedTuple):
    prompts: list[Prompt | None]
    head: nn.Module


class PromptLibrary:
    """One frozen network, and for each task its prompts and its head; for evaluation.

    Keys and values of all tokens are computed when a task is added. A call takes one task for all
    graphs, or one for each: a batch may mix tasks, and every graph sees its own prompts alone.

    Args:
        model: the backbone; frozen and in evaluation from now on.

    Raises:
        TypeError: it is none for tasks of whole graphs.

    Reference: Shirkavand and Huang 2023 (DeepGPT), section 1, names this use.
    """

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, GRAPH_BACKBONES):
            names = ", ".join(kind.__name__ for kind in GRAPH_BACKBONES)
            raise TypeError(f"model must be one of {names}, got {type(model).__name__}")
        self.model = model.requires_grad_(False).eval()
        self._entries: dict[str, _Entry] = {}
        self._fingerprint: Fingerprint | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks, in the order in which they came."""
        return tuple(self._entries)

    def add(self, name: str, prompts: PromptTuner | str | os.PathLike[str]) -> None:
        """Take up a task, in place of one of the same name.

        Args:
            name: of the task.
            prompts: what was trained on this very model; or a file of save_prompts.

        Raises:
            ValueError: prompts of another backbone.
            FileNotFoundError: there is no such file.
        """
        if not isinstance(prompts, PromptTuner):
            if self._fingerprint is None:
                self._fingerprint = Fingerprint.of(self.model, head=True)
            prompts = open_prompts(prompts, self.model, fingerprint=self._fingerprint)
        if prompts.model is not self.model:
            raise ValueError(
                f"prompts of {name!r} must be those of the library's own model, got a tuner with "
                "another; save_prompts writes them, and add(name, path) checks the model"
            )
        training = prompts.training
        prompts.eval()
        with torch.no_grad():
            layers = [
                # what is trained on afterwards is not what was added
                None if prompt is None else prompt._replace(vector=_copied(prompt.vector))
                for prompt in prompts.layer_prompts()
            ]
        own: Any = self.model.head
        head = own if prompts.head is None else copy.deepcopy(prompts.head)
        self._entries[name] = _Entry(layers, head)
        prompts.train(training)

    def remove(self, name: str) -> None:
        """Forget a task.

        Raises:
            ValueError: there is none of that name.
        """
        self._entry(name)
        del self._entries[name]

    @torch.no_grad()
    def __call__(self, data: Any, task: str | Sequence[str]) -> Tensor | list[Tensor]:
        """The outputs of a batch.

        Args:
            data: as the model reads it.
            task: one name; or one for each graph.

        Returns:
            With one task [G, num_tasks]. With several, for each graph the outputs [num_tasks] of
            its own task.

        Raises:
            ValueError: a name that is not there, another number of names than graphs, or tasks
                whose prefixes differ in length.
            RuntimeError: the model is in training.
        """
        backbone: Any = self.model
        if backbone.training:
            raise RuntimeError(
                "the library's model must be in evaluation, and a tuner of it is in training; "
                "call tuner.eval()"
            )
        if isinstance(task, str):
            entry = self._entry(task)
            out: Tensor = entry.head(backbone.embed(data, entry.prompts))
            return out
        names = list(dict.fromkeys(task))
        entries = [self._entry(name) for name in names]
        number = torch.tensor([names.index(name) for name in task], device=data.x.device)
        graphs = 1 if getattr(data, "ptr", None) is None else data.ptr.numel() - 1
        if number.numel() != graphs:
            raise ValueError(
                f"task must be one name, or one for each of the {graphs} graphs, got "
                f"{number.numel()}"
            )
        layers = zip(*(entry.prompts for entry in entries), strict=True)
        mixed = [_mixed(names, layer, number) for layer in layers]
        embedded = backbone.embed(data, mixed)
        found: list[Tensor | None] = [None] * graphs
        for at, entry in enumerate(entries):
            rows = (number == at).nonzero().flatten()
            outputs = entry.head(embedded.index_select(0, rows))
            for row, output in zip(rows.tolist(), outputs, strict=True):
                found[row] = output
        return [output for output in found if output is not None]

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            known = ", ".join(self._entries) or "none yet"
            raise ValueError(f"task must be one of {known}, got {name!r}")
        return self._entries[name]


def _copied(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.clone()


def _mixed(names: Sequence[str], prompts: Sequence[Prompt | None], number: Tensor) -> Prompt | None:
    """One layer's prompt for a batch whose graphs have the tasks `number` [G]."""
    if len(prompts) == 1:
        return prompts[0]
    given = [Prompt() if prompt is None else prompt for prompt in prompts]
    vectors = [prompt.vector for prompt in given]
    like = next((vector for vector in vectors if vector is not None), None)
    rows = None
    if like is not None:
        every = [torch.zeros_like(like) if vector is None else vector for vector in vectors]
        rows = torch.stack(every).index_select(0, number)
    with_prefix = [at for at, prompt in enumerate(given) if prompt.prefix_k is not None]
    if not with_prefix:
        return Prompt(rows)
    keys: list[Tensor] = []
    values: list[Tensor] = []
    place = torch.full((len(given),), -1, device=number.device)
    for row, at in enumerate(with_prefix):
        k, v = given[at].prefix_k, given[at].prefix_v
        assert k is not None and v is not None
        if keys and k.size(0) != keys[0].size(0):
            raise ValueError(
                "task must mix tasks with prefixes of one length, got "
                f"{keys[0].size(0)} tokens of {names[with_prefix[0]]!r} and {k.size(0)} of "
                f"{names[at]!r}"
            )
        keys.append(k)
        values.append(v)
        place[at] = row
    stacked = torch.stack(keys), torch.stack(values)
    return Prompt(rows, *stacked, place.index_select(0, number))
