"""A frozen graph transformer with trained prompts in its layers and a trained head."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from gtkern.methods.deepgpt.prompts import Prompts
from gtkern.models import GraphGPS, Graphormer, GraphTrans, LiGhT
from gtkern.nn import Prompt, RaggedMultiheadAttention

__all__ = ["PromptTuner", "check_backbone", "new_head", "prompt_layers"]

_BACKBONES = (GraphGPS, Graphormer, GraphTrans, LiGhT)


class PromptTuner(nn.Module):
    """DeepGPT: per layer a vector and P tokens are trained, and the head; all else stays.

    Tokens are read by a layer as if they were rows of its input, but ask nothing themselves: they
    are keys and values, without structural bias, for all rows of all graphs. As the released code
    throws away what tokens become in a layer, this is the same, and costs no rows. The places are
    the paper's: Graphormer, GraphTrans and LiGhT add the vector to the rows that a layer reads,
    residual included; GraphGPS to what its attention reads alone. Where a layer's norm comes before
    attention, it normalises tokens too.

    The backbone is frozen: none of its parameters gets a gradient, and running statistics stay as
    they are. Its dropout is that of training, as in the released code.

    Deviations from the released code: it also trains what lies between the layers and the head
    (Graphormer's transform and norm) and some embeddings; dropout of tokens is drawn once for a
    batch, not for each graph; LiGhT's biases of paths are there, and every attention sees the
    prompts. In released GraphGPS configurations with Performer it does not.

    Args:
        model: GraphGPS, GraphTrans, Graphormer or LiGhT, pruned or not; its parameters are frozen.
        prefix_tokens: P, of each layer; 0: none.
        graph_prompt: whether each layer has a vector.
        layers: numbers of the prompted layers; None: all that have attention.
        reparameterize, graph_prompt_init, prefix_std, dropout: see Prompts.
        backbone_dropout: whether the backbone's own dropout is on in training.
        train_head: False: the model's head is used as it is, frozen.
        num_tasks: outputs of a new head; None: the head begins as a copy of the model's.

    Attributes:
        model: the backbone. Its own head is not touched.
        prompts: see Prompts.
        head: what is trained behind the backbone; None where the model's is used.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or range; a layer that has no attention
            or one that cannot take prompts.

    Reference: Shirkavand and Huang 2023 (DeepGPT), section 3.
    """

    def __init__(
        self,
        model: nn.Module,
        prefix_tokens: int = 40,
        graph_prompt: bool = True,
        layers: Iterable[int] | None = None,
        reparameterize: bool = False,
        graph_prompt_init: str = "uniform",
        prefix_std: float = 1.0,
        dropout: float = 0.0,
        train_head: bool = True,
        *,
        backbone_dropout: bool = True,
        num_tasks: int | None = None,
    ) -> None:
        super().__init__()
        backbone: Any = check_backbone(model)
        if num_tasks is not None and not train_head:
            raise ValueError("num_tasks needs train_head: the model's own head has its outputs")
        chosen = prompt_layers(model, layers) if prefix_tokens or graph_prompt else ()
        self.backbone_dropout = backbone_dropout
        self.model = model.requires_grad_(False)
        self.prompts = Prompts(
            chosen,
            backbone.settings.width,
            prefix_tokens=prefix_tokens,
            graph_prompt=graph_prompt,
            reparameterize=reparameterize,
            graph_prompt_init=graph_prompt_init,
            prefix_std=prefix_std,
            dropout=dropout,
        )
        self.head: nn.Module | None = None
        if train_head:
            own = copy.deepcopy(backbone.head) if num_tasks is None else new_head(model, num_tasks)
            self.head = own.requires_grad_(True)
        elif not chosen:
            raise ValueError("train_head must be True where there are no prompts: nothing is left")
        like = next(model.parameters())
        self.prompts.to(like.device, like.dtype)
        self.train(model.training)

    def train(self, mode: bool = True) -> PromptTuner:
        """Prompts and head change their mode; of the backbone dropout alone, never its norms."""
        super().train(mode)
        for module in self.model.modules():
            keeps = "running_mean" in module._buffers
            module.training = mode and self.backbone_dropout and not keeps
        return self

    def trained_parameters(self) -> Iterator[nn.Parameter]:
        """What an optimiser is to have: prompts and head."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    def layer_prompts(self) -> list[Prompt | None]:
        """For every layer of the model, what is added to it; keys and values are computed here."""
        backbone: Any = self.model
        out: list[Prompt | None] = [None] * len(backbone.layers)
        prompts = self.prompts
        for number, tokens, vector in zip(
            prompts.layers, prompts.tokens(), prompts.vectors(), strict=True
        ):
            both = (None, None) if tokens is None else backbone.layers[number].prefix(tokens)
            out[number] = Prompt(vector, *both)
        return out

    def embed(self, data: Any) -> Tensor:
        """One vector for each graph; see the model's `embed`."""
        backbone: Any = self.model
        out: Tensor = backbone.embed(data, self.layer_prompts())
        return out

    def forward(self, data: Any) -> Tensor:
        """The outputs [G, num_tasks] of the graphs of a batch, as the model reads it."""
        head: Any = self.model.head if self.head is None else self.head
        out: Tensor = head(self.embed(data))
        return out


def check_backbone(model: nn.Module) -> nn.Module:
    """The model.

    Raises:
        TypeError: it is none whose layers take prompts.
    """
    if not isinstance(model, _BACKBONES):
        names = ", ".join(kind.__name__ for kind in _BACKBONES)
        raise TypeError(f"model must be one of {names}, got {type(model).__name__}")
    return model


def prompt_layers(model: nn.Module, layers: Iterable[int] | None) -> tuple[int, ...]:
    """The numbers of the layers that get prompts, rising.

    Args:
        model: a backbone.
        layers: those asked for; None: all that have attention.

    Raises:
        TypeError, ValueError: they are no layers of the model, or cannot take prompts; named.
    """
    backbone: Any = model
    count = len(backbone.layers)
    held = [layer.attention for layer in backbone.layers]
    if layers is None:
        chosen = [number for number in range(count) if held[number] is not None]
    else:
        chosen = list(layers)
        for number in chosen:
            if isinstance(number, bool) or not isinstance(number, int):
                raise TypeError(f"layers must be integers, got {type(number).__name__}")
            if not 0 <= number < count:
                raise ValueError(f"layers must be 0 .. {count - 1}, got {number}")
            if held[number] is None:
                raise ValueError(
                    f"layers must have attention, got {number}: layers.{number}.attention was "
                    "pruned away"
                )
        if len(set(chosen)) < len(chosen):
            raise ValueError(f"layers must name each layer once, got {chosen}")
    if not chosen:
        raise ValueError("layers must name at least one layer with attention, got none")
    for number in chosen:
        _check_attention(f"layers.{number}.attention", held[number])
    return tuple(sorted(chosen))


def _check_attention(name: str, attention: Any) -> None:
    while not isinstance(attention, RaggedMultiheadAttention):
        if not hasattr(attention, "keys_and_values"):
            raise ValueError(
                f"{name} must be RaggedMultiheadAttention or TokenDroppingAttention, got "
                f"{type(attention).__name__}; of a network that is being pruned, take the "
                "compact one"
            )
        attention = attention.attention


def new_head(model: nn.Module, num_tasks: int) -> nn.Module:
    """A head like the model's with weights of its own, as torch initialises them.

    Args:
        model: a backbone.
        num_tasks: outputs.
    """
    if num_tasks < 1:
        raise ValueError(f"num_tasks must be at least 1, got {num_tasks}")
    backbone: Any = check_backbone(model)
    head: nn.Module = copy.deepcopy(backbone.head)
    linear = [name for name, part in head.named_modules() if isinstance(part, nn.Linear)]
    for name in linear:
        part: Any = head.get_submodule(name) if name else head
        outputs = num_tasks if name == linear[-1] else part.out_features
        made = nn.Linear(
            part.in_features, outputs, device=part.weight.device, dtype=part.weight.dtype
        )
        if not name:
            return made
        head.set_submodule(name, made)
    return head
