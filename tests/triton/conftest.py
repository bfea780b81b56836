"""Kernels are interpreted, and TensorRT's bindings stand on a stub: both before anything here is imported."""

import os
import tempfile
from pathlib import Path

from tests.triton._bindings import load_bindings

# Triton reads this where a kernel is defined.
os.environ["TRITON_INTERPRET"] = "1"
with tempfile.TemporaryDirectory() as folder:
    load_bindings(Path(folder))
