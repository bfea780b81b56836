"""Where the native library with the fast kernels is."""

__all__ = ["plugin_library"]

from pathlib import Path

from doge_export.errors import DogeExportError

_LIBRARY = Path(__file__).with_name("native") / "libdoge_export.so"


def plugin_library() -> Path:
    """The path to pass to onnxruntime's `register_custom_ops_library`.

    Raises:
        DogeExportError: the library was not built here.
    """
    if not _LIBRARY.is_file():
        raise DogeExportError(
            f"The native library is missing: there is no {_LIBRARY}.",
            "`make setup` builds it; without it a bundle runs in plain onnxruntime, only slower.",
        )
    return _LIBRARY
