"""How the rows of one call draw their tokens, each by its own settings."""

__all__ = ["BatchDraws"]

from collections.abc import Sequence

import numpy as np

from doge_export.runtime.draws import Draws
from doge_export.runtime.scheduling.row import Row


class BatchDraws:
    """Puts the rows' settings together; what does not change from call to call is kept for the next one."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._draws: Draws | None = None
        self._masked = False  # whether tokens of a row are left out that may come later

    def of(self, rows: Sequence[Row]) -> tuple[Draws | None, list[Row]]:
        """Return how the next token of each row is drawn, or None where all take the best one; and the rows
        to which the rules of their text leave none, which must not be in the call."""
        if all(row.plain for row in rows):
            return None, []
        if self._draws is None or len(rows) != len(self._rows) or any(map(_other, rows, self._rows)):
            self._rows, self._draws, self._masked = list(rows), _together(rows), False
        draws = self._draws
        draws.see([row.known if row.draws is not None and row.draws.penalized else () for row in rows])
        ruled = {at: bits for at, row in enumerate(rows) if (bits := row.allowed()) is not None}
        if not ruled and not self._masked:
            return draws, []
        self._masked = bool(ruled)
        return draws, [rows[at] for at in draws.allow(ruled)]


def _together(rows: Sequence[Row]) -> Draws:
    """Return the draws of the rows in one call. Biases that change do so in its arrays from now on."""
    draws = Draws.together([row.draws for row in rows if row.draws is not None])
    changing = {at: row.changes for at, row in enumerate(rows) if row.changes is not None}
    changing = {at: changes for at, changes in changing.items() if changes.bias.size}
    if changing and not draws.inputs["logit_bias"].size:
        width = max(changes.bias.size for changes in changing.values())
        draws.inputs["logit_bias"] = np.zeros((len(rows), width), np.float32)
    for at, changes in changing.items():
        draws.inputs["logit_bias"][at] = changes.bias
        changes.bias = draws.inputs["logit_bias"][at]
    return draws


def _other(row: Row, before: Row) -> bool:
    return row is not before
