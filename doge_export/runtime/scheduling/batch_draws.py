"""How the rows of one call draw their tokens, each by its own settings."""

__all__ = ["BatchDraws"]

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from doge_export.runtime.draws import Draws
from doge_export.runtime.scheduling.row import Row

_ROOM = 256  # ids by which the room for what was seen grows

Inputs = dict[str, npt.NDArray[np.generic]]


class BatchDraws:
    """Puts the rows' settings together; what does not change from call to call is kept for the next one."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab = vocab_size
        self._rows: list[Row] = []
        self._draws: Draws | None = None

    def of(self, rows: Sequence[Row]) -> Draws | None:
        """Return how the next token of each row is drawn; None where all take the best one."""
        if all(row.plain for row in rows):
            return None
        if self._draws is None or len(rows) != len(self._rows) or any(map(_other, rows, self._rows)):
            self._rows, self._draws = list(rows), self._together(rows)
        self._see(self._draws)
        self._constrain(self._draws)
        return self._draws

    def _together(self, rows: Sequence[Row]) -> Draws:
        each = [row.draws for row in rows]
        assert all(draws is not None for draws in each)
        parts = [draws.inputs for draws in each if draws is not None]
        inputs: Inputs = {
            "sampling": np.concatenate([part["sampling"] for part in parts]),
            "draw_key": np.concatenate([part["draw_key"] for part in parts]),
            "seen": np.empty((0, 0), np.int64),
            "logit_bias": self._filled(parts, "logit_bias", np.zeros((1, self._vocab), np.float32)),
            "allowed": np.empty((0, 0), np.int64),
        }
        words = np.full((1, -(-self._vocab // 64)), -1, np.int64)
        if any(row.constraint is not None for row in rows):
            inputs["allowed"] = np.repeat(words, len(rows), axis=0)
        else:
            inputs["allowed"] = self._filled(parts, "allowed", words)
        return Draws(inputs, any(draws.penalized for draws in each if draws is not None))

    @staticmethod
    def _filled(
        parts: Sequence[Inputs], name: str, neutral: npt.NDArray[np.generic]
    ) -> npt.NDArray[np.generic]:
        """Stack one input of all rows, of which some may do without; nothing where all do."""
        if not any(part[name].size for part in parts):
            return parts[0][name]
        return np.concatenate([part[name] if part[name].size else neutral for part in parts])

    def _see(self, draws: Draws) -> None:
        """Write which ids each row has seen, where it is penalized for them."""
        if not draws.penalized:
            return
        known = [row.known if row.draws is not None and row.draws.penalized else {} for row in self._rows]
        room = -(-max(map(len, known)) // _ROOM) * _ROOM
        if room > draws.inputs["seen"].shape[1]:
            draws.inputs["seen"] = np.empty((len(known), room), np.int64)
        seen = draws.inputs["seen"]
        seen.fill(-1)
        for at, ids in enumerate(known):
            seen[at, : len(ids)] = list(ids)

    def _constrain(self, draws: Draws) -> None:
        """Write which tokens the rules of each row allow, but for those that its settings never take."""
        for at, row in enumerate(self._rows):
            if row.constraint is None or row.draws is None:
                continue
            never = row.draws.inputs["allowed"]
            allowed = row.constraint.allowed()
            draws.inputs["allowed"][at] = allowed & never[0] if never.size else allowed


def _other(row: Row, before: Row) -> bool:
    return row is not before
