"""What every room proves, for each of its backends and samples.

A class that inherits `RoomContract` (or, for an op without gradients, `OpContract`) and holds a
`room` (see room.py) proves every claim below; `test_<room>.py` adds what only that room promises.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from room import (
    BadInput,
    Call,
    Room,
    Sample,
    assert_all_within_budget,
    assert_bit_equal,
    cotangent,
    dtypes,
    fast,
    pairs,
    run,
    sample_oracle,
)
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bench.harness import never_waiting, replayed


class _Capture(TorchFunctionMode):
    """Remembers the first call of one of gtkern's registered forward ops."""

    def __init__(self) -> None:
        super().__init__()
        self.op: Any = None
        self.arguments: tuple[Any, ...] = ()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = str(getattr(func, "_qualified_op_name", ""))
        if self.op is None and name.startswith("gtkern::") and name.endswith("_fwd"):
            self.op, self.arguments = func.default, args
        return func(*args, **(kwargs or {}))


@functools.cache
def _has_compiler() -> bool:
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        return bool(get_cpp_compiler())
    except RuntimeError:
        return False


class OpContract:
    """What any op promises, differentiable or not. `room` is set by the class that inherits."""

    room: Room

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Cross backends, samples and dtypes as the test's arguments and marks ask."""
        names = metafunc.fixturenames
        if "bad" in names:
            cases = self.room.bad
            metafunc.parametrize("bad", cases, ids=[case.name for case in cases])
            return
        if "backend" not in names:
            return
        marks = {mark.name: mark.args for mark in metafunc.definition.iter_markers()}
        sizes = marks.get("sizes", ("tiny", "small", "long", "broad"))
        interpreted = marks.get("interpreted", ("tiny", "small"))
        kernels_only = "kernels" in marks
        argnames = [name for name in ("backend", "device", "sample", "dtype") if name in names]
        once = marks.get("once", ())
        on_gpus = "gpu" in marks
        rows, ids, tried = [], [], set()
        for row in self._rows(sizes, interpreted, kernels_only):
            pair = (row["backend"], row["device"])
            if on_gpus and row["device"].type != "cuda":
                continue
            if row["backend"] in once and pair in tried:
                continue
            tried.add(pair)
            chosen = tuple(row[name] for name in argnames)
            label = "-".join(_label(value) for value in chosen)
            if label not in ids:
                rows.append(chosen)
                ids.append(label)
        metafunc.parametrize(argnames, rows, ids=ids)

    def _rows(
        self, sizes: tuple[str, ...], interpreted: tuple[str, ...], kernels_only: bool
    ) -> Iterator[dict[str, Any]]:
        for backend, device in pairs(self.room):
            if kernels_only and backend == "reference":
                continue
            for sample in self.room.samples:
                if sample.size not in sizes:
                    continue
                if sample.size not in interpreted and not fast(backend, device):
                    continue
                for dtype in dtypes(backend, sample, device):
                    yield {"backend": backend, "device": device, "sample": sample, "dtype": dtype}

    @pytest.mark.interpreted("tiny", "small", "long")
    def test_forward_and_gradients_are_within_budget(
        self, backend: str, device: torch.device, sample: Sample, dtype: torch.dtype
    ) -> None:
        expected = sample_oracle(self.room, sample, dtype)
        call = sample.build().cast(dtype, device)
        actual = run(self.room, call, backend)
        assert_all_within_budget(actual, expected, dtype)
        first = self.room.results(call)[0][0]
        for name, value in actual.items():
            if name.startswith("grad of ") or (name == first and value.is_floating_point()):
                assert value.dtype == dtype, name

    @pytest.mark.sizes("tiny")
    def test_forward_is_the_same_without_gradients(
        self, backend: str, device: torch.device, sample: Sample
    ) -> None:
        call = sample.build().cast(torch.float32, device)
        everything = run(self.room, call, backend)
        bare = run(self.room, call, backend, needs=())
        assert_bit_equal(bare, {key: everything[key] for key in bare})

    @pytest.mark.sizes("tiny")
    def test_strides_do_not_matter(
        self, backend: str, device: torch.device, sample: Sample
    ) -> None:
        call = sample.build().cast(torch.float32, device)
        strided = {name: _strided(value) for name, value in call.tensors.items()}
        assert any(not value.is_contiguous() for value in strided.values())
        assert_bit_equal(
            run(self.room, call._replace(tensors=strided), backend), run(self.room, call, backend)
        )

    # an interpreter or emulator runs one block after the other, and could not tell
    @pytest.mark.kernels
    @pytest.mark.interpreted("tiny")
    def test_two_runs_are_bit_equal(
        self, backend: str, device: torch.device, sample: Sample
    ) -> None:
        call = sample.build().cast(torch.float32, device)
        assert_bit_equal(run(self.room, call, backend), run(self.room, call, backend))

    # torch's threads do not run what an interpreter or emulator does
    @pytest.mark.interpreted
    def test_one_and_two_threads_are_bit_equal(
        self, backend: str, device: torch.device, sample: Sample
    ) -> None:
        if backend != "cpu":
            pytest.skip(f"torch's threads do not run backend {backend!r}")
        call = sample.build().cast(torch.float32, device)
        two = run(self.room, call, backend)
        torch.set_num_threads(1)
        assert_bit_equal(run(self.room, call, backend), two)

    def test_bad_input_is_refused(self, bad: BadInput) -> None:
        call = self.room.samples[0].build().cast(torch.float32)
        arguments = {**call.tensors, **call.others, "backend": "auto"}
        with pytest.raises(bad.error, match=bad.match):
            self.room.op(**{**arguments, **bad.change(arguments)})


class RoomContract(OpContract):
    """What differentiable ops promise besides."""

    @pytest.mark.sizes("tiny")
    def test_gradcheck_in_float64(self, backend: str, device: torch.device, sample: Sample) -> None:
        if backend not in ("reference", "cpu"):
            pytest.skip(f"backend {backend!r} has no float64 kernels")
        call = sample.build().cast(torch.float64, device)
        # number by number those of kernels are compared with the reference's, in float64 too
        fast_mode = backend == "cpu"
        assert torch.autograd.gradcheck(
            *_as_function(self.room, call, backend), fast_mode=fast_mode
        )

    @pytest.mark.sizes("tiny")
    def test_reference_differentiates_twice(
        self, backend: str, device: torch.device, sample: Sample
    ) -> None:
        if backend != "reference":
            pytest.skip("only the reference promises second derivatives")
        call = sample.build().cast(torch.float64, device)
        function, leaves = _as_function(self.room, call, backend)
        assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)

    # what an op is to torch hangs on its options, not on the backend, a name in a call
    @pytest.mark.sizes("tiny")
    @pytest.mark.kernels
    @pytest.mark.once("triton", "cuda")
    def test_opcheck(self, backend: str, device: torch.device, sample: Sample) -> None:
        call = sample.build().cast(torch.float32, device)
        leaves = {name: value.requires_grad_() for name, value in call.tensors.items()}
        with _Capture() as capture:
            self.room.op(**leaves, **call.others, backend=backend)
        assert capture.op is not None, "the call reached no op named gtkern::*_fwd"
        report = torch.library.opcheck(capture.op, capture.arguments)
        assert set(report.values()) == {"SUCCESS"} and len(report) == 4

    # what the compiler sees of kernels is the same for every backend: a name in a call
    @pytest.mark.sizes("tiny")
    @pytest.mark.once("reference", "triton", "cuda")
    def test_compiled_equals_eager(
        self, backend: str, device: torch.device, sample: Sample
    ) -> None:
        if backend == "triton" and _has_compiler():
            pytest.skip("inductor compiles the same below")
        torch._dynamo.reset()
        eager = run(self.room, sample.build().cast(torch.float32, device), backend)
        compiled = torch.compile(self.room.op, fullgraph=True, dynamic=True, backend="aot_eager")
        call = sample.build().cast(torch.float32, device)
        found = run(self.room, call, backend, op=compiled)
        if backend == "reference":
            wide = {name: value.double() for name, value in eager.items()}
            assert_all_within_budget(found, wide, torch.float32)
        else:
            assert_bit_equal(found, eager)

    @pytest.mark.kernels
    def test_inductor_equals_eager(self, backend: str, device: torch.device) -> None:
        if not _has_compiler():
            pytest.skip("inductor needs a C++ compiler")
        torch._dynamo.reset()
        sample = self.room.samples[0]
        eager = run(self.room, sample.build().cast(torch.float32, device), backend)
        compiled = torch.compile(self.room.op, fullgraph=True, dynamic=True)
        call = sample.build().cast(torch.float32, device)
        assert_bit_equal(run(self.room, call, backend, op=compiled), eager)

    @pytest.mark.gpu
    @pytest.mark.kernels
    @pytest.mark.sizes("tiny")
    def test_no_call_waits_for_the_device(
        self, backend: str, device: torch.device, sample: Sample
    ) -> None:
        call = sample.build().cast(torch.float32, device)
        if self.room.waits(call):
            pytest.skip("waits, as its README says")
        step, _ = _as_step(self.room, call, backend)
        step()
        with never_waiting():
            step()

    @pytest.mark.gpu
    @pytest.mark.kernels
    @pytest.mark.sizes("tiny")
    def test_a_cuda_graph_replays_it(
        self, backend: str, device: torch.device, sample: Sample
    ) -> None:
        call = sample.build().cast(torch.float32, device)
        if self.room.waits(call):
            pytest.skip("waits, as its README says")
        step, leaves = _as_step(self.room, call, backend)
        replay = replayed(step, device)
        with torch.no_grad():
            for leaf in leaves:
                leaf.copy_(leaf.flip(0))
        found, expected = replay(), step()
        names = [str(number) for number in range(len(expected))]
        assert_bit_equal(
            dict(zip(names, found, strict=True)), dict(zip(names, expected, strict=True))
        )

    @pytest.mark.sizes("tiny")
    def test_gradients_do_not_depend_on_which_others_are_wanted(
        self, backend: str, device: torch.device, sample: Sample
    ) -> None:
        call = sample.build().cast(torch.float32, device)
        everything = run(self.room, call, backend)
        for name in call.tensors:
            alone = run(self.room, call, backend, needs=(name,))
            assert_bit_equal(alone, {key: everything[key] for key in alone})

    @pytest.mark.sizes("tiny")
    def test_expanded_gradients_are_understood(
        self, backend: str, device: torch.device, sample: Sample
    ) -> None:
        call = sample.build().cast(torch.float32, device)
        function, leaves = _as_function(self.room, call, backend)
        results = function(*leaves)
        ones = [torch.ones_like(value) for value in results]
        expanded = [value.new_ones(()).expand(value.shape) for value in results]
        dense = torch.autograd.grad(results, leaves, ones, retain_graph=True)
        found = torch.autograd.grad(results, leaves, expanded)
        names = list(call.tensors)
        assert_bit_equal(dict(zip(names, found, strict=True)), dict(zip(names, dense, strict=True)))

    @pytest.mark.sizes("tiny", "small", "long")
    def test_renamed_nodes_get_the_same_results(
        self, backend: str, device: torch.device, sample: Sample
    ) -> None:
        call = sample.build()
        to = _orders(self.room, call, seed=1)

        def renamed(value: Tensor, axis: str) -> Tensor:
            if axis not in to:
                return value
            return torch.empty_like(value).index_copy(0, to[axis].to(value.device), value)

        moved = Call(
            {name: renamed(value, call.axes[name]) for name, value in call.tensors.items()},
            call.axes,
            self.room.relabel(call.others, to["src"], to["dst"]),
        )
        names = [name for name, _ in self.room.results(call)]
        results = [axis for _, axis in self.room.results(call)]
        narrow = call.cast(torch.float32, device)
        alone = run(self.room, narrow, backend, needs=())
        expected = {
            name: renamed(alone[name], axis).double()
            for name, axis in zip(names, results, strict=True)
        }
        found = run(self.room, moved.cast(torch.float32, device), backend, needs=())
        assert_all_within_budget(found, expected, torch.float32)

    @pytest.mark.sizes("tiny", "small", "long")
    @pytest.mark.interpreted("tiny")
    def test_a_graph_does_not_see_its_batch_mates(
        self, backend: str, device: torch.device, sample: Sample
    ) -> None:
        if sample.build().others.get("dropout"):
            pytest.skip("a dropout mask belongs to an edge's number, which batching changes")
        call = sample.build()
        generator = torch.Generator().manual_seed(2)
        mate = {
            name: value
            if call.axes[name] == "type"
            else torch.randn(value.shape, generator=generator, dtype=value.dtype)
            for name, value in call.tensors.items()
        }
        order = _orders(self.room, call, seed=3)
        other = self.room.relabel(call.others, order["src"], order["dst"])
        first, second = (call.tensors, mate)
        joined = Call(
            {
                name: first[name]
                if call.axes[name] == "type"
                else torch.cat((first[name], second[name]))
                for name in first
            },
            call.axes,
            self.room.join([call.others, other]),
        )
        alone = run(self.room, call.cast(torch.float32, device), backend)
        batched = run(self.room, joined.cast(torch.float32, device), backend)
        axes = dict(self.room.results(call))
        axes |= {f"grad of {name}": axis for name, axis in call.axes.items()}
        by_row = [name for name, axis in axes.items() if axis != "type"]
        # the second half's gradients meet other cotangents; rows of the first must not notice
        results = [name for name, _ in self.room.results(call)]
        for name in (name for name in by_row if name in results):
            mine = batched[name][: alone[name].size(0)]
            assert_bit_equal({name: mine}, {name: alone[name]})
        padded = _gradients_of_first(self.room, joined, alone, device, backend)
        for name in (name for name in by_row if name in padded):
            assert_bit_equal({name: padded[name][: alone[name].size(0)]}, {name: alone[name]})

    def test_destinations_without_edges_get_zero_and_give_zero(
        self, backend: str, device: torch.device, sample: Sample
    ) -> None:
        call = sample.build().cast(torch.float32, device)
        idle = idle_nodes(self.room, call)
        found = run(self.room, call, backend)
        axes = {name: axis for name, axis in self.room.results(call) if axis == "dst"}
        axes |= {f"grad of {name}": axis for name, axis in call.axes.items() if axis in idle}
        for name, axis in axes.items():
            assert (found[name][idle[axis]] == 0).all(), name

    @pytest.mark.sizes("tiny")
    def test_nan_stays_in_its_rows(
        self, backend: str, device: torch.device, sample: Sample
    ) -> None:
        call = sample.build().cast(torch.float32, device)
        source, destination = self.room.edges(call.others)
        if source.numel() == 0:
            pytest.skip("no edge carries anything")
        clean = run(self.room, call, backend)
        for name, axis in call.axes.items():
            if axis not in ("src", "dst"):
                continue
            tensors = {key: value.clone() for key, value in call.tensors.items()}
            node = int(source[0] if axis == "src" else destination[0])
            tensors[name][node] = float("nan")
            struck = torch.zeros(_counts(self.room, call)["dst"], dtype=torch.bool)
            struck[destination[source == node].cpu() if axis == "src" else node] = True
            struck = struck.to(device)
            found = run(self.room, call._replace(tensors=tensors), backend)
            for result in [key for key, kind in self.room.results(call) if kind == "dst"]:
                kept = {result: found[result][~struck]}
                assert_bit_equal(kept, {result: clean[result][~struck]})
            first = self.room.results(call)[0][0]
            dropped = call.others.get("dropout", 0) > 0 and name == "v"
            assert dropped or found[first][struck].isnan().any(dim=(1, 2)).all(), name
            for key, kind in call.axes.items():
                if kind == "dst":
                    assert found[f"grad of {key}"][~struck].isfinite().all(), f"{name} -> {key}"

    @pytest.mark.kernels
    def test_backward_keeps_little(
        self, backend: str, device: torch.device, sample: Sample, dtype: torch.dtype
    ) -> None:
        call = sample.build().cast(dtype, device)
        leaves = {name: value.requires_grad_() for name, value in call.tensors.items()}
        self.room.structure(call.others)
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            results = self.room.op(**leaves, **call.others, backend=backend)
        results = results if isinstance(results, tuple) else (results,)
        known = [*leaves.values(), *results, *self.room.structure(call.others)]
        for tensor in known:
            kept.pop(tensor.untyped_storage().data_ptr(), None)
        assert sum(kept.values()) <= self.room.saved_bytes(call)


def _label(value: Any) -> str:
    if isinstance(value, Sample):
        return value.name
    return str(value).removeprefix("torch.")


def _counts(room: Room, call: Call) -> dict[str, int]:
    """The number of sources and destinations."""
    return {call.axes[name]: value.size(0) for name, value in call.tensors.items()}


def idle_nodes(room: Room, call: Call) -> dict[str, Tensor]:
    """Which sources and which destinations have no edge: by axis, bool [N]."""
    counts = _counts(room, call)
    ends = zip(("src", "dst"), room.edges(call.others), strict=True)
    return {axis: torch.bincount(nodes, minlength=counts[axis]) == 0 for axis, nodes in ends}


def _orders(room: Room, call: Call, *, seed: int) -> dict[str, Tensor]:
    """New numbers for the sources and the destinations."""
    generator = torch.Generator().manual_seed(seed)
    if room.orders is not None:
        return room.orders(call, generator)
    counts = _counts(room, call)
    return {axis: torch.randperm(counts[axis], generator=generator) for axis in ("src", "dst")}


def _as_function(
    room: Room, call: Call, backend: str
) -> tuple[Callable[..., tuple[Tensor, ...]], list[Tensor]]:
    names = list(call.tensors)
    leaves = [value.detach().requires_grad_() for value in call.tensors.values()]

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        arguments = dict(zip(names, values, strict=True))
        results = room.op(**arguments, **call.others, backend=backend)
        return results if isinstance(results, tuple) else (results,)

    return function, leaves


def _as_step(
    room: Room, call: Call, backend: str
) -> tuple[Callable[[], list[Tensor]], list[Tensor]]:
    """What gives results and gradients and touches nothing outside the device, and its leaves."""
    function, leaves = _as_function(room, call, backend)
    ones = [torch.ones_like(value) for value in function(*leaves)]

    def step() -> list[Tensor]:
        results = function(*leaves)
        gradients = torch.autograd.grad(results, leaves, ones)
        return [*(value.detach() for value in results), *gradients]

    return step, leaves


def _strided(value: Tensor) -> Tensor:
    """Equal values that do not lie one after the other."""
    wide = value.new_full((*value.shape, 2), 7.0)
    wide[..., 0] = value
    return wide[..., 0]


def _gradients_of_first(
    room: Room,
    joined: Call,
    alone: Mapping[str, Tensor],
    device: torch.device,
    backend: str,
) -> dict[str, Tensor]:
    """Gradients of a batch whose first graph gets the cotangents it gets when alone."""
    function, leaves = _as_function(room, joined.cast(torch.float32, device), backend)
    results = function(*leaves)
    roots, cotangents = [], []
    names = [name for name, _ in room.results(joined)]
    for at, (name, value) in enumerate(zip(names, results, strict=True)):
        mine = cotangent(alone[name], at)
        mates = value.new_ones(value.size(0) - mine.size(0), *value.shape[1:])
        roots.append(value)
        cotangents.append(torch.cat((mine, mates)))
    gradients = torch.autograd.grad(roots, leaves, cotangents, allow_unused=True)
    return {
        f"grad of {name}": torch.zeros_like(leaf) if gradient is None else gradient
        for name, leaf, gradient in zip(joined.tensors, leaves, gradients, strict=True)
    }
