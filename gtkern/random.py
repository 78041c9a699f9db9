"""Counter-based random numbers: the same draw on every backend, device and thread count.

Reference: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox4x32-10).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["keep_mask", "philox"]

_MULTIPLIER = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


def philox(seed: int, counter: tuple[Tensor, Tensor | int, Tensor | int, Tensor | int]) -> Tensor:
    """Philox4x32-10.

    Args:
        seed: 64 bits; the low word is the first key word.
        counter: four 32-bit words, int64 tensors (or ints) that broadcast together.

    Returns:
        int64 [..., 4]: four independent words in [0, 2**32) for each counter.
    """
    key0, key1 = seed & _MASK, (seed >> 32) & _MASK
    c0, c1, c2, c3 = torch.broadcast_tensors(
        *(torch.as_tensor(word, device=counter[0].device) for word in counter)
    )
    for _ in range(10):
        # int64 products wrap, and the bits that are kept do not depend on the sign
        product0, product1 = c0 * _MULTIPLIER[0], c2 * _MULTIPLIER[1]
        high0, low0 = (product0 >> 32) & _MASK, product0 & _MASK
        high1, low1 = (product1 >> 32) & _MASK, product1 & _MASK
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0, key1 = (key0 + _WEYL[0]) & _MASK, (key1 + _WEYL[1]) & _MASK
    return torch.stack((c0, c1, c2, c3), dim=-1)


def keep_mask(seed: int, item: Tensor, heads: int, probability: float) -> Tensor:
    """The dropout mask of `item` (edge ids) by head: True is kept.

    Head h of item e takes word h % 4 of the counter (e low, e high, h // 4, 0) and is kept when
    the word is at least `dropout_threshold(probability)`.

    Returns:
        bool [E, H]
    """
    item = item.to(torch.int64)
    quads = torch.arange((heads + 3) // 4, device=item.device)
    words = philox(seed, ((item & _MASK)[:, None], ((item >> 32) & _MASK)[:, None], quads, 0))
    return words.flatten(1)[:, :heads] >= dropout_threshold(probability)


def dropout_threshold(probability: float) -> int:
    """Words below this are dropped: floor(probability * 2**32)."""
    return int(probability * 2.0**32)
