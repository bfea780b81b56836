"""Export Doge models to ONNX with numbers that match the reference, and run what was exported.

The names below load on first use, so that importing the package costs nothing.
"""

__all__ = [
    "Bundle",
    "DogeConfig",
    "DogeExportError",
    "ExportOptions",
    "GenerationDefaults",
    "GenerationOptions",
    "ParityError",
    "Report",
    "Session",
    "Tokenizer",
    "__version__",
    "build_engine",
    "deploy_triton",
    "evaluate_text",
    "export_model",
    "generate",
    "plugin_library",
    "quantize_bundle",
    "stream",
    "validate_bundle",
]

from importlib import import_module
from typing import TYPE_CHECKING, Any

from doge_export.core.moved import install as _find_old_names

if TYPE_CHECKING:
    from doge_export.compress.quantize_bundle import quantize_bundle
    from doge_export.core.bundle import Bundle
    from doge_export.core.config import DogeConfig
    from doge_export.core.errors import DogeExportError, ParityError
    from doge_export.core.native_library import plugin_library
    from doge_export.core.tokenizer import Tokenizer
    from doge_export.deploy import deploy_triton
    from doge_export.engines import build_engine
    from doge_export.evaluate import evaluate_text
    from doge_export.export.options import ExportOptions
    from doge_export.export.pipeline import export_model, validate_bundle
    from doge_export.runtime import GenerationDefaults, GenerationOptions, Session, generate, stream
    from doge_export.validate import Report

__version__ = "0.1.0"

_find_old_names()

_HOMES = {
    "Bundle": "doge_export.core.bundle",
    "DogeConfig": "doge_export.core.config",
    "DogeExportError": "doge_export.core.errors",
    "ExportOptions": "doge_export.export.options",
    "GenerationDefaults": "doge_export.runtime",
    "GenerationOptions": "doge_export.runtime",
    "ParityError": "doge_export.core.errors",
    "Report": "doge_export.validate",
    "Session": "doge_export.runtime",
    "Tokenizer": "doge_export.core.tokenizer",
    "build_engine": "doge_export.engines",
    "deploy_triton": "doge_export.deploy",
    "evaluate_text": "doge_export.evaluate",
    "export_model": "doge_export.export.pipeline",
    "generate": "doge_export.runtime",
    "plugin_library": "doge_export.core.native_library",
    "quantize_bundle": "doge_export.compress.quantize_bundle",
    "stream": "doge_export.runtime",
    "validate_bundle": "doge_export.export.pipeline",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
