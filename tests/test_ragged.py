"""Ragged and PairIndex: what they hold, and every promised message."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gtkern import PairIndex, Ragged

PTR = [0, 2, 2, 5]


def three() -> Ragged:
    """Graphs of 2, 0 and 3 nodes."""
    return Ragged.from_ptr(torch.tensor(PTR))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_pointer_gives_the_batch(dtype: torch.dtype, device: torch.device) -> None:
    ragged = Ragged.from_ptr(torch.tensor(PTR, dtype=dtype, device=device))
    assert ragged.ptr.tolist() == PTR and ragged.ptr.dtype == torch.int64
    assert ragged.pair_ptr.tolist() == [0, 4, 4, 13] and ragged.pair_ptr.dtype == torch.int64
    assert (ragged.num_graphs, ragged.num_nodes, ragged.num_pairs, ragged.max_nodes) == (
        3,
        5,
        13,
        3,
    )
    assert ragged.sizes().tolist() == [2, 0, 3]
    assert ragged.batch().tolist() == [0, 0, 2, 2, 2]
    assert ragged.device.type == device.type


def test_a_batch_vector_gives_the_same_batch() -> None:
    ragged = Ragged.from_batch(torch.tensor([0, 0, 2, 2, 2]))
    assert ragged.ptr.tolist() == PTR
    assert Ragged.from_batch(torch.tensor([0, 0], dtype=torch.int32), 3).ptr.tolist() == [
        0,
        2,
        2,
        2,
    ]


def test_zero_graphs_are_a_batch() -> None:
    for ragged in (
        Ragged.from_ptr(torch.tensor([0])),
        Ragged.from_batch(torch.empty(0, dtype=torch.int64)),
    ):
        assert (ragged.num_graphs, ragged.num_nodes, ragged.num_pairs) == (0, 0, 0)
        assert ragged.max_nodes == 0
        assert [each.numel() for each in ragged.pairs()] == [0, 0]


def test_pairs_are_numbered_by_graph_then_query_then_key() -> None:
    query, key = three().pairs()
    assert query.tolist() == [0, 0, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert key.tolist() == [0, 1, 0, 1, 2, 3, 4, 2, 3, 4, 2, 3, 4]


def test_more_than_two_to_the_31_pairs_are_counted() -> None:
    ragged = Ragged.from_ptr(torch.tensor([0, 60_000, 120_000], dtype=torch.int32))
    assert ragged.num_pairs == 7_200_000_000


def test_what_was_given_may_change_later() -> None:
    ptr = torch.tensor(PTR)
    ragged = Ragged.from_ptr(ptr)
    ptr[1] = 9
    assert ragged.ptr.tolist() == PTR


def test_moving_to_the_same_device_is_free(device: torch.device) -> None:
    ragged = three()
    assert ragged.to("cpu") is ragged
    index = PairIndex.from_tensor(torch.zeros(13, dtype=torch.uint8), ragged, 1)
    assert index.to("cpu") is index
    assert index.to(device).device == ragged.to(device).device


@pytest.mark.parametrize(
    ("ptr", "error", "message"),
    [
        ([0, 1], TypeError, r"^ptr must be a tensor, got list"),
        (torch.tensor([0.0, 1.0]), TypeError, r"^ptr must be int32 or int64, got torch.float32"),
        (torch.tensor([[0, 1]]), ValueError, r"^ptr must have shape \[G \+ 1\], got \[1, 2\]"),
        (torch.empty(0, dtype=torch.int64), ValueError, r"^ptr must have at least 1 entry"),
        (torch.tensor([1, 2]), ValueError, r"^ptr must begin with 0, got 1"),
        (torch.tensor([0, 4, 3]), ValueError, r"^ptr must not fall, got 4 then 3 at position 2"),
        (
            torch.tensor([0, 2**62 + 1, -(2**62), 3]),
            ValueError,
            r"^ptr must not fall, got 4",
        ),
        (torch.tensor([0, 2**31]), ValueError, r"^ptr must end at 2147483647 nodes at most, got"),
    ],
)
def test_wrong_pointers_are_refused(ptr: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Ragged.from_ptr(ptr)


@pytest.mark.parametrize(
    ("batch", "graphs", "error", "message"),
    [
        ([0], None, TypeError, r"^batch must be a tensor, got list"),
        (torch.tensor([0.0]), None, TypeError, r"^batch must be int32 or int64, got"),
        (torch.tensor([[0]]), None, ValueError, r"^batch must have shape \[N\], got \[1, 1\]"),
        (torch.tensor([0, 2, 1]), None, ValueError, r"^batch must be sorted, got 2 then 1 at pos"),
        (torch.tensor([-1, 0]), None, ValueError, r"^batch must be 0 \.\. 0 .*got -1"),
        (torch.tensor([0, 3]), 3, ValueError, r"^batch must be 0 \.\. 2 .*got 3"),
        (torch.tensor([0]), -1, ValueError, r"^num_graphs must be 0 \.\. \d+, got -1"),
        (
            torch.tensor([0]),
            2**70,
            ValueError,
            r"^num_graphs must be 0 .*got an integer of 71 bits",
        ),
        (torch.tensor([0]).to("meta"), None, ValueError, r"^batch must be on a device that holds"),
        (torch.tensor([0]).to_sparse(), None, TypeError, r"^batch must be a dense tensor, got"),
        (torch.tensor([0]), 1.0, TypeError, r"^num_graphs must be an integer, got float"),
    ],
)
def test_wrong_batch_vectors_are_refused(
    batch: Any, graphs: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Ragged.from_batch(batch, graphs)


@pytest.mark.parametrize(("dtype", "masked"), [(torch.uint8, 255), (torch.int16, -1)])
def test_an_index_may_mask(dtype: torch.dtype, masked: int) -> None:
    values = torch.arange(13).remainder(4).to(dtype)
    values[5] = masked
    index = PairIndex.from_tensor(values, three(), 4)
    assert PairIndex.MASKED[dtype] == masked
    assert index.index.tolist() == values.tolist()
    assert (index.num_entries, index.num_pairs) == (4, 13)


def with_entry(value: int) -> Tensor:
    index = torch.zeros(13, dtype=torch.int16)
    index[7] = value
    return index


@pytest.mark.parametrize(
    ("index", "count", "error", "message"),
    [
        ([0], 1, TypeError, r"^index must be a tensor, got list"),
        (torch.zeros(13), 1, TypeError, r"^index must be uint8 or int16, got torch.float32"),
        (torch.zeros(12, dtype=torch.uint8), 1, ValueError,
         r"^index must have shape \[num_pairs\] = \[13\], got \[12\]"),
        (torch.zeros(13, dtype=torch.uint8, device="meta"), 1, ValueError,
         r"^index must be on the device of ragged \(cpu\), got meta"),
        (torch.zeros(13, dtype=torch.uint8), 256, ValueError,
         r"^num_entries must be 1 \.\. 255 for torch.uint8, got 256"),
        (with_entry(0), 40_000, ValueError, r"^num_entries must be 1 \.\. 32767 for torch.int16"),
        (with_entry(0), 0, ValueError, r"^num_entries must be 1 .*got 0"),
        (with_entry(0), 1.0, TypeError, r"^num_entries must be an integer, got float"),
        (with_entry(3), 3, ValueError,
         r"^index must be 0 \.\. 2 \(num_entries - 1\) or -1 \(masked\), got 3 at pair 7"),
        (with_entry(-2), 3, ValueError, r"^index must be 0 \.\. 2 .*got -2 at pair 7"),
    ],
)  # fmt: skip
def test_wrong_indices_are_refused(
    index: Any, count: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        PairIndex.from_tensor(index, three(), count)


def test_an_index_needs_a_batch() -> None:
    with pytest.raises(TypeError, match=r"^ragged must be a Ragged, got list"):
        PairIndex.from_tensor(torch.zeros(13, dtype=torch.uint8), PTR, 1)  # type: ignore[arg-type]
