"""What commands make of their options: settings, data, lists."""

from __future__ import annotations

import difflib
import gc
import pathlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from gtkern.data.graphs import GraphDataset
    from gtkern.data.node import NodeData
__all__ = [
    "NodeSettings",
    "SettingsOfGraphs",
    "check_backend_name",
    "check_known",
    "check_same",
    "integers",
    "lasting",
    "load_data",
    "load_graph_data",
    "numbers",
    "read_settings",
]

T = TypeVar("T")


class SettingsOfGraphs(Protocol):
    """What loading graphs needs of settings."""

    @property
    def dataset(self) -> str:
        """Name of the data set."""

    @property
    def on_bad(self) -> str:
        """What becomes of graphs that cannot be read."""


class NodeSettings(Protocol):
    """What loading the data needs of a method's settings."""

    @property
    def dataset(self) -> str:
        """Name of the data set."""

    @property
    def data_seed(self) -> int:
        """Of generated data."""

    @property
    def power_law(self) -> Any:
        """What the data set power-law is."""


def read_settings(
    method: str,
    cls: type[T],
    epoch_keys: Sequence[str],
    *,
    dataset: str | None,
    default: str = "minesweeper",
    config: pathlib.Path | None,
    assignments: Sequence[str],
    seed: int | None,
    epochs: str | None,
) -> T:
    """The settings behind the options; later options win: file, data set, --set, --seed, --epochs.

    Args:
        method: whose published settings are read when `config` is None.
        cls: dataclass of the settings.
        epoch_keys: the settings that --epochs sets.
        dataset, config, assignments, seed, epochs: the options.
        default: data set without `dataset` and `config`.

    Raises:
        UserError: one of them does not fit.
    """
    from gtkern.training import settings as settings_of
    from gtkern.training.errors import UserError

    if config is None:
        config = _published_config(method, dataset or default)
        dataset = None
    values = settings_of.load(config)
    changes = list(assignments)
    if dataset is not None:
        changes.insert(0, f"dataset={dataset}")
    if seed is not None:
        changes.append(f"seed={seed}")
    if epochs is not None:
        parts = epochs.split(",")
        if len(parts) > len(epoch_keys) or not all(part.strip().isdigit() for part in parts):
            forms = "N" if len(epoch_keys) == 1 else "N or N1,N2"
            raise UserError(f"--epochs must be {forms}, got {epochs!r}")
        changes += [
            f"{key}={parts[min(number, len(parts) - 1)]}" for number, key in enumerate(epoch_keys)
        ]
    return settings_of.read(cls, settings_of.override(cls, values, changes))


@contextmanager
def lasting() -> Iterator[None]:
    """Import what stays until the end: not searched for garbage meanwhile, nor ever after.

    Lightning and what it imports are a million objects; looking through them takes a fifth of the
    import, and then a moment of every few training steps.
    """
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def check_known(kind: str, name: str, known: Sequence[str]) -> None:
    """Raise UserError, with the nearest name, unless `name` is known."""
    from gtkern.training.errors import UserError

    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; the nearest is {near[0]}" if near else ""
        raise UserError(f"there is no {kind} {name!r}{hint}; known: {', '.join(known)}")


def integers(option: str, text: str) -> list[int]:
    """Different numbers from 0, separated by commas."""
    from gtkern.training.errors import UserError

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise UserError(f"{option} must be numbers separated by commas, got {text!r}")
    numbers = [int(part) for part in parts]
    if len(set(numbers)) < len(numbers):
        raise UserError(f"{option} must be different numbers, got {text!r}")
    return numbers


def numbers(option: str, text: str) -> list[float]:
    """Different numbers above 0, at most 1, separated by commas."""
    from gtkern.training.errors import UserError

    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} must be numbers separated by commas, got {text!r}") from None
    if len(set(found)) < len(found) or not all(0 < number <= 1 for number in found):
        raise UserError(f"{option} must be different numbers in (0, 1], got {text!r}")
    return found


def _published_config(method: str, dataset: str) -> pathlib.Path:
    folder = pathlib.Path(__file__).parents[1] / "configs" / method
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if dataset not in known:
        from gtkern.data import GRAPH_SETS
        from gtkern.training.errors import UserError

        if "synthetic" in known and dataset in GRAPH_SETS:
            raise UserError(
                f"there are no settings of {method} for {dataset!r}: name a file of them by "
                f"--config; the sets that have some are {', '.join(known)}"
            )
    check_known("data set", dataset, known)
    return folder / f"{dataset}.yaml"


def check_same(settings: Any, saved: pathlib.Path) -> None:
    """Raise UserError unless a run may be resumed with these settings."""
    from gtkern.training import settings as settings_of
    from gtkern.training.errors import UserError

    before = settings_of.read(type(settings), settings_of.load(saved))
    key = settings_of.first_difference(before, settings)
    if key is not None:
        raise UserError(f"cannot resume with another {key} than in {saved}")


def load_data(
    settings: NodeSettings, root: pathlib.Path | None, folder: pathlib.Path
) -> tuple[NodeData, str]:
    """The data and its name in tables; generated files go to root, or into the run folder."""
    import zipfile

    from gtkern.data import DataNotFoundError, load_published, minesweeper
    from gtkern.training.errors import UserError

    if settings.dataset == "power-law":
        return _power_law(settings, folder / "data" if root is None else root / "power-law")
    if root is None:
        if settings.dataset != "minesweeper":
            raise UserError(
                f"{settings.dataset} is not generated: --data-root must name the folder of its "
                "files"
            )
        return minesweeper(settings.data_seed), "minesweeper (generated)"
    try:
        return load_published(settings.dataset, root), settings.dataset
    except DataNotFoundError as error:
        raise UserError(str(error)) from error
    except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
        raise UserError(f"cannot read {settings.dataset} under {root}: {error}") from error


def load_graph_data(
    settings: SettingsOfGraphs, root: pathlib.Path | None, _: pathlib.Path
) -> tuple[GraphDataset, str]:
    """A set of graphs and its name in tables."""
    from gtkern.data import DataNotFoundError, load_graphs
    from gtkern.training.errors import UserError

    try:
        data = load_graphs(settings.dataset, root, on_bad=settings.on_bad)
    except (DataNotFoundError, ImportError) as error:
        raise UserError(str(error)) from error
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise UserError(f"cannot read {settings.dataset} under {root}: {error}") from error
    return data, f"{data.name} (generated)" if root is None else data.name


def _power_law(settings: NodeSettings, folder: pathlib.Path) -> tuple[NodeData, str]:
    import dataclasses

    from gtkern.data import power_law
    from gtkern.training.errors import UserError

    try:
        data = power_law(folder, settings.data_seed, **dataclasses.asdict(settings.power_law))
    except ValueError as error:
        raise UserError(f"power_law.{error}") from error
    except OSError as error:
        raise UserError(f"cannot write the data set power-law to {folder}: {error}") from error
    return data, "power-law (generated)"


def check_backend_name(backend: str) -> None:
    """Raise UserError, with the nearest name, unless there is such a backend."""
    from gtkern._backends import BACKENDS
    from gtkern.training.errors import UserError

    names = ("auto", *BACKENDS)
    if backend not in names:
        near = difflib.get_close_matches(backend, names, n=1)
        hint = f"; the nearest is {near[0]}" if near else ""
        raise UserError(f"--backend must be one of {', '.join(names)}, got {backend!r}{hint}")
