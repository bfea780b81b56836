"""Which matrices bear fewer bits: what each costs on a text, and the best mixture within a budget."""

from doge_export.sensitivity.basis import Basis
from doge_export.sensitivity.costs import measure, smallest
from doge_export.sensitivity.mixture import Mixture, check_budget, choose, compressed
from doge_export.sensitivity.probe import Effect, Probe
from doge_export.sensitivity.rows import Row, sensitivity
from doge_export.sensitivity.study import Study, parts_of

__all__ = [
    "Basis",
    "Effect",
    "Mixture",
    "Probe",
    "Row",
    "Study",
    "check_budget",
    "choose",
    "compressed",
    "measure",
    "parts_of",
    "sensitivity",
    "smallest",
]
