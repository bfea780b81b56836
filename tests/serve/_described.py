"""Values held to the server's own OpenAPI description."""

from collections.abc import Callable
from typing import Any

import jsonschema

from doge_export.core.errors import DogeExportError
from doge_export.serve.openapi import ROUTES, description

SCHEMAS: dict[str, Any] = description("0")["components"]["schemas"]

#: Of any type, in every range and out of it: what a field is tried with.
VALUES: list[Any] = [
    *(None, True, False, 0, 1, 2, -1, 64, 65, 0.5, 1.5, -0.5, 10**30, "", "a", [], ["a"], [""], [1], {}),
    *({"type": "auto"}, {"type": "tool"}, {"format": {"type": "text"}}, {"a": "b"}, {"a": 1}),
    *({"format": {"type": "json_object"}}, {"format": None}, {"format": {"type": "xml"}}, {"format": {}}),
    {"format": {"type": "json_schema", "schema": {"enum": [1]}, "strict": True, "name": "a"}},
    *({"format": {"type": "json_schema"}}, {"verbosity": "medium"}, {"verbosity": "low"}),
    *({"type": "allowed_tools"}, {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function"}]}),
    *({"type": "disabled"}, {"include_obfuscation": False}, "none", "auto", "disabled"),
]


def fits(value: Any, schema: dict[str, Any]) -> bool:
    whole = schema | {"components": {"schemas": SCHEMAS}}
    return jsonschema.Draft202012Validator(whole).is_valid(value)


def as_described(path: str, method: str, answer: Any, status: int = 200) -> bool:
    """Whether the answer of a route is what its description says."""
    schema = ROUTES[path][method]["responses"][str(status)]["content"]["application/json"]["schema"]
    return fits(answer, schema)


def disagreements(read: Callable[[Any], Any], name: str, bodies: list[Any]) -> list[Any]:
    """The bodies of which what reads them and their schema say otherwise."""

    def taken(body: Any) -> bool:
        try:
            read(body)
        except DogeExportError:
            return False
        return True

    return [body for body in bodies if taken(body) != fits(body, SCHEMAS[name])]
