"""What arrays of two backends differ by. Arrays come in, numbers go out: what they are of is the caller's."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

__all__ = [
    "LogitFigures",
    "Selection",
    "best_token_gaps",
    "compare_experts",
    "compare_keys",
    "compare_logits",
    "equal_experts",
    "equal_keys",
    "standard_error",
]

_ROWS = 32  # compared at a time
_TOP = 5
_KL_QUANTILE = 0.98


@dataclass
class LogitFigures:
    """What logits [tokens, vocab] of two sides differ by, gathered piece by piece. A token of the second is
    the first's best where it is within `near` of it, relative to the best."""

    near: float = 0.0
    _difference: float = 0.0
    _squared: float = 0.0
    _size: float = 0.0
    _shared: int = 0
    _top: int = _TOP
    _divergences: list[npt.NDArray[np.float64]] = field(default_factory=list)
    _agreeing: list[npt.NDArray[np.bool_]] = field(default_factory=list)

    def add(
        self,
        expected: npt.NDArray[np.float32],
        got: npt.NDArray[np.float32],
        real: npt.NDArray[np.bool_],
    ) -> None:
        """Count logits [..., vocab] in where `real` [...]."""
        rows = np.flatnonzero(real)  # the logits themselves are not copied
        first, second = (logits.reshape(-1, logits.shape[-1]) for logits in (expected, got))
        for at in range(0, len(rows), _ROWS):  # a vocabulary of float64 rows is large
            mine, theirs = (side[rows[at : at + _ROWS]] for side in (first, second))
            self._add_rows(mine, theirs)

    def _add_rows(self, mine: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32]) -> None:
        top = self._top = min(_TOP, mine.shape[-1])
        p, q = _log_softmax(mine), _log_softmax(theirs)
        choice, best = theirs.argmax(-1), mine.max(-1)
        agree = mine.argmax(-1) == choice
        if self.near:
            agree |= np.take_along_axis(mine, choice[:, None], -1)[:, 0] >= best - self.near * np.abs(best)
        self._difference = float(np.maximum(self._difference, np.abs(mine - theirs).max()))  # keeps NaN
        self._divergences.append(np.maximum((np.exp(p) * (p - q)).sum(-1), 0))
        self._agreeing.append(agree)
        self._squared += float(np.square(mine.astype(np.float64) - theirs).sum())
        self._size += float(np.square(mine.astype(np.float64)).sum())
        best_of = [np.argpartition(-side, top - 1, -1)[:, :top] for side in (mine, theirs)]
        self._shared += int((best_of[0][:, :, None] == best_of[1][:, None]).sum())

    @property
    def divergences(self) -> npt.NDArray[np.float64]:
        """KL(expected || got) of each token, in their order."""
        return np.concatenate(self._divergences)

    @property
    def agreeing(self) -> npt.NDArray[np.float64]:
        """1 for each token whose best one is the same, and 0 where not."""
        return np.concatenate(self._agreeing).astype(np.float64)

    def figures(self) -> dict[str, float]:
        """Those of `compare_logits`."""
        divergence, agreeing = self.divergences, self.agreeing
        squared, size = self._squared, self._size
        return {
            "max_abs_diff": self._difference,
            "kl_divergence": float(divergence.mean()),
            "kl_98": float(np.quantile(divergence, _KL_QUANTILE, method="higher")),
            "top1_agreement": float(agreeing.sum()) / len(agreeing),
            "top5_agreement": self._shared / (self._top * len(agreeing)),
            "relative_error": float(np.sqrt(squared / size)) if size else float(squared > 0),
        }


def compare_logits(
    expected: npt.NDArray[np.float32],
    got: npt.NDArray[np.float32],
    real: npt.NDArray[np.bool_],
    near: float = 0.0,
) -> dict[str, float]:
    """Figures of logits [..., vocab] over the positions that are `real` [...]: largest difference, mean
    KL(expected || got), and the share where the best token of `got` is that of `expected`, or `near` it,
    relative to the best; the norm of the difference in that of the logits, how many of the five best are the
    same, and the KL that 98 % of the positions stay below: of fewer than 50 all."""
    found = LogitFigures(near)
    found.add(expected, got, real)
    return found.figures()


def standard_error(values: npt.NDArray[np.float64], parts: int) -> float | None:
    """That of the mean of `values`, which stand in the order of a text, by the means of `parts` equal pieces
    of it: neighbouring tokens are not independent. None of fewer than two values a piece."""
    if parts < 2 or len(values) < 2 * parts:
        return None
    means = np.array([part.mean() for part in np.array_split(values, parts)])
    return float(means.std(ddof=1) / np.sqrt(parts))


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

    def __add__(self, other: "Selection") -> "Selection":
        """The counts of both together."""
        return Selection(self.same + other.same, self.rows + other.rows, max(self.widest, other.widest))

    @property
    def share(self) -> float:
        """The share of sets that agree; 1 where there was nothing to choose."""
        return self.same / self.rows if self.rows else 1.0


def compare_keys(
    mine: npt.NDArray[np.bool_],
    theirs: npt.NDArray[np.bool_],
    dt: npt.NDArray[np.float32],
    real: npt.NDArray[np.bool_],
) -> Selection:
    """Compare the sets of keys [batch, kv_heads, queries, keys] of one layer in one call. dt [batch,
    kv_heads, keys] is what they are ranked by, `real` [batch, queries] which queries count."""
    equal, rows = equal_keys(mine, theirs), np.broadcast_to(real[:, None], mine.shape[:-1])
    same, total = int(equal[rows].sum()), int(rows.sum())
    if mine.shape[:-1] != theirs.shape[:-1]:
        return Selection(same, total, float("inf"))
    shared, widest = min(mine.shape[-1], theirs.shape[-1]), 0.0
    for row, head, query in np.argwhere(~equal & rows):
        changed = mine[row, head, query, -shared:] != theirs[row, head, query, -shared:]
        sizes = dt[row, head, -shared:][changed]
        widest = max(widest, float(np.ptp(sizes) / np.abs(sizes).max()) if len(sizes) else np.inf)
    return Selection(same, total, widest)


def compare_experts(
    mine: npt.NDArray[np.int64], theirs: npt.NDArray[np.int64], real: npt.NDArray[np.bool_]
) -> Selection:
    """Compare the sets of experts of one layer in one call; see `equal_experts`."""
    equal = equal_experts(mine, theirs, real)
    return Selection(int(equal.sum()), equal.size)


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


def best_token_gaps(
    logits: npt.NDArray[np.float32], ids: npt.NDArray[np.int64], values: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """How far the best tokens `ids` [...] with their logits `values` [...] are from all `logits`
    [..., vocab] of another graph of the same model: of a token's logits, or of its logit to the best one,
    whichever is larger, relative to the best."""
    chosen = np.take_along_axis(logits, ids[..., None], -1)[..., 0]
    highest = logits.max(-1)
    gap = np.maximum(np.abs(chosen - values), highest - chosen)
    gap /= np.maximum(np.abs(highest), np.finfo(np.float32).tiny)
    result: npt.NDArray[np.float64] = gap
    return result
