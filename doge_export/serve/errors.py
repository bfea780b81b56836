"""What is wrong with a field of a request, and how a sentence shows what the client sent."""

__all__ = ["FieldError", "shown"]

import json
from typing import Any

from doge_export.core.errors import DogeExportError

_MOST = 80  # characters of a value


class FieldError(DogeExportError):
    """A request that cannot be answered as it is. `field`: the one of the body that is to be changed, `code`:
    what is wrong with it, in a word that programs read; `status`: HTTP's."""

    def __init__(self, message: str, remedy: str = "", *, field: str, code: str, status: int = 400) -> None:
        super().__init__(message, remedy)
        self.field, self.code, self.status = field, code, status


def shown(value: Any) -> str:
    """The value as the client wrote it, cut; of lists and objects, which may be of any size, the kind."""
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, str):
        return json.dumps(value[:_MOST], ensure_ascii=False) + ("..." if len(value) > _MOST else "")
    text = json.dumps(value)
    return text if len(text) <= _MOST else f"{text[:_MOST]}..."
