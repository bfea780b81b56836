"""Log-probabilities of tokens, of the model's own distribution: the logits before anything changes them."""

__all__ = ["TokenLogprobs", "token_logprobs"]

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class TokenLogprobs:
    """The log-probability of a token, and the best ones in its place with theirs: best first, and the lower
    id first among equals."""

    logprob: float
    best: tuple[tuple[int, float], ...] = ()


def token_logprobs(logits: npt.NDArray[np.float32], token: int, count: int) -> TokenLogprobs:
    """What `token` has after these logits [vocab], of which one at least is finite, and the `count` best. The
    sum is over the whole vocabulary, in float64."""
    wide = logits.astype(np.float64)
    highest = wide.max()
    total = highest + np.log(np.exp(wide - highest).sum())
    best: tuple[tuple[int, float], ...] = ()
    if count > 0:
        count = min(count, wide.size)
        least = np.partition(wide, -count)[-count]
        ids = np.flatnonzero(wide >= least)
        ids = ids[np.argsort(-wide[ids], kind="stable")][:count]
        best = tuple(zip(ids.tolist(), (wide[ids] - total).tolist(), strict=True))
    return TokenLogprobs(float(wide[token] - total), best)
