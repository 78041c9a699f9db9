"""Timing: interleaved runs, medians and spread, peak memory, and what a case and a peer are."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench.graphs import BatchSpec, GraphSpec

__all__ = [
    "Case",
    "Clock",
    "Cost",
    "Peer",
    "Problem",
    "Room",
    "Samples",
    "Unsupported",
    "available_memory",
    "gradient_call",
    "never_waiting",
    "peak_memory",
    "race",
    "relative_error",
    "replayed",
    "time_once_per_graph",
]

Call = Callable[[], Any]

_FLUSH_BYTES = 256 << 20
_SHORT_CALL_S = 0.05
_TURN_S = 0.02
_LONG_CALL_S = 5.0
_BUSY_CYCLES = 200_000
_CHUNK = 1 << 26


class Unsupported(Exception):
    """A peer cannot run a case; the message says why and lands in the results."""


@dataclass(frozen=True)
class Case:
    """One line of work, as data.

    Attributes:
        name: unique in its room.
        graph: of the edges, or for a room without edges only the numbers of nodes; or a batch of
            graphs, whose pairs of nodes stand for edges.
        sizes: by the letters of the op's documentation, such as H, D and K.
        dtype: name of a torch dtype.
        passes: "fwd" and "fwd+bwd", those that are measured.
        options: keyword arguments of the op, of both sides.
        goals: by pass: how many times as fast as the fastest of the room's goal_peers.
        rivals: instead of the room's goal_peers.
        bound_goals: by pass: the share of the room's bound to reach.
        rate_goals: by pass: edges per second, in 10^6.
        skips: peers that are measured on other cases alone.
        device: the type of the devices that it is for; "" for all.
        published: figures of others, such as "F3S 0.681 ms on a GH200"; another machine's.
        quick: what --quick multiplies the numbers of nodes and edges with.
        exact: values are those of `dtype`, and are held in float64.
    """

    name: str
    graph: GraphSpec | BatchSpec
    sizes: Mapping[str, int]
    dtype: str = "float32"
    passes: tuple[str, ...] = ("fwd", "fwd+bwd")
    options: Mapping[str, Any] = field(default_factory=dict)
    goals: Mapping[str, float] = field(default_factory=dict)
    rivals: tuple[str, ...] = ()
    bound_goals: Mapping[str, float] = field(default_factory=dict)
    rate_goals: Mapping[str, float] = field(default_factory=dict)
    skips: tuple[str, ...] = ()
    device: str = ""
    published: str = ""
    quick: float = 0.05
    exact: bool = False

    def hold(self, values: Tensor, device: torch.device | None = None) -> Tensor:
        """`values` on the device, rounded to `dtype`, and in float64 where the case is exact."""
        rounded = values.to(device, getattr(torch, self.dtype))
        return rounded.double() if self.exact else rounded

    def describe(self) -> str:
        """The shape in one line."""
        spec = self.graph
        nodes = f"{spec.num_dst:,}" + (
            f" of {spec.num_src:,}" if spec.num_src != spec.num_dst else ""
        )
        edges = f" E {spec.num_edges:,} {spec.law}" if spec.num_edges else ""
        sizes = "".join(f" {letter} {size}" for letter, size in self.sizes.items())
        options = "".join(f" {name}={value}" for name, value in self.options.items())
        return f"N {nodes}{edges}{sizes} {self.dtype}{options}"


@dataclass
class Problem:
    """A case with its inputs made.

    Attributes:
        data: what the room's functions share.
        prepare_s: seconds of what is paid once for each graph, such as sorting its edges.
    """

    case: Case
    device: torch.device
    data: Any
    prepare_s: float = float("nan")


@dataclass(frozen=True)
class Cost:
    """What a call must do at least; zero where it says nothing.

    Attributes:
        bytes: that the algorithm moves; for gathers every row counts each time it is read.
        flops: useful operations.
        row_bytes, table_bytes: of the random reads; 0 where there are none.
        edges: processed, for edges per second.
    """

    bytes: float
    flops: float = 0.0
    row_bytes: int = 0
    table_bytes: int = 0
    edges: int = 0


@dataclass(frozen=True)
class Peer:
    """Somebody else's way to do the same.

    Attributes:
        make: (problem, pass) -> the call to time; raises Unsupported.
        memory: (problem, pass) -> bytes that the call is known to need; it is skipped where they
            are not there.
        compiled: its first call compiles, so memory is measured in a later one.
        numpy: it allocates through NumPy too.
        replays: a CUDA graph of it holds all of its kernels, if it can be captured at all.
    """

    make: Callable[[Problem, str], Call]
    memory: Callable[[Problem, str], float] = lambda problem, passes: 0.0
    compiled: bool = False
    numpy: bool = False
    replays: bool = True


@dataclass(frozen=True)
class Room:
    """What a file of bench/ops describes.

    Attributes:
        prepare: makes the inputs of a case; seeded.
        own: (problem, pass, backend) -> the call to time.
        cost: (problem, pass) -> what a call must do.
        goal_peers: the names whose fastest one the goals speak of.
        same: results of two sides are numerically comparable.
        bound: the limit of the machine that matters: "gather", "copy" or "matmul".
        widens: the reference computes float64 from a case that is exact; else it is given the
            case as it is, for what it draws depends on the dtype.
    """

    name: str
    cases: tuple[Case, ...]
    backends: tuple[str, ...]
    prepare: Callable[[Case, torch.device], Problem]
    own: Callable[[Problem, str, str], Call]
    cost: Callable[[Problem, str], Cost]
    peers: Mapping[str, Peer]
    goal_peers: tuple[str, ...]
    same: bool = True
    bound: str = "gather"
    widens: bool = True


@dataclass
class Samples:
    """Seconds of one side of a race, one entry for each turn it had."""

    turns: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.turns)

    @property
    def spread(self) -> float:
        """Interquartile range in seconds; NaN below 4 turns."""
        if len(self.turns) < 4:
            return float("nan")
        low, _, high = statistics.quantiles(self.turns, n=4, method="inclusive")
        return high - low

    def ratio_to(self, other: Samples) -> float:
        """Median over the rounds that both ran of this side's time over the other's."""
        return statistics.median(a / b for a, b in zip(self.turns, other.turns, strict=False))


class Clock:
    """Times one call on one device.

    CPU: the monotonic clock. CUDA: events on the current stream, so that launching the next call
    does not count, with the device idle before.

    Args:
        device: where the calls run.
        cold: empty the caches before each timed call, by writing 256 MiB.
        queued: on a GPU, launch calls while it is busy with something else, so that no time of
            launching is left in theirs.
    """

    def __init__(self, device: torch.device, *, cold: bool = False, queued: bool = False) -> None:
        self.device = device
        self._queued = queued
        self._scratch = (
            torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=device) if cold else None
        )

    @property
    def cold(self) -> bool:
        """Whether caches are emptied before each timed call."""
        return self._scratch is not None

    @property
    def caches(self) -> str:
        """ "warm" or "cold"."""
        return "cold" if self.cold else "warm"

    def time(self, call: Call) -> float:
        """Seconds of one call."""
        if self._scratch is not None:
            self._scratch.add_(1)
        if self.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize(self.device)
            if self._queued:
                torch.cuda._sleep(_BUSY_CYCLES)
            start.record()
            result = call()
            end.record()
            end.synchronize()
            del result
            return float(start.elapsed_time(end)) / 1e3
        begin = time.perf_counter()
        result = call()
        seconds = time.perf_counter() - begin
        del result
        return seconds


def race(calls: Sequence[Call], clock: Clock, *, budget_s: float, most: int = 30) -> list[Samples]:
    """Time calls in turns, so that a slow spell of the machine hits all of them alike.

    In each round every call has one turn. The order is reversed from round to round. A turn is
    one timed call where a call is long; where it is short, one call that is not timed (it brings
    the caches back that the others emptied), then as many as fit into 20 ms, of which the median
    counts. A call leaves the race when its turns have used up the budget, after 3 turns at least
    (2 where one call takes more than 5 s). The caller has made each call once before.

    Args:
        calls: what to time.
        clock: how.
        budget_s: seconds of timed turns for each call.
        most: turns for each call.
    """
    samples = [Samples() for _ in calls]
    used = [0.0] * len(calls)
    live = list(range(len(calls)))
    gc.collect()
    gc.disable()
    try:
        while live:
            for at in list(live):
                begin = time.perf_counter()
                seconds = _turn(calls[at], clock)
                used[at] += time.perf_counter() - begin
                samples[at].turns.append(seconds)
                turns = len(samples[at].turns)
                least = 2 if seconds > _LONG_CALL_S else 3
                if turns >= most or (turns >= least and used[at] >= budget_s):
                    live.remove(at)
            live.reverse()
    finally:
        gc.enable()
    return samples


def _turn(call: Call, clock: Clock) -> float:
    first = clock.time(call)
    if clock.cold or first > _SHORT_CALL_S:
        return first
    times: list[float] = []
    # a GPU has no slow spells that a turn would have to outlast
    enough = _TURN_S / 10 if clock.device.type == "cuda" else _TURN_S
    while sum(times) < enough and len(times) < 100:
        times.append(clock.time(call))
    return statistics.median(times)


def peak_memory(call: Call, device: torch.device, *, numpy: bool = False) -> tuple[Any, int]:
    """Run a call once; its result, and the bytes that it had allocated at its peak.

    Inputs do not count, results do. CUDA: torch's allocator statistics. CPU: every allocation
    and release of torch's allocator, which native kernels use too, as its profiler records them.

    Args:
        call: what to run.
        device: where it runs.
        numpy: also count what Python and NumPy allocate, in a second run.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = call()
        torch.cuda.synchronize(device)
        return result, torch.cuda.max_memory_allocated(device) - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    profiler = torch.profiler.profile(activities=activities, profile_memory=True)
    with _no_stderr():
        profiler.start()
    try:
        result = call()
    finally:
        with _no_stderr():
            profiler.stop()
    recorded: Any = profiler.profiler
    events = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    peak = held = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    if numpy:
        tracemalloc.start()
        call()
        peak += tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return result, peak


@contextlib.contextmanager
def _no_stderr() -> Iterator[None]:
    """Drop what C++ code writes to stderr: the profiler's library reports each start and stop."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def available_memory(device: torch.device) -> int:
    """Bytes that can be allocated now."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    try:
        with open("/proc/meminfo") as lines:
            kib = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
        return int(kib) * 1024
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def relative_error(result: Any, expected: Any) -> float:
    """Largest |result - expected| / |expected| (2-norms) over tensors that belong together."""
    results, expecteds = (
        [value] if isinstance(value, Tensor) else list(value) for value in (result, expected)
    )
    worst = 0.0
    for one, other in zip(results, expecteds, strict=True):
        gap = size = 0.0
        # in pieces: the largest would take several times the memory of what they compare
        for mine, its in zip(
            one.flatten().split(_CHUNK), other.flatten().split(_CHUNK), strict=True
        ):
            wide = its.double()
            size += float(wide.square().sum())
            gap += float((mine.double() - wide).square().sum())
        ratio = math.sqrt(gap) / max(math.sqrt(size), 1e-30)
        if math.isnan(ratio):
            return ratio
        worst = max(worst, ratio)
    return worst


def gradient_call(
    forward: Callable[[], Tensor], leaves: Sequence[Tensor], grad: Tensor, passes: str
) -> Call:
    """The call of a pass: the output alone without autograd, or the gradients of all leaves."""

    def run() -> Any:
        if passes == "fwd":
            with torch.no_grad():
                return forward()
        return torch.autograd.grad(forward(), leaves, grad)

    return run


@contextlib.contextmanager
def never_waiting() -> Iterator[None]:
    """Raise RuntimeError where something waits for a CUDA device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def replayed(call: Call, device: torch.device) -> Call:
    """The kernels of a call alone: a CUDA graph of it, which one launch replays.

    Raises:
        RuntimeError: it waits for the device, so that it cannot be captured.
    """
    beside = torch.cuda.Stream(device)
    beside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(beside):
        for _ in range(2):
            call()
        # a capture that fails leaves torch's allocator and stream as they were inside it
        with never_waiting():
            call()
    torch.cuda.current_stream(device).wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()

    def replay() -> Any:
        graph.replay()
        return result

    return replay


def time_once_per_graph(call: Call, device: torch.device) -> float:
    """Median seconds of up to 5 runs within about a second, after one that is not counted."""
    clock = Clock(device)
    times = [clock.time(call)]
    while len(times) < 6 and sum(times) < 1.0:
        times.append(clock.time(call))
    return statistics.median(times[1:] or times)
