"""block_sparse_linear: the room's contract, and what only this room promises."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import hypothesis
import pytest
import torch
from contract import RoomContract
from hypothesis import strategies
from room import (
    BadInput,
    Call,
    Room,
    Sample,
    assert_all_within_budget,
    assert_bit_equal,
    everywhere,
    fast,
    lazy_zeros,
    oracle,
    run,
)
from torch import Tensor
from torch.nn import functional

from gtkern import BlockSparseMatrix, ops
from gtkern.ops.block_sparse_linear.op import BACKENDS
from gtkern.testing import error_budget, relative_error


def linear(*, values: Any, structure: BlockSparseMatrix, **arguments: Any) -> Tensor:
    """The op; the contract names every tensor, so the weight comes in two parts."""
    weight = arguments.pop("weight", None)
    weight = structure.with_values(values) if weight is None else weight
    return ops.block_sparse_linear(weight=weight, **arguments)


def make(
    rows: int | tuple[int, ...],
    shape: tuple[int, int],
    block: tuple[int, int],
    *,
    kept: float = 0.5,
    bias: bool = True,
    seed: int = 0,
    **options: Any,
) -> Call:
    """A call with random arguments, of results of unit size.

    Args:
        rows: the leading sizes of x.
        shape: C_out, C_in.
        kept: the chance of a block to be kept; where it is below 1, the first block row is empty.
        options: of the op.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, dtype=torch.float64)

    grid = [-(-size // part) for size, part in zip(shape, block, strict=True)]
    mask = torch.rand(grid, generator=generator) < kept
    if kept < 1:
        mask[:1] = False
    weight = BlockSparseMatrix.from_dense(normal(*shape), block, mask=mask)
    leading = rows if isinstance(rows, tuple) else (rows,)
    tensors = {
        "x": normal(*leading, shape[1]) / math.sqrt(max(1, kept * shape[1])),
        # also what lies past the matrix, which must not matter
        "values": normal(*weight.values.shape),
    }
    if bias:
        tensors["bias"] = normal(shape[0])
    axes = {"x": "src", "values": "type", "bias": "type"}
    return Call(tensors, axes, {"structure": weight, **options})


def structure(others: Mapping[str, Any]) -> list[Tensor]:
    return [*others["structure"].index]


def orders(call: Call, generator: torch.Generator) -> dict[str, Tensor]:
    """Rows of x and of the result change places together."""
    order = torch.randperm(call.tensors["x"].size(0), generator=generator)
    return {"src": order, "dst": order}


def saved_bytes(call: Call) -> int:
    """What stands before gelu and silu."""
    if call.others.get("activation") not in ("gelu", "silu"):
        return 0
    x, out_features = call.tensors["x"], call.others["structure"].shape[0]
    return x[..., 0].numel() * out_features * x.element_size()


def sample(name: str, *sizes: Any, size: str = "small", **options: Any) -> Sample:
    return Sample(name, functools.partial(make, *sizes, **options), size)


SAMPLES = (
    sample("plain", 3, (16, 24), (8, 8), size="tiny", activation="gelu"),
    sample("ragged", (2, 3), (19, 11), (16, 8), size="tiny", kept=0.8, activation="silu"),
    sample("relu", 5, (9, 17), (8, 16), size="tiny", kept=0.7, activation="relu", bias=False),
    sample("none", 4, (20, 17), (8, 9), size="tiny", kept=0.7),
    sample("no_blocks", 4, (20, 9), (8, 8), kept=0.0, activation="gelu"),
    sample("no_rows", 0, (20, 9), (8, 8), activation="silu"),
    sample("all_blocks", 33, (64, 32), (16, 16), kept=1.0),
    sample("one_block", 25, (7, 5), (16, 16), kept=1.0, activation="relu"),
    sample("flat_blocks", 30, (40, 96), (8, 32), activation="gelu"),
    sample("tall_blocks", 30, (96, 40), (48, 8), activation="silu"),
    sample("odd_blocks", 21, (60, 70), (13, 21), activation="relu"),
    sample("one_row", 1, (64, 64), (32, 32)),
    sample("32", 250, (96, 128), (32, 32), size="broad"),
    sample("32_gelu", 250, (96, 128), (32, 32), size="broad", activation="gelu"),
    sample("64_ragged", 130, (200, 170), (64, 64), size="broad", activation="silu", kept=0.7),
    sample("128", 70, (256, 384), (128, 128), size="broad", activation="relu", kept=0.7),
    sample("8", 100, (72, 64), (8, 8), size="broad"),
    sample("24_by_40", 90, (150, 130), (24, 40), size="broad"),
    sample("many_rows", 2500, (48, 64), (16, 16), size="broad", activation="gelu"),
    sample("batch_of_rows", (7, 40, 3), (64, 48), (32, 16), size="broad", bias=False),
)


def change(**arguments: Any) -> Any:
    """Replace arguments by values, or by functions of the right arguments."""
    return lambda right: {
        name: value(right) if callable(value) and not isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }


def half(right: Mapping[str, Any]) -> BlockSparseMatrix:
    return right["structure"].to(dtype=torch.float16)


BAD = (
    BadInput("x_no_tensor", change(x=[1.0]), TypeError, r"^x must be a tensor, got list"),
    BadInput("x_integer", change(x=lambda a: a["x"].long()), TypeError,
             r"^x must be float32, bfloat16, float16 or float64, got torch.int64"),
    BadInput("x_width", change(x=torch.ones(3, 23)), ValueError,
             r"^x must have shape \[\.\.\., C_in\] with C_in = 24, got \[3, 23\]"),
    BadInput("x_number", change(x=torch.ones(())), ValueError, r"^x must have shape .* got \[\]"),
    BadInput("weight_dense", change(weight=torch.ones(16, 24)), TypeError,
             r"^weight must be a BlockSparseMatrix, got Tensor"),
    BadInput("weight_dtype", change(weight=half), TypeError,
             r"^weight must have the dtype of x \(torch.float32\), got torch.float16"),
    BadInput("bias_no_tensor", change(bias=1.0), TypeError, r"^bias must be a tensor, got float"),
    BadInput("bias_size", change(bias=torch.ones(15)), ValueError,
             r"^bias must have shape \[C_out\] = \[16\], got \[15\]"),
    BadInput("bias_dtype", change(bias=torch.ones(16).half()), TypeError,
             r"^bias must have the dtype of x \(torch.float32\), got torch.float16"),
    BadInput("bias_device", change(bias=torch.ones(16, device="meta")), ValueError,
             r"^bias must be on the device of x \(cpu\), got meta"),
    BadInput("activation_unknown", change(activation="tanh"), ValueError,
             r"^activation must be None, 'relu', 'gelu', 'silu', got 'tanh'"),
    BadInput("activation_none", change(activation="none"), ValueError, r"^activation must be None"),
    BadInput("backend_unknown", change(backend="numpy"), ValueError,
             r"^backend must be one of 'auto', 'reference', .*got 'numpy'"),
)  # fmt: skip

ROOM = Room(
    op=linear,
    samples=SAMPLES,
    results=lambda call: [("out", "dst")],
    structure=structure,
    edges=lambda others: (torch.empty(0), torch.empty(0)),
    relabel=lambda others, source_to, destination_to: dict(others),
    join=lambda calls: dict(calls[0]),
    saved_bytes=saved_bytes,
    orders=orders,
    backends=BACKENDS,
    bad=BAD,
)


class TestContract(RoomContract):
    """Every claim of the contract."""

    room = ROOM

    def test_destinations_without_edges_get_zero_and_give_zero(
        self, backend: str, device: torch.device, sample: Sample
    ) -> None:
        """An empty block row gives activation(bias); an empty block column gets no gradient."""
        call = sample.build().cast(torch.float32, device)
        weight = call.others["structure"]
        found = run(self.room, call, backend)
        kept = weight.mask()
        outs, ins = (
            (~used).repeat_interleave(size)[:width]
            for used, size, width in zip(
                (kept.any(1), kept.any(0)), weight.block, weight.shape, strict=True
            )
        )
        bias = call.tensors.get("bias", torch.zeros(weight.shape[0], device=device)).double()
        name = call.others.get("activation")
        expected = bias if name is None else getattr(functional, name)(bias)
        out = found["out"][..., outs]
        wanted = expected[outs].expand(out.shape)
        assert_all_within_budget({"out": out}, {"out": wanted}, torch.float32)
        assert (found["grad of x"][..., ins] == 0).all()

    @pytest.mark.sizes("tiny", "broad")
    def test_nan_stays_in_its_rows(
        self, backend: str, device: torch.device, sample: Sample
    ) -> None:
        """One in a row of x reaches that row alone, and there the block rows that read it."""
        call = sample.build().cast(torch.float32, device)
        clean = run(self.room, call, backend)
        weight = call.others["structure"]
        column = int(weight.index.col[0])
        x = call.tensors["x"].clone()
        x[0, ..., column * weight.block[1]] = math.nan
        found = run(self.room, call._replace(tensors={**call.tensors, "x": x}), backend)
        reached = weight.mask()[:, column].repeat_interleave(weight.block[0])[: weight.shape[0]]
        assert reached.any()
        assert found["out"][0][..., reached].isnan().all()
        for name in ("out", "grad of x"):
            assert_bit_equal({name: found[name][1:]}, {name: clean[name][1:]})

    @pytest.mark.sizes("tiny", "small")
    def test_a_graph_does_not_see_its_batch_mates(
        self, backend: str, device: torch.device, sample: Sample
    ) -> None:
        if backend == "reference":
            pytest.skip("torch's dense product rounds otherwise for another number of rows")
        super().test_a_graph_does_not_see_its_batch_mates(backend, device, sample)


@everywhere(ROOM)
def test_what_lies_past_the_matrix_is_neither_read_nor_given_a_gradient(
    backend: str, device: torch.device
) -> None:
    call = make(9, (19, 21), (16, 16), kept=0.9, activation="gelu").cast(torch.float32, device)
    inside = call.others["structure"].inside()
    clean = run(ROOM, call, backend)
    assert (clean["grad of values"].masked_fill(inside, 0) == 0).all()
    call.tensors["values"].masked_fill_(~inside, math.nan)
    assert_bit_equal(run(ROOM, call, backend), clean)


@everywhere(ROOM)
@pytest.mark.parametrize(
    ("rows", "shape", "block", "dtype"),
    [
        pytest.param(3, (130, 264), (64, 128), torch.float32, id="wide_blocks"),
        pytest.param(3, (264, 130), (128, 64), torch.bfloat16, id="wide_blocks_bfloat16"),
        pytest.param(140, (72, 80), (32, 16), torch.bfloat16, id="several_tiles"),
        pytest.param(1100, (24, 16), (8, 8), torch.float32, id="rows_in_parts"),
    ],
)
def test_sizes_of_tiles(
    backend: str,
    device: torch.device,
    rows: int,
    shape: tuple[int, int],
    block: tuple[int, int],
    dtype: torch.dtype,
) -> None:
    call = make(rows, shape, block, kept=0.7, activation="silu")
    found = run(ROOM, call.cast(dtype, device), backend)
    assert_all_within_budget(found, oracle(ROOM, call, dtype), dtype)


@everywhere(ROOM)
def test_tf32_is_left_to_torch(backend: str, device: torch.device) -> None:
    """fp32 products lose digits where torch's own may, on tensor cores, and nowhere else."""
    call = make(8, (32, 64), (16, 32), kept=1.0).cast(torch.float32, device)
    expected = oracle(ROOM, call, torch.float32)
    assert_all_within_budget(run(ROOM, call, backend), expected, torch.float32)
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        found = run(ROOM, call, backend)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    on_tensor_cores = backend == "cuda" or (backend == "triton" and device.type == "cuda")
    assert_all_within_budget(found, expected, torch.float16 if on_tensor_cores else torch.float32)
    for name in ("out", "grad of x", "grad of values"):
        exact = relative_error(found[name], expected[name]) <= error_budget(torch.float32)
        assert exact != on_tensor_cores, name


@everywhere(ROOM)
def test_rows_may_lie_apart(backend: str, device: torch.device) -> None:
    call = make(40, (32, 48), (16, 16)).cast(torch.float32, device)
    wide = torch.full((40, 61), math.nan, device=device)
    wide[:, 5:53] = call.tensors["x"]
    apart = call._replace(tensors={**call.tensors, "x": wide[:, 5:53]})
    assert_bit_equal(run(ROOM, apart, backend), run(ROOM, call, backend))


@everywhere(ROOM)
def test_second_derivatives_of_kernels_are_refused(backend: str, device: torch.device) -> None:
    if backend == "reference":
        pytest.skip("the reference has second derivatives")
    call = SAMPLES[0].build().cast(torch.float32, device)
    leaves = {name: value.requires_grad_() for name, value in call.tensors.items()}
    out = linear(**leaves, **call.others, backend=backend)
    (first,) = torch.autograd.grad(out.square().sum(), leaves["x"], create_graph=True)
    with pytest.raises((RuntimeError, NotImplementedError), match="reference"):
        torch.autograd.grad(first.square().sum(), leaves["values"])


@strategies.composite
def calls(draw: strategies.DrawFn) -> Call:
    """Any small matrix in any blocks."""
    side, part = strategies.integers(1, 50), strategies.integers(8, 40)
    return make(
        draw(strategies.integers(0, 40)),
        (draw(side), draw(side)),
        (draw(part), draw(part)),
        kept=draw(strategies.sampled_from([0.0, 0.3, 0.8, 1.0])),
        bias=draw(strategies.booleans()),
        seed=draw(strategies.integers(0, 99)),
        activation=draw(strategies.sampled_from([None, "relu", "gelu", "silu"])),
    )


@everywhere(ROOM)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_random_matrices(backend: str, device: torch.device, dtype: torch.dtype) -> None:
    @hypothesis.settings(max_examples=60 if fast(backend, device) else 8)
    @hypothesis.given(calls())
    def check(call: Call) -> None:
        found = run(ROOM, call.cast(dtype, device), backend)
        assert_all_within_budget(found, oracle(ROOM, call, dtype), dtype)

    check()


@everywhere(ROOM)
def test_activations_far_from_zero(backend: str, device: torch.device) -> None:
    """Where exp would overflow or erf is 1; x runs through a weight of ones on the diagonal."""
    weight = BlockSparseMatrix.from_dense(torch.eye(16), (16, 16)).to(device)
    line = torch.tensor([0.0, 1e-4, 0.3, 1, 2.5, 5, 9, 40, 89, 200, 1e4, 1e30], device=device)
    x = torch.cat((line, -line))[:, None].expand(24, 16).contiguous().requires_grad_()
    for name in ("relu", "gelu", "silu"):
        out = ops.block_sparse_linear(x, weight, None, name, backend=backend)
        (grad,) = torch.autograd.grad(out.sum(), x)
        wide = x.detach().double().requires_grad_()
        expected = getattr(functional, name)(wide)
        (wide_grad,) = torch.autograd.grad(expected.sum(), wide)
        assert ((out - expected).abs() <= 1e-6 * wide.abs().clamp_min(1)).all(), name
        assert ((grad - wide_grad).abs() <= 1e-6).all(), name


@pytest.mark.large
def test_rows_past_two_to_the_31_are_found() -> None:
    """Three rows of x whose places are more than 2^31 elements apart."""
    call = make(3, (16, 24), (8, 8)).cast(torch.float16)
    wide = lazy_zeros(3, 1, 2**30 + 2**29, torch.float16).view(3, -1)
    wide[:, :24] = call.tensors["x"]
    far = wide[:, :24]
    assert far.stride(0) * 2 > 2**31
    apart = call._replace(tensors={**call.tensors, "x": far})
    assert_bit_equal(run(ROOM, apart, "cpu"), run(ROOM, call, "cpu"))
