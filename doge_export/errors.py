"""The errors a user can cause, each one sentence with its remedy and the exit code that belongs to it."""

__all__ = ["DogeExportError", "ParityError"]


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
