"""The zoo's table: a row a specimen of what people have, and an area for each kind of thing that is read.

An odd folder that somebody finds is one row more: a small function that makes it, what the reference does
with it, and what we must do. A row says what the reference does too, and the test holds it to that: a row
that is wrong about transformers or peft fails.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["REFUSED", "SAME", "Area", "Specimen"]

#: The reference takes it; and so do we, with the same result.
SAME = "same"
#: The reference takes nothing, or something that is no model.
REFUSED = "refused"


@dataclass(frozen=True)
class Area:
    """What is read, and how the two readings are compared.

    `reference(folder)` is what the reference makes of a specimen, and raises anything where it refuses.
    `ours(folder)` is what we make of it, and raises DogeExportError alone. `compare(reference, ours)` fails
    where they differ.
    """

    name: str
    reference: Callable[[Path], Any]
    ours: Callable[[Path], Any]
    compare: Callable[[Any, Any], None]


@dataclass(frozen=True)
class Specimen:
    """One row. `make` writes it into an empty folder.

    `reference`: SAME where the reference takes it, REFUSED where it refuses (whatever it raises), or None
    where there is no reference to ask, or asking it says nothing.

    `ours`: SAME where we must take it and `Area.compare` must hold (with `reference` None: where we must take
    it, and `check` says whether what we made is right); or a regular expression that our refusal must match,
    one sentence with its remedy, exit code 2. `warns`: a regular expression that a warning of ours must
    match.
    """

    name: str
    make: Callable[[Path], Any]
    reference: str | None = SAME
    ours: str = SAME
    warns: str | None = None
    check: Callable[[Any], None] | None = None
