"""What every attention over rows of [heads, width] proves besides the contract of every room."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
import torch
from contract import RoomContract, idle_nodes
from hypothesis import strategies
from room import Call, Sample, assert_all_within_budget, assert_bit_equal, fast, oracle, run
from torch import Tensor

from gtkern.testing import assert_within_budget


class AttentionContract(RoomContract):
    """Claims of ops with arguments q, k and v, and with dropout.

    Attributes:
        calls: strategy of any small call with any mixture of options.
    """

    calls: Callable[[], strategies.SearchStrategy[Call]]

    @pytest.mark.kernels
    def test_any_call_with_any_options(self, backend: str, device: torch.device) -> None:
        @hypothesis.settings(max_examples=60 if fast(backend, device) else 6)
        @hypothesis.given(call=type(self).calls())
        def proof(call: Call) -> None:
            call.others["seed"] = 17
            expected = oracle(self.room, call, torch.float32)
            found = run(self.room, call.cast(torch.float32, device), backend)
            # a score's gradient is a difference of terms that both options make larger
            kept = 1 - call.others.get("dropout", 0.0)
            growth = 1 / (kept * call.others.get("temperature", 1.0))
            assert_all_within_budget(found, expected, torch.float32, growth=growth)

        proof()

    @pytest.mark.sizes("tiny")
    def test_nodes_without_edges_reach_nothing_whatever_they_hold(
        self, backend: str, device: torch.device, sample: Sample
    ) -> None:
        """Such a node shares tiles with nodes that have edges; NaN times zero is no zero."""
        call = sample.build().cast(torch.float32, device)
        idle = idle_nodes(self.room, call)
        if "prefix_k" in call.tensors:  # that every destination sees
            del idle["dst"]
        if not any(nodes.any() for nodes in idle.values()):
            pytest.skip("every node has edges")

        def held(tensor: Tensor, axis: str, value: float) -> Tensor:
            if axis not in idle:
                return tensor
            rows = idle[axis].view(-1, *[1] * (tensor.dim() - 1))
            return tensor.masked_fill(rows, value)

        def results_with(value: float) -> dict[str, Tensor]:
            def op(**arguments: Any) -> Any:
                results = self.room.op(**arguments)
                each = results if isinstance(results, tuple) else (results,)
                for (_, axis), result in zip(self.room.results(call), each, strict=True):
                    if result.requires_grad:
                        result.register_hook(lambda grad, axis=axis: held(grad, axis, value))
                return results

            tensors = {
                name: held(tensor, call.axes[name], value) for name, tensor in call.tensors.items()
            }
            return run(self.room, call._replace(tensors=tensors), backend, op=op)

        assert_bit_equal(results_with(math.nan), results_with(1.0))

    def test_dropout_is_drawn_from_torchs_generator(
        self, backend: str, device: torch.device
    ) -> None:
        call = self._first(device)
        call.others["dropout"] = 0.5
        torch.manual_seed(3)
        first = run(self.room, call, backend)
        torch.manual_seed(3)
        again = run(self.room, call, backend)
        other = run(self.room, call, backend)
        assert_bit_equal(first, again)
        assert not torch.equal(first["out"], other["out"])

    def test_seed_may_be_a_tensor(self, backend: str, device: torch.device) -> None:
        call = self._first(device)
        call.others.update(dropout=0.5, seed=9)
        number = run(self.room, call, backend)
        call.others["seed"] = torch.tensor(9)
        assert_bit_equal(run(self.room, call, backend), number)

    def test_large_scores_do_not_overflow(self, backend: str, device: torch.device) -> None:
        call = self._first(device)
        call.others["scale"] = 1e4
        found = run(self.room, call, backend)
        assert all(value.isfinite().all() for value in found.values())
        expected = oracle(self.room, call.cast(torch.float64), torch.float32)
        assert_within_budget(found["out"], expected["out"], name="out", unit=1.0)

    @pytest.mark.kernels
    def test_second_derivatives_of_kernels_are_refused(
        self, backend: str, device: torch.device
    ) -> None:
        """Kernels have no second derivative; asking for one must not give a silent zero."""
        call = self._first(device)
        leaves = {name: value.requires_grad_() for name, value in call.tensors.items()}
        out = self.room.op(**leaves, **call.others, backend=backend)
        (first,) = torch.autograd.grad(out.square().sum(), leaves["q"], create_graph=True)
        with pytest.raises((RuntimeError, NotImplementedError), match="reference"):
            torch.autograd.grad(first.square().sum(), leaves["k"])

    def _first(self, device: torch.device) -> Call:
        return self.room.samples[0].build().cast(torch.float32, device)
