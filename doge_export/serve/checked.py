"""Fields of a body that another API than OpenAI's completions has: each by its own name, or refused."""

__all__ = [
    "PASSED",
    "Off",
    "check_fields",
    "flag_of",
    "generation",
    "limit_of",
    "list_of",
    "name_of",
    "text_of",
]

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from doge_export.core.errors import DogeExportError
from doge_export.runtime import Rules
from doge_export.serve.errors import FieldError
from doge_export.serve.fields import LARGEST
from doge_export.serve.requests import RequestReader, TextRequest
from doge_export.serve.tools import ToolUse
from doge_export.serve.values import unknown, wrong

#: Field -> the values of it that ask for nothing.
Off = Mapping[str, tuple[Any, ...]]

#: Fields that mean the same as in /v1/completions, and are checked there.
PASSED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
_SHOWN = 60  # characters of what a client sent


def check_fields(body: Any, known: Collection[str], off: Off) -> Mapping[str, Any]:
    """Return the body, which is an object with no other fields than those `known`, and those that are off.

    Raises:
        DogeExportError: it is not.
    """
    if not isinstance(body, dict):
        raise DogeExportError("The body is not a JSON object.")
    for field, value in body.items():
        if field in known:
            continue
        if field not in off:
            raise unknown(field, (*known, *off))
        if value is not None and not any(value == each and type(value) is type(each) for each in off[field]):
            raise FieldError(
                f"{field} is not supported.", "Leave it out.", field=field, code="unsupported_parameter"
            )
    return body


def text_of(body: Mapping[str, Any], field: str) -> str | None:
    """Return a field that is a text, if it is there.

    Raises:
        DogeExportError: it is no text.
    """
    value = body.get(field)
    if value is not None and not isinstance(value, str):
        raise wrong(field, f"{field} is {_shown(value)}, not a text.")
    return value


def flag_of(body: Mapping[str, Any], field: str, default: bool = False) -> bool:
    """Return a field that is true or false.

    Raises:
        DogeExportError: it is something else.
    """
    value = body.get(field)
    if value is not None and not isinstance(value, bool):
        raise wrong(field, f"{field} is {_shown(value)}, not true or false.")
    return default if value is None else value


def limit_of(body: Mapping[str, Any], field: str) -> int | None:
    """Return a field that is the most tokens of an answer, if it is there.

    Raises:
        DogeExportError: it is no whole number from 1 on.
    """
    value = body.get(field)
    if value is not None and (type(value) is not int or not 1 <= value <= LARGEST):
        raise wrong(field, f"{field} is {_shown(value)}, not a whole number from 1 to {LARGEST}.")
    return value


def list_of(body: Mapping[str, Any], field: str) -> Sequence[Any]:
    """Return a field that is a list; an empty one where it is not there.

    Raises:
        DogeExportError: it is something else.
    """
    value = body.get(field)
    if value is not None and not isinstance(value, list):
        raise wrong(field, f"{field} is {_shown(value)}, not a list.")
    return value or []


def name_of(value: Any, where: str) -> str:
    """Return a text that must be there.

    Raises:
        DogeExportError: it is not, or it is something else.
    """
    if not isinstance(value, str):
        raise wrong(where, f"{where} is {'missing' if value is None else f'{_shown(value)}, not a text'}.")
    return value


def generation(
    reader: RequestReader,
    body: Mapping[str, Any],
    ids: Sequence[int],
    limit: int | None,
    stream: bool,
    tools: ToolUse | None,
    stop: Sequence[str] = (),
    rule: Rules | None = None,
    names: tuple[str, str] = ("messages", "max_tokens"),
) -> TextRequest:
    """The request to continue `ids`, with the fields of `body` that /v1/completions has too. `rule`: what its
    text has to be. `names`: the fields of the prompt and of the limit.

    Raises:
        DogeExportError: one of them is of another type or out of its range.
    """
    same = {field: body[field] for field in PASSED if body.get(field) is not None}
    length = {} if limit is None else {"max_tokens": limit}
    request = reader.read({"prompt": list(ids), **same, **length, "stream": stream}, chat=False)
    options = request.options
    if stop:
        options = replace(options, stop=tuple(stop))
    if tools is not None:
        options = replace(options, stop=(*options.stop, *tools.stop))
    called = dict(zip(("prompt", "max_new_tokens"), names, strict=True))
    return replace(request, options=options, tools=tools, rules=reader.ruled(rule, tools), names=called)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
