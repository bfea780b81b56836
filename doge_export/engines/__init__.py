"""TensorRT engines: a bundle of --target tensorrt parsed, built and put into a folder of its own.

Nothing here needs a GPU with TensorRT for RTX; nothing here has been run on one.
"""

from doge_export.engines.build import BuiltEngine, build_engine
from doge_export.runtime.tensorrt.engine_folder import Engine
from doge_export.runtime.tensorrt.kinds import KINDS

__all__ = ["KINDS", "BuiltEngine", "Engine", "build_engine"]
