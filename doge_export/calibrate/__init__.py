"""What a text shows about a model: the inputs of its matrices, and how far a rounded one is from it."""

from doge_export.calibrate.divergence import Divergence, divergence
from doge_export.calibrate.hessians import hessians
from doge_export.calibrate.windows import windows

__all__ = ["Divergence", "divergence", "hessians", "windows"]
