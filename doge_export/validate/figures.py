"""What two runs of one schedule differ by."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from doge_export.validate.kernels import BestTokens
from doge_export.validate.reference import Run
from doge_export.validate.schedules import Schedule, Tokens

__all__ = [
    "Selection",
    "compare_best",
    "compare_logits",
    "compare_selection",
    "equal_experts",
    "equal_keys",
]

_ROWS = 32  # compared at a time
_TOP = 5
_MOST = 0.98


def compare_logits(
    expected: Run, got: Run, real: npt.NDArray[np.bool_], near: float = 0.0
) -> dict[str, float]:
    """Over real positions: largest difference, mean KL(reference || candidate), and the share where the
    candidate's choice is the reference's best, or `near` it, relative to the best; the norm of the difference
    in that of the logits, how many of the five best are the same, and the KL that 98 % of the positions stay
    below: of fewer than 50 all."""
    rows = np.flatnonzero(real)  # the logits themselves are not copied
    first, second = (run.logits.reshape(-1, run.logits.shape[-1]) for run in (expected, got))
    difference, agreeing = 0.0, 0
    divergences: list[npt.NDArray[np.float64]] = []
    squared, size, shared = 0.0, 0.0, 0
    top = min(_TOP, first.shape[-1])
    for at in range(0, len(rows), _ROWS):  # a vocabulary of float64 rows is large
        mine, theirs = (side[rows[at : at + _ROWS]] for side in (first, second))
        p, q = _log_softmax(mine), _log_softmax(theirs)
        choice, best = theirs.argmax(-1), mine.max(-1)
        agree = mine.argmax(-1) == choice
        if near:
            agree |= np.take_along_axis(mine, choice[:, None], -1)[:, 0] >= best - near * np.abs(best)
        difference = float(np.maximum(difference, np.abs(mine - theirs).max()))  # keeps NaN
        divergences.append(np.maximum((np.exp(p) * (p - q)).sum(-1), 0))
        agreeing += int(agree.sum())
        squared += float(np.square(mine.astype(np.float64) - theirs).sum())
        size += float(np.square(mine.astype(np.float64)).sum())
        best_of = [np.argpartition(-side, top - 1, -1)[:, :top] for side in (mine, theirs)]
        shared += int((best_of[0][:, :, None] == best_of[1][:, None]).sum())
    divergence = np.concatenate(divergences)
    return {
        "max_abs_diff": difference,
        "kl_divergence": float(divergence.mean()),
        "kl_98": float(np.quantile(divergence, _MOST, method="higher")),
        "top1_agreement": agreeing / len(rows),
        "top5_agreement": shared / (top * len(rows)),
        "relative_error": float(np.sqrt(squared / size)) if size else float(squared > 0),
    }


def _log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    result: npt.NDArray[np.float64] = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    return result


@dataclass(frozen=True)
class Selection:
    """How the choices compare. `same` of `rows` sets agree: of keys, one a layer, kv head and real token;
    of experts, one a layer and real token. Where keys differ, `widest` is the largest distance in dt of
    two that changed places, relative to their size: some 1e-7 is rounding."""

    same: int = 0
    rows: int = 0
    widest: float = 0.0

    @property
    def share(self) -> float:
        """1 where there was nothing to choose."""
        return self.same / self.rows if self.rows else 1.0


def compare_selection(expected: Run, got: Run, tokens: Tokens, steps: tuple[int, ...]) -> Selection:
    """The reference's sets of keys and experts against the candidate's."""
    same, total, widest, at = 0, 0, 0.0, 0
    for call, count in enumerate(steps):
        real = tokens.real[:, at : at + count]
        at += count
        for mine, theirs, dt in zip(expected.keys[call], got.keys[call], expected.weights[call], strict=True):
            shared = min(mine.shape[-1], theirs.shape[-1])
            equal, rows = equal_keys(mine, theirs), np.broadcast_to(real[:, None], mine.shape[:-1])
            same, total = same + int(equal[rows].sum()), total + int(rows.sum())
            if mine.shape[:-1] != theirs.shape[:-1]:
                widest = float("inf")
                continue
            for row, head, query in np.argwhere(~equal & rows):
                changed = mine[row, head, query, -shared:] != theirs[row, head, query, -shared:]
                sizes = dt[row, head, -shared:][changed]
                widest = max(widest, float(np.ptp(sizes) / np.abs(sizes).max()) if len(sizes) else np.inf)
        for experts, others in zip(expected.experts[call], got.experts[call], strict=True):
            equal = equal_experts(experts, others, real)
            same, total = same + int(equal.sum()), total + equal.size
    return Selection(same, total, widest)


def equal_keys(mine: npt.NDArray[np.bool_], theirs: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Whether each query's set [..., keys] is the same. A sliding cache of the reference may have forgotten
    keys that neither side can see."""
    if mine.shape[:-1] != theirs.shape[:-1]:  # a wrong graph may give anything
        return np.zeros(mine.shape[:-1], bool)
    shared = min(mine.shape[-1], theirs.shape[-1])
    equal = (mine[..., -shared:] == theirs[..., -shared:]).all(-1)
    equal &= ~theirs[..., :-shared].any(-1) & ~mine[..., :-shared].any(-1)
    result: npt.NDArray[np.bool_] = equal
    return result


def equal_experts(
    mine: npt.NDArray[np.int64], theirs: npt.NDArray[np.int64], real: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Whether each token's experts [tokens, per token] are the same, in any order, of the `real` tokens.
    Where a token has several retrievals, one row each, all must be."""
    equal = (np.sort(mine, -1) == np.sort(theirs, -1)).all(-1).reshape(real.size, -1).all(-1)
    result: npt.NDArray[np.bool_] = equal[real.reshape(-1)]
    return result


def compare_best(got: Run, best: BestTokens, schedule: Schedule, tokens: Tokens) -> npt.NDArray[np.float64]:
    """The difference between the best tokens of one graph and all logits of another, both of the same model:
    of a token's logits, or of its logit to the best one, whichever is larger. Relative to the best, for every
    call and row that has a text by its end: after padding alone comes nothing that anybody reads, and a
    bounded cache does not hold what such a row averages over."""
    last = np.cumsum([len(schedule.kept(count)) for count in schedule.steps]) - 1
    logits = got.logits[:, last]
    chosen = np.take_along_axis(logits, best.ids[..., None], -1)[..., 0]
    highest = logits.max(-1)
    gap = np.maximum(np.abs(chosen - best.logits), highest - chosen)
    gap /= np.maximum(np.abs(highest), np.finfo(np.float32).tiny)
    result: npt.NDArray[np.float64] = gap[tokens.real[:, np.cumsum(schedule.steps) - 1]]
    return result
