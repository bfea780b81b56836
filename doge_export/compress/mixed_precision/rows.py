"""Which matrices may be rounded and which may not: one role or matrix in fewer bits at a time."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from doge_export.compress.mixed_precision.probe import Effect
from doge_export.compress.mixed_precision.study import Study
from doge_export.core.progress import Progress, silent
from doge_export.weights import WeightFormat, role_of

__all__ = ["Row", "sensitivity"]


@dataclass(frozen=True)
class Row:
    """The matrices of `role` in `layer`, None: in all, in `form` and all else in full: `saved` bytes, and
    the effect."""

    role: str
    layer: int | None
    form: WeightFormat
    saved: int
    effect: Effect

    @property
    def name(self) -> str:
        """The matrices' name as `--set` takes it."""
        return self.role if self.layer is None else f"layers.{self.layer}.{self.role}"

    def as_dict(self) -> dict[str, Any]:
        """The row as JSON has it."""
        names = {"name": self.name, "role": self.role, "layer": self.layer, "dtype": str(self.form)}
        return {**names, "saved_bytes": self.saved, **asdict(self.effect)}


def sensitivity(
    study: Study,
    forms: Sequence[WeightFormat],
    progress: Progress = silent,
) -> list[Row]:
    """Each role in all layers and each matrix alone, in each of `forms`, dt_proj and the router included.
    `progress` gets measurements."""
    units: list[tuple[str, int | None, list[str]]] = []
    for role in dict.fromkeys(map(role_of, study.matrices)):
        own = [name for name in study.matrices if role_of(name) == role]
        units.append((role, None, own))
        if len(own) > 1:
            units += [(role, int(name.split(".")[2]), [name]) for name in own]
    work = [
        (role, layer, names, form)
        for form in forms
        for role, layer, names in units
        if all(study.fits(name, form) for name in names)
    ]
    progress.planned(len(work))
    rows = []
    full = study.bytes({})
    for role, layer, names, form in work:
        progress(0, f"{role if layer is None else f'layers.{layer}.{role}'} in {form}")
        types = dict.fromkeys(names, form)
        rows.append(Row(role, layer, form, full - study.bytes(types), study.effect(types)))
        progress()
    return rows
