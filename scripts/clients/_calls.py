"""What the programs beside this share. They run in environments of their own, where doge_export is not."""

__all__ = ["SCHEMA", "TEXT", "TOOL", "WEATHER", "run", "url", "where"]

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

TEXT = "What is the weather in Bern?"
#: Short, whatever the model writes: a rule without an end is one that max_tokens cuts.
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Bern", "Basel"]}, "now": {"type": "boolean"}},
    "required": ["city", "now"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Says it", "parameters": WEATHER}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "weather", "schema": WEATHER, "strict": True}}


def where() -> tuple[str, str]:
    """The server's address without /v1, and the model's name: the arguments of each program."""
    return sys.argv[1], sys.argv[2]


def url() -> str:
    """Where OpenAI's clients find the server."""
    return f"{sys.argv[1]}/v1"


def run(calls: Sequence[Callable[[], object]]) -> None:
    """Do each, and print a line of JSON for it: its first line of documentation, and what went wrong."""
    for call in calls:
        error = ""
        try:
            call()
        except Exception as raised:
            error = f"{type(raised).__name__}: {' '.join(str(raised).split())}"[:600]
        print(
            json.dumps({"call": (call.__doc__ or call.__name__).split("\n")[0], "error": error}), flush=True
        )
