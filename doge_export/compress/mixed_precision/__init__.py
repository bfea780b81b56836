"""Which matrices bear fewer bits: what each costs on a text, and the best mixture within a budget."""

from doge_export.compress.mixed_precision.allocation import Mixture, check_budget, choose, compressed
from doge_export.compress.mixed_precision.basis import Basis
from doge_export.compress.mixed_precision.budget import SEARCHED, Budget
from doge_export.compress.mixed_precision.costs import measure, smallest
from doge_export.compress.mixed_precision.probe import Effect, Probe
from doge_export.compress.mixed_precision.rows import Row, sensitivity
from doge_export.compress.mixed_precision.study import Study, parts_of

__all__ = [
    "SEARCHED",
    "Basis",
    "Budget",
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
