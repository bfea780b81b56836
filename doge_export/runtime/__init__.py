"""Running a bundle: session, cache, sampling, generation. onnxruntime and numpy, no torch."""

__all__ = [
    "Completion",
    "Event",
    "Generation",
    "GenerationDefaults",
    "GenerationOptions",
    "Session",
    "Statistics",
    "generate",
    "stream",
]

from doge_export.runtime.generation import Completion, Event, Generation, Statistics, generate, stream
from doge_export.runtime.options import GenerationDefaults, GenerationOptions
from doge_export.runtime.session import Session
