"""The benchmarks measure what they say."""

from __future__ import annotations

import csv
import math
import pathlib
import time

import pytest
import torch

from bench import harness, plot, records, run
from bench.graphs import LAWS, GraphSpec, edge_index
from bench.harness import Case, Clock, Cost, Peer, Problem, Room, Samples, Unsupported
from bench.limits import Limits
from bench.measure import exact_results, measure
from bench.records import Record

CPU = torch.device("cpu")


def _sleep(seconds: float) -> harness.Call:
    return lambda: time.sleep(seconds)


def _room() -> Room:
    """A room whose own side doubles a vector; one peer agrees, one errs, one cannot, one breaks."""

    def unsupported(problem: Problem, passes: str) -> harness.Call:
        raise Unsupported("has no such thing")

    def broken(problem: Problem, passes: str) -> harness.Call:
        raise RuntimeError("out of order")

    def large(problem: Problem, passes: str) -> float:
        return 2.0**60

    return Room(
        name="doubling",
        cases=(Case("one", GraphSpec(10, 10, 20), {"H": 1}, goals={"fwd": 1e-9}),),
        backends=("reference",),
        prepare=lambda case, device: Problem(case, device, torch.ones(1000), 0.5),
        own=lambda problem, passes, backend: lambda: problem.data * 2,
        cost=lambda problem, passes: Cost(8000.0, edges=1000),
        peers={
            "sum": Peer(lambda problem, passes: lambda: problem.data + problem.data),
            "wrong": Peer(lambda problem, passes: lambda: problem.data * 3),
            "unsupported": Peer(unsupported),
            "broken": Peer(broken),
            "large": Peer(broken, large),
        },
        goal_peers=("sum",),
    )


def _measure(room: Room, exact: torch.Tensor | None = None) -> dict[str, Record]:
    problem = room.prepare(room.cases[0], CPU)
    rows = measure(
        room, problem, "fwd", backends=["reference"], peers=list(room.peers), clock=Clock(CPU),
        limits=Limits(CPU), budget_s=0.01, exact=exact,
    )  # fmt: skip
    return {record.side: record for record in rows}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("num_dst", [300, 900])
def test_generated_graphs_are_simple_and_of_the_promised_size(law: str, num_dst: int) -> None:
    skew = {"hub": 2.0, "powerlaw": 2.5}.get(law, 1.0)
    spec = GraphSpec(900, num_dst, 9000, law=law, skew=skew, locality=0.5)
    edges = edge_index(spec)
    assert edges.shape == (2, 9000)
    assert torch.unique(edges[1] * 900 + edges[0]).numel() == 9000
    assert int(edges.min()) >= 0
    assert int(edges[0].max()) < 900
    assert int(edges[1].max()) < num_dst


def test_generated_graphs_repeat() -> None:
    spec = GraphSpec(100, 100, 1000)
    assert torch.equal(edge_index(spec), edge_index(spec))


def test_locality_brings_sources_near_their_destinations() -> None:
    source, destination = edge_index(
        GraphSpec(6400, 6400, 30_000, law="regular", locality=0.9, seed=1)
    )
    gap = (source - destination).abs()
    near = torch.minimum(gap, 6400 - gap) <= 100
    assert 0.85 < near.double().mean() < 0.95


def test_a_graph_with_too_many_edges_is_refused() -> None:
    with pytest.raises(ValueError, match="num_edges must be at most half"):
        edge_index(GraphSpec(10, 10, 60))


def test_a_race_gives_each_side_its_turns_and_the_ratio_of_their_times() -> None:
    fast, slow = harness.race([_sleep(0.001), _sleep(0.06)], Clock(CPU), budget_s=0.2)
    assert 3 <= len(slow.turns) <= 5
    assert len(fast.turns) >= len(slow.turns)
    assert 20 < slow.ratio_to(fast) < 65


def test_the_spread_is_the_interquartile_range() -> None:
    assert Samples([1.0, 2.0, 3.0, 4.0, 5.0]).spread == 2.0
    assert Samples([1.0, 2.0, 3.0, 4.0, 5.0]).median == 3.0


def test_peak_memory_counts_what_was_held_at_once() -> None:
    def call() -> torch.Tensor:
        x = torch.ones(1 << 20)
        y = x + 1
        del x
        return y + 1

    assert harness.peak_memory(call, CPU)[1] / 2**20 == pytest.approx(8.0, abs=0.1)


def test_limits_are_finite_and_small_tables_are_faster_than_large_ones() -> None:
    limits = Limits(CPU)
    if limits.copy != limits.copy:
        pytest.skip(str(limits.reason))
    assert limits.copy > 1e8
    assert limits.matmul() > 1e8
    assert limits.gather(256, 1 << 18) > limits.gather(256, 256 << 20)


def test_sides_that_cannot_run_keep_a_row_that_says_why() -> None:
    records = _measure(_room())
    assert records["unsupported"].note == "has no such thing"
    assert records["broken"].note == "RuntimeError: out of order"
    assert "GiB of memory" in records["large"].note
    assert records["broken"].turns == 0


def test_a_backend_that_is_wrong_is_not_timed() -> None:
    room = _room()
    exact = exact_results(room, room.cases[0], "fwd", CPU)
    right = _measure(room, exact)["gtkern-reference"]
    assert right.error == 0
    assert right.turns > 0
    wrong = _measure(room, exact * 1.1)
    assert wrong["gtkern-reference"].note == "wrong by 9.1e-02, at most 1e-03 is allowed"
    assert wrong["gtkern-reference"].turns == 0
    assert wrong["sum"].turns > 0
    assert math.isnan(wrong["sum"].ratio)


def test_an_exact_case_holds_the_values_of_its_dtype_in_float64() -> None:
    case = Case("one", GraphSpec(10, 10, 20), {}, dtype="bfloat16", exact=True)
    held = case.hold(torch.tensor(math.pi))
    assert held.dtype == torch.float64
    assert held == torch.tensor(math.pi).bfloat16().double()


def test_a_different_result_is_noted() -> None:
    records = _measure(_room())
    assert records["wrong"].note == "result differs from gtkern's by 5.0e-01"
    assert records["sum"].note == ""


def test_rows_carry_rates_and_the_ratio_to_the_goals_peer() -> None:
    own = _measure(_room())["gtkern-reference"]
    assert own.gb_s == pytest.approx(8000 / own.ms / 1e6)
    assert own.medge_s == pytest.approx(1 / own.ms)
    assert own.goal == 1e-9
    assert own.ratio > 0
    assert own.prepare_ms == 500


def test_a_second_run_replaces_its_own_rows_only(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "rows.csv"
    first = Record("room", "a", "", "fwd", "float32", "gtkern-cpu", ms=1.0)
    second = Record("room", "b", "", "fwd", "float32", "gtkern-cpu", ms=2.0)
    records.save(path, [first, second])
    second.ms = 3.0
    records.save(path, [second])
    with path.open(newline="") as file:
        assert [row["ms"] for row in csv.DictReader(file)] == ["1", "3"]
    assert not list(tmp_path.glob("*.part"))


def test_rows_of_the_same_conditions_are_finished(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "rows.csv"
    shared = {"device": "one", "threads": 2, "torch": "2", "commit": "abc"}
    assert records.finished(path, shared) == set()
    row = Record("room", "a", "", "fwd", "float32", "gtkern-cpu", ms=1.0)
    for name, value in shared.items():
        setattr(row, name, value)
    records.save(path, [row])
    assert records.finished(path, shared) == {row.key}
    assert records.finished(path, {**shared, "commit": "abd"}) == set()
    assert records.finished(path, {**shared, "commit": "abc-changed"}) == set()
    assert records.finished(path, {**shared, "commit": ""}) == set()


def test_a_run_stops_between_cases_and_says_what_is_left(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--quick", "--check", "--rooms", "neighbor_sampling", "--cases", "tolokers*", "--peers",
        "none", "--budget", "0.01", "--caches", "both", "--out", str(tmp_path / "rows.csv"),
    ]  # fmt: skip
    assert run.main([*arguments, "--minutes", "1e-9"]) == run.UNFINISHED
    assert "3 of 3 cases are left" in capsys.readouterr().out
    assert run.main([*arguments, "--cases", "tolokers"]) == 0
    with (tmp_path / "rows.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["side"] == "gtkern-cpu"]
    assert [row["caches"] for row in rows] == ["warm", "cold"]
    assert [row["error"] for row in rows] == ["0", "0"]


def test_the_plot_is_written(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "rows.csv"
    records.save(path, _measure(_room()).values())
    plot.draw(path, tmp_path / "rows.png")
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rooms", "attic"], "no room 'attic'"),
        (["--cases", "nothing"], "no case 'nothing'"),
        (["--peers", "nobody"], "no peer 'nobody'"),
        (["--device", "tpu"], "must be cpu or cuda, got 'tpu'"),
        (["--device", "mps"], "must be cpu or cuda, got 'mps'"),
        (["--threads", "0"], "--threads must be at least 1"),
        (["--budget", "0"], "--budget must be more than 0"),
        (["--minutes", "0"], "--minutes must be more than 0"),
        (["--backends", "abacus", "--quick"], "no backend 'abacus'"),
        (["--out", "/dev/null/rows.csv"], "cannot write /dev/null/rows.csv"),
    ],
)
def test_wrong_arguments_end_with_code_2_and_name_what_there_is(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
