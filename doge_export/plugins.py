"""Where the native library with the fast kernels is, once there is one."""

__all__ = ["plugin_library"]

from pathlib import Path

from doge_export.errors import DogeExportError


def plugin_library() -> Path:
    """The path to pass to onnxruntime's `register_custom_ops_library`.

    Raises:
        DogeExportError: the library is not built in this version.
    """
    raise DogeExportError(
        "The native library is not built in this version.",
        "A bundle runs in plain onnxruntime without it.",
    )
