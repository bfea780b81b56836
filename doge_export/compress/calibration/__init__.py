"""What a text shows about a model: the inputs of its matrices, and how far a rounded one is from it."""

from doge_export.compress.calibration.divergence import Divergence, divergence
from doge_export.compress.calibration.hessians import hessians
from doge_export.compress.calibration.inputs import checkpoint_tensors
from doge_export.compress.calibration.ranges import CALIBRATIONS, static_ranges
from doge_export.compress.calibration.windows import windows

__all__ = [
    "CALIBRATIONS",
    "Divergence",
    "checkpoint_tensors",
    "divergence",
    "hessians",
    "static_ranges",
    "windows",
]
