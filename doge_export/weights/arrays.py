"""The types of arrays that weights come in."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "Arrays", "Float64", "Matrices", "Matrix"]

#: Of any dtype, as a checkpoint or a file has it.
Array = npt.NDArray[np.generic]
#: Tensors by their names in the checkpoint.
Arrays = Mapping[str, Array]
#: What is computed with, and by names of weights.
Matrix = npt.NDArray[np.float32]
Matrices = Mapping[str, Matrix]
Float64 = npt.NDArray[np.float64]
