"""What an answer has to be where it is held to tools: a call that must be made, calls of a schema, or a text
within rules beside calls. It is the format of the model's own template around the schemas of arguments."""

__all__ = ["tool_rules"]

import json
from collections.abc import Mapping
from typing import Any

from doge_export.core.tokenizer import Tokenizer
from doge_export.runtime import Rules
from doge_export.serve.tools.use import Tool, ToolUse
from doge_export.serve.values import wrong

_RULE = "rule"
_LINE = '"\\n"?'


def tool_rules(use: ToolUse, rule: Rules | None, tokenizer: Tokenizer) -> Rules | None:
    """The rules of an answer; None where the model is free. `rule`: what a text has to be, if it is no call.

    Where a call must be made there is no text, and `rule` has nothing to say. An answer that was begun with
    `use.opening` goes on behind it.

    Raises:
        FieldError: the model's calls cannot be written within rules, or a tool takes no object.
    """
    strict = next((tool for tool in use.tools if tool.strict), None)
    if use.forced is None and rule is None and strict is None:
        return None
    opens, closes = use.form.opens, use.form.closes
    if special := _special(use, tokenizer):
        if use.forced is None:
            name = strict.field("strict") if rule is None and strict else rule.name if rule else ""
            raise wrong(
                name,
                f"{name} cannot be kept: this model's calls have the token {special}, which no text within "
                "rules has.",
                "Leave it out, or the tools.",
            )
        opens = closes = ""  # the first is in the prompt, and the text ends in the place of the other
    parts = {
        f"arguments_{at}": Rules.json_schema(_arguments(tool), tool.field(), lenient=not tool.strict)
        for at, tool in enumerate(use.tools)
    }
    lines = _objects(use)
    if opens:
        within = '"[" object ' + ("" if use.one else '(", " object)* ') + '"]"'
        lines += [
            f"calls: call{'' if use.one else f' ({_LINE} call)*'}",
            f"call: {json.dumps(opens)} called",
            f"called: {_LINE} (object | {within}) {_LINE} {json.dumps(closes)}",
        ]
    else:
        lines.append("calls: object")
    more = f" ({_LINE} call)*" if opens and not use.one else ""
    if use.forced is not None:
        ends = f" {_LINE} {json.dumps(closes)}" if closes else ""
        lines.append(f"start: {_named(use)}{ends}{more}")
        name = "tool_choice"
    elif rule is not None:
        parts[_RULE] = rule
        lines.append(f"start: @{_RULE} | calls")
        name = rule.name
    else:
        lines += _beside_text(opens, more)
        name = "tools"
    return Rules.composed("\n".join(lines), parts, name)


def _objects(use: ToolUse) -> list[str]:
    """The rules of a call's object, as `object`, and of what comes behind its name's key, as `named_N`."""
    # Each sign is a text of its own: one that is longer than what a rule beside it has would win over it.
    key = _texts(f'"{use.form.arguments}"', ":")
    named = [
        f"named_{at}: {_texts(' ', json.dumps(tool.name), ',', ' ')} {key} behind_{at}"
        for at, tool in enumerate(use.tools)
    ]
    behind = [f'behind_{at}: " " @arguments_{at} "}}"' for at in range(len(use.tools))]
    choice = " | ".join(f"named_{at}" for at in range(len(use.tools)))
    return [f"object: {_texts('{', json.dumps('name'), ':')} ({choice})", *named, *behind]


def _named(use: ToolUse) -> str:
    """What goes on behind `use.opening`."""
    if use.forced:
        at = [tool.name for tool in use.tools].index(use.forced)
        return f"behind_{at}"
    return "(" + " | ".join(f"named_{at}" for at in range(len(use.tools))) + ")"


def _beside_text(opens: str, more: str) -> list[str]:
    """Any text, calls behind it, or calls alone; it is a call from its first sign on."""
    if not opens:
        return ["start: TEXT? | calls", r"TEXT: /\s*[^{\s](?s:.*)/"]
    return [
        f"start: TEXT | told called{more}",
        f"told[lazy]: TEXT {json.dumps(opens)}",
        "TEXT: /(?s:.*)/",
    ]


def _texts(*texts: str) -> str:
    return " ".join(map(json.dumps, texts))


def _arguments(tool: Tool) -> Mapping[str, Any]:
    schema = tool.parameters
    if schema is None:
        return {"type": "object", "additionalProperties": False}
    kind = schema.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise wrong(
            tool.field(),
            f"{tool.field()} is no schema of an object, and a tool's arguments are one.",
            'Give it the type "object".',
        )
    return {**schema, "type": "object"}


def _special(use: ToolUse, tokenizer: Tokenizer) -> str:
    """A special token that a call is written with: a text leaves it out."""
    marks = (use.form.opens, use.form.closes)
    found = (mark for mark in marks if mark and tokenizer.backend.token_to_id(mark) in tokenizer.special_ids)
    return next(found, "")
