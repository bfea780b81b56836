"""How the rows of one call draw their tokens, each by its own settings."""

__all__ = ["BatchDraws"]

from collections.abc import Sequence

from doge_export.runtime.draws import Draws
from doge_export.runtime.scheduling.row import Row


class BatchDraws:
    """Puts the rows' settings together; what does not change from call to call is kept for the next one."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._draws: Draws | None = None

    def of(self, rows: Sequence[Row]) -> tuple[Draws | None, list[Row]]:
        """Return how the next token of each row is drawn, or None where all take the best one; and the rows
        to which the rules of their text leave none, which must not be in the call."""
        if all(row.plain for row in rows):
            return None, []
        if self._draws is None or len(rows) != len(self._rows) or any(map(_other, rows, self._rows)):
            each = [row.draws for row in rows if row.draws is not None]
            self._rows, self._draws = list(rows), Draws.together(each)
        draws = self._draws
        draws.see([row.known if row.draws is not None and row.draws.penalized else () for row in rows])
        ruled = {at: row.constraint.allowed() for at, row in enumerate(rows) if row.constraint is not None}
        return draws, [rows[at] for at in draws.allow(ruled)] if ruled else []


def _other(row: Row, before: Row) -> bool:
    return row is not before
