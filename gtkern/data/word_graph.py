"""A small graph of texts, generated: nothing to download."""

from __future__ import annotations

import torch
from torch import Tensor

from gtkern.data._raw import undirected
from gtkern.data.node import stratified_split
from gtkern.data.text_graph import TextGraph

__all__ = ["word_graph"]

_CONSONANTS = "bdfgklmnprstvz"
_VOWELS = "aeiou"


def word_graph(
    seed: int = 0,
    *,
    num_nodes: int = 600,
    num_classes: int = 4,
    words: int = 16,
    own_share: float = 0.25,
    other_share: float = 0.1,
    degree: float = 6.0,
    homophily: float = 0.7,
) -> TextGraph:
    """Draw texts of invented words and citations between them.

    Every class has 40 words of its own, and 200 words are common. Each word of a text is drawn from
    those of its class, from those of another class, or from the common ones. A text alone tells its
    class often, the texts around it tell better. 60/20/20 split, the same in every class.

    Args:
        seed: of texts, edges and split.
        num_nodes: N.
        num_classes: classes, of the same size within one node.
        words: of a text on average; its length is uniform from half to one and a half of that.
        own_share, other_share: part of the words drawn from those of the own class, and of others;
            in all at most 1.
        degree: edges of a node on average, a little fewer after double ones are merged.
        homophily: part of the edges drawn inside a class; the others join any two nodes.

    Raises:
        ValueError: a share outside 0 .. 1, or sizes too small for a node of each class in each part
            of the split.
    """
    if num_classes < 2 or num_nodes < 5 * num_classes or words < 2:
        raise ValueError(
            "num_classes and words must be at least 2 and num_nodes 5 for each class, got "
            f"{num_classes} classes, {words} words, {num_nodes} nodes"
        )
    for name, share in (
        ("own_share", own_share),
        ("other_share", other_share),
        ("own_share + other_share", own_share + other_share),
        ("homophily", homophily),
    ):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must be in 0 .. 1, got {share}")
    generator = torch.Generator().manual_seed(seed)
    dictionary = _invented_words(200 + 40 * num_classes, generator)
    common, special = dictionary[:200], dictionary[200:]

    def below(high: int, count: int) -> Tensor:
        return torch.randint(high, (count,), generator=generator)

    def chance(count: int) -> Tensor:
        return torch.rand(count, generator=generator)

    y = torch.arange(num_nodes) % num_classes
    y = y[torch.randperm(num_nodes, generator=generator)]
    texts = []
    lengths = words // 2 + below(words + 1, num_nodes)
    for label, length in zip(y.tolist(), lengths.clamp(min=1).tolist(), strict=True):
        drawn = chance(length)
        topic = torch.full((length,), label)
        strange = drawn >= own_share
        topic[strange] = (label + 1 + below(num_classes - 1, int(strange.sum()))) % num_classes
        of_topic, of_common = topic * 40 + below(40, length), below(200, length)
        texts.append(
            " ".join(
                special[mine] if roll < own_share + other_share else common[shared]
                for roll, mine, shared in zip(
                    drawn.tolist(), of_topic.tolist(), of_common.tolist(), strict=True
                )
            )
        )

    count = round(num_nodes * degree / 2)
    source = below(num_nodes, count)
    target = below(num_nodes, count)
    inside = chance(count) < homophily
    by_class = torch.argsort(y, stable=True)
    sizes = torch.bincount(y, minlength=num_classes)
    start = sizes.cumsum(0) - sizes
    mate = start[y[source]] + (chance(count) * sizes[y[source]]).long()
    target = torch.where(inside, by_class[mate], target)
    return TextGraph(
        texts,
        y,
        undirected(torch.stack((source, target)), num_nodes),
        *stratified_split(y, (0.6, 0.2), generator),
        class_names=tuple(f"class {label}" for label in range(num_classes)),
        name="synthetic",
    )


def _invented_words(count: int, generator: torch.Generator) -> list[str]:
    """Different words of two or three syllables, in random order."""
    syllables = [consonant + vowel for consonant in _CONSONANTS for vowel in _VOWELS]
    found: dict[str, None] = {}
    while len(found) < count:
        size = 2 + int(torch.randint(2, (1,), generator=generator))
        chosen = torch.randint(len(syllables), (size,), generator=generator).tolist()
        found["".join(syllables[at] for at in chosen)] = None
    return list(found)
