"""Counter-based random numbers: the same draw on every backend, device and thread count.

Reference: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox4x32-10).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["exponential", "gumbel", "keep_mask", "philox"]

_MULTIPLIER = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF

# Q30 coefficients of -log2(1 - x) / (2 x) on [0, 1/2], by rising powers of x
_LOG = (
    774541020,
    387264965,
    258464808,
    188062494,
    208826086,
    -157649060,
    974116327,
    -1313475288,
    1116196857,
)
# log 2 in Q30, and -log(log 2) in Q26
_LOG_2 = 744261118
_GUMBEL_OFFSET = 24596266


def philox(seed: int, counter: tuple[Tensor, Tensor | int, Tensor | int, Tensor | int]) -> Tensor:
    """Philox4x32-10.

    Args:
        seed: 64 bits; the low word is the first key word.
        counter: four 32-bit words, int64 tensors (or ints) that broadcast together.

    Returns:
        int64 [..., 4]: four independent words in [0, 2**32) for each counter.
    """
    key0, key1 = seed & _MASK, (seed >> 32) & _MASK
    device = counter[0].device
    c0, c1, c2, c3 = torch.broadcast_tensors(
        *(
            # a number is filled in, not copied: a copy would wait for a GPU
            word if isinstance(word, Tensor) else torch.full((), word, device=device)
            for word in counter
        )
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


def exponential(word: Tensor) -> Tensor:
    """-2**16 log2((word + 1/2) / 2**32) as float32, the same bits everywhere.

    Relative error below 2**-23, and never 0; word 0 counts as 1.
    gtkern/ops/neighbor_sampling/README.md derives it.

    Args:
        word: int64, in [0, 2**32).
    """
    word = word.clamp(min=1)
    zeros = 32 - torch.frexp(word.to(torch.float64)).exponent.to(torch.int64)
    fraction = _negative_log2(word, zeros)
    fixed = torch.where(zeros > 0, (zeros << 27) + (fraction >> 5), fraction)
    return fixed.to(torch.float32) * torch.where(zeros > 0, 2.0**-11, 2.0**-16).to(torch.float32)


def gumbel(word: Tensor) -> Tensor:
    """-log(-log((word + 1/2) / 2**32)), a standard Gumbel variate, the same bits everywhere.

    2**26 times the variate, as an integer below 2**31 in size: one conversion to floating point is
    the only rounding that is left. gtkern/ops/token_dropping/README.md derives it.

    Args:
        word: int64, in [0, 2**32).

    Returns:
        int64.
    """
    # the exponential variate is mantissa * 2**exponent / 2**16 with 24 bits of mantissa
    mantissa, exponent = torch.frexp(exponential(word).to(torch.float64))
    high = (mantissa * 2.0**32).to(torch.int64)
    fraction = _negative_log2(high, torch.zeros_like(high))
    # -log2 of -log2 of the uniform, in Q27
    log = (fraction >> 5) - ((exponent.to(torch.int64) - 16) << 27)
    return ((log * _LOG_2) >> 31) + _GUMBEL_OFFSET


def _negative_log2(word: Tensor, zeros: Tensor) -> Tensor:
    """-2**32 log2((word + 1/2) / 2**(32 - zeros)), of words that begin with `zeros` zeros."""
    # (word + 1/2) / 2**32 = 2**-zeros (1 - t / 2), and t = rest / 2**32
    rest = (-(word << zeros << 1) - (1 << zeros)) & _MASK
    log = torch.full_like(rest, _LOG[-1])
    for coefficient in _LOG[-2::-1]:
        log = ((log * (rest >> 1)) >> 32) + coefficient
    return ((rest * log) >> 30) + 1
