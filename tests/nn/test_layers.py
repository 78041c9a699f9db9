"""Layers against slow transcriptions of the papers' equations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gtkern import Graph, ops
from gtkern.nn import (
    ExphormerAttention,
    GraphNorm,
    NarrowAttention,
    SampledAttention,
    TransformerBlock,
)

NODES, WIDTH, TYPES = 9, 8, 3


def typed_graph(edges: int = 40) -> Graph:
    generator = torch.Generator().manual_seed(3)
    edge_index = torch.randint(NODES - 1, (2, edges), generator=generator)  # the last has no edge
    edge_type = torch.randint(TYPES, (edges,), generator=generator, dtype=torch.uint8)
    return Graph.from_edge_index(edge_index, NODES, edge_type=edge_type)


def edges_of(graph: Graph) -> list[tuple[int, int, int]]:
    types = graph.edge_type()
    assert types is not None
    pairs = graph.edge_index().T.tolist()
    return [(*pair, kind) for pair, kind in zip(pairs, types.tolist(), strict=True)]


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_narrow_attention_is_the_papers_equation(temperature: float) -> None:
    graph, x, types = typed_graph(), torch.randn(NODES, WIDTH), torch.randn(TYPES, WIDTH)
    layer = NarrowAttention(WIDTH)
    out, scores = layer(x, graph, types, temperature, return_scores=True)
    q, k, v = layer.qkv(x).split(WIDTH, dim=1)
    e1, e2 = layer.terms.key_scale(types), layer.terms.bias(types)
    weights = []
    for source, target, kind in edges_of(graph):
        score = k[source] @ q[target] / math.sqrt(WIDTH) * e1[kind].sum() + e2[kind, 0]
        weights.append((score / temperature).clamp(-8, 8).exp())
    expected = torch.zeros(NODES, WIDTH)
    totals = torch.zeros(NODES)
    for (_, target, _), weight in zip(edges_of(graph), weights, strict=True):
        totals[target] += weight.detach()
    for (source, target, _), weight in zip(edges_of(graph), weights, strict=True):
        value = v[source] / v[source].norm() * layer.value_scale
        expected[target] += (weight * value / (totals[target] + 1e-6)).detach()
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    share = [
        weight / (totals[target] + 1e-6)
        for (_, target, _), weight in zip(edges_of(graph), weights, strict=True)
    ]
    torch.testing.assert_close(scores[:, 0], torch.stack(share), rtol=1e-4, atol=1e-6)


def test_raw_values_are_attended_as_they_are() -> None:
    x, types = torch.randn(NODES, WIDTH), torch.randn(TYPES, WIDTH)
    loops, kinds = torch.arange(NODES).expand(2, -1), torch.zeros(NODES, dtype=torch.uint8)
    graph = Graph.from_edge_index(loops, NODES, edge_type=kinds)
    layer = NarrowAttention(WIDTH, normalize_values=False)
    value = layer.qkv(x)[:, 2 * WIDTH :]
    torch.testing.assert_close(layer(x, graph, types[:1]), value, rtol=1e-3, atol=1e-6)
    assert "value_scale" not in dict(layer.named_parameters())


def test_a_block_without_norm_is_two_residuals() -> None:
    block = TransformerBlock(WIDTH, norm="none")
    x, attended = torch.randn(2, 4, WIDTH).unbind(0)
    y = x + attended
    expected = y + block.narrow(block.widen(y).relu())
    torch.testing.assert_close(block(x, attended), expected)


def test_sampled_attention_keeps_heads_apart() -> None:
    heads, places, targets = 2, 4, 5
    index = torch.randint(NODES, (targets, places), dtype=torch.int32)
    index[0, 2:] = -1
    kind = torch.randint(TYPES, (targets, places), dtype=torch.uint8)
    x, types = torch.randn(NODES, WIDTH), torch.randn(TYPES, WIDTH)
    layer = SampledAttention(WIDTH, heads)
    out = layer(x, ops.LayerBatch(torch.arange(NODES), index, index.long(), kind), types)
    q, k, v = (part(x).view(NODES, heads, -1) for part in (layer.query, layer.key, layer.value))
    e1, e2 = layer.terms(types)
    for target in range(targets):
        for head in range(heads):
            at = [
                (int(j), int(t)) for j, t in zip(index[target], kind[target], strict=True) if j >= 0
            ]
            score = torch.stack(
                [(e1[t, head] * k[j, head] * q[target, head]).sum() + e2[t, head] for j, t in at]
            )
            alpha = score.clamp(-8, 8).softmax(0)
            expected = sum(a * v[j, head] for a, (j, _) in zip(alpha, at, strict=True))
            got = out.view(targets, heads, -1)[target, head]
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("slots", [0, 3])
def test_exphormer_attention_is_the_papers_equation(slots: int) -> None:
    heads, graph = 2, typed_graph()
    x, types = torch.randn(NODES, WIDTH), torch.randn(TYPES, WIDTH)
    layer = ExphormerAttention(WIDTH, heads)
    q, k, v = layer.qkv(x).view(NODES, 3, heads, -1).unbind(1)
    scale = layer.key_scale(types).view(TYPES, heads, -1)
    total, expected = torch.zeros(NODES, heads), torch.zeros(NODES, heads, WIDTH // heads)
    for source, target, kind in edges_of(graph):
        score = (k[source] * q[target] * scale[kind]).sum(-1) / math.sqrt(WIDTH // heads)
        weight = score.clamp(-5, 5).exp().detach()
        total[target] += weight
        expected[target] += (weight[:, None] * v[source]).detach()
    prefix = torch.randn(2, slots, heads, WIDTH // heads)
    for key, value in prefix.unbind(1):
        weight = ((key * q).sum(-1) / math.sqrt(WIDTH // heads)).clamp(-5, 5).exp().detach()
        total += weight
        expected += weight[..., None] * value
    expected = (expected / (total[..., None] + 1e-6)).flatten(1)
    found = layer(x, graph, types, *(prefix if slots else ()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_graph_norm_equals_that_of_pyg() -> None:
    pyg = pytest.importorskip("torch_geometric.nn")
    ours, theirs, x = GraphNorm(WIDTH), pyg.GraphNorm(WIDTH), torch.randn(50, WIDTH) + 2
    with torch.no_grad():
        for own, other in (
            (ours.weight, theirs.weight),
            (ours.bias, theirs.bias),
            (ours.mean_scale, theirs.mean_scale),
        ):
            own.copy_(torch.randn(WIDTH))
            other.copy_(own)
    torch.testing.assert_close(ours(x), theirs(x))


def test_block_keeps_the_first_rows() -> None:
    block = TransformerBlock(WIDTH, norm="graph")
    x, attended = torch.randn(7, WIDTH), torch.randn(4, WIDTH)
    y = block.attention_norm(x[:4] + attended)
    hidden = (y @ block.widen.weight.T + block.widen.bias).relu()
    expected = block.output_norm(y + hidden @ block.narrow.weight.T + block.narrow.bias)
    torch.testing.assert_close(block(x, attended), expected)


def test_dropout_is_off_in_evaluation() -> None:
    block = TransformerBlock(WIDTH, dropout=0.5).eval()
    x, attended = torch.randn(2, 4, WIDTH).unbind(0)
    assert torch.equal(block(x, attended), block(x, attended))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SampledAttention(8, 3), "heads must divide width 8, got 3"),
        (lambda: NarrowAttention(4, 0), "heads must divide width 4, got 0"),
        (lambda: TransformerBlock(4, norm="layer"), "norm must be 'batch', 'graph' or 'none'"),
        (lambda: TransformerBlock(4, dropout=1.0), "dropout must be in"),
    ],
)
def test_bad_sizes_are_named(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def test_the_attention_can_be_replaced() -> None:
    seen: list[Tensor] = []

    def attend(q: Tensor, k: Tensor, v: Tensor, graph: Graph, **options: object) -> Tensor:
        seen.append(q)
        return v

    layer = NarrowAttention(WIDTH, attend=attend)
    layer(torch.randn(NODES, WIDTH), typed_graph(), torch.randn(TYPES, WIDTH))
    assert seen[0].shape == (NODES, 1, WIDTH)
