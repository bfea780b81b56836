"""Which generation a checkpoint is of, and what decided it: as a manifest and a certificate keep it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from doge_export.core.generations import find_generation

__all__ = ["Decision", "figures"]


def figures(bits: Mapping[str, float]) -> str:
    """The bits per byte, the best first: "2.31 bits per byte as 3a, 5.10 as 3b"."""
    first, *others = sorted(bits.items(), key=lambda item: item[1])
    return ", ".join(
        (f"{first[1]:.2f} bits per byte as {first[0]}", *(f"{value:.2f} as {name}" for name, value in others))
    )


@dataclass(frozen=True)
class Decision:
    """The generation of a checkpoint and the evidence for it.

    `decided_by`: "tensors" where no other generation has such tensors, "config" where keys of config.json
    speak for one of several, "text" where the weights are clearly a better language model in one, "user"
    where --generation named it, "preset" where there is no checkpoint, "manifest" where an older bundle says
    no more. `evidence`: what was seen, as half sentences. `bits_per_byte`: of each candidate that was tried,
    on a text that comes with the package. `excluded`: the other generations, and why each is none of the
    candidates. `better`: one in which the weights are clearly a better language model than in the one that
    the user named.
    """

    generation: str
    decided_by: str
    evidence: tuple[str, ...] = ()
    bits_per_byte: Mapping[str, float] = field(default_factory=dict)
    excluded: Mapping[str, str] = field(default_factory=dict)
    better: str | None = None

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "Decision":
        """Read what `to_dict` made.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: it did not.
        """
        return cls(
            str(raw["name"]),
            str(raw["decided_by"]),
            tuple(map(str, raw["evidence"])),
            {str(name): float(bits) for name, bits in raw["bits_per_byte"].items()},
            {str(name): str(why) for name, why in raw["excluded"].items()},
        )

    def to_dict(self) -> dict[str, Any]:
        """The decision as the manifest and a certificate have it."""
        return {
            "name": self.generation,
            "decided_by": self.decided_by,
            "evidence": list(self.evidence),
            "bits_per_byte": {
                name: round(bits, 3) for name, bits in self.bits_per_byte.items() if math.isfinite(bits)
            },
            "excluded": dict(self.excluded),
        }

    @property
    def figures(self) -> str:
        """The bits per byte, the best first; empty where none were needed."""
        return figures(self.bits_per_byte) if self.bits_per_byte else ""

    def __str__(self) -> str:
        by = {"config": "config.json", "text": "a text"}.get(self.decided_by, f"the {self.decided_by}")
        seen = "; ".join((*self.evidence, *([self.figures] if self.bits_per_byte else ())))
        return f"{self.generation} ({find_generation(self.generation).era}), by {by}: {seen}"
