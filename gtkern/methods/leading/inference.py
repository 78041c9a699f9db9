"""What a language model says of all nodes, the predictions, and a trained network's files."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gtkern import _processes
from gtkern.data._tables import import_pandas
from gtkern.data.text_graph import TextGraph
from gtkern.methods.leading.bank import MemoryBank
from gtkern.methods.leading.language_model import LanguageModel
from gtkern.methods.leading.network import GraphPart, TextGraphNetwork
from gtkern.methods.leading.settings import LeadingSettings
from gtkern.methods.leading.task import encoded_rows
from gtkern.methods.leading.tokens import TokenizedTexts, train_tokenizer
from gtkern.training import settings as settings_of
from gtkern.training.run import Phase

__all__ = [
    "check_libraries",
    "digest",
    "encode_all",
    "open_language_model",
    "read_weights",
    "save",
    "write_predictions",
]

NODES_AT_ONCE = 2048
"""Nodes that are encoded before the file has them."""


def open_language_model(settings: LeadingSettings, texts: Sequence[str]) -> LanguageModel:
    """The language model of a run: that of a folder, or a small one with a tokenizer of the texts.

    Raises:
        ValueError: the folder has no language model.
    """
    encoder = settings.encoder
    if not encoder.path:
        torch.manual_seed(settings.seed)
        tokenizer = train_tokenizer(texts)
        return LanguageModel.small(tokenizer, pooling=encoder.pooling, packed=encoder.packed)
    return LanguageModel.from_path(
        encoder.path,
        lora_rank=encoder.lora_rank,
        gradient_checkpointing=encoder.checkpointing,
        pooling=encoder.pooling,
        packed=None if encoder.packed else False,
    )


def check_libraries(train: str) -> None:
    """See that a run has what it needs at its end as well.

    Args:
        train: one of MODES.

    Raises:
        ImportError: a library is missing; says which extra has it.
    """
    needed = ["pandas", "pyarrow", *(["sklearn"] if train == "tfidf" else [])]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"runs on texts need {missing[0]}: pip install 'gtkern[language]'")


def digest(module: nn.Module, *about: str) -> str:
    """A name for what a module computes: a hash of its weights and of some texts."""
    found = hashlib.sha256()
    for text in about:
        found.update(f"{len(text)}:{text}".encode())
    for name, value in sorted(module.state_dict().items()):
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def encode_all(
    model: LanguageModel,
    tokens: TokenizedTexts,
    settings: LeadingSettings,
    folder: pathlib.Path,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """The language model's vectors of all nodes, each encoded once: float32 [N, width].

    They are written to a file as they come, and what a stopped process had written is not encoded
    again. Several processes share the nodes out.

    Args:
        model: the language model. tokens: of the texts. settings: of the run.
        folder: of the file, whose name tells the model's weights.
        progress: called with the number of nodes done, and of all.
    """
    encoder = settings.encoder
    name = digest(model, tokens.digest, encoder.pooling, encoder.precision)
    nodes = torch.arange(tokens.num_nodes)
    if _processes.rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
    _processes.barrier()
    bank = MemoryBank(
        tokens.num_nodes,
        model.width,
        dtype="float32",
        # only one process writes the file
        path=folder / f"{name}.bank" if _processes.rank() == 0 else None,
        identity=name,
    )
    # the first process has the file
    missing = nodes[_processes.from_first((~bank.visited(nodes)).to(torch.uint8)).bool()]
    done = nodes.numel() - missing.numel()
    # the longest first: what takes the most memory shows at once
    order = tokens.lengths[tokens.text_of[missing]].argsort(descending=True, stable=True)
    for part in missing[order].split(NODES_AT_ONCE):
        bank.write(part, encoded_rows(model, tokens, part, settings), step=0)
        done += part.numel()
        if progress is not None:
            progress(done, nodes.numel())
    rows = bank.read(nodes) if _processes.rank() == 0 else torch.zeros(len(nodes), model.width)
    return _processes.from_first(rows)


def read_weights(module: nn.Module, path: pathlib.Path, *, strict: bool = True) -> None:
    """Load the weights that a phase kept; not `strict`: those that it kept, of all."""
    module.load_state_dict(load_file(path), strict=strict)


def write_predictions(path: pathlib.Path, data: TextGraph, logits: Tensor) -> None:
    """Write a table with a row for each node: its number, class, probability, and its own label.

    Raises:
        ImportError: pandas or pyarrow are not installed.
    """
    pandas = import_pandas()
    chances = logits.float().softmax(dim=1)
    confidence, found = chances.max(dim=1)
    names = np.array([*data.class_names, ""], dtype=object)
    part = np.full(data.num_nodes, "", dtype=object)
    for name in ("train", "val", "test"):
        part[getattr(data, f"{name}_mask").numpy()] = name
    table = pandas.DataFrame(
        {
            "node": np.arange(data.num_nodes),
            "prediction": names[found.numpy()],
            "probability": confidence.numpy(),
            "label": names[data.y.numpy()],
            "split": part,
        }
    )
    table.to_parquet(path, index=False)


def save(
    network: TextGraphNetwork,
    folder: pathlib.Path,
    settings: LeadingSettings,
    data: TextGraph,
    phase: Phase,
) -> None:
    """Write the language model as Hugging Face does, and the graph part beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    network.language_model.save(folder / "language-model")
    graph_part: GraphPart = network.graph_part
    weights = {key: value.cpu().contiguous() for key, value in graph_part.state_dict().items()}
    save_file(weights, folder / "graph-part.safetensors")
    about: dict[str, Any] = {
        "class_names": list(data.class_names),
        "features": graph_part.project.in_features,
        "propagation": asdict(settings.propagation),
        "val": phase.val,
        "test": phase.test,
    }
    (folder / "about.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    (folder / "config.yaml").write_text(settings_of.dump(settings), encoding="utf-8")
