"""A conversation as one text: which of a tokenizer's chat templates, what it is given, and how it ends."""

__all__ = ["chosen_template", "compiled", "rendered", "variables_of"]

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from doge_export.core.errors import DogeExportError

if TYPE_CHECKING:
    import jinja2

_DEFAULT, _TOOLS = "default", "tool_use"
_LONGEST_TEMPLATE = 1 << 16  # characters; those of published models have 20,000 at most
_LONGEST_REASON = 200
_END = "CONTINUE_FINAL_MESSAGE_TAG "  # its last character shows whether the template trims messages
#: Names of what a model thought before it answered; a template may read any of them.
_REASONING = ("reasoning_content", "thinking", "reasoning")


def chosen_template(templates: Mapping[str, str], name: str | None, with_tools: bool = False) -> str:
    """The template `name`; without one, that for tools where there are some, or the default.

    Raises:
        DogeExportError: there is none of that name, or none at all.
    """
    if not templates:
        raise DogeExportError("The tokenizer has no chat template.", "Generate from a plain prompt.")
    there_are = f"There are {', '.join(sorted(templates))}."
    if name is not None:
        if name not in templates:
            raise DogeExportError(f"The tokenizer has no chat template {name!r}.", there_are)
        return templates[name]
    for each in (_TOOLS,) * with_tools + (_DEFAULT,):
        if each in templates:
            return templates[each]
    raise DogeExportError(
        "The tokenizer has several chat templates, and none is its default.",
        f"Choose one with --chat-template. {there_are}",
    )


def compiled(template: str) -> "jinja2.Template":
    """`template`, ready to run.

    Raises:
        DogeExportError: it is damaged, or far too long.
    """
    from doge_export.core.tokenizer.sandbox import Limited

    if len(template) > _LONGEST_TEMPLATE:
        raise DogeExportError(
            f"The chat template has {len(template):,} characters, and {_LONGEST_TEMPLATE:,} are the most.",
            "Put the model's own template into its folder.",
        )
    try:
        return Limited().from_string(template)
    except Exception as error:  # jinja's, Python's SyntaxError, RecursionError, MemoryError
        raise DogeExportError(
            f"The chat template is damaged: {_reason(error)}.",
            "Put the model's own template into its folder.",
        ) from None


@lru_cache(maxsize=16)
def variables_of(template: str) -> frozenset[str]:
    """The names that `template` takes from outside.

    Raises:
        DogeExportError: it is damaged, or far too long.
    """
    from jinja2 import meta

    from doge_export.core.tokenizer.sandbox import Limited

    compiled(template)  # which says what is wrong with it
    return frozenset(meta.find_undeclared_variables(Limited().parse(template)))


def rendered(
    template: "jinja2.Template",
    source: str,
    messages: Sequence[Mapping[str, Any]],
    continue_final_message: bool | str,
    variables: Mapping[str, Any],
) -> str:
    """`messages` as text, by `template`, which was compiled from `source`.

    Raises:
        DogeExportError: the template refuses the messages, fails on them, or takes more time or memory than
            it may.
    """
    from doge_export.core.tokenizer.budget import TooMuch
    from doge_export.core.tokenizer.sandbox import running

    chat = [_message(message) for message in messages]
    last = _marked(chat, continue_final_message, source) if continue_final_message else None
    variables = {name: _plain(value) for name, value in variables.items()}
    try:
        with running([chat, *variables.values()]):
            text = template.render(messages=chat, **variables)
    except TooMuch as error:
        raise DogeExportError(
            f"The chat template was stopped: {error}.", "Put the model's own template into its folder."
        ) from None
    except Exception as error:  # a template is foreign code: whatever it raises is its mistake, not ours
        raise DogeExportError(
            f"The chat template refuses these messages: {_reason(error)}.", "Give it those that it expects."
        ) from None
    return text if last is None else _unfinished(text, last)


def _message(raw: Any) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        raise DogeExportError("A message is not an object with a role and a content.")
    message = {str(key): _plain(value) for key, value in raw.items() if value is not None}
    thought = next((message[name] for name in _REASONING if message.get(name) is not None), None)
    if thought is None:
        return message
    return {"thinking": thought, **message, "reasoning_content": thought}


def _plain(value: Any) -> Any:
    """`value` as JSON has it; a template must not reach methods of anything else."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return f"<{type(value).__name__}>"


def _marked(chat: list[dict[str, Any]], field: bool | str, source: str) -> str:
    """Mark where the last message ends; returns its text."""
    name = field if isinstance(field, str) else "content"
    text = chat[-1].get(name)
    names = [name]
    if name in _REASONING:
        names = [each for each in _REASONING if chat[-1].get(each) == text]
    if text is None or not any(each in source for each in names):
        raise DogeExportError(f"The last message, or the chat template, has no {name} to continue.")
    if isinstance(text, str):
        for each in names:
            chat[-1][each] = text + _END
        return text
    parts = [part for part in text if isinstance(part, dict) and isinstance(part.get("text"), str)]
    if not parts:
        raise DogeExportError("The last message has no text to continue.")
    last: str = parts[-1]["text"]
    parts[-1]["text"] = last + _END
    return last


def _unfinished(text: str, last: str) -> str:
    """`text` up to the mark."""
    mark = _END.strip()
    if last.strip() not in text or mark not in text:
        raise DogeExportError("The chat template does not show the last message, so it cannot be continued.")
    before = text[: text.rindex(mark)]
    return before if text[len(before) :].startswith(_END) else before.rstrip()


def _reason(error: BaseException) -> str:
    """Return what went wrong, as a part of a sentence."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, RecursionError):
        text = "it calls itself without end"
    elif isinstance(error, MemoryError):
        text = "it needs more memory than there is"
    return text.removesuffix(".")[:_LONGEST_REASON]
