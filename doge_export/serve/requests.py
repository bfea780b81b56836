"""The body of a request, checked: prompts as token ids, and the options of their generation."""

__all__ = ["RequestReader", "TextRequest"]

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from doge_export.core.bundle import Bundle
from doge_export.core.errors import DogeExportError
from doge_export.core.tokenizer import Tokenizer
from doge_export.runtime import GenerationDefaults, GenerationOptions
from doge_export.runtime.constraints import RuledText
from doge_export.serve.constraints import RuleReader
from doge_export.serve.fields import MAX_CHOICES, OPTIONS, UNSUPPORTED

_TYPES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


@dataclass(frozen=True)
class TextRequest:
    """A request: one choice a prompt, in their order; `copies` choices of each prompt stand side by side.
    `rules`: what each new text has to be."""

    prompts: tuple[tuple[int, ...], ...]
    options: GenerationOptions
    chat: bool
    copies: int = 1
    stream: bool = False
    include_usage: bool = False
    rules: RuledText | None = None

    @property
    def prompt_tokens(self) -> int:
        """The number of tokens of all prompts; each counts once, however many choices it has."""
        return sum(map(len, self.prompts)) // self.copies

    def constraints(self) -> list[RuledText] | None:
        """The rules of each choice, to be used once; None where there are none."""
        return None if self.rules is None else [self.rules.copy() for _ in self.prompts]


class RequestReader:
    """Reads bodies for one bundle, whose files it reads once."""

    def __init__(self, bundle: Bundle, tokenizer: Tokenizer, name: str) -> None:
        self._tokenizer, self.name = tokenizer, name
        self._defaults = GenerationDefaults.of(bundle)
        self._rules = RuleReader(bundle, tokenizer)

    def read(self, body: Any, chat: bool) -> TextRequest:
        """The request in a decoded body, of /v1/chat/completions where `chat`, else of /v1/completions.

        Raises:
            DogeExportError: a field is missing, of another type or out of its range, or asks for what is
                not done here.
        """
        if not isinstance(body, dict):
            raise DogeExportError("The body is not a JSON object.")
        for field, off in UNSUPPORTED.items():
            if body.get(field) is not None and body[field] not in off:
                raise DogeExportError(f"{field} is not supported.", "Leave it out.")
        changes = {
            each.option: _taken(body, field, each.kind)
            for field, each in OPTIONS.items()
            if body.get(field) is not None
        }
        options = self._defaults.changed(**changes, stop=_texts(body.get("stop"), "stop"))
        prompts = [self._chat_prompt(body)] if chat else self._prompts(body.get("prompt"))
        copies = _taken(body, "n", int) if body.get("n") is not None else 1
        if copies < 1:
            raise DogeExportError(f"n is {copies}; it must be 1 or more.")
        if (choices := len(prompts) * copies) > MAX_CHOICES:
            raise DogeExportError(
                f"The request asks for {choices} choices at once, and {MAX_CHOICES} are the most.",
                "Send several requests.",
            )
        streams = body.get("stream_options")
        return TextRequest(
            prompts=tuple(tuple(prompt) for prompt in prompts for _ in range(copies)),
            options=options,
            chat=chat,
            copies=copies,
            stream=body.get("stream") is not None and _taken(body, "stream", bool),
            include_usage=isinstance(streams, dict) and bool(streams.get("include_usage")),
            rules=self._rules.read(body),
        )

    def _prompts(self, prompt: Any) -> list[list[int]]:
        if prompt is None:
            raise DogeExportError("The request has no prompt.")
        if _is_ids(prompt):
            return [prompt]
        if isinstance(prompt, list) and prompt and all(map(_is_ids, prompt)):
            return prompt
        texts = _texts(prompt, "prompt")
        if not texts:
            raise DogeExportError("The request has no prompt.")
        return [self._tokenizer.encode(text) for text in texts]

    def _chat_prompt(self, body: Mapping[str, Any]) -> list[int]:
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise DogeExportError("The request has no messages.")
        text = self._tokenizer.apply_chat_template([_message(message) for message in messages])
        return self._tokenizer.encode(text, add_special_tokens=False)


def _message(message: Any) -> dict[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise DogeExportError("A message is not an object with a role and a content.")
    content = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) < len(parts):
            raise DogeExportError("A message has a part that is no text; the model reads text alone.")
        content = "".join(texts)
    if not isinstance(content, str):
        raise DogeExportError("A message has no content.")
    return {"role": message["role"], "content": content}


def _taken(body: Mapping[str, Any], field: str, kind: type) -> Any:
    value = body[field]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise DogeExportError(f"{field} is too large a number.") from None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise DogeExportError(f"{field} is {value!r}, not {_TYPES[kind]}.")
    return value


def _texts(value: Any, field: str) -> tuple[str, ...]:
    texts = () if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise DogeExportError(f"{field} is neither a text nor a list of texts.")
    return tuple(texts)


def _is_ids(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(token, int) and not isinstance(token, bool) for token in value)
    )
