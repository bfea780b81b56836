"""Which matrices may be rounded and which may not: one role or matrix in fewer bits at a time."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from doge_export.quantize import role_of
from doge_export.sensitivity.probe import Effect
from doge_export.sensitivity.study import Study

__all__ = ["Row", "sensitivity"]


@dataclass(frozen=True)
class Row:
    """The matrices of `role` in `layer`, None: in all, in `dtype` and all else in full: `saved` bytes, and
    the effect."""

    role: str
    layer: int | None
    dtype: str
    saved: int
    effect: Effect

    @property
    def name(self) -> str:
        """As `--set` takes it."""
        return self.role if self.layer is None else f"layers.{self.layer}.{self.role}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        names = {"name": self.name, "role": self.role, "layer": self.layer, "dtype": self.dtype}
        return {**names, "saved_bytes": self.saved, **asdict(self.effect)}


def sensitivity(
    study: Study,
    dtypes: Sequence[str],
    planned: Callable[[int], None] = lambda count: None,
    advance: Callable[[str], None] = lambda name: None,
) -> list[Row]:
    """Each role in all layers and each matrix alone, in each of `dtypes`, dt_proj and the router included.
    `planned` is told how many measurements there are, `advance` of each before it is made."""
    units: list[tuple[str, int | None, list[str]]] = []
    for role in dict.fromkeys(map(role_of, study.matrices)):
        own = [name for name in study.matrices if role_of(name) == role]
        units.append((role, None, own))
        if len(own) > 1:
            units += [(role, int(name.split(".")[2]), [name]) for name in own]
    work = [
        (role, layer, names, dtype)
        for dtype in dtypes
        for role, layer, names in units
        if all(study.fits(name, dtype) for name in names)
    ]
    planned(len(work))
    rows = []
    full = study.bytes({})
    for role, layer, names, dtype in work:
        advance(f"{role if layer is None else f'layers.{layer}.{role}'} in {dtype}")
        types = dict.fromkeys(names, dtype)
        rows.append(Row(role, layer, dtype, full - study.bytes(types), study.effect(types)))
    return rows
