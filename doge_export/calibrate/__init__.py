"""What a text shows about a model: the inputs of its matrices, and how far a rounded one is from it."""

from doge_export.calibrate.divergence import Divergence, divergence
from doge_export.calibrate.hessians import hessians
from doge_export.calibrate.inputs import checkpoint_tensors
from doge_export.calibrate.ranges import CALIBRATIONS, static_ranges
from doge_export.calibrate.windows import windows

__all__ = [
    "CALIBRATIONS",
    "Divergence",
    "checkpoint_tensors",
    "divergence",
    "hessians",
    "static_ranges",
    "windows",
]
