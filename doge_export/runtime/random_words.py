"""Random words without a state: Philox 4x32-10, one word for each seed, row, position and token.

Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. The kernels
have the same generator (plugins/kernels/isa_noise.inc), and docs/reference/operators.md says which word a
token gets.
"""

__all__ = ["exact_gumbel", "gumbel", "philox", "token_words"]

import math

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_STEPS = (0x9E3779B9, 0xBB67AE85)  # of the key, from round to round
_LOW, _32 = np.uint64(0xFFFFFFFF), np.uint64(32)
_PANEL, _LANES = 64, 16  # tokens whose words come of so many counters, four of each


def philox(counter: tuple[npt.NDArray[np.uint64], int, int, int], key: tuple[int, int]) -> Words:
    """The words [4, n] of n counters, of which only the first of their four words differs."""
    a, *others = counter
    b, c, d = (np.full_like(a, word) for word in others)
    k0, k1 = key
    for _ in range(_ROUNDS):
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (
            (second >> _32) ^ b ^ np.uint64(k0),
            second & _LOW,
            (first >> _32) ^ d ^ np.uint64(k1),
            first & _LOW,
        )
        k0, k1 = (k0 + _STEPS[0]) & 0xFFFFFFFF, (k1 + _STEPS[1]) & 0xFFFFFFFF
    return np.stack([a, b, c, d]).astype(np.uint32)


def token_words(seed: int, row: int, position: int, tokens: npt.NDArray[np.int64]) -> Words:
    """A word for each of the tokens [n], as the new one of a text at `position`, in row number `row`."""
    key = (seed & 0xFFFFFFFF, row & 0xFFFFFFFF)
    rest = (position & 0xFFFFFFFF, position >> 32 & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)
    within = tokens % _PANEL
    counters = tokens // _PANEL * _LANES + within % _LANES
    if tokens.size * 4 < (most := int(tokens.max(initial=0)) // _PANEL * _LANES + _LANES):
        words = philox((counters.astype(np.uint64), *rest), key)
        counters = np.arange(tokens.size)
    else:
        words = philox((np.arange(most, dtype=np.uint64), *rest), key)
    result: Words = words[within // _LANES, counters]
    return result


def gumbel(words: Words) -> npt.NDArray[np.float64]:
    """Gumbel noise of words: -log(-log(v)), v = (word + 0.5) / 2^32. numpy's logarithms may differ from
    `exact_gumbel`'s in the last bit."""
    noise: npt.NDArray[np.float64] = -np.log(-np.log((words + 0.5) * 2.0**-32))
    return noise


def exact_gumbel(word: int) -> float:
    """The noise of one word, by the logarithm of the C library: the one that the kernels take."""
    return -math.log(-math.log((word + 0.5) * 2.0**-32))
