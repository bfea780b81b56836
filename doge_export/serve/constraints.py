"""The fields of a request that say what a text has to be: OpenAI's, vLLM's and llama.cpp's names of the same
rules."""

__all__ = ["RULES", "TEXT_FORMAT", "RuleReader", "read_format", "read_rules"]

import threading
from collections.abc import Callable, Mapping
from typing import Any

from doge_export.core.bundle import Bundle
from doge_export.core.errors import DogeExportError
from doge_export.core.json_file import parse_json
from doge_export.core.tokenizer import Tokenizer
from doge_export.runtime import GenerationDefaults, Rules, RuleTokenizer
from doge_export.runtime.constraints import RuledText, RuleError
from doge_export.serve.values import check, wrong

Schema = Mapping[str, Any]

_OBJECT: Schema = {"type": "object"}
_TEXT: Schema = {"type": "string", "minLength": 1}
_TEXTS: Schema = {"type": "array", "items": _TEXT, "minItems": 1}
_JSON: Schema = {"anyOf": [_OBJECT, {"type": "string", "pattern": "^\\s*\\{"}]}
_LARK: Schema = {"type": "string", "pattern": "start"}

_KINDS = ("text", "json_object", "json_schema")
_REFUSE_FORMAT = 'Say {"type": "text"}, {"type": "json_object"} or {"type": "json_schema", "schema": ...}.'
_REFUSE_KIND = 'Say {"type": "text"}, {"type": "json_object"} or {"type": "json_schema", "json_schema": ...}.'

_NAMES: Mapping[str, Schema] = {
    "name": {"type": ["string", "null"]},
    "description": {"type": ["string", "null"]},
    "schema": _OBJECT,
    "strict": {"type": ["boolean", "null"]},
}
_NAMED: Schema = {"type": "object", "properties": _NAMES, "additionalProperties": False}
#: The rules of /v1/responses: a flat `response_format`.
TEXT_FORMAT: Schema = {
    "anyOf": [
        {
            "type": "object",
            "required": ["type"],
            "properties": {"type": {"type": "string", "enum": ["text", "json_object"]}},
            "additionalProperties": False,
        },
        {
            "type": "object",
            "required": ["type", "schema"],
            "properties": {"type": {"const": "json_schema"}, **_NAMES},
            "additionalProperties": False,
        },
    ],
    "description": "What the text is: any, an object in JSON, or JSON of `schema`, which is always kept, "
    "whatever `strict` says.",
}

#: Field -> its JSON Schema. One of them at most may say something.
RULES: Mapping[str, Schema] = {
    "response_format": {
        "type": "object",
        "description": "What the text is: any, an object in JSON (of `schema`, if there is one), or JSON of "
        "json_schema.schema, which is always kept, whatever `strict` says.",
        "required": ["type"],
        "properties": {
            "type": {"type": "string", "enum": list(_KINDS)},
            "json_schema": {
                "type": ["object", "null"],
                "required": ["schema"],
                "properties": _NAMES,
                "additionalProperties": False,
            },
            "schema": {"type": ["object", "null"]},
        },
        "additionalProperties": False,
    },
    "structured_outputs": {
        "type": "object",
        "description": "As in vLLM: one of these says what the text is.",
        "minProperties": 1,
        "properties": {
            "json": _JSON,
            "json_object": {"type": "boolean"},
            "regex": _TEXT,
            "choice": _TEXTS,
            "grammar": _LARK,
        },
        "additionalProperties": False,
    },
    "guided_json": {**_JSON, "description": "The text is JSON of this schema."},
    "guided_regex": {**_TEXT, "description": "All of the text matches this regular expression."},
    "guided_choice": {**_TEXTS, "description": "The text is one of these."},
    "guided_grammar": {**_LARK, "description": "The text follows this Lark grammar from its rule `start`."},
    "json_schema": {**_OBJECT, "description": "As in llama.cpp: the text is JSON of this schema."},
    "grammar": {**_LARK, "description": "As guided_grammar. llama.cpp's own grammars (GBNF) are refused."},
}


class RuleReader:
    """Compiles rules for one bundle, and keeps what llguidance knows of its tokens."""

    def __init__(self, bundle: Bundle, tokenizer: Tokenizer) -> None:
        self._bundle, self._tokenizer = bundle, tokenizer
        self._lock = threading.Lock()
        self._rules: RuleTokenizer | None = None

    def start(self, rules: Rules) -> RuledText:
        """The rules, compiled, which takes its time.

        Raises:
            FieldError: they cannot be kept.
        """
        try:
            return self._tokens().start(rules)
        except RuleError as error:
            raise wrong(error.name, error.message, error.remedy) from None
        except DogeExportError as error:  # of all rules
            raise wrong(rules.name, f"{rules.name} cannot be kept. {error.message}", error.remedy) from None

    def _tokens(self) -> RuleTokenizer:
        with self._lock:
            if self._rules is None:
                ends = GenerationDefaults.of(self._bundle).changed().eos_token_ids
                self._rules = RuleTokenizer(self._tokenizer, self._bundle.config.vocab_size, ends)
            return self._rules


def read_rules(body: Mapping[str, Any]) -> Rules | None:
    """The rules in a decoded body; None where there are none.

    Raises:
        FieldError: a field is not what it has to be, or two of them have rules.
    """
    found: list[Rules] = []
    for field, read in _READERS.items():
        if body.get(field) is not None:
            try:
                rules = read(body[field], field)
            except DogeExportError as error:
                raise wrong(field, error.message, error.remedy) from None
            found += [] if rules is None else [rules]
    if len(found) > 1:
        first, second, *_ = (rules.name for rules in found)
        raise wrong(first, f"{first} and {second} both say what the text has to be.", "Send one of them.")
    return found[0] if found else None


def _response_format(value: Any, field: str) -> Rules | None:
    if not isinstance(value, dict) or value.get("type") not in _KINDS:
        raise DogeExportError(f"{field} has no type that is known here.", _REFUSE_KIND)
    kind, schema, within = value["type"], value.get("schema"), value.get("json_schema")
    _check_names(value, {"type", "schema", "json_schema"}, field)
    if kind == "json_schema":
        if not isinstance(within, dict) or within.get("schema") is None:
            raise DogeExportError(f"{field} has no json_schema.schema.", "Put the schema there.")
        check(within, _NAMED, f"{field}.json_schema")
        return _json(within["schema"], f"{field}.json_schema.schema")
    if within is not None or (kind == "text" and schema is not None):
        raise DogeExportError(f"{field} has a schema, and the type {kind}.", "Say the type json_schema.")
    if kind == "text":
        return None
    return Rules.json_schema(None, field) if schema is None else _json(schema, f"{field}.schema")


def read_format(value: Any, field: str) -> Rules | None:
    """The rules that TEXT_FORMAT describes, in a field of that name; None where any text will do.

    Raises:
        FieldError: it is not as described.
    """
    if not isinstance(value, dict) or value.get("type") not in _KINDS:
        raise wrong(field, f"{field} has no type that is known here.", _REFUSE_FORMAT)
    if value["type"] != "json_schema":
        _check_names(value, {"type"}, field)
        return None if value["type"] == "text" else Rules.json_schema(None, field)
    if value.get("schema") is None:
        raise wrong(field, f"{field} has no schema.", "Put it there.")
    check(value, {"properties": {"type": {"type": "string"}, **_NAMES}, "additionalProperties": False,
                  **_OBJECT}, field)  # fmt: skip
    try:
        return _json(value["schema"], f"{field}.schema")
    except RuleError as error:
        raise wrong(field, error.message, error.remedy) from None


def _structured(value: Any, field: str) -> Rules | None:
    names = {name for name in _STRUCTURED if isinstance(value, dict) and value.get(name) is not None}
    if not isinstance(value, dict) or not value:
        raise DogeExportError(f"{field} is no object with {', '.join(_STRUCTURED)}.", "Put one of them in.")
    _check_names(value, set(_STRUCTURED), field)
    if len(names) != 1:
        raise DogeExportError(f"{field} has {len(names)} rules, and one is needed.", "Send one of them.")
    name = names.pop()
    return _STRUCTURED[name](value[name], f"{field}.{name}")


def _json(value: Any, field: str) -> Rules:
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError:
            value = None
    if not isinstance(value, dict):
        raise DogeExportError(f"{field} is no JSON schema, which is an object.", "Send the object itself.")
    return Rules.json_schema(value, field)


def _json_object(value: Any, field: str) -> Rules | None:
    if not isinstance(value, bool):
        raise DogeExportError(f"{field} is {value!r}, not true or false.")
    return Rules.json_schema(None, field) if value else None


def _schema_object(value: Any, field: str) -> Rules:
    if not isinstance(value, dict):
        raise DogeExportError(f"{field} is not an object.", "Send a JSON schema.")
    return _json(value, field)


def _regex(value: Any, field: str) -> Rules:
    return Rules.regex(_text(value, field), field)


def _choice(value: Any, field: str) -> Rules:
    if not isinstance(value, list):
        raise DogeExportError(f"{field} is not a list of texts.")
    return Rules.choice((_text(each, f"an entry of {field}") for each in value), field)


def _grammar(value: Any, field: str) -> Rules:
    text = _text(value, field)
    if "::=" in text:
        raise DogeExportError(
            f"{field} is a grammar in GBNF or EBNF, and Lark is read here.",
            "Write it in Lark: its rules are `name: ...`, and the first is `start`.",
        )
    return Rules.grammar(text, field)


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise DogeExportError(f"{field} is {value!r:.80}, not a text.")
    return value


def _check_names(value: Mapping[str, Any], known: set[str], field: str) -> None:
    if other := next((name for name in value if name not in known), None):
        raise DogeExportError(f"{field} has {other!r:.80}, which is not known here.", "Leave it out.")


_Read = Callable[[Any, str], Rules | None]
_STRUCTURED: Mapping[str, _Read] = {
    "json": _json,
    "json_object": _json_object,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
}
_READERS: Mapping[str, _Read] = {
    "response_format": _response_format,
    "structured_outputs": _structured,
    "guided_json": _json,
    "guided_regex": _regex,
    "guided_choice": _choice,
    "guided_grammar": _grammar,
    "json_schema": _schema_object,
    "grammar": _grammar,
}
