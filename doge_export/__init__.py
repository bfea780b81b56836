"""Export Doge models to ONNX with numbers that match the reference, and run what was exported.

The names below load on first use, so that importing the package costs nothing.
"""

__all__ = [
    "Bundle",
    "DogeConfig",
    "DogeExportError",
    "ParityError",
    "Session",
    "__version__",
    "export_model",
    "generate",
    "plugin_library",
    "validate_bundle",
]

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from doge_export.bundle import Bundle
    from doge_export.config import DogeConfig
    from doge_export.errors import DogeExportError, ParityError
    from doge_export.pipeline import export_model, validate_bundle
    from doge_export.plugins import plugin_library
    from doge_export.runtime import Session, generate

__version__ = "0.1.0"

_HOMES = {
    "Bundle": "doge_export.bundle",
    "DogeConfig": "doge_export.config",
    "DogeExportError": "doge_export.errors",
    "ParityError": "doge_export.errors",
    "Session": "doge_export.runtime",
    "export_model": "doge_export.pipeline",
    "generate": "doge_export.runtime",
    "plugin_library": "doge_export.plugins",
    "validate_bundle": "doge_export.pipeline",
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
