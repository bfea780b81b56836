"""The reference of the server, from its OpenAPI description."""

__all__ = ["page"]

import json
from typing import Any

from docs_site.markdown import cell, table
from doge_export import __version__
from doge_export.serve.openapi import description

_NULL = {"type": "null"}
_LARGEST = 2**63 - 1  # what a limit is that no reader asks for


def page() -> str:
    """Every route with its statuses, and every object with its fields."""
    document = description(__version__)
    parts = ["## Routes\n"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts += [f"### {method.upper()} {path}\n", f"{operation['summary']}\n", _bodies(operation)]
    parts.append("## Objects\n")
    for name, schema in document["components"]["schemas"].items():
        parts += [f"### {name}\n", _fields(schema)]
    return "\n".join(parts)


def _bodies(operation: Any) -> str:
    lines = []
    if "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        lines.append(f"The body of a request is a {_type(schema)}.\n")
    rows = []
    for status, response in operation["responses"].items():
        types = [_type(each["schema"]) for kind, each in response["content"].items() if "json" in kind]
        other = "HTML" if "text/html" in response["content"] else "text"
        rows.append((status, ", ".join(types) or other, cell(response["description"])))
    return "\n".join([*lines, table(("status", "body", "meaning"), rows)])


def _fields(schema: Any) -> str:
    required = schema["required"]
    rows = []
    for name, field in schema["properties"].items():
        meaning = field.get("description", "")
        if limits := _limits(field):
            meaning = f"{meaning.removesuffix('.')} ({limits})."
        rows.append((f"`{name}`", _type(field), "yes" if name in required else "", cell(meaning)))
    return table(("field", "type", "required", "meaning"), rows)


def _type(schema: Any) -> str:
    """A schema in a few words; null is left out, since it stands for a field that is not there."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"] if each != _NULL)
    if "const" in schema or "enum" in schema:
        values = schema.get("enum", [schema.get("const")])
        return " or ".join(f"`{json.dumps(value)}`" for value in values)
    if schema["type"] == "array" and "items" in schema:
        return f"list of {_type(schema['items'])}"
    if schema["type"] == "object" and "properties" in schema:
        return f"object with {', '.join(f'`{name}`' for name in schema['properties'])}"
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    words = ("list" if kind == "array" else kind for kind in kinds if kind != "null")
    return " or ".join(words) or "null"


def _limits(schema: Any) -> str:
    words = {"minimum": "at least", "exclusiveMinimum": "more than", "maximum": "at most"}
    said = {key: text for key, text in words.items() if schema.get(key, _LARGEST) < _LARGEST}
    found = [f"{text} {schema[key]}" for key, text in said.items()]
    return ", ".join(found)
