"""A frozen graph transformer with trained prompts in its layers and a trained head."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from gtkern.methods.deepgpt.backbone import new_head, prompt_layers, prompt_sites, width_of
from gtkern.methods.deepgpt.prompts import Prompts
from gtkern.nn import Prompt

__all__ = ["PromptTuner"]


class PromptTuner(nn.Module):
    """DeepGPT: per layer a vector and P tokens are trained, and the head; all else stays.

    Tokens are read by a layer as if they were rows of its input, but ask nothing themselves: they
    are keys and values, without structural bias, for all rows of all graphs. As the released code
    throws away what tokens become in a layer, this is the same, and costs no rows. The places are
    the paper's: Graphormer, GraphTrans and LiGhT add the vector to the rows that a layer reads,
    residual included; GraphGPS, and Exphormer likewise, to what attention alone reads. Where a
    layer's norm comes before attention, it normalises tokens too.

    The backbone is frozen: none of its parameters gets a gradient, and running statistics stay as
    they are. Its dropout is that of training, as in the released code.

    Deviations from the released code: it also trains what lies between the layers and the head
    (Graphormer's transform and norm) and some embeddings; dropout of tokens is drawn once for a
    batch, not for each graph; LiGhT's biases of paths are there, and every attention sees the
    prompts. In released GraphGPS configurations with Performer it does not.

    Args:
        model: GraphGPS, GraphTrans, Graphormer or LiGhT, pruned or not; or, for nodes, Exphormer.
            Its parameters are frozen.
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
        prompt_sites(model)
        backbone: Any = model
        if num_tasks is not None and not train_head:
            raise ValueError("num_tasks needs train_head: the model's own head has its outputs")
        chosen = prompt_layers(model, layers) if prefix_tokens or graph_prompt else ()
        self.backbone_dropout = backbone_dropout
        self.model = model.requires_grad_(False)
        self.prompts = Prompts(
            chosen,
            width_of(model),
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
        sites, prompts = prompt_sites(self.model), self.prompts
        out: list[Prompt | None] = [None] * len(sites)
        for number, tokens, vector in zip(
            prompts.layers, prompts.tokens(), prompts.vectors(), strict=True
        ):
            both = (None, None) if tokens is None else sites[number].prefix(tokens)
            out[number] = Prompt(vector, *both)
        return out

    def embed(self, *inputs: Any) -> Tensor:
        """What the head reads; see the model's `embed`, whose inputs these are."""
        backbone: Any = self.model
        out: Tensor = backbone.embed(*inputs, prompts=self.layer_prompts())
        return out

    def forward(self, *inputs: Any) -> Tensor:
        """The outputs, from what the model reads: [G, num_tasks] of a batch of graphs.

        With Exphormer, whose inputs are features, graph and edges: [N, num_tasks] of the nodes.
        """
        head: Any = self.model.head if self.head is None else self.head
        out: Tensor = head(self.embed(*inputs))
        return out
