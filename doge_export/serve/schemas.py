"""Pieces of JSON Schema that descriptions of several routes are made of."""

__all__ = [
    "ANY",
    "COUNT",
    "ERRORS",
    "EVENTS",
    "REUSED",
    "SECONDS",
    "TEXT",
    "Schema",
    "json_body",
    "listed",
    "nullable",
    "object_of",
    "off",
    "optional",
    "post",
    "ref",
]

from collections.abc import Mapping
from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
#: Of any type. `type` says so, since what reads the description looks there.
ANY = ["null", "boolean", "number", "string", "array", "object"]
#: A row of server-sent events. Some readers take the schema for that of the row, others for that of each.
EVENTS: Schema = {"description": "Server-sent events."}
COUNT: Schema = {"type": "integer", "minimum": 0}
REUSED = "Tokens of the prompt that were not read for it, since another text had read them."
SECONDS: Schema = {"type": "integer", "description": "Seconds since 1970."}


#: Status -> what it means, of routes that generate.
ERRORS: Mapping[str, str] = {
    "400": "A field is missing, unknown, wrong or not supported; the message says which.",
    "401": "A key is needed, and none or another one was sent.",
    "404": "There is no such model.",
    "408": "The body did not come in time.",
    "413": "The body is too large.",
    "500": "The model's logits are no numbers, or the server has a bug.",
    "503": "Too many requests wait already, the model cannot be loaded, or the server is ending.",
}


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


def nullable(schema: Mapping[str, Any]) -> Schema:
    """A field that may be left out, for which null stands too."""
    meaning = {"description": schema["description"]}
    if "anyOf" in schema:
        return {"anyOf": [*schema["anyOf"], {"type": "null"}], **meaning}
    if schema["type"] == "array":
        return {"anyOf": [{**schema}, {"type": "null"}], **meaning}
    return {**schema, "type": [schema["type"], "null"]}


def off(field: Mapping[str, tuple[Any, ...]]) -> Schema:
    """Fields that are not supported, with the values that ask for nothing."""
    meaning = "Not supported: any other value is refused."
    return {name: {"enum": [None, *values], "description": meaning} for name, values in field.items()}


def post(
    summary: str,
    request: str,
    answer: Schema,
    error: str,
    statuses: Mapping[str, str],
    others: Schema | None = None,
    events: bool = True,
) -> Schema:
    """A route's post: the names of the schemas of its request and errors, its answer, what its errors mean,
    and responses of another shape."""
    body = {"required": True, "content": {"application/json": {"schema": ref(request)}}}
    answer = answer | {"content": dict(answer["content"])}
    if events:
        answer["content"]["text/event-stream"] = {"schema": EVENTS}
    wrong = {status: json_body(ref(error), meaning) for status, meaning in statuses.items()}
    responses = {"200": answer, **dict(sorted({**wrong, **(others or {})}.items()))}
    return {"post": {"summary": summary, "requestBody": body, "responses": responses}}
