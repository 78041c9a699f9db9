"""The models' equations again, one graph at a time, dense, in plain PyTorch: what they must equal.

Nothing here uses gtkern's layers: parameters come by name out of a model's state dict. Slow.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

Parameters = Mapping[str, Tensor]


def part(parameters: Parameters, prefix: str) -> dict[str, Tensor]:
    """The parameters whose names begin with `prefix.`, without it."""
    begin = prefix + "."
    return {
        name[len(begin) :]: value for name, value in parameters.items() if name.startswith(begin)
    }


def linear(p: Parameters, name: str, x: Tensor) -> Tensor:
    return x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", torch.zeros((), dtype=x.dtype))


def layer_norm(p: Parameters, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / (variance + 1e-5).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]


def batch_norm(p: Parameters, name: str, x: Tensor) -> Tensor:
    """As in evaluation: with the running statistics."""
    scaled = (x - p[f"{name}.running_mean"]) / (p[f"{name}.running_var"] + 1e-5).sqrt()
    return scaled * p[f"{name}.weight"] + p[f"{name}.bias"]


def features(p: Parameters, name: str, x: Tensor, sizes: Sequence[int] = ()) -> Tensor:
    """Float features: linear; integer ones, of `sizes`: the sum of what each column looks up."""
    if x.is_floating_point():
        return linear(p, f"{name}.linear", x)
    tables = p[f"{name}.table.weight"].split(list(sizes))
    return torch.stack([table[x[:, c]] for c, table in enumerate(tables)]).sum(0)


def attention(
    p: Parameters,
    name: str,
    x: Tensor,
    heads: int,
    bias: Tensor | None = None,
    scale: float | None = None,
    prefix: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Multi-head attention over the rows of x [n, C], with bias [H, n, n] added to the scores."""
    width = x.size(1) // heads
    weight, offset = p[f"{name}.in_proj_weight"], p[f"{name}.in_proj_bias"]
    q, k, v = (
        (x @ w.T + b).view(-1, heads, width).transpose(0, 1)
        for w, b in zip(weight.chunk(3), offset.chunk(3), strict=True)
    )
    score = q @ k.transpose(1, 2) * (1 / math.sqrt(width) if scale is None else scale)
    score = score if bias is None else score + bias
    out = score.softmax(-1) @ v
    if prefix is not None:
        extra_k, extra_v = (value.transpose(0, 1) for value in prefix)
        extra = q @ extra_k.transpose(1, 2) / math.sqrt(width)
        out = torch.cat((extra, score), dim=2).softmax(-1) @ torch.cat((extra_v, v), dim=1)
    return linear(p, f"{name}.out_proj", out.transpose(0, 1).flatten(1))


def transformer_layer(
    p: Parameters,
    x: Tensor,
    heads: int,
    *,
    norm: str,
    activation: str,
    bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    act = functional.gelu if activation == "gelu" else functional.relu
    if norm == "pre":
        y = x + attention(p, "attention", layer_norm(p, "attention_norm", x), heads, bias, scale)
        return y + linear(p, "narrow", act(linear(p, "widen", layer_norm(p, "output_norm", y))))
    y = layer_norm(p, "attention_norm", x + attention(p, "attention", x, heads, bias, scale))
    return layer_norm(p, "output_norm", y + linear(p, "narrow", act(linear(p, "widen", y))))


def walk(edge_index: Tensor, nodes: int) -> Callable[[int, int], list[int] | None]:
    """A function to the edges on a shortest path from i to j, from i on; None: there is none.

    Among several, the one that from j goes by the lowest nodes.
    """
    edges = {
        (target, source): number
        for number, (source, target) in reversed(list(enumerate(edge_index.T.tolist())))
    }
    distance = {(i, i): 0 for i in range(nodes)}
    for steps, i in itertools.product(range(nodes), range(nodes)):
        for j, k in edges:
            if distance.get((i, j)) == steps:
                distance.setdefault((i, k), steps + 1)

    def path(i: int, j: int) -> list[int] | None:
        if (i, j) not in distance:
            return None
        found: list[int] = []
        while j != i:
            nearer = min(
                k
                for k in range(nodes)
                if (k, j) in edges and distance.get((i, k)) == distance[(i, j)] - 1
            )
            found.insert(0, edges[(nearer, j)])
            j = nearer
        return found

    return path
