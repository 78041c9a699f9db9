"""What commands on graphs of texts make of their options."""

from __future__ import annotations

import json
import pathlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gtkern.data.text_graph import TextGraph
    from gtkern.methods.leading.settings import LeadingSettings

__all__ = ["load_text_data", "text_assignments"]


def text_assignments(
    dataset: str | None,
    nodes: pathlib.Path | None,
    edges: pathlib.Path | None,
    text: str | None,
    label: str | None,
    lm: pathlib.Path | None,
) -> tuple[str | None, list[str]]:
    """The data set, and the settings that stand for the options.

    Raises:
        UserError: options that do not go together.
    """
    from gtkern.training.errors import UserError

    own = {"--nodes": nodes, "--edges": edges, "--text": text, "--label": label}
    given = [option for option, value in own.items() if value is not None]
    if given:
        if nodes is None or edges is None:
            raise UserError(f"--nodes and --edges go together, got {', '.join(given)}")
        if dataset not in (None, "files"):
            raise UserError(f"{given[0]} is for --dataset files, got --dataset {dataset}")
        dataset = "files"
    values = {
        "files.nodes": None if nodes is None else str(nodes),
        "files.edges": None if edges is None else str(edges),
        "files.text": None if text is None else [column.strip() for column in text.split(",")],
        "files.label": label,
        "encoder.path": None if lm is None else str(lm),
    }
    # JSON is YAML, whatever a path has in it
    changes = [f"{key}={json.dumps(value)}" for key, value in values.items() if value is not None]
    return dataset, changes


def load_text_data(
    settings: LeadingSettings, root: pathlib.Path | None, _: pathlib.Path
) -> tuple[TextGraph, str]:
    """A graph of texts and its name in tables."""
    from gtkern.data import DataNotFoundError
    from gtkern.data.text import fewer_labels, load_text_graph
    from gtkern.data.text_files import read_text_graph
    from gtkern.training.errors import UserError

    files, text = settings.files, settings.text
    try:
        if settings.dataset == "files":
            if text.split != "given":
                raise UserError(f"text.split {text.split} is not there for files")
            data = read_text_graph(
                files.nodes,
                files.edges,
                id=files.id,
                text=files.text,
                label=files.label,
                split=files.split,
                seed=settings.data_seed,
            )
            data = fewer_labels(
                data,
                labels_per_class=text.labels_per_class,
                label_share=text.label_share,
                seed=settings.data_seed,
            )
        else:
            data = load_text_graph(
                settings.dataset,
                root,
                split=text.split,
                labels_per_class=text.labels_per_class,
                label_share=text.label_share,
                seed=settings.data_seed,
            )
    except (DataNotFoundError, FileNotFoundError, ImportError) as error:
        raise UserError(str(error)) from error
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise UserError(f"cannot read {settings.dataset}: {error}") from error
    generated = settings.dataset == "synthetic"
    return data, f"{data.name} (generated)" if generated else data.name
