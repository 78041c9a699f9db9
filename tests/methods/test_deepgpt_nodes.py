"""Prompts in Exphormer: tokens are further sources of every node of one graph."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from gtkern.graph import Graph
from gtkern.methods.deepgpt import PromptTuner, load_prompts, save_prompts
from gtkern.models import Exphormer, augment
from gtkern.models.exphormer import EDGE_TYPES, VIRTUAL_EDGE_TYPES, with_virtual_nodes

NODES, FEATURES, CLASSES, TOKENS = 30, 3, 4, 5


def make(**more: Any) -> tuple[PromptTuner, Tensor, Graph]:
    """A tuner in evaluation over a small network in fp64, features and a graph."""
    torch.manual_seed(0)
    edges = torch.randint(NODES, (2, 60))
    graph = with_virtual_nodes(augment(edges, NODES, expander_degree=2), 1)
    kinds = len(EDGE_TYPES) + len(VIRTUAL_EDGE_TYPES)
    sizes = {"width": 8, "heads": 2, "layers": 3, "virtual_nodes": 1, "num_edge_types": kinds}
    model = Exphormer(FEATURES, CLASSES, **sizes).double()
    for norm in model.modules():
        if "running_mean" in norm._buffers:
            norm.running_mean.normal_()
    x = torch.randn(NODES, FEATURES, dtype=torch.float64)
    return PromptTuner(model.eval(), TOKENS, **more), x, graph


class EveryEdge(nn.Module):
    """The attention edge by edge, with tokens as nodes that nobody answers."""

    def __init__(self, attention: Any, tokens: Tensor, vector: Tensor) -> None:
        super().__init__()
        self.inner, self.tokens, self.vector = attention, tokens, vector

    def forward(self, x: Tensor, graph: Graph, types: Tensor, *none: None) -> Tensor:
        inner, nodes = self.inner, x.size(0)
        rows = torch.cat((x + self.vector, self.tokens))
        q, k, v = inner.qkv(rows).view(rows.size(0), 3, inner.heads, -1).unbind(1)
        source, target = graph.edge_index().long()
        token = torch.arange(nodes, rows.size(0))
        scale = inner.key_scale(types).view(types.size(0), inner.heads, -1)
        factor = torch.cat(
            (scale[graph.edge_type().long()], torch.ones(token.numel() * nodes, *scale.shape[1:]))
        )
        source = torch.cat((source, token.repeat(nodes)))
        target = torch.cat((target, torch.arange(nodes).repeat_interleave(token.numel())))
        score = (q[target] * k[source] * factor).sum(-1) * q.size(2) ** -0.5
        weight = score.clamp(-5, 5).exp()
        total = torch.zeros(nodes, inner.heads).to(x).index_add(0, target, weight)
        out = torch.zeros_like(q[:nodes]).index_add(0, target, weight[..., None] * v[source])
        return (out / (total + 1e-6)[..., None]).flatten(1)


def test_tokens_are_sources_that_every_node_sees() -> None:
    tuner, x, graph = make(layers=[0, 2])
    prefix, vector = tuner.prompts.prefix, tuner.prompts.vector
    out = tuner(x, graph)
    assert out.shape == (NODES, CLASSES)
    weight = torch.randn_like(out)
    got = torch.autograd.grad((out * weight).sum(), (prefix, vector))
    slow = copy.deepcopy(tuner.model)
    for at, number in enumerate(tuner.prompts.layers):
        slow.attention[number] = EveryEdge(slow.attention[number], prefix[at], vector[at])
    expected = slow(x, graph)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    wanted = torch.autograd.grad((expected * weight).sum(), (prefix, vector))
    for one, other in zip(got, wanted, strict=True):
        assert float(other.abs().max()) > 1e-4
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


def test_training_changes_prompts_and_head_alone(tmp_path: Any) -> None:
    tuner, x, graph = make(num_tasks=2)
    before = {key: value.clone() for key, value in tuner.state_dict().items()}
    optimizer = torch.optim.AdamW(tuner.trained_parameters(), lr=1e-2)
    tuner.train()(x, graph).square().sum().backward()
    optimizer.step()
    assert all(parameter.grad is None for parameter in tuner.model.parameters())
    for key, value in tuner.state_dict().items():
        assert torch.equal(value, before[key]) == key.startswith("model."), key
    save_prompts(tmp_path / "nodes", tuner)
    same = PromptTuner(tuner.model, TOKENS, num_tasks=2)
    load_prompts(tmp_path / "nodes", same)
    assert torch.equal(same.eval()(x, graph), tuner.eval()(x, graph))


def test_a_head_for_edges_reads_pairs_of_nodes() -> None:
    tuner, x, graph = make(train_head=False)
    pairs = torch.randint(NODES, (2, 7))
    source, target = tuner.embed(x, graph)[pairs]
    head = nn.Bilinear(8, 8, 1).double()
    head(source, target).sum().backward()
    assert float(tuner.prompts.prefix.grad.abs().max()) > 0
    assert tuner.model.head[0].weight.grad is None
