"""Where the native library with the fast kernels is."""

__all__ = ["instruction_set", "plugin_library"]

import ctypes
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


def instruction_set(library: Path) -> str:
    """Which of its loops the library runs on this processor: "amx", "avx512", "avx2" or "generic".

    Raises:
        DogeExportError: it cannot be loaded, or is of another version.
    """
    try:
        function = ctypes.CDLL(str(library)).DogeExportInstructionSet
    except (OSError, AttributeError) as error:
        raise DogeExportError(
            f"The native library {library} cannot be used: {error}.", "`make setup` builds it again."
        ) from None
    function.restype = ctypes.c_char_p
    name: bytes = function()
    return name.decode("ascii")
