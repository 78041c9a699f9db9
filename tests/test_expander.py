"""Expander graphs: regular, tested for their gap, and the same with and without native code."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from torch import Tensor

from gtkern.transforms import expander, expander_edges, spectral_gap

ALGORITHMS = expander.ALGORITHMS


@pytest.fixture(params=["native", "numpy"])
def twin(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test on each of the two implementations."""
    if request.param == "numpy":
        monkeypatch.setattr(expander, "_native", None)
    elif expander._native is None:
        pytest.skip("gtkern._graph was not built")
    return str(request.param)


def laplacian(edges: Tensor, num_nodes: int) -> np.ndarray:
    """Dense, for eigenvalues by LAPACK."""
    ones = np.ones(edges.size(1))
    shape = (num_nodes, num_nodes)
    adjacency = scipy.sparse.csr_array((ones, tuple(edges.numpy())), shape=shape).toarray()
    return np.asarray(np.diag(adjacency.sum(1)) - adjacency)


def in_degree(edges: Tensor, num_nodes: int) -> Tensor:
    return torch.bincount(edges[1], minlength=num_nodes)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_node_has_2d_edges_in_and_out(algorithm: str, twin: str) -> None:
    edges = expander_edges(57, 4, algorithm=algorithm, seed=1)
    assert edges.dtype == torch.int64
    assert edges.shape == (2, 2 * 4 * 57)
    assert (in_degree(edges, 57) == 8).all()
    assert (in_degree(edges.flip(0), 57) == 8).all()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_second_half_reverses_the_first(algorithm: str, twin: str) -> None:
    first, second = expander_edges(57, 4, algorithm=algorithm, seed=1).chunk(2, dim=1)
    assert torch.equal(first.flip(0), second)


def test_hamiltonian_is_a_union_of_cycles_through_all_nodes(twin: str) -> None:
    edges = expander_edges(31, 3, seed=5)
    for cycle in edges[:, : 3 * 31].split(31, dim=1):
        successor = dict(cycle.T.tolist())
        node, seen = 0, set()
        while node not in seen:
            seen.add(node)
            node = successor[node]
        assert len(seen) == 31


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("remove_duplicates", [False, True])
def test_native_and_numpy_agree(
    algorithm: str, remove_duplicates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if expander._native is None:
        pytest.skip("gtkern._graph was not built")

    def drawn() -> Tensor:
        return expander_edges(
            523, 3, algorithm=algorithm, seed=-9, remove_duplicates=remove_duplicates
        )

    native = drawn()
    monkeypatch.setattr(expander, "_native", None)
    assert torch.equal(native, drawn())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_removal_leaves_no_self_loop_and_no_repetition(algorithm: str, twin: str) -> None:
    options: dict[str, Any] = {"algorithm": algorithm, "seed": 3}
    drawn = expander_edges(20, 8, **options)
    kept = expander_edges(20, 8, **options, remove_duplicates=True)
    pairs = {(i, j) for i, j in drawn.T.tolist() if i != j}
    assert kept.T.tolist() == sorted([i, j] for i, j in pairs)
    assert kept.size(1) < drawn.size(1)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_gap_is_nearly_that_of_a_ramanujan_graph(algorithm: str, twin: str) -> None:
    edges = expander_edges(300, 5, algorithm=algorithm, seed=0)
    gap = np.linalg.eigvalsh(laplacian(edges, 300))[1]
    assert gap >= 10 - 2 * math.sqrt(9) - expander.SLACK


@pytest.mark.parametrize(("num_nodes", "degree"), [(11, 1), (40, 2), (300, 5), (700, 15)])
def test_gap_agrees_with_a_dense_solver(num_nodes: int, degree: int, twin: str) -> None:
    edges = expander_edges(num_nodes, degree, algorithm="random_d", seed=2, max_tries=1)
    expected = np.linalg.eigvalsh(laplacian(edges, num_nodes))[1]
    assert spectral_gap(edges, num_nodes) == pytest.approx(expected, abs=1e-4)


def test_gap_agrees_with_arpack_on_ten_thousand_nodes(twin: str) -> None:
    edges = expander_edges(10_000, 15, seed=2, max_tries=1)
    adjacency = scipy.sparse.csr_array((np.ones(edges.size(1)), tuple(edges.numpy())))
    second = scipy.sparse.linalg.eigsh(adjacency, k=2, which="LA", return_eigenvectors=False)
    assert spectral_gap(edges, 10_000) == pytest.approx(30 - second.min(), abs=1e-4)


def test_gap_of_an_irregular_graph(twin: str) -> None:
    path = torch.tensor([[0, 1, 1, 2, 2, 3, 1, 3], [1, 0, 2, 1, 3, 2, 3, 1]])
    expected = np.linalg.eigvalsh(laplacian(path, 4))[1]
    assert spectral_gap(path, 4) == pytest.approx(expected, abs=1e-9)


def test_gap_of_a_disconnected_graph_is_zero(twin: str) -> None:
    one = expander_edges(30, 2, seed=0)
    assert spectral_gap(torch.cat((one, one + 30), dim=1), 60) == pytest.approx(0, abs=1e-6)
    assert spectral_gap(torch.empty(2, 0, dtype=torch.int64), 5) == 0
    assert spectral_gap(torch.empty(2, 0, dtype=torch.int64), 1) == 0


def test_a_draw_below_the_bound_is_replaced(twin: str) -> None:
    gaps = [
        spectral_gap(expander_edges(40, 2, algorithm="random_d", seed=seed, max_tries=tries), 40)
        for tries in (1, 100)
        for seed in range(20)
    ]
    bound = 4 - 2 * math.sqrt(3) - expander.SLACK
    assert min(gaps[:20]) < bound
    assert min(gaps[20:]) >= bound


def test_large_graphs_take_the_first_draw(twin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expander, "UNTESTED_ABOVE", 30)
    options: dict[str, Any] = {"algorithm": "random_d", "seed": 4}
    tested = [expander_edges(40, 1, **options, max_tries=tries) for tries in (1, 50)]
    assert torch.equal(tested[0], tested[1])


@pytest.mark.parametrize("num_nodes", range(11))
def test_up_to_ten_nodes_the_graph_is_complete(num_nodes: int) -> None:
    edges = expander_edges(num_nodes, 3, seed=0)
    assert edges.T.tolist() == [
        [i, j] for i in range(num_nodes) for j in range(num_nodes) if i != j
    ]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_degree_is_at_most_nodes_minus_one(algorithm: str, twin: str) -> None:
    edges = expander_edges(12, 500, algorithm=algorithm, seed=0)
    assert edges.size(1) == 2 * 11 * 12


def test_seed_decides_the_graph(twin: str) -> None:
    first, again, other = (expander_edges(50, 3, seed=seed) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_a_seed_torch_s_generator_decides() -> None:
    torch.manual_seed(5)
    first, second = expander_edges(50, 3), expander_edges(50, 3)
    torch.manual_seed(5)
    assert torch.equal(first, expander_edges(50, 3))
    assert not torch.equal(first, second)


def test_permutations_are_uniform(twin: str) -> None:
    """Every node follows every other about equally often: chi squared at five sigma."""
    counts = torch.zeros(12, 12)
    for seed in range(200):
        edges = expander_edges(12, 4, algorithm="random_d", seed=seed, max_tries=1)
        counts += torch.bincount(edges[0] * 12 + edges[1], minlength=144).view(12, 12)
    off_diagonal = counts[~torch.eye(12, dtype=torch.bool)]
    expected = 200 * 8 / 12
    chi_squared = ((off_diagonal - expected) ** 2 / expected).sum() / 2
    degrees = off_diagonal.numel() / 2
    assert abs(chi_squared - degrees) < 5 * math.sqrt(2 * degrees)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((2.5, 3), TypeError, "num_nodes must be an integer, got float"),
        ((-1, 3), ValueError, "num_nodes must be 0 .. 2147483647, got -1"),
        ((20, 0), ValueError, "degree must be 1 .. 2147483647, got 0"),
        ((20, True), TypeError, "degree must be an integer, got bool"),
    ],
)
def test_bad_sizes_are_named(
    arguments: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        expander_edges(*arguments)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"algorithm": "Hamilton"}, ValueError, "algorithm must be one of 'hamiltonian'"),
        ({"max_tries": 0}, ValueError, "max_tries must be 1 .. 2147483647, got 0"),
        ({"seed": 1.5}, TypeError, "seed must be an integer, got float"),
        ({"seed": 2**70}, ValueError, "seed must fit in 64 signed bits"),
    ],
)
def test_bad_options_are_named(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        expander_edges(20, 3, **options)


@pytest.mark.parametrize(
    ("edges", "nodes", "error", "message"),
    [
        ([[0, 1]], 2, TypeError, "edge_index must be a tensor, got list"),
        (torch.zeros(3, 4), 2, ValueError, r"edge_index must have shape \[2, E\], got \[3, 4\]"),
        (torch.zeros(2, 4), 2, TypeError, "edge_index must be int64, got torch.float32"),
        (torch.tensor([[0], [2]]), 2, ValueError, r"must be 0 .. 1 \(num_nodes - 1\), got 2"),
        (torch.tensor([[0], [-1]]), 2, ValueError, r"must be 0 .. 1 \(num_nodes - 1\), got -1"),
        (torch.tensor([[0], [0]]), 0, ValueError, "num_nodes must be 1"),
    ],
)
def test_bad_edges_are_named(edges: Any, nodes: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        spectral_gap(edges, nodes)
