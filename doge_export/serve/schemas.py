"""Pieces of JSON Schema that descriptions of several routes are made of."""

__all__ = [
    "COUNT",
    "SECONDS",
    "TEXT",
    "Schema",
    "failures",
    "json_body",
    "listed",
    "object_of",
    "optional",
    "ref",
]

from collections.abc import Mapping
from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
SECONDS: Schema = {"type": "integer", "description": "Seconds since 1970."}


def optional(kind: str, meaning: str, **more: Any) -> Schema:
    """A field that may be left out, for which null stands too."""
    return {"type": [kind, "null"], "description": meaning, **more}


def object_of(required: Mapping[str, Any], **optional: Any) -> Schema:
    """An object with these fields, and any others."""
    return {"type": "object", "required": list(required), "properties": {**required, **optional}}


def ref(name: str) -> Schema:
    """The schema `name` of the document."""
    return {"$ref": f"#/components/schemas/{name}"}


def listed(items: Schema, **more: Any) -> Schema:
    """A list of `items`."""
    return {"type": "array", "items": items, **more}


def json_body(schema: Schema, meaning: str) -> Schema:
    """A response in JSON."""
    return {"description": meaning, "content": {"application/json": {"schema": schema}}}


def failures(meanings: Mapping[str, str], schema: Schema) -> Schema:
    """The responses for statuses that are errors."""
    return {status: json_body(schema, meaning) for status, meaning in meanings.items()}
