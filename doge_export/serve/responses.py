"""Responses in the shapes of OpenAI's text API: whole, or in pieces as they come."""

__all__ = ["CompletionResponse", "model_card"]

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from doge_export.runtime import Event
from doge_export.serve.logprobs import ScoredTokens, of_chat, of_completion
from doge_export.serve.requests import TextRequest
from doge_export.serve.tools import ChatAnswer
from doge_export.serve.usage import Reused

_REASONS = {"eos": "stop", "stop": "stop", "length": "length"}


@dataclass
class _Choice:
    """One text as it grows, in pieces, of which a stream has sent the first `sent`."""

    scored: ScoredTokens
    answer: ChatAnswer  # of a chat
    texts: list[str] = field(default_factory=list)
    made: int = 0
    begun: bool = False
    finish_reason: str | None = None
    sent: int = 0


class CompletionResponse:
    """The response to one request, built from its events."""

    def __init__(self, request: TextRequest, model: str) -> None:
        self._request, self._tokenizer = request, request.served.tokenizer
        self._reused = Reused(request)
        kind = "chat.completion" if request.chat else "text_completion"
        chunk = "chat.completion.chunk" if request.chat else kind
        prefix = "chatcmpl" if request.chat else "cmpl"
        self._head = {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "object": chunk if request.stream else kind,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": request.served.fingerprint,
        }
        self._choices = [
            _Choice(ScoredTokens(self._tokenizer), ChatAnswer(request.tools)) for _ in request.prompts
        ]

    def add(self, events: Sequence[Event]) -> list[dict[str, Any]]:
        """Take the events in; returns the chunks that a stream sends for them: for a choice the role, if it
        begins, and one with what is new of it at most."""
        self._reused.add(events)
        begun = {event.row: None for event in events if not self._choices[event.row].begun}
        rows = dict.fromkeys(event.row for event in events)
        for event in events:
            self._take(event)
        if not self._request.stream:
            return []
        roles = [self._chunk(row, {"role": "assistant", "content": ""}) for row in begun] * self._request.chat
        return roles + [chunk for row in rows for chunk in self._rest(row)]

    def whole(self) -> dict[str, Any]:
        """Return everything at once, after the last event."""
        choices = []
        for index, each in enumerate(self._choices):
            text = "".join(each.texts)
            content: dict[str, Any] = {"text": text}
            if self._request.chat:
                each.answer.add(text, ended=True)
                content = {"message": each.answer.message()}
            choices.append(
                {
                    "index": index,
                    **content,
                    "logprobs": self._logprobs(each),
                    "finish_reason": each.answer.reason(each.finish_reason),
                }
            )
        return self._head | {"choices": choices, "usage": self._usage()}

    def last(self) -> list[dict[str, Any]]:
        """Return the chunks that a stream sends after the last choice has ended."""
        return [self._head | {"choices": [], "usage": self._usage()}] if self._request.include_usage else []

    def _take(self, event: Event) -> None:
        choice, request = self._choices[event.row], self._request
        if not choice.begun and request.echoes:
            echo = request.echoes[event.row]
            choice.texts.append(echo)
            if event.prompt_logprobs is not None:
                choice.scored.prompt(request.prompts[event.row], event.prompt_logprobs, echo)
        choice.begun = True
        if event.finish_reason is not None:
            choice.finish_reason = "length" if request.hidden else _REASONS[event.finish_reason]
        if request.hidden:
            return
        choice.made += 1
        choice.texts.append(event.text)
        if event.logprobs is not None:
            choice.scored.add(event.token, event.logprobs)

    def _rest(self, row: int) -> list[dict[str, Any]]:
        """Return the chunk with what is new of a choice, if there is some, or if it has ended."""
        choice = self._choices[row]
        text, choice.sent = "".join(choice.texts[choice.sent :]), len(choice.texts)
        ended = choice.finish_reason is not None
        if not text and not ended:
            return []
        content: dict[str, Any] = {"content": text}
        if self._request.chat:
            content = choice.answer.delta(text, ended)
        if not content and not ended:
            return []  # it may be the beginning of a call
        reason = choice.answer.reason(choice.finish_reason)
        return [self._chunk(row, content, self._logprobs(choice), reason)]

    def _chunk(
        self,
        row: int,
        content: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        choice = {
            "index": row,
            **({"delta": content} if self._request.chat else {"text": content["content"]}),
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        chunk = self._head | {"choices": [choice]}
        if self._request.include_usage:
            chunk["usage"] = self._usage() if self._request.continuous_usage else None
        return chunk

    def _logprobs(self, choice: _Choice) -> dict[str, Any] | None:
        """Return those of the tokens that were not sent yet."""
        if not self._request.options.scored:
            return None
        shape = of_chat if self._request.chat else of_completion
        return shape(choice.scored.take(), self._tokenizer)

    def _usage(self) -> dict[str, Any]:
        prompt = self._request.prompt_tokens
        new = sum(each.made for each in self._choices)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": new,
            "total_tokens": prompt + new,
            "prompt_tokens_details": {"cached_tokens": self._reused.tokens},
        }


def model_card(name: str, own: str, created: int, loaded: bool) -> dict[str, Any]:
    """What /v1/models says of the model `own` by one of its names."""
    card = {"id": name, "object": "model", "created": created, "owned_by": "doge_export"}
    return card | {"root": own, "loaded": loaded}
