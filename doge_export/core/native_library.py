"""Where the native library with the fast kernels is."""

__all__ = ["HOW_TO_GET", "instruction_set", "plugin_library"]

import ctypes
from pathlib import Path

from doge_export.core.errors import DogeExportError

_LIBRARY = Path(__file__).parent.parent / "native" / "libdoge_export.so"

#: The remedy where it is missing or does not load.
HOW_TO_GET = (
    "A wheel brings it: install doge-export's again with pip install --force-reinstall. In a checkout "
    "`make setup` builds it, and `make plugins` builds it again."
)


def plugin_library() -> Path:
    """The path to pass to onnxruntime's `register_custom_ops_library`.

    Raises:
        DogeExportError: it is not there.
    """
    if not _LIBRARY.is_file():
        raise DogeExportError(
            f"The native library is missing: there is no {_LIBRARY}.",
            f"{HOW_TO_GET} Without it a bundle runs in plain onnxruntime, only slower.",
        )
    return _LIBRARY


def instruction_set(library: Path) -> str:
    """Which of its loops the library runs on this processor: "amx", "avx512", "avx2" or "generic"; on
    ARM "i8mm", "dotprod", "neon" or "generic".

    Raises:
        DogeExportError: it cannot be loaded, or is of another version.
    """
    try:
        function = ctypes.CDLL(str(library)).DogeExportInstructionSet
    except (OSError, AttributeError) as error:
        raise DogeExportError(f"The native library {library} cannot be used: {error}.", HOW_TO_GET) from None
    function.restype = ctypes.c_char_p
    name: bytes = function()
    return name.decode("ascii")
