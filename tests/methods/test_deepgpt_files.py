"""Prompts go through files of their own, and several tasks share one backbone."""

from __future__ import annotations

import copy
import pathlib
from typing import Any

import pytest
import small_models
import torch
from safetensors.torch import load_file

from gtkern.methods.deepgpt import (
    Fingerprint,
    PromptLibrary,
    PromptTuner,
    load_prompts,
    open_prompts,
    parameter_counts,
    save_prompts,
)
from gtkern.models import (
    GraphGPS,
    GraphGPSSettings,
    Graphormer,
    GraphormerSettings,
    LiGhT,
    LiGhTSettings,
)
from gtkern.nn import BatchNorm

ROOT = pathlib.Path(__file__).parents[2]


def make(name: str = "graphgps") -> tuple[Any, Any]:
    """A small network in fp64 and in evaluation, and a batch for it."""
    torch.manual_seed(0)
    model, packed = small_models.make(name)
    return model.eval(), packed.batch(range(len(packed)))


def tuned(model: Any, prefix_tokens: int = 4, **more: Any) -> PromptTuner:
    """A tuner with a head that is not the model's."""
    tuner = PromptTuner(model, prefix_tokens, **more)
    if tuner.head is not None:
        with torch.no_grad():
            for parameter in tuner.head.parameters():
                parameter.add_(torch.randn_like(parameter))
    return tuner.eval()


@pytest.mark.parametrize("more", [{}, {"reparameterize": True}, {"train_head": False}])
def test_files_bring_prompts_and_head_back(tmp_path: pathlib.Path, more: dict[str, Any]) -> None:
    model, batch = make()
    tuner = tuned(model, **more)
    path = tmp_path / "task.safetensors"
    save_prompts(path, tuner)
    same = tuned(model, **more)
    assert not torch.equal(same(batch), tuner(batch))
    load_prompts(path, same)
    assert torch.equal(same(batch), tuner(batch))
    opened = open_prompts(path, copy.deepcopy(model)).eval()
    assert torch.equal(opened(batch), tuner(batch))
    assert [each.name for each in tmp_path.iterdir()] == ["task.safetensors"]
    names = set(load_file(path))
    assert names == {"prefix", "vector"} | (set() if more == {"train_head": False} else names)
    assert names <= {"prefix", "vector", "head.weight", "head.bias"}


def test_a_file_has_kilobytes(tmp_path: pathlib.Path) -> None:
    model, _ = make("graphormer")
    path = tmp_path / "task.safetensors"
    save_prompts(path, tuned(model, 2))
    assert path.stat().st_size < 20_000


def test_a_head_of_other_outputs_is_opened(tmp_path: pathlib.Path) -> None:
    for name in ("graphgps", "light"):
        model, batch = make(name)
        tuner = PromptTuner(model, 2, num_tasks=7).eval()
        path = tmp_path / name
        save_prompts(path, tuner)
        assert torch.equal(open_prompts(path, model).eval()(batch), tuner(batch))


def test_another_backbone_is_refused_with_the_difference(tmp_path: pathlib.Path) -> None:
    model, _ = make()
    path = tmp_path / "task.safetensors"
    tuner = tuned(model)
    save_prompts(path, tuner)

    def refused(changed: Any, error: str) -> None:
        with pytest.raises(ValueError, match=f"has prompts of another backbone: {error}$"):
            load_prompts(path, tuned(changed))
        with pytest.raises(ValueError, match=f"has prompts of another backbone: {error}$"):
            PromptLibrary(changed).add("task", path)

    other = copy.deepcopy(model)
    with torch.no_grad():
        other.layers[1].widen.weight[0, 0] += 1e-9
    refused(other, r"layers\.1\.widen\.weight has other values")
    other = copy.deepcopy(model)
    norm = next(part for part in other.layers[2].modules() if isinstance(part, BatchNorm))
    norm.running_mean += 1
    refused(other, r"layers\.2\.\w+\.running_mean has other values")
    other = copy.deepcopy(model)
    other.layers[0].widen = torch.nn.Linear(16, 5).double()
    refused(other, r"layers\.0\.widen\.weight must be float64 \[32, 16\], got float64 \[5, 16\]")
    refused(copy.deepcopy(model).float(), r"\S+ must be float64 (\[.*\]), got float32 (\[.*\])")
    refused(make("light")[0], "model must be GraphGPS, got LiGhT")
    other = copy.deepcopy(model)
    other.layers[1].attention = None
    with pytest.raises(ValueError, match=r"layers\.1\.attention\.\S+ must be there, and is not$"):
        open_prompts(path, other)
    # the model's own head is not the tuner's
    other = copy.deepcopy(model)
    other.head.weight.data += 1
    load_prompts(path, tuned(other))
    save_prompts(path, tuned(model, train_head=False))
    with pytest.raises(ValueError, match=r"another backbone: head\.weight has other values$"):
        open_prompts(path, other)


def test_other_settings_and_broken_files_are_refused(tmp_path: pathlib.Path) -> None:
    model, _ = make()
    path = tmp_path / "task.safetensors"
    save_prompts(path, tuned(model))
    for more, error in (
        ({"prefix_tokens": 3}, "prefix_tokens 4, the tuner 3"),
        ({"layers": [0, 1]}, r"layers \[0, 1, 2\], the tuner \[0, 1\]"),
        ({"graph_prompt": False}, "graph_prompt True, the tuner False"),
        ({"train_head": False}, "head True, the tuner False"),
    ):
        with pytest.raises(ValueError, match=f"has prompts with {error}$"):
            load_prompts(path, tuned(model, **more))
    with pytest.raises(ValueError, match=r"head\.bias must have shape \[9\], got \[4\]$"):
        load_prompts(path, tuned(model, num_tasks=9))
    with pytest.raises(FileNotFoundError, match=r"path must name a file of prompts$"):
        load_prompts(tmp_path / "none", tuned(model))
    path.write_bytes(b"no safetensors")
    with pytest.raises(ValueError, match=r"^cannot read prompts in "):
        load_prompts(path, tuned(model))


def test_fingerprints_see_buffers_but_not_the_device_layout() -> None:
    model, _ = make()
    one = Fingerprint.of(model)
    assert not any(name.startswith("head.") for name in one.parts)
    model.layers[0].widen.weight.data = model.layers[0].widen.weight.data.T.contiguous().T
    assert one.difference(Fingerprint.of(model)) is None
    assert one.difference(Fingerprint.of(model, head=True)) == (
        "head.weight is there, and must not be"
    )


def library(name: str) -> tuple[PromptLibrary, dict[str, PromptTuner], Any]:
    """Three tasks: in all layers, in some of them and with another head, and without tokens."""
    model, batch = make(name)
    tuners = {
        "a": tuned(model),
        "b": tuned(model, layers=[1], num_tasks=2),
        "c": tuned(model, 0),
    }
    shelf = PromptLibrary(model)
    for task, tuner in tuners.items():
        shelf.add(task, tuner)
    return shelf, tuners, batch


@pytest.mark.parametrize("name", ["graphgps", "graphormer"])
def test_tasks_are_switched_call_by_call(name: str) -> None:
    shelf, tuners, batch = library(name)
    assert shelf.tasks == ("a", "b", "c")
    for task in ("b", "a", "c", "a"):
        assert torch.equal(shelf(batch, task), tuners[task](batch))
    with torch.no_grad():
        tuners["a"].prompts.vector.add_(1)
        tuners["a"].prompts.prefix.add_(1)
    assert not torch.equal(shelf(batch, "a"), tuners["a"](batch))
    shelf.remove("b")
    with pytest.raises(ValueError, match=r"^task must be one of a, c, got 'b'$"):
        shelf(batch, "b")


@pytest.mark.parametrize("name", small_models.NAMES)
def test_a_mixed_batch_equals_each_tasks_own_calls(name: str) -> None:
    shelf, tuners, batch = library(name)
    tasks = ["b", "a", "c", "a", "b", "c"]
    for graph, (task, got) in enumerate(zip(tasks, shelf(batch, tasks), strict=True)):
        torch.testing.assert_close(got, tuners[task](batch)[graph], rtol=1e-11, atol=1e-11)
    alone = shelf(batch, ["a"] * 6)
    assert torch.equal(torch.stack(alone), shelf(batch, "a"))


def test_prefixes_of_two_lengths_do_not_mix() -> None:
    shelf, _, batch = library("graphgps")
    shelf.add("d", tuned(shelf.model, 3))
    with pytest.raises(ValueError, match=r"of one length, got 4 tokens of 'a' and 3 of 'd'$"):
        shelf(batch, ["a", "c", "d", "a", "a", "a"])


def test_a_library_refuses_what_is_not_its_own(tmp_path: pathlib.Path) -> None:
    shelf, tuners, batch = library("graphgps")
    with pytest.raises(ValueError, match=r"prompts of 'd' must be those of the library's own mod"):
        shelf.add("d", tuned(make()[0]))
    with pytest.raises(ValueError, match=r"one for each of the 6 graphs, got 2$"):
        shelf(batch, ["a", "b"])
    tuners["a"].train()
    with pytest.raises(RuntimeError, match=r"must be in evaluation, .* call tuner\.eval\(\)$"):
        shelf(batch, "a")
    shelf.add("a", tuners["a"])
    assert tuners["a"].training


@pytest.mark.parametrize(
    ("backbone", "tokens", "share"),
    [
        # the sizes that the paper's shares are of
        (lambda: Graphormer(9, 1, GraphormerSettings.base()), 10, (0.1e6, 48e6)),
        (
            lambda: GraphGPS(
                9, 1, GraphGPSSettings(width=256, heads=8, layers=16, local="gated_gcn")
            ),
            12,
            (0.05e6, 14e6),
        ),
        (
            lambda: LiGhT(
                137,
                1,
                LiGhTSettings(fingerprint_features=512, descriptor_features=200),
                edge_features=14,
            ),
            40,
            (0.37e6, 90e6),
        ),
    ],
)
def test_prompts_are_less_than_half_a_percent(
    backbone: Any, tokens: int, share: tuple[float, float]
) -> None:
    with torch.device("meta"):
        tuner = PromptTuner(backbone(), tokens)
    counts = parameter_counts(tuner)
    layers, width = len(tuner.prompts.layers), tuner.prompts.width
    assert counts.prompts == layers * (tokens + 1) * width
    assert counts.share < 0.005
    assert counts.prompts == pytest.approx(share[0], rel=0.1)
    assert counts.backbone == pytest.approx(share[1], rel=0.1)
    assert counts.trained == counts.prompts + counts.head
    assert counts.share_with_head == counts.trained / (counts.backbone + counts.head)
    assert str(counts).startswith(f"{counts.prompts:,} of {counts.backbone:,} parameters (0.")
    said = f"{counts.prompts:,} of {counts.backbone:,} "
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert said in readme
    assert f"({counts.share * 100:.2f} %)" in readme.split(said)[1][:30]
