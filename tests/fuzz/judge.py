"""What a call may do: return what it promises, or refuse in words of its own."""

from __future__ import annotations

import ast
import functools
import pathlib
import re
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

import gtkern
from gtkern.ops import ConvergenceError
from gtkern.testing import ERROR_BUDGET, relative_error

PACKAGE = pathlib.Path(gtkern.__file__).parent
LARGE = 1e3
"""Of the size of a number: beyond it, or below its inverse, sums may overflow."""
OUT_OF_MEMORY = r"allocate (\d+ bytes|a result of shape)"
UNIT = 0.5
"""As that of gradients in tests/ops/room.py: below this size, where inputs have unit size, errors
are not magnified: sums cancel."""
GROWTH = 8
"""How many times larger than for the samples of the rooms' tests errors may be."""


class Fault(AssertionError):
    """A call did what none may do."""


@dataclass
class Case:
    """A call to make.

    Attributes:
        function: what is called. arguments: by name.
        expect: checks what came back, given the arguments; raises AssertionError.
        exact: results equal those of the reference backend bit for bit.
        oracle: results are compared with float64 maths; not where they need not agree.
        gradients: names of the floating arguments whose gradients are asked for.
        backends: whether the function has an argument `backend`.
        names: that a refusal may name; default: those of the arguments.
        growth: how many times larger than usual errors may be.
    """

    function: Callable[..., Any]
    arguments: dict[str, Any]
    expect: Callable[[Any, Mapping[str, Any]], None]
    exact: bool = False
    oracle: bool = True
    gradients: tuple[str, ...] = ()
    backends: bool = True
    names: tuple[str, ...] = field(default=())
    growth: float = 1.0


def judge(case: Case, *, plain: bool) -> str:
    """Make the call; returns "returned" or "refused".

    Args:
        plain: nothing is odd about the case: it must not be refused.

    Raises:
        Fault: what the call did, and should not.
    """
    try:
        results, gradients = _run(case, case.arguments)
    except Exception as error:
        if not out_of_memory(error):
            check_refusal(error, case)
            if plain:
                raise Fault(f"refused what is right: {error}") from error
            _check_same_refusal(case, error)
        return "refused"
    try:
        case.expect(results, case.arguments)
    except Exception as error:
        kind = type(error).__name__
        raise Fault(f"returned what it does not promise: {kind}: {error}") from error
    tame = not extreme(case.arguments.values())
    for name, value in (*_named(results), *gradients.items()):
        checked = tame and value.is_floating_point() and not value.is_meta
        if checked and not bool(value.detach().isfinite().all()):
            raise Fault(f"{name} is not finite, and all that was given is")
    # without a seed no two calls agree
    if case.backends and case.arguments.get("seed", 0) is not None:
        _check_values(case, results, gradients, tame)
    return "returned"


def extreme(values: Any) -> bool:
    """Whether results need be neither finite nor accurate: so large, or small, is some value."""
    for value in values:
        if isinstance(value, gtkern.BlockSparseMatrix):
            value = value.values
        if isinstance(value, Tensor):
            if value.is_meta or not value.is_floating_point():
                continue
            size = value.detach().to_dense() if value.layout != torch.strided else value.detach()
            if not bool((size.double().abs() < LARGE).all()):
                return True
        elif isinstance(value, (list, tuple)):
            if extreme(value):
                return True
        elif type(value) in (int, float) and value != 0 and not 1 / LARGE < abs(value) < LARGE:
            return True
    return False


def out_of_memory(error: Exception) -> bool:
    """Whether an exception says that memory did not suffice."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(re.search(OUT_OF_MEMORY, str(error)))


def check_refusal(error: Exception, case: Case) -> None:
    """Raise Fault unless a sentence of gtkern's own names an argument."""
    if isinstance(error, ConvergenceError):
        return
    kind = type(error).__name__
    if type(error) not in (TypeError, ValueError, NotImplementedError):
        raise Fault(f"raised {kind}: {error}") from error
    if not _raised_here(error.__traceback__):
        raise Fault(f"raised {kind} in words that are not gtkern's: {error}") from error
    names = case.names or tuple(case.arguments)
    if not any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", str(error)) for name in names):
        raise Fault(f"raised {kind} that names no argument: {error}") from error


def _check_same_refusal(case: Case, error: Exception) -> None:
    """Every backend refuses the same, in the same words."""
    other = {"cpu": "reference", "reference": "cpu"}.get(str(case.arguments.get("backend")))
    if other is None or isinstance(error, (ConvergenceError, NotImplementedError)):
        return
    try:
        case.function(**{**case.arguments, "backend": other})
    except Exception as theirs:
        if isinstance(theirs, NotImplementedError):
            return
        if type(theirs) is not type(error) or str(theirs) != str(error):
            raise Fault(
                f"backend {other!r} refuses otherwise: {type(theirs).__name__}: {theirs}; "
                f"this one: {type(error).__name__}: {error}"
            ) from theirs
    else:
        raise Fault(f"backend {other!r} takes what this one refuses: {error}") from error


def _run(case: Case, arguments: Mapping[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    wanted = {name: arguments[name] for name in case.gradients if _can_learn(arguments.get(name))}
    leaves = {name: value.detach().requires_grad_() for name, value in wanted.items()}
    results = case.function(**{**arguments, **leaves})
    roots = [value for _, value in _named(results) if value.requires_grad]
    if not leaves or not roots or any(value.is_meta for value in roots):
        return results, {}
    cotangents = [_cotangent(value, at) for at, value in enumerate(roots)]
    found = torch.autograd.grad(roots, [*leaves.values()], cotangents, allow_unused=True)
    gradients = {}
    for (name, leaf), gradient in zip(leaves.items(), found, strict=True):
        if gradient is None:
            continue
        if gradient.shape != leaf.shape or gradient.dtype != leaf.dtype:
            raise Fault(f"the gradient of {name} is {gradient.dtype} {list(gradient.shape)}")
        gradients[f"the gradient of {name}"] = gradient
    return results, gradients


def _can_learn(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.layout == torch.strided
        and not value.is_meta
    )


def _check_values(case: Case, results: Any, gradients: Mapping[str, Tensor], tame: bool) -> None:
    arguments = {**case.arguments, "backend": "reference"}
    if case.exact:
        expected, _ = _run(case, arguments)
        pairs = zip(_named(results), _named(expected), strict=True)
        for (name, value), (_, other) in pairs:
            if not torch.equal(value, other):
                raise Fault(f"{name} is {value.tolist()}, and by the reference {other.tolist()}")
        return
    if not case.oracle or not tame or any(value.is_meta for _, value in _named(results)):
        return
    narrow = [value.dtype for value in _tensors(arguments.values()) if value.is_floating_point()]
    if not narrow:
        return
    budget = case.growth * _growth(arguments) * max(ERROR_BUDGET[dtype] for dtype in narrow)
    wide = {name: _widened(value) for name, value in arguments.items()}
    expected, expected_gradients = _run(case, wide)
    pairs = zip(_named(results), _named(expected), strict=True)
    for (name, value), (_, other) in pairs:
        if value.is_floating_point():
            _compare(name, value, other, budget)
    for name, value in gradients.items():
        # what the reference does not reach has no gradient
        _compare(name, value, expected_gradients.get(name, torch.zeros_like(value)), budget)


def _growth(arguments: Mapping[str, Any]) -> float:
    """How many times options make larger what cancels: a large scale twice, by its product too."""
    growth = GROWTH / (1 - (arguments.get("dropout") or 0))
    if "q" in arguments:
        usual = arguments["q"].size(-1) ** -0.5
        scale = arguments.get("scale")
        scale = usual if scale is None else abs(scale)
        growth *= max(1.0, scale / usual / arguments.get("temperature", 1.0)) ** 2
    return growth


def _compare(name: str, value: Tensor, other: Tensor, budget: float) -> None:
    error = relative_error(value, other, unit=UNIT)
    if not error <= budget:
        raise Fault(f"{name} is off by {error:.3g} of its size, the budget is {budget:.3g}")


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().double() if value.is_floating_point() else value
    if isinstance(value, gtkern.BlockSparseMatrix):
        return value.to(dtype=torch.float64)
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(_widened(each) for each in value)
    return value


def _tensors(values: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, gtkern.BlockSparseMatrix):
            found.append(value.values)
        elif isinstance(value, (list, tuple)):
            found += _tensors(value)
    return found


def _named(results: Any, name: str = "the result") -> list[tuple[str, Tensor]]:
    """The tensors of what came back, with their places."""
    if isinstance(results, Tensor):
        return [(name, results)]
    if isinstance(results, (tuple, list)):
        parts = [_named(part, f"{name}[{at}]") for at, part in enumerate(results)]
        return [each for part in parts for each in part]
    return []


def _cotangent(result: Tensor, at: int) -> Tensor:
    generator = torch.Generator().manual_seed(at)
    values = torch.randn(result.shape, generator=generator).to(torch.bfloat16)
    return values.to(result.dtype)


def _raised_here(trace: TracebackType | None) -> bool:
    """Whether the innermost frame is one of gtkern's, at a `raise`."""
    frames = list(traceback.walk_tb(trace))
    if not frames:
        return False
    frame, line = frames[-1]
    path = pathlib.Path(frame.f_code.co_filename)
    return PACKAGE in path.parents and line in _raises(path)


@functools.cache
def _raises(path: pathlib.Path) -> frozenset[int]:
    """The lines of a file that belong to `raise` statements."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Raise):
            lines.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return frozenset(lines)


def promise(value: Any, shape: list[int], dtype: torch.dtype, name: str = "the result") -> None:
    """Assert that a value is a tensor of a shape and dtype."""
    assert isinstance(value, Tensor), f"{name} is a {type(value).__name__}"
    assert [*value.shape] == shape, f"{name} has shape {[*value.shape]}, not {shape}"
    assert value.dtype == dtype, f"{name} is {value.dtype}, not {dtype}"


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a call is summed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def describe(value: Any) -> str:
    """A value in a line or two."""
    if isinstance(value, Tensor):
        kind = "" if type(value) is Tensor else f"{type(value).__name__} "
        head = f"{kind}{value.dtype} {[*value.shape]} strides "
        strides = [*value.stride()] if value.layout == torch.strided else value.layout
        values = value.detach().to_dense() if value.layout != torch.strided else value.detach()
        some = "" if value.is_meta else f" {values.flatten()[:12].tolist()}"
        return f"{head}{strides} on {value.device}{some}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__}({', '.join(describe(each) for each in value)})"
    if isinstance(value, int) and abs(value) >= 2**80:
        return "an enormous integer"
    return repr(value)[:300]
