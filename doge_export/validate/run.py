"""What a backend gave for one schedule of calls, as arrays."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["MARGINS", "BestTokens", "Run", "Settled", "Ties", "no_logits"]

#: Bins of margins: what ties, then by powers of ten of the relative distance; the last has all above.
MARGINS = ("tied", "< 1e-7", *(f"1e-{exponent}" for exponent in range(7, 0, -1)))


@dataclass
class Ties:
    """How the boundary of the top keep_window_size fell.

    `rows`: rows (layer, kv head, query) with more visible keys than the window. `tied`: those where
    the last key kept and the first one dropped have the same dt. `nearest`: of the others, the
    smallest relative distance of the two. `counts`: the rows by that distance, in the bins of MARGINS.

    Of experts the same: the last one chosen and the first one left out, by their scores.
    """

    rows: int = 0
    tied: int = 0
    nearest: float = float("inf")
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(MARGINS), np.int64))

    def add(self, other: "Ties") -> None:
        """Count `other` in."""
        self.rows += other.rows
        self.tied += other.tied
        self.nearest = min(self.nearest, other.nearest)
        self.counts = self.counts + other.counts


@dataclass
class Settled:
    """Where the reference followed another run, since only rounding was between them: `rows` (layer, kv head,
    query) whose keys, and `experts`, tokens of a layer whose experts it changed; `widest` is the largest
    relative distance of keys or experts that changed places."""

    rows: int = 0
    experts: int = 0
    widest: float = 0.0


@dataclass(frozen=True)
class BestTokens:
    """The best token after every call of a schedule: ids int64 [batch, calls], and their logits float32
    [batch, calls]. Of several tokens that one call makes, [batch, steps]."""

    ids: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]


def no_logits() -> npt.NDArray[np.float32]:
    """The logits of a run that has none, or none yet."""
    return np.empty(0, np.float32)


@dataclass
class Run:
    """What a schedule gave; what a backend does not show stays empty.

    `logits`: float32 [batch, compared positions, vocab]. `best`: of a graph that gives tokens alone. Per call
    and layer the chosen `keys` (bool [batch, kv_heads, sequence, keys]), their `weights` dt (float32
    [batch, kv_heads, keys], of the reference only) and `experts` (int64 [tokens, per token]). `ties` and
    `expert_ties`: of the reference. `trace`: per call, what goes from part to part, by the names of
    graph/passes/expose_hidden.py, and the cache, `N.key` and `N.value` [batch, kv_heads, keys, head_dim].
    `stopped`: which call onnxruntime refused, and its words. `settled`: where the reference followed another
    run."""

    logits: npt.NDArray[np.float32] = field(default_factory=no_logits)
    keys: list[list[npt.NDArray[np.bool_]]] = field(default_factory=list)
    experts: list[list[npt.NDArray[np.int64]]] = field(default_factory=list)
    weights: list[list[npt.NDArray[np.float32]]] = field(default_factory=list)
    ties: Ties = field(default_factory=Ties)
    expert_ties: Ties = field(default_factory=Ties)
    trace: list[dict[str, npt.NDArray[Any]]] = field(default_factory=list)
    stopped: str | None = None
    settled: Settled = field(default_factory=Settled)
    best: BestTokens | None = None
