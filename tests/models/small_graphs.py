"""Small random graphs for the tests of models, and the checks that every model must pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from gtkern.data.packed import PackedGraphs

SIZES = (7, 1, 4, 9, 2)
"""Nodes of the graphs: among them one node alone, and one edge alone; graphs of 4 nodes have one
that no other reaches."""


def random_graphs(
    sizes: Sequence[int] = SIZES,
    *,
    node: int | Sequence[int] = 3,
    edge: int | Sequence[int] | None = None,
    seed: int = 0,
) -> PackedGraphs:
    """Undirected simple graphs: random trees and some more edges; fp64 or integer features."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(kind: int | Sequence[int], rows: int) -> Tensor:
        if isinstance(kind, int):
            return torch.randn(rows, kind, generator=generator, dtype=torch.float64)
        columns = [torch.randint(size, (rows,), generator=generator) for size in kind]
        return torch.stack(columns, dim=1)

    graphs = []
    for size in sizes:
        parents = [int(torch.randint(i, (), generator=generator)) for i in range(1, size)]
        pairs = {(parent, i + 1) for i, parent in enumerate(parents) if (size, i) != (4, 2)}
        for _ in range(size // 3):
            most = size - (size == 4)
            a, b = torch.randperm(most, generator=generator)[:2].sort().values.tolist()
            pairs.add((a, b))
        one_way = torch.tensor(sorted(pairs), dtype=torch.int64).reshape(-1, 2).T
        edge_index = torch.cat((one_way, one_way.flip(0)), dim=1)
        values = None if edge is None else drawn(edge, one_way.size(1)).repeat(2, 1)
        graphs.append(
            Data(x=drawn(node, size), edge_index=edge_index, edge_attr=values, y=torch.zeros(1))
        )
    return PackedGraphs.from_data_list(
        graphs,
        node_categories=None if isinstance(node, int) else node,
        edge_categories=None if edge is None or isinstance(edge, int) else edge,
    )


def settle(model: nn.Module) -> nn.Module:
    """fp64, in evaluation, with no parameter or running statistic at a value that hides it."""
    model = model.double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if not value.is_floating_point():
                continue
            noise = torch.rand(value.shape, generator=generator, dtype=torch.float64)
            value.copy_(0.5 + noise if "running_var" in name else value + 0.4 * (noise - 0.5))
    return model


def check_equal(
    model: nn.Module,
    packed: PackedGraphs,
    plain: Callable[[dict[str, Tensor], Data], Tensor],
) -> None:
    """The model's outputs for a batch, and all gradients, are those of `plain` graph by graph.

    Args:
        plain: from parameters by name and one graph, its outputs [tasks].
    """
    out = model(packed.batch(range(len(packed))))
    weight = torch.rand(out.shape, generator=torch.Generator().manual_seed(2), dtype=out.dtype)
    named = dict(model.named_parameters())
    grads = torch.autograd.grad((out * weight).sum(), list(named.values()), allow_unused=True)
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    for name in named:
        state[name].requires_grad_()
    expected = torch.stack([plain(state, packed.batch([i])) for i in range(len(packed))])
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    wanted = torch.autograd.grad(
        (expected * weight).sum(), [state[name] for name in named], allow_unused=True
    )
    for name, got, want in zip(named, grads, wanted, strict=True):
        got = torch.zeros_like(named[name]) if got is None else got
        want = torch.zeros_like(named[name]) if want is None else want
        size = max(1.0, float(want.abs().max()))
        message = f"gradient of {name}"
        assert float((got - want).abs().max()) <= 1e-9 * size, message


def check_batches(model: nn.Module, packed: PackedGraphs) -> None:
    """In evaluation a graph's output does not depend on its batch or on its place there."""
    with torch.no_grad():
        together = model(packed.batch(range(len(packed))))
        alone = torch.cat([model(packed.batch([i])) for i in range(len(packed))])
        turned = model(packed.batch(range(len(packed) - 1, -1, -1))).flip(0)
    torch.testing.assert_close(alone, together, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(turned, together, rtol=1e-12, atol=1e-12)


def check_pyg_batches(model: nn.Module, packed: PackedGraphs) -> None:
    """Batches of PyG's own DataLoader give the same outputs."""
    from torch_geometric.loader import DataLoader

    ours = packed.batch(range(len(packed)))
    (theirs,) = DataLoader([packed[i] for i in range(len(packed))], batch_size=len(packed))
    with torch.no_grad():
        torch.testing.assert_close(model(theirs), model(ours), rtol=0, atol=0)


def check_state(model: nn.Module, same: nn.Module, packed: PackedGraphs) -> None:
    """A second network of the same settings gives the same outputs with the first one's state."""
    batch = packed.batch(range(len(packed)))
    same = same.double().eval()
    with torch.no_grad():
        before = model(batch)
        assert not torch.equal(same(batch), before)
        same.load_state_dict(model.state_dict())
        assert torch.equal(same(batch), before)


def check_learns(model: nn.Module, packed: PackedGraphs) -> None:
    """In training every parameter gets a finite gradient, dropout and all."""
    model.train()
    model(packed.batch(range(len(packed)))).square().sum().backward()
    for name, value in model.named_parameters():
        assert value.grad is not None, f"{name} has no gradient"
        assert bool(value.grad.isfinite().all()), f"gradient of {name}"
        assert bool((value.grad != 0).any()), f"gradient of {name} is 0"
