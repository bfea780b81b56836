"""The errors a user can cause, each one sentence with its remedy and the exit code that belongs to it."""

__all__ = ["DogeExportError", "NoNumbersError", "ParityError", "refusal"]

_MOST_WORDS = 400  # characters of another library's


class DogeExportError(Exception):
    """Wrong input: what is wrong, in one sentence, and what to do about it. Exit code 2."""

    exit_code = 2

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class ParityError(DogeExportError):
    """A finding: the export ran, and its numbers miss the reference. Exit code 1."""

    exit_code = 1


class NoNumbersError(DogeExportError):
    """The numbers that a model gave are not finite, whatever it was asked: `message`, as a sentence. The
    model's fault, and no request's."""

    def __init__(self, message: str) -> None:
        super().__init__(
            message,
            "A bundle of --dtype float16 overflows beyond 65504: export it in float32 or bfloat16. In these "
            "types its weights are not finite, or too large: see what doge-export validate says.",
        )


def refusal(what: str, error: Exception, remedy: str = "") -> DogeExportError:
    """Return the error for what another library raised, as one sentence: `what` failed, and its own words.

    Raises:
        MemoryError: that was the reason.
    """
    words = " ".join(str(error).split()).rstrip(".")
    if isinstance(error, MemoryError) or "can't allocate memory" in words:  # torch raises RuntimeError for it
        raise MemoryError from error
    if not isinstance(error, OSError | ValueError | RuntimeError | ImportError) or not words:
        words = f"{type(error).__name__}: {words}".rstrip(": ")
    if len(words) > _MOST_WORDS:
        words = f"{words[:_MOST_WORDS]} ..."
    return DogeExportError(f"{what}: {words}.", remedy)
