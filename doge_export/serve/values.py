"""Values of a request against their JSON Schema: the first thing that is wrong, as a sentence. It is the
schema that the OpenAPI description shows, so that the two say the same."""

__all__ = ["Off", "Schema", "check", "is_off", "missing", "read_fields", "unknown", "wrong"]

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from doge_export.core.errors import DogeExportError
from doge_export.serve.errors import FieldError, shown

#: JSON Schema, of which `check` knows the keywords that are looked for here.
Schema = Mapping[str, Any]

#: Field -> the values of it that ask for nothing.
Off = Mapping[str, tuple[Any, ...]]

_WORDS = {
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "string": "a text",
    "array": "a list",
    "object": "an object",
    "null": "null",
}
#: Keyword -> whether a number keeps it, and how a sentence says so.
_LIMITS: Mapping[str, tuple[Callable[[Any, Any], bool], str]] = {
    "minimum": (lambda value, limit: value >= limit, "at least"),
    "exclusiveMinimum": (lambda value, limit: value > limit, "more than"),
    "maximum": (lambda value, limit: value <= limit, "at most"),
}
_LONGEST_NAME = 60
_LARGEST = 1.7e308  # of a number: beyond it float64 has none


def read_fields(
    body: Any, taken: Mapping[str, Schema], others: Collection[str] = (), off: Off | None = None
) -> dict[str, Any]:
    """The fields of a body that are there, each as its schema in `taken` says. `others` have readers of their
    own; those of `off` are not done, and may only ask for nothing. null is as good as nothing.

    Raises:
        FieldError: one is unknown, wrong, or asks for what is not done.
        DogeExportError: the body is no object.
    """
    if not isinstance(body, dict):
        raise DogeExportError("The body is not a JSON object.")
    off = off or {}
    given: dict[str, Any] = {}
    for name, value in body.items():
        if name in off:
            if value is not None and not is_off(value, off[name]):
                raise wrong(name, f"{name} is not supported.", "Leave it out.", code="unsupported_parameter")
            continue
        if name not in taken and name not in others:
            raise unknown(name, (*taken, *off, *others))
        if value is not None:
            if name in taken:
                check(value, taken[name], name)
            given[name] = value
    return given


def check(value: Any, schema: Schema, name: str) -> None:
    """See that `value`, which the sentence calls `name`, is as its schema says.

    Raises:
        FieldError: it is not.
    """
    branches = schema.get("anyOf", [schema])
    kinds = [kind for branch in branches for kind in _kinds(branch)]
    schema = next((each for each in branches if any(_is(value, kind) for kind in _kinds(each))), {})
    if not schema:
        words = " or ".join(_word(each) for each in branches if _word(each) != "null")
        raise wrong(name, f"{name} is {shown(value)}, not {words or kinds}.", code="invalid_type")
    if "enum" in schema and not is_off(value, schema["enum"]):
        values = ", ".join(shown(each) for each in schema["enum"])
        raise wrong(name, f"{name} is {shown(value)}, not one of {values}.")
    if "const" in schema and not is_off(value, (schema["const"],)):
        raise wrong(name, f"{name} is {shown(value)}, not {shown(schema['const'])}.")
    if isinstance(value, int | float) and not isinstance(value, bool):
        _check_number(value, schema, name)
    elif isinstance(value, str):
        _check_text(value, schema, name)
    elif isinstance(value, list):
        _check_count(len(value), schema, name)
        for at, each in enumerate(value if "items" in schema else ()):
            check(each, schema["items"], f"{name}[{at}]")
    elif isinstance(value, dict):
        _check_object(value, schema, name)


def wrong(name: str, message: str, remedy: str = "", code: str = "invalid_value") -> FieldError:
    """Return the error of a value. `name` may lead into a field: `stop[3]` is one of `stop`."""
    return FieldError(message, remedy, field=_top(name), code=code)


def missing(name: str) -> FieldError:
    """Return the error of a field that must be there."""
    return wrong(name, f"The request has no {name}.", code="missing_required_parameter")


def unknown(name: str, known: Iterable[str], inside: str = "") -> FieldError:
    """Return the error of a field that there is not, with the one that was meant, perhaps."""
    cut = name[:_LONGEST_NAME]
    near = difflib.get_close_matches(cut, list(known), 1)
    path = f"{inside}.{cut}" if inside else cut
    remedy = f"Did you mean {near[0]}?" if near else "Leave it out."
    return FieldError(
        f"There is no field {path}{'...' if cut != name else ''}.",
        remedy,
        field=_top(path),
        code="unknown_parameter",
    )


def _top(path: str) -> str:
    """Return the field of the body: of `messages[0].role` that is `messages`."""
    return re.split(r"[.\[]", path, maxsplit=1)[0]


def is_off(value: Any, values: Iterable[Any]) -> bool:
    """Whether it is one of `values`; true is not 1, as it is to Python."""
    return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in values)


def _kinds(schema: Schema) -> list[str]:
    if "type" not in schema:  # the values say it, or it is any
        values = [schema["const"]] if "const" in schema else schema.get("enum", ())
        kinds = [kind for kind in _WORDS if any(_is(value, kind) for value in values)]
        return kinds or list(_WORDS)
    kind = schema["type"]
    return kind if isinstance(kind, list) else [kind]


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool) or value is None:
        return kind == ("null" if value is None else "boolean")
    if isinstance(value, float):
        return kind == "number" or (kind == "integer" and value.is_integer())
    of_kind = {int: ("integer", "number"), str: ("string",), list: ("array",), dict: ("object",)}
    return kind in of_kind[type(value)]


def _word(schema: Schema) -> str:
    word = " or ".join(_WORDS[kind] for kind in _kinds(schema) if kind != "null") or "null"
    if word == "a list" and "items" in schema:
        inner = " or ".join(_WORDS[kind] for kind in _kinds(schema["items"]))
        return f"a list of {inner.removeprefix('an ').removeprefix('a ')}s"
    return word


def _check_number(value: float, schema: Schema, name: str) -> None:
    if not abs(value) <= _LARGEST:
        what = "too large a number" if isinstance(value, int) else "no finite number"
        raise wrong(name, f"{name} is {shown(value)}, which is {what}.")
    limits = [(key, limit) for key, limit in schema.items() if key in _LIMITS]
    if not all(_LIMITS[key][0](value, limit) for key, limit in limits):
        said = " and ".join(f"{_LIMITS[key][1]} {limit}" for key, limit in limits)
        raise wrong(name, f"{name} is {shown(value)}; it must be {said}.")


def _check_text(value: str, schema: Schema, name: str) -> None:
    if len(value) < schema.get("minLength", 0):
        raise wrong(name, f"{name} is an empty text.")
    if len(value) > (most := schema.get("maxLength", len(value))):
        raise wrong(name, f"{name} has {len(value):,} characters, and {most:,} are the most.")


def _check_count(count: int, schema: Schema, name: str) -> None:
    if count < schema.get("minItems", 0):
        raise wrong(name, f"{name} is an empty list.")
    if count > (most := schema.get("maxItems", count)):
        raise wrong(name, f"{name} has {count:,} entries, and {most:,} are the most.")


def _check_object(value: Mapping[str, Any], schema: Schema, name: str) -> None:
    properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    names = schema.get("propertyNames", {})
    for key in schema.get("required", ()):
        if value.get(key) is None:
            raise wrong(name, f"{name}.{key} is missing.", code="missing_required_parameter")
    for key, each in value.items():
        if "pattern" in names and not re.search(names["pattern"], key):
            raise wrong(name, f"{name} has the key {shown(key)}, which is not {names['description']}.")
        if key in properties:
            check(each, properties[key], f"{name}.{key}")
        elif others is False:
            raise unknown(key, properties, name)
        elif others is not True:
            check(each, others, f"{name}[{shown(key)}]")
