"""Running a bundle or an engine: session, cache, sampling, generation. onnxruntime or TensorRT, no torch."""

__all__ = [
    "Completion",
    "Event",
    "Generation",
    "GenerationDefaults",
    "GenerationOptions",
    "RuleTokenizer",
    "Rules",
    "Session",
    "Statistics",
    "TokenLogprobs",
    "compile_constraint",
    "generate",
    "open_folder",
    "stream",
]

from doge_export.runtime.constraints import Rules, RuleTokenizer, compile_constraint
from doge_export.runtime.generation import Completion, Event, Generation, Statistics, generate, stream
from doge_export.runtime.generation_config import GenerationDefaults
from doge_export.runtime.logprobs import TokenLogprobs
from doge_export.runtime.opening import open_folder
from doge_export.runtime.options import GenerationOptions
from doge_export.runtime.session import Session
