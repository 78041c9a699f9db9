"""gather_tokens and scatter_tokens: the rooms' contracts, and what only they promise."""

from __future__ import annotations

import pytest
import torch
from contract import RoomContract
from dropping_rooms import GATHER, SCATTER, SELECT, some_of
from room import (
    Sample,
    assert_bit_equal,
    everywhere,
    lazy_zeros,
    run,
)

from gtkern import Ragged, ops
from gtkern.ops import Selection


class TestGather(RoomContract):
    """gather_tokens, with and without a gate."""

    room = GATHER


class TestScatter(RoomContract):
    """scatter_tokens, with and without rows for the dropped tokens."""

    room = SCATTER

    def test_destinations_without_edges_get_zero_and_give_zero(
        self, backend: str, device: torch.device, sample: Sample
    ) -> None:
        call = sample.build().cast(torch.float32, device)
        found = run(SCATTER, call, backend)
        dropped = call.others["selection"].position < 0
        expected = call.tensors["fill"] if call.others["filled"] else torch.zeros_like(found["out"])
        assert torch.equal(found["out"][dropped], expected[dropped])
        assert (found["grad of fill"][~dropped] == 0).all()

    @pytest.mark.sizes("tiny")
    def test_nan_stays_in_its_rows(
        self, backend: str, device: torch.device, sample: Sample
    ) -> None:
        call = sample.build().cast(torch.float32, device)
        selection = call.others["selection"]
        clean = run(SCATTER, call, backend)["out"]
        dropped = int((selection.position < 0).nonzero()[0])
        for name, row, struck in (("y", 0, int(selection.index[0])), ("fill", dropped, dropped)):
            tensors = {key: value.clone() for key, value in call.tensors.items()}
            tensors[name][row] = float("nan")
            found = run(SCATTER, call._replace(tensors=tensors), backend)["out"]
            rest = torch.arange(found.size(0), device=device) != struck
            assert found[struck].isnan().all()
            assert_bit_equal({"out": found[rest]}, {"out": clean[rest]})


# Choosing: scores come in and the mask [N] comes out, which is the gate in its places.


@everywhere(SELECT)
def test_rows_of_any_dtype_are_moved(backend: str, device: torch.device) -> None:
    selection = some_of((5, 0, 8)).to(device)
    for dtype in (torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool):
        for shape in ((), (1,), (3,), (2, 2), (0,)):
            x = torch.randint(2, (13, *shape), device=device).to(dtype)
            kept = ops.gather_tokens(x, selection, backend=backend)
            assert kept.dtype == dtype and torch.equal(kept, x[selection.index])
            back = ops.scatter_tokens(kept, selection, x, backend=backend)
            assert torch.equal(back, x)


@everywhere(SELECT)
def test_uncopied_rows_are_learnt_from_without_a_gate(backend: str, device: torch.device) -> None:
    selection = some_of((5, 3)).to(device)
    x = torch.randn(8, 3, device=device, requires_grad=True)
    weight = torch.randn(selection.num_kept, 3, device=device)
    out = ops.gather_tokens(x, selection, backend=backend)
    found = torch.autograd.grad(out, x, weight)[0]
    assert torch.equal(found, ops.scatter_tokens(weight, selection, backend="reference"))


@everywhere(SELECT)
@pytest.mark.large
def test_rows_beyond_2_31_elements(backend: str, device: torch.device) -> None:
    if device.type != "cpu":
        pytest.skip("lazy memory is the CPU's")
    rows, width = 2**22 + 2, 512
    x = lazy_zeros(rows, 1, width, torch.bfloat16)
    x[-2], x[-1] = 2.0, 3.0
    ragged = Ragged.from_ptr(torch.tensor([0, rows - 2, rows]))
    position = torch.full((rows,), -1, dtype=torch.int32)
    position[-1] = 0
    ptr = torch.tensor([0, 0, 1])
    selection = Selection(torch.tensor([rows - 1]), position, ragged, ptr, ptr, torch.ones(1))
    found = ops.gather_tokens(x, selection, backend=backend)
    assert found.shape == (1, 1, width) and (found == 3.0).all()
