"""JSON objects that may lie beside a model: its configuration files, its tokenizer's."""

import json
from pathlib import Path
from typing import Any

from doge_export.errors import DogeExportError

__all__ = ["read_object"]


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; empty where there is no such file.

    Raises:
        DogeExportError: the file is there and holds no JSON object.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DogeExportError(f"{path} cannot be read as JSON: {error}.") from None
    if not isinstance(raw, dict):
        raise DogeExportError(f"{path} does not hold a JSON object.")
    return raw
