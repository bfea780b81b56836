"""What the tokenizers library raises where it gives up: a panic of Rust, which is no Exception to Python."""

__all__ = ["told"]

import contextlib
from collections.abc import Generator

from doge_export.core.errors import DogeExportError


@contextlib.contextmanager
def told(what: str) -> Generator[None]:
    """Turn a panic in the block into the sentence that `what` failed: a regular expression of tokenizer.json
    that goes back and tries again without end is one, since Oniguruma counts that.

    Raises:
        DogeExportError: there was one.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # the class has no place to import it from
            raise
        words = " ".join(str(error).split()).rstrip(".")
        raise DogeExportError(f"{what}: {words}.", "Put the tokenizer's own files into the folder.") from None
