"""additive_attention: the contract, and what only it promises."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from attention_contract import AttentionContract
from hypothesis import strategies
from room import (
    BadInput,
    Call,
    Room,
    Sample,
    assert_all_within_budget,
    assert_bit_equal,
    cotangent,
    everywhere,
    graph_edges,
    graph_join,
    graph_relabel,
    graph_structure,
    lazy_zeros,
    run,
)
from torch import Tensor

from gtkern import Graph, ops
from gtkern.random import keep_mask
from gtkern.testing import assert_within_budget, random_graph


def edge_list(*edges: tuple[int, int], nodes: int | tuple[int, int]) -> Graph:
    """A graph from (source, destination) pairs."""
    return Graph.from_edge_index(torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T, nodes)


def make(
    graph: Graph,
    *,
    heads: int = 2,
    width: int = 8,
    values: bool = False,
    attr: bool = False,
    seed_of_values: int = 0,
    **options: Any,
) -> Call:
    """A call with random arguments whose scores have unit size.

    Args:
        values: with a v; otherwise the keys are the values.
        attr: with edge_attr.
        options: of the op.
    """
    generator = torch.Generator().manual_seed(seed_of_values)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    tensors = {
        "q": normal(graph.num_dst_nodes, heads, width),
        "k": normal(graph.num_src_nodes, heads, width),
        "attention": normal(heads, width) / width**0.5,
    }
    axes = {"q": "dst", "k": "src", "attention": "type"}
    others = {"graph": graph, **options}
    if values:
        tensors["v"], axes["v"] = normal(graph.num_src_nodes, heads, width), "src"
    else:
        others["v"] = None
    if attr:
        tensors["edge_attr"], axes["edge_attr"] = normal(graph.num_edges, heads, width), "edge"
    return Call(tensors, axes, others)


def results(call: Call) -> list[tuple[str, str]]:
    scores = [("scores", "edge")] if call.others.get("return_scores") else []
    return [("out", "dst"), *scores]


def saved_bytes(call: Call) -> int:
    """8 bytes for each destination and head."""
    num_dst, heads, _ = call.tensors["q"].shape
    return 8 * num_dst * heads


def sample(name: str, graph: Callable[[], Graph], size: str = "small", **options: Any) -> Sample:
    return Sample(name, lambda: make(graph(), **options), size)


def law(name: str, nodes: int | tuple[int, int], edges: int) -> Callable[[], Graph]:
    """A random graph, made when asked for."""
    return functools.partial(random_graph, name, nodes, edges, seed=3)


def tiny() -> Graph:
    """Five sources, four destinations: a duplicate edge, a self loop, node 3 without edges."""
    return edge_list(
        (0, 0), (1, 0), (1, 0), (4, 0), (2, 1), (3, 1), (0, 2), (4, 2), nodes=(5, 4)
    )  # fmt: skip


SAMPLES = (
    sample("keys_are_values", tiny, "tiny", width=3),
    sample("every_option", tiny, "tiny", width=3, values=True, attr=True, negative_slope=0.6,
           dropout=0.3, seed=11, return_scores=True),
    sample("odd_heads_and_widths", law("power_law", 9, 40), heads=3, width=7, attr=True,
           return_scores=True),
    sample("four_heads", law("uniform", 8, 40), heads=4, width=5, dropout=0.5, seed=2**62 + 3),
    sample("row_of_33_edges", lambda: edge_list(*((i, 0) for i in range(33)), nodes=33), heads=1,
           width=4, negative_slope=-1.5),
    sample("zero_edges", lambda: edge_list(nodes=4), attr=True, return_scores=True),
    sample("no_destinations", lambda: edge_list(nodes=(3, 0)), values=True),
    sample("no_sources", lambda: edge_list(nodes=(0, 3))),
    sample("self_loops_only", lambda: edge_list(*((i, i) for i in range(5)), nodes=5)),
    sample("hub_of_thousands", law("hub", 600, 4_000), "broad", heads=8, width=4,
           values=True, return_scores=True),
    sample("power_law_thousands", law("power_law", 300, 4_000), "broad", heads=4, width=16,
           dropout=0.1, seed=4),
    sample("width_28", law("power_law", 60, 600), "broad", heads=2, width=28, attr=True),
    sample("width_256", law("power_law", 50, 300), "broad", heads=2, width=256),
    sample("one_head_of_40", law("uniform", 60, 600), "broad", heads=1, width=40, values=True),
    sample("many_heads", law("uniform", 40, 300), "broad", heads=37, width=1, return_scores=True),
)  # fmt: skip


def change(**arguments: Any) -> Any:
    """Replace arguments by values, or by functions of the right arguments."""
    return lambda right: {
        name: value(right) if callable(value) else value for name, value in arguments.items()
    }


BAD = (
    BadInput("q_no_tensor", change(q=[1.0]), TypeError, r"^q must be a tensor, got list"),
    BadInput("k_none", change(k=None, v=lambda a: a["q"]), TypeError,
             r"^k must be a tensor, got NoneType"),
    BadInput("v_integer", change(v=lambda a: a["k"].long()), TypeError,
             r"^v must be float32, .* got torch.int64"),
    BadInput("q_rank", change(q=lambda a: a["q"][0]), ValueError,
             r"^q must have shape \[N_dst, H, D\], got \[2, 3\]"),
    BadInput("q_rows", change(q=lambda a: a["q"][1:]), ValueError,
             r"^q must have shape \[N_dst, H, D\] = \[4, 2, 3\], got \[3, 2, 3\]"),
    BadInput("k_rows", change(k=lambda a: a["k"][1:]), ValueError,
             r"^k must have shape \[N_src, H, D\] = \[5, 2, 3\], got \[4, 2, 3\]"),
    BadInput("v_width", change(v=lambda a: a["k"][..., :2]), ValueError,
             r"^v must have shape \[N_src, H, D\] = \[5, 2, 3\], got \[5, 2, 2\]"),
    BadInput("attention_by_node", change(attention=lambda a: a["q"]), ValueError,
             r"^attention must have shape \[H, D\] = \[2, 3\], got \[4, 2, 3\]"),
    BadInput("edge_attr_without_heads", change(edge_attr=lambda a: torch.ones(8, 3)), ValueError,
             r"^edge_attr must have shape \[E, H, D\] = \[8, 2, 3\], got \[8, 3\]"),
    BadInput("attention_dtype", change(attention=lambda a: a["attention"].half()), TypeError,
             r"^attention must have the dtype of q \(torch.float32\), got torch.float16"),
    BadInput("edge_attr_device", change(edge_attr=lambda a: torch.ones(8, 2, 3, device="meta")),
             ValueError, r"^edge_attr must be on the device of q \(cpu\), got meta"),
    BadInput("no_heads", change(q=lambda a: torch.ones(4, 0, 3), k=lambda a: torch.ones(5, 0, 3),
                                attention=lambda a: torch.ones(0, 3)),
             ValueError, r"^q must have at least 1 head, got 0"),
    BadInput("too_wide", change(q=lambda a: torch.ones(4, 2, 257),
                                k=lambda a: torch.ones(5, 2, 257),
                                attention=lambda a: torch.ones(2, 257)),
             ValueError, r"^q must have a head width of 1 \.\. 256, got 257"),
    BadInput("graph_an_edge_index", change(graph=lambda a: a["graph"].edge_index()), TypeError,
             r"^graph must be a gtkern.Graph \(Graph.from_any makes one\), got Tensor"),
    BadInput("slope_a_string", change(negative_slope="0.2"), TypeError,
             r"^negative_slope must be a number, got str"),
    BadInput("slope_nan", change(negative_slope=math.nan), ValueError,
             r"^negative_slope must be in .*got nan"),
    BadInput("dropout_one", change(dropout=1.0), ValueError, r"^dropout must be in \[0, 1\)"),
    BadInput("seed_a_float", change(seed=1.5, dropout=0.5), TypeError,
             r"^seed must be an integer, got float"),
    BadInput("return_scores_word", change(return_scores="yes"), TypeError,
             r"^return_scores must be True or False, got str"),
    BadInput("backend_unknown", change(backend="numpy"), ValueError,
             r"^backend must be one of 'auto', 'reference', .*got 'numpy'"),
    BadInput("backend_without_float64",
             change(backend="triton", **{name: lambda a, name=name: a[name].double()
                                         for name in ("q", "k", "attention")}),
             NotImplementedError,
             r"^backend 'triton' cannot run additive_attention here: it has no float64 kernels; "
             r"use backend='(cpu|reference)'"),
)  # fmt: skip

ROOM = Room(
    op=ops.additive_attention,
    samples=SAMPLES,
    results=results,
    structure=graph_structure,
    edges=graph_edges,
    relabel=graph_relabel,
    join=graph_join,
    saved_bytes=saved_bytes,
    bad=BAD,
)


@strategies.composite
def calls(draw: strategies.DrawFn) -> Call:
    """Any small graph with any mixture of options."""
    num_src, num_dst = draw(strategies.integers(1, 7)), draw(strategies.integers(1, 7))
    ends = strategies.tuples(
        strategies.integers(0, num_src - 1), strategies.integers(0, num_dst - 1)
    )
    edges = draw(strategies.lists(ends, max_size=40))
    return make(
        edge_list(*edges, nodes=(num_src, num_dst)),
        heads=draw(strategies.integers(1, 9)),
        width=draw(strategies.sampled_from([1, 3, 4, 8, 16, 17])),
        values=draw(strategies.booleans()),
        attr=draw(strategies.booleans()),
        seed_of_values=draw(strategies.integers(0, 99)),
        negative_slope=draw(strategies.sampled_from([0.2, 0.0, 1.7, -0.3])),
        dropout=draw(strategies.sampled_from([0.0, 0.4])),
        return_scores=draw(strategies.booleans()),
    )


class TestContract(AttentionContract):
    """Every claim of the contract."""

    room = ROOM
    calls = staticmethod(calls)

    def test_large_scores_do_not_overflow(self, backend: str, device: torch.device) -> None:
        call = SAMPLES[0].build()
        call.tensors["attention"] *= 1e4
        found = run(ROOM, call.cast(torch.float32, device), backend)
        assert all(value.isfinite().all() for value in found.values())
        expected = run(ROOM, call.cast(torch.float32).cast(torch.float64), "reference")
        assert_within_budget(found["out"], expected["out"], name="out", unit=1.0)


def equation(call: Call) -> dict[str, Tensor]:
    """The docstring's formula, edge by edge in Python; no dropout."""
    tensors, options = call.tensors, call.others
    q, k, attention = tensors["q"], tensors["k"], tensors["attention"]
    value = tensors.get("v", k)
    slope = options.get("negative_slope", 0.2)
    source, destination = (end.tolist() for end in options["graph"].edge_index())
    attr = tensors.get("edge_attr", q.new_zeros(len(source), *q.shape[1:]))
    weights = q.new_zeros(len(source), q.size(1))
    for e, (j, i) in enumerate(zip(source, destination, strict=True)):
        x = q[i] + k[j] + attr[e]
        weights[e] = (attention * torch.where(x > 0, x, slope * x)).sum(-1).exp()
    totals, out, scores = q.new_zeros(q.shape[:2]), torch.zeros_like(q), weights.clone()
    for e, i in enumerate(destination):
        totals[i] += weights[e]
    for e, (j, i) in enumerate(zip(source, destination, strict=True)):
        scores[e] = weights[e] / totals[i]
        out[i] += scores[e][:, None] * value[j]
    found = {"out": out, "scores": scores}
    return {name: found[name] for name, _ in results(call)}


@pytest.mark.parametrize(
    "sample", [each for each in SAMPLES if each.size != "broad"], ids=lambda sample: sample.name
)
def test_reference_is_the_equation(sample: Sample) -> None:
    call = sample.build()
    call.others.pop("dropout", None)
    found = run(ROOM, call, "reference", needs=())
    assert_all_within_budget(found, equation(call), torch.float64)


@everywhere(ROOM)
def test_keys_may_be_given_as_the_values(backend: str, device: torch.device) -> None:
    """One tensor, or two of the same numbers: the same results, and gradients that add up."""
    call = make(random_graph("uniform", 6, 20, seed=1), attr=True).cast(torch.float32, device)
    del call.others["v"]
    leaves = {name: value.requires_grad_() for name, value in call.tensors.items()}
    copy = leaves["k"].detach().clone().requires_grad_()

    def gradients(v: Tensor) -> tuple[Tensor, list[Tensor]]:
        out = ops.additive_attention(**leaves, **call.others, v=v, backend=backend)
        wanted = [*leaves.values(), *([] if v is leaves["k"] else [v])]
        return out, list(torch.autograd.grad(out.square().sum(), wanted))

    (one, mine), (two, theirs) = gradients(leaves["k"]), gradients(copy)
    theirs[1] = theirs[1] + theirs.pop()
    torch.testing.assert_close(one, two)
    for left, right in zip(mine, theirs, strict=True):
        torch.testing.assert_close(left, right)


@everywhere(ROOM)
def test_dropout_mask_is_the_published_one(backend: str, device: torch.device) -> None:
    """One-hot values make the output the dropped attention matrix itself."""
    once = torch.unique(random_graph("regular", 8, 24, seed=5).edge_index(), dim=1).to(device)
    graph = Graph.from_edge_index(once, 8)
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(8, 3, 8, generator=generator).to(device)
    one_hot = torch.eye(8, device=device)[:, None].expand(8, 3, 8)
    call = functools.partial(
        ops.additive_attention, q, q.flip(0), one_hot, graph, q[0], backend=backend
    )
    mask = keep_mask(123, torch.arange(once.size(1), device=device), 3, 0.25)
    source, destination = once
    alpha = call()[destination, :, source]
    found = call(dropout=0.25, seed=123)[destination, :, source]
    expected = torch.where(mask, alpha / 0.75, torch.zeros_like(alpha))
    assert_within_budget(found, expected.double(), name="dropped attention")
    assert torch.equal(found != 0, mask)


@everywhere(ROOM)
def test_scores_are_in_the_callers_order(backend: str, device: torch.device) -> None:
    """Two edges each, with scores log 1 and log 3: weights 1/4 and 3/4."""
    edges = torch.tensor([[0, 1, 0, 1], [1, 0, 0, 1]], device=device)
    zero, one = torch.zeros(2, 1, 1, device=device), torch.ones(1, 1, device=device)
    attr = torch.tensor([1.0, 1.0, 3.0, 3.0], device=device).log().view(4, 1, 1)
    _, scores = ops.additive_attention(
        zero, zero, None, Graph.from_edge_index(edges, 2), one, edge_attr=attr,
        return_scores=True, backend=backend,
    )  # fmt: skip
    expected = torch.tensor([[0.25], [0.25], [0.75], [0.75]], dtype=torch.float64)
    assert_within_budget(scores, expected, name="scores")


@everywhere(ROOM)
def test_rows_of_which_every_score_is_infinitely_low_give_zero(
    backend: str, device: torch.device
) -> None:
    call = make(tiny(), attr=True, return_scores=True).cast(torch.float32, device)
    into = call.others["graph"].edge_index()[1] == 0
    # whichever side of 0 it is on, LeakyReLU leaves -inf
    call.tensors["attention"].fill_(1)
    call.tensors["edge_attr"][into] = -math.inf
    found = run(ROOM, call, backend, needs=())
    assert (found["out"][0] == 0).all() and (found["scores"][into] == 0).all()
    assert found["out"][1:].isfinite().all() and (found["out"][1] != 0).all()


@pytest.mark.large
@everywhere(ROOM)
def test_more_than_two_to_the_31_elements(backend: str, device: torch.device) -> None:
    if backend == "reference" or device.type != "cpu":
        pytest.skip("only kernels on the host leave the untouched rows without memory")
    heads, width = 4, 256
    rows = 2**31 // (heads * width) + 2
    k = lazy_zeros(rows, heads, width, torch.float32)
    ends = torch.tensor([0, 1, rows - 2, rows - 1])
    values = torch.randn(4, heads, width)
    k[ends] = values
    graph = Graph.from_edge_index(torch.stack((ends, torch.tensor([0, 1, 0, 1]))), (rows, 2))
    small = Graph.from_edge_index(torch.tensor([[0, 1, 2, 3], [0, 1, 0, 1]]), (4, 2))
    q, attention = torch.randn(2, heads, width), torch.randn(heads, width) / width**0.5
    q.requires_grad_()

    def proof(key: Tensor, edges: Graph) -> dict[str, Tensor]:
        out = ops.additive_attention(q, key, None, edges, attention, backend=backend)
        (gradient,) = torch.autograd.grad(out, q, cotangent(out, 0))
        return {"out": out.detach(), "grad of q": gradient}

    assert k.numel() > 2**31
    assert_bit_equal(proof(k, graph), proof(values, small))
