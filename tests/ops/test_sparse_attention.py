"""sparse_attention: the room's contract, and what only this room promises."""

from __future__ import annotations

import math

import hypothesis
import pytest
import torch
import torch._dynamo.testing
from attention_contract import AttentionContract
from hypothesis import strategies
from room import (
    Call,
    Sample,
    assert_all_within_budget,
    assert_bit_equal,
    cotangent,
    dtypes,
    everywhere,
    lazy_zeros,
    oracle,
    run,
)
from sparse_room import ROOM, SAMPLES, edge_list, make, results
from torch import Tensor

from gtkern import Graph, ops
from gtkern.random import keep_mask
from gtkern.testing import assert_within_budget, random_graph

CPU = torch.device("cpu")


@strategies.composite
def calls(draw: strategies.DrawFn) -> Call:
    """Any small graph with any mixture of options."""
    num_src, num_dst = draw(strategies.integers(1, 7)), draw(strategies.integers(1, 7))
    ends = strategies.tuples(
        strategies.integers(0, num_src - 1), strategies.integers(0, num_dst - 1)
    )
    edges = draw(strategies.lists(ends, max_size=40))
    types = draw(strategies.integers(0, 3))
    by = strategies.sampled_from([None, "edge", "type"] if types else [None, "edge"])
    graph = edge_list(*edges, nodes=(num_src, num_dst), types=types)
    prefix = draw(strategies.sampled_from([None, 0, 1, 5]))
    # a table needs one row for each type that occurs, and types may outnumber edges
    hypothesis.assume(not types or len(edges) > types)
    return make(
        graph,
        heads=draw(strategies.integers(1, 5)),
        width=draw(strategies.sampled_from([1, 3, 4, 8, 16, 17])),
        value_width=draw(strategies.sampled_from([None, 1, 5, 8])),
        key_scale=draw(by),
        bias=draw(by),
        edge_width=draw(strategies.sampled_from([None, 1, 4])),
        values=draw(strategies.integers(0, 99)),
        clamp=draw(strategies.sampled_from([None, 1.0])),
        temperature=draw(strategies.sampled_from([1.0, 0.5])),
        dropout=draw(strategies.sampled_from([0.0, 0.4])),
        normalization=draw(strategies.sampled_from(["softmax", "exphormer"])),
        return_scores=prefix is None and draw(strategies.booleans()),
        prefix=prefix,
    )


class TestContract(AttentionContract):
    """Every claim of the contract."""

    room = ROOM
    calls = staticmethod(calls)

    def test_renamed_nodes_get_the_same_results(
        self, backend: str, device: torch.device, sample: Sample
    ) -> None:
        call = sample.build()
        if "prefix_k" in call.tensors and call.others.get("dropout"):
            pytest.skip("the mask of a prefix belongs to a row's number, which renaming changes")
        super().test_renamed_nodes_get_the_same_results(backend, device, sample)

    def test_destinations_without_edges_get_zero_and_give_zero(
        self, backend: str, device: torch.device, sample: Sample
    ) -> None:
        if "prefix_k" in sample.build().tensors:
            pytest.skip("every row sees the prefix")
        super().test_destinations_without_edges_get_zero_and_give_zero(backend, device, sample)


def equation(call: Call) -> dict[str, Tensor]:
    """The docstring's formula, edge by edge in Python; no dropout."""
    tensors, options, graph = call.tensors, call.others, call.others["graph"]
    q, k, v = tensors["q"], tensors["k"], tensors["v"]
    heads, width = q.shape[1:]
    source, destination = (end.tolist() for end in graph.edge_index())
    kind = [0] * len(source) if graph.edge_type() is None else graph.edge_type().tolist()
    scale = options.get("scale", width**-0.5)
    eps = 1e-6 if options.get("normalization") == "exphormer" else 0.0
    alpha = torch.zeros(len(source), heads, dtype=torch.float64)
    out = torch.zeros(q.size(0), heads, v.size(2), dtype=torch.float64)
    attr = tensors.get("edge_attr", torch.zeros(len(source), 1, dtype=torch.float64))
    edge_query = tensors.get("edge_query", torch.zeros(q.size(0), heads, 1, dtype=torch.float64))
    edge_out = torch.zeros(q.size(0), heads, attr.size(1), dtype=torch.float64)
    slots = tensors["prefix_k"] if "prefix_k" in tensors else k[:0]
    limit, temperature = options.get("clamp", math.inf), options.get("temperature", 1.0)
    for h in range(heads):
        weights = []
        own = (scale * (q[:, h] @ slots[:, h].T) / temperature).clamp(-limit, limit).exp()
        for e, (j, i) in enumerate(zip(source, destination, strict=True)):
            scaled = k[j, h]
            if "key_scale" in tensors:
                row = kind[e] if call.axes["key_scale"] == "type" else e
                scaled = scaled * tensors["key_scale"][row, h]
            score = scale * float(q[i, h] @ scaled + edge_query[i, h] @ attr[e])
            if "bias" in tensors:
                row = kind[e] if call.axes["bias"] == "type" else e
                score += float(tensors["bias"][row, h])
            score /= temperature
            weights.append(math.exp(min(max(score, -limit), limit)))
        totals = (own.sum(1) + eps).tolist()
        for weight, i in zip(weights, destination, strict=True):
            totals[i] += weight
        if slots.size(0):
            out[:, h] = (
                own / torch.tensor(totals, dtype=torch.float64)[:, None] @ tensors["prefix_v"][:, h]
            )
        for e, (j, i) in enumerate(zip(source, destination, strict=True)):
            total = totals[i]
            alpha[e, h] = weights[e] / total if total > 0 else 0.0
            out[i, h] += alpha[e, h] * v[j, h]
            edge_out[i, h] += alpha[e, h] * attr[e]
    found = {"out": out, "edge_out": edge_out, "scores": alpha}
    return {name: found[name] for name, _ in results(call)}


@pytest.mark.parametrize(
    "sample", [s for s in SAMPLES if s.size != "broad"], ids=lambda sample: sample.name
)
def test_reference_is_the_equation(sample: Sample) -> None:
    call = sample.build()
    if call.others["graph"].num_edges > 100:
        pytest.skip("the loop over edges in Python is for small graphs")
    call.others.pop("dropout", None)
    found = run(ROOM, call, "reference", needs=())
    assert_all_within_budget(found, equation(call), torch.float64)


@everywhere(ROOM)
def test_dropout_mask_is_the_published_one(backend: str, device: torch.device) -> None:
    """One-hot values make the output the dropped attention matrix itself."""
    graph = random_graph("regular", 8, 40, seed=5, device=device)
    once = torch.unique(graph.edge_index(), dim=1)
    graph = Graph.from_edge_index(once, 8)
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(8, 3, 4, generator=generator).to(device)
    one_hot = torch.eye(8, device=device)[:, None].expand(8, 3, 8)
    arguments = {"q": q, "k": q.flip(0), "v": one_hot, "graph": graph, "backend": backend}
    kept = ops.sparse_attention(**arguments)
    dropped = ops.sparse_attention(**arguments, dropout=0.25, seed=123)
    source, destination = once
    mask = keep_mask(123, torch.arange(once.size(1), device=device), 3, 0.25)
    alpha = kept[destination, :, source]
    expected = torch.where(mask, alpha / 0.75, torch.zeros_like(alpha))
    found = dropped[destination, :, source]
    assert_within_budget(found, expected.double(), name="dropped attention")
    assert torch.equal(found != 0, mask)


@everywhere(ROOM)
def test_scores_are_in_the_callers_order(backend: str, device: torch.device) -> None:
    """Two edges each, with biases log 1 and log 3: weights 1/4 and 3/4."""
    edges = torch.tensor([[0, 1, 0, 1], [1, 0, 0, 1]], device=device)
    graph = Graph.from_edge_index(edges, 2, edge_type=torch.tensor([1, 0, 1, 0], device=device))
    zero = torch.zeros(2, 1, 1, device=device)
    bias = torch.tensor([[1.0], [1.0], [3.0], [3.0]], device=device).log()
    _, scores = ops.sparse_attention(
        zero, zero, zero, graph, bias=bias, return_scores=True, backend=backend
    )
    expected = torch.tensor([[0.25], [0.25], [0.75], [0.75]], dtype=torch.float64)
    assert_within_budget(scores, expected, name="scores")


@everywhere(ROOM)
def test_scores_of_a_row_sum_to_one(backend: str, device: torch.device) -> None:
    graph = random_graph("uniform", 6, 40, seed=1, device=device)
    x = torch.randn(6, 2, 4, device=device)
    _, scores = ops.sparse_attention(x, x, x, graph, return_scores=True, backend=backend)
    total = scores.new_zeros(6, 2).index_add(0, graph.edge_index()[1], scores)
    expected = (graph.degree() > 0).double()[:, None].expand(6, 2)
    assert_within_budget(total, expected, name="row sums")


@everywhere(ROOM)
def test_gradient_is_zero_outside_the_clamp(backend: str, device: torch.device) -> None:
    graph = edge_list((0, 0), (1, 0), (2, 0), nodes=(3, 1)).to(device)
    one = torch.ones(1, 1, 1, device=device)
    k = torch.tensor([5.0, 0.5, -5.0], device=device).view(3, 1, 1).requires_grad_()
    v = torch.tensor([1.0, 2.0, 4.0], device=device).view(3, 1, 1)
    out = ops.sparse_attention(one, k, v, graph, clamp=1.0, backend=backend)
    (gradient,) = torch.autograd.grad(out.sum(), k)
    assert gradient[0] == 0 and gradient[2] == 0 and gradient[1] != 0


@everywhere(ROOM)
def test_fully_masked_rows_give_zero_everywhere(backend: str, device: torch.device) -> None:
    call = next(sample for sample in SAMPLES if sample.name == "masked_row").build()
    graph = call.others["graph"].to(device)
    found = run(ROOM, call.cast(torch.float32, device), backend)
    into = graph.edge_index()[1] == 0
    assert into.any()
    assert (found["out"][0] == 0).all() and (found["grad of q"][0] == 0).all()
    assert (found["scores"][into] == 0).all() and (found["grad of bias"][into] == 0).all()


@everywhere(ROOM)
@pytest.mark.parametrize("bias", [-1e4, -80.0, 80.0])
def test_exphormer_normalization_at_any_size_of_score(
    backend: str, device: torch.device, bias: float
) -> None:
    """exp(score) far below 1e-6 gives nothing, far above gives the softmax; never NaN."""
    call = make(edge_list((0, 0), (1, 0), nodes=2), bias="edge", normalization="exphormer")
    call.tensors["bias"].fill_(bias)
    found = run(ROOM, call.cast(torch.float32, device), backend)
    expected = oracle(ROOM, call, torch.float64)
    for name, value in found.items():
        assert_within_budget(value, expected[name], name=name, unit=1.0)


@everywhere(ROOM)
def test_compiled_function_takes_new_sizes_without_recompiling(
    backend: str, device: torch.device
) -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(ops.sparse_attention, fullgraph=True, dynamic=True, backend=counter)
    first = 0
    for at, (nodes, edges) in enumerate(((5, 11), (7, 23), (9, 31), (13, 40))):
        call = make(random_graph("uniform", nodes, edges, seed=at), values=at)
        call = call.cast(torch.float32, device)
        found = run(ROOM, call, backend, op=compiled)
        expected = {key: value.double() for key, value in run(ROOM, call, backend).items()}
        assert_all_within_budget(found, expected, torch.float32)
        first = first or counter.frame_count
    assert counter.frame_count == first


@everywhere(ROOM, only_fast=True)
def test_a_hub_of_like_neighbors_is_summed_well(backend: str, device: torch.device) -> None:
    """Like terms, one after the other, are all rounded the same way; kernels do not add them so."""
    if backend == "reference":
        pytest.skip("torch adds up term by term: 3e-4")
    leaf = torch.arange(1, 20_001)
    hub = torch.zeros_like(leaf)
    x, given = torch.zeros(20_001, 2, 28, device=device), torch.rand(2, 28, device=device)
    v = given.expand_as(x).contiguous().requires_grad_()
    into = Graph.from_edge_index(torch.stack((leaf, hub)), 20_001).to(device)
    out = ops.sparse_attention(x, x, v, into, backend=backend)
    assert ((out[0] - given) / given).abs().max() < 2e-5
    out_of = Graph.from_edge_index(torch.stack((hub, leaf)), 20_001).to(device)
    out = ops.sparse_attention(x, x, v, out_of, backend=backend)
    (gradient,) = torch.autograd.grad(out, v, given.expand_as(out))
    assert ((gradient[0] / 20_000 - given) / given).abs().max() < 2e-5


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
    q = torch.randn(2, heads, width, requires_grad=True)

    def proof(key: Tensor, edges: Graph) -> dict[str, Tensor]:
        out = ops.sparse_attention(q, key, key, edges, backend=backend)
        (gradient,) = torch.autograd.grad(out, q, cotangent(out, 0))
        return {"out": out.detach(), "grad of q": gradient}

    assert k.numel() > 2**31
    assert_bit_equal(proof(k, graph), proof(values, small))


def available_gigabytes() -> float:
    """Memory that can be taken without swapping."""
    with open("/proc/meminfo") as lines:
        sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return sizes["MemAvailable"] / 2**20


@pytest.mark.large
@pytest.mark.parametrize(("backend", "device"), [("cpu", CPU)])
def test_gradients_of_more_than_two_to_the_31_elements(backend: str, device: torch.device) -> None:
    """Two edges of equal score, values 0 and 1: the gradients of their scores are -D/4 and D/4."""
    if available_gigabytes() < 6:
        pytest.skip(f"needs 6 GB of free memory, there are {available_gigabytes():.1f}")
    heads, width = 4, 256
    rows = 2**31 // (heads * width) + 2
    k = lazy_zeros(rows, heads, width, torch.bfloat16).requires_grad_()
    v = lazy_zeros(rows, heads, width, torch.bfloat16)
    v[-1] = 1
    graph = Graph.from_edge_index(torch.tensor([[0, rows - 1], [0, 0]]), (rows, 1))
    q = torch.ones(1, heads, width, dtype=torch.bfloat16)
    one = torch.ones(2, heads, width)
    out = ops.sparse_attention(q, k, v, graph, scale=1.0, key_scale=one, backend=backend)
    (gradient,) = torch.autograd.grad(out, k, torch.ones_like(out))
    assert (gradient[-1] == width / 4).all() and (gradient[0] == -width / 4).all()
    assert not gradient[1:-1:61].any()


@pytest.mark.parametrize("types", [1, 3])
def test_how_rows_are_taken_does_not_change_them(types: int) -> None:
    # the kernels take rows that no cache holds with all of their heads together
    heads, width, nodes, rows = 4, 64, 12, 20_000
    compact = random_graph("uniform", nodes, 150, num_edge_types=types, seed=0)
    places = torch.arange(nodes) * (rows // nodes)
    spread = Graph.from_edge_index(
        places[compact.edge_index()], rows, edge_type=compact.edge_type()
    )
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4, nodes, heads, width, generator=generator)
    factors = torch.rand(types, heads, width, generator=generator)

    def proof(graph: Graph, at: Tensor) -> dict[str, Tensor]:
        q, k, v, grad = (torch.zeros(graph.num_dst_nodes, heads, width) for _ in range(4))
        for tensor, value in zip((q, k, v, grad), values, strict=True):
            tensor[at] = value
        key_scale = factors.clone()
        leaves = [tensor.requires_grad_() for tensor in (q, k, v, key_scale)]
        out = ops.sparse_attention(q, k, v, graph, key_scale=key_scale, backend="cpu")
        *of_rows, of_factors = torch.autograd.grad(out, leaves, grad)
        named = zip(("out", "q", "k", "v"), (out.detach(), *of_rows), strict=True)
        return {name: tensor[at] for name, tensor in named} | {"key_scale": of_factors}

    found, expected = proof(spread, places), proof(compact, torch.arange(nodes))
    assert_within_budget(found.pop("key_scale"), expected.pop("key_scale").double())
    assert_bit_equal(found, expected)


def test_every_dtype_is_tried_where_it_is_fast() -> None:
    assert dtypes("cpu", SAMPLES[-1], CPU) == [
        torch.float64, torch.float32, torch.bfloat16, torch.float16,
    ]  # fmt: skip


@everywhere(ROOM)
@pytest.mark.parametrize("rows", [(2, 5), (5, 2)])
def test_tables_of_two_lengths_have_their_own_gradients(
    backend: str, device: torch.device, rows: tuple[int, int]
) -> None:
    # kernels know one number of edge types
    graph = random_graph("uniform", 6, 12, num_edge_types=2, seed=0).to(device)
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(6, 2, 4, generator=generator).to(device)
    shapes = ((rows[0], 2, 4), (rows[1], 2))
    tables = [torch.randn(shape, generator=generator).to(device) for shape in shapes]

    def gradients(name: str) -> list[torch.Tensor]:
        key_scale, bias = (table.clone().requires_grad_() for table in tables)
        out = ops.sparse_attention(q, q, q, graph, key_scale=key_scale, bias=bias, backend=name)
        return list(torch.autograd.grad(out.square().sum(), (key_scale, bias)))

    for mine, expected in zip(gradients(backend), gradients("reference"), strict=True):
        torch.testing.assert_close(mine, expected)
        assert not mine[2:].any()
