"""A text file, or the sentence that says why it is none."""

__all__ = ["read_text"]

from pathlib import Path

from doge_export.errors import DogeExportError


def read_text(path: Path) -> str:
    """The whole file.

    Raises:
        DogeExportError: it is missing, empty, not UTF-8, or cannot be read.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DogeExportError(
            f"{path} is not UTF-8 at byte {error.start + 1}.", "Convert it, with iconv for example."
        ) from None
    except FileNotFoundError:
        raise DogeExportError(f"There is no text {path}.") from None
    except OSError as error:
        raise DogeExportError(f"{path} cannot be read: {error.strerror}.") from error
    if not text.strip():
        raise DogeExportError(f"{path} is empty.", "Give a file with text in it.")
    return text
