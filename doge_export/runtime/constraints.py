"""What may come next in a text that has to follow rules."""

__all__ = ["Constraint"]

from typing import Protocol

import numpy as np
import numpy.typing as npt


class Constraint(Protocol):
    """Rules that one row's text follows, and how far it has come."""

    @property
    def ended(self) -> bool:
        """Whether only an end token may come."""

    def allowed(self) -> npt.NDArray[np.int64]:
        """Which tokens may come: bits of int64 [vocab / 64, rounded up], token 0 the lowest of the first."""

    def accept(self, token: int) -> None:
        """Take the token that came."""
