"""What tests of twins need: two copies of a layer, and all that they give compared."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import gtkern
from gtkern import testing
from gtkern.nn.dropin.twin import Twin


def twin_of(layer: nn.Module) -> nn.Module:
    """A copy of a layer, accelerated; fails where a module of it that has a twin stays."""
    twin = copy.deepcopy(layer)
    report = gtkern.accelerate(twin)
    assert report.replaced, str(report)
    return twin


def results(layer: nn.Module, inputs: Sequence[Any], cotangent_seed: int = 0) -> dict[str, Tensor]:
    """Outputs and gradients of floating inputs and of parameters, by name."""
    inputs = [
        value.clone().requires_grad_()
        if isinstance(value, Tensor) and value.is_floating_point()
        else value
        for value in inputs
    ]
    out = layer(*inputs)
    outs = [part for part in flat(out) if part.is_floating_point()]
    generator = torch.Generator().manual_seed(cotangent_seed)
    loss = sum(
        (part.double() * torch.randn(part.shape, generator=generator, dtype=torch.float64)).sum()
        for part in outs
    )
    leaves = {
        f"input {at}": value
        for at, value in enumerate(inputs)
        if isinstance(value, Tensor) and value.requires_grad
    } | {name: value for name, value in layer.named_parameters() if value.requires_grad}
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    found = {f"output {at}": part.detach() for at, part in enumerate(flat(out))}
    for (name, leaf), grad in zip(leaves.items(), grads, strict=True):
        found[f"gradient of {name}"] = torch.zeros_like(leaf) if grad is None else grad
    return found


def flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (tuple, list)):
        return [tensor for part in value for tensor in flat(part)]
    return []


def assert_same(layer: nn.Module, twin: nn.Module, inputs: Sequence[Any]) -> None:
    """Outputs and all gradients agree to the error budget of fp32."""
    expected, actual = results(layer, inputs), results(twin, inputs)
    assert list(actual) == list(expected)
    for name, value in actual.items():
        assert value.dtype == expected[name].dtype, name
        # gradients that cancel, such as that of the keys' bias, are rounding and nothing else
        testing.assert_within_budget(
            value.double(), expected[name].double(), name=name, dtype=torch.float32, unit=1.0
        )


def is_twin(layer: nn.Module) -> bool:
    return isinstance(layer, Twin)
