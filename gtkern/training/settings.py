"""Settings as dataclasses: read from YAML, changed by key=value, checked key by key."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import pathlib
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import yaml

from gtkern.training.errors import UserError

__all__ = ["SettingsError", "dump", "first_difference", "load", "override", "read", "setting"]

T = TypeVar("T")


class SettingsError(UserError):
    """A key that does not exist, or a value that does not fit."""


def setting(
    default: Any = dataclasses.MISSING,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    choices: tuple[Any, ...] = (),
) -> Any:
    """A dataclass field with a range: low <= value <= high and above < value < below.

    For a tuple the range holds for every item.
    """
    bounds = {"low": low, "high": high, "above": above, "below": below, "choices": choices}
    return dataclasses.field(default=default, metadata=bounds)


def load(path: pathlib.Path) -> dict[str, Any]:
    """The settings in a YAML file, as plain values.

    Raises:
        SettingsError: no such file, no YAML, or no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read the settings {path}: {error}") from error
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise SettingsError(f"{path} must hold keys and values, got {type(values).__name__}")
    return values


def override(cls: type, values: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Change values by assignments such as "phase1.lr=0.02"; gives a changed copy.

    Raises:
        SettingsError: an assignment without "=", or a key that `cls` does not have.
    """
    result = _copy(values)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip()
        if not equals:
            raise SettingsError(f"--set needs key=value, got {assignment!r}")
        if key not in _keys(cls):
            raise SettingsError(_unknown(cls, key))
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise SettingsError(f"{key}: {text!r} is no YAML value") from error
        *parents, last = key.split(".")
        place = result
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return result


def read(cls: type[T], values: Mapping[str, Any]) -> T:
    """Make the dataclass `cls` from plain values; keys left out keep their defaults.

    Raises:
        SettingsError: an unknown key (names the nearest one), a missing key, a value of the wrong
            kind or out of range.
    """
    made: T = _read(cls, cls, values, "")
    return made


def dump(settings: Any) -> str:
    """The settings as YAML."""
    text: str = yaml.safe_dump(_plain(dataclasses.asdict(settings)), sort_keys=False)
    return text


def first_difference(a: Any, b: Any) -> str | None:
    """The first key in which two settings of one class differ; None when they are equal."""
    for field in dataclasses.fields(a):
        first, second = getattr(a, field.name), getattr(b, field.name)
        if first == second:
            continue
        if dataclasses.is_dataclass(first):
            return f"{field.name}.{first_difference(first, second)}"
        return field.name
    return None


def _copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _copy(value) if isinstance(value, Mapping) else value for key, value in values.items()
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _keys(cls: Any, prefix: str = "") -> list[str]:
    hints = typing.get_type_hints(cls)
    keys = []
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            keys += _keys(hints[field.name], f"{prefix}{field.name}.")
        else:
            keys.append(prefix + field.name)
    return keys


def _unknown(root: type, key: str) -> str:
    keys = _keys(root)
    near = difflib.get_close_matches(key, keys, n=1) if "." in key else []
    if not near:
        # a right name in the wrong place, or without its place
        last = {known.rpartition(".")[2]: known for known in reversed(keys)}
        near = [last[name] for name in difflib.get_close_matches(key.rpartition(".")[2], last, n=1)]
    hint = f"; the nearest key is {near[0]!r}" if near else f"; the keys are {', '.join(keys)}"
    return f"there is no setting {key!r}{hint}"


def _read(root: type, cls: Any, values: Any, prefix: str) -> Any:
    if not isinstance(values, Mapping):
        raise SettingsError(f"{prefix.rstrip('.')} must hold keys and values, got {values!r}")
    hints = typing.get_type_hints(cls)
    names = {field.name for field in dataclasses.fields(cls)}
    for key in values:
        if key not in names:
            raise SettingsError(_unknown(root, f"{prefix}{key}"))
    made = {}
    for field in dataclasses.fields(cls):
        kind, key = hints[field.name], prefix + field.name
        if dataclasses.is_dataclass(kind):
            made[field.name] = _read(root, kind, values.get(field.name, {}), f"{key}.")
        elif field.name in values:
            value = _convert(key, kind, values[field.name])
            _check_range(key, value, field.metadata)
            made[field.name] = value
        elif field.default is dataclasses.MISSING:
            raise SettingsError(f"the setting {key!r} is missing")
    try:
        return cls(**made)
    except ValueError as error:
        raise SettingsError(f"{prefix}{error}") from error


def _convert(key: str, kind: Any, value: Any) -> Any:
    kinds = typing.get_args(kind)
    if type(None) in kinds:
        if value is None:
            return None
        (kind,) = (kind for kind in kinds if kind is not type(None))
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is float and (is_number or isinstance(value, str)):
        # YAML reads 1e-3 as text
        with contextlib.suppress(ValueError):
            return float(value)
    if kind is int and is_number and isinstance(value, int):
        return value
    if kind in (str, bool) and isinstance(value, kind):
        return value
    if typing.get_origin(kind) is tuple and isinstance(value, (list, tuple)):
        return tuple(_convert(key, typing.get_args(kind)[0], item) for item in value)
    wanted = {float: "a number", int: "an integer", str: "text", bool: "true or false"}
    raise SettingsError(f"{key} must be {wanted.get(kind, 'a list')}, got {value!r}")


def _check_range(key: str, value: Any, bounds: Mapping[str, Any]) -> None:
    if not bounds:
        return
    for item in value if isinstance(value, tuple) else (value,):
        if bounds["choices"]:
            if item not in bounds["choices"]:
                names = ", ".join(str(choice) for choice in bounds["choices"])
                raise SettingsError(f"{key} must be one of {names}, got {item!r}")
        elif isinstance(item, (int, float)) and not (
            bounds["low"] <= item <= bounds["high"] and bounds["above"] < item < bounds["below"]
        ):
            parts = [
                f"{sign} {bounds[name]:g}"
                for name, sign in (("low", ">="), ("above", ">"), ("high", "<="), ("below", "<"))
                if math.isfinite(bounds[name])
            ]
            raise SettingsError(f"{key} must be {' and '.join(parts) or 'finite'}, got {item!r}")
