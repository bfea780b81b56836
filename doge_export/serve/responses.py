"""Responses in the shapes of OpenAI's text API: whole, or in pieces as they come."""

__all__ = ["CompletionResponse", "failure", "models"]

import secrets
import time
from collections.abc import Sequence
from typing import Any

from doge_export.runtime import Completion, Event
from doge_export.serve.requests import TextRequest
from doge_export.serve.tools.answer import ChatAnswer

_REASONS = {"eos": "stop", "stop": "stop", "length": "length"}


class CompletionResponse:
    """The response to one request, built from its events."""

    def __init__(self, request: TextRequest, model: str) -> None:
        self._request = request
        kind = "chat.completion" if request.chat else "text_completion"
        chunk = "chat.completion.chunk" if request.chat else kind
        prefix = "chatcmpl" if request.chat else "cmpl"
        self._head = {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "object": chunk if request.stream else kind,
            "created": int(time.time()),
            "model": model,
        }
        self._completions = [Completion() for _ in request.prompts]
        self._answers = [ChatAnswer(request.tools) for _ in request.prompts]  # of a chat
        self._begun: set[int] = set()

    def add(self, events: Sequence[Event]) -> list[dict[str, Any]]:
        """Take the events in; returns the chunks that a stream sends for them, one a choice at most."""
        pieces: dict[int, str] = {}
        ended: dict[int, str] = {}
        for event in events:
            completion = self._completions[event.row]
            completion.ids.append(event.token)
            completion.text += event.text
            pieces[event.row] = pieces.get(event.row, "") + event.text
            if event.finish_reason is not None:
                completion.finish_reason = event.finish_reason
                ended[event.row] = _REASONS[event.finish_reason]
        chunks = [
            self._chunk(row, piece, ended.get(row)) for row, piece in pieces.items() if piece or row in ended
        ]
        return [self._head | {"choices": [chunk]} for chunk in chunks if chunk is not None]

    def whole(self) -> dict[str, Any]:
        """Return everything at once, after the last event."""
        choices = [
            {
                "index": index,
                **({"message": answer.message()} if self._request.chat else {"text": each.text}),
                "logprobs": None,
                "finish_reason": answer.reason(_REASONS[each.finish_reason]),
            }
            for index, (each, answer) in enumerate(zip(self._completions, self._answers, strict=True))
        ]
        return self._head | {"choices": choices, "usage": self._usage()}

    def last(self) -> list[dict[str, Any]]:
        """Return the chunks that a stream sends after the last choice has ended."""
        return [self._head | {"choices": [], "usage": self._usage()}] if self._request.include_usage else []

    def _chunk(self, row: int, piece: str, finish_reason: str | None) -> dict[str, Any] | None:
        content: dict[str, Any] = {"text": piece}
        if self._request.chat:
            delta = self._answers[row].delta(piece, finish_reason is not None)
            if not delta and finish_reason is None:
                return None  # it may be the beginning of a call
            if finish_reason is not None:
                finish_reason = self._answers[row].reason(finish_reason)
            role = {} if row in self._begun else {"role": "assistant"}
            content = {"delta": role | delta}
        self._begun.add(row)
        return {"index": row, **content, "logprobs": None, "finish_reason": finish_reason}

    def _usage(self) -> dict[str, int]:
        prompt = self._request.prompt_tokens
        new = sum(len(each.ids) for each in self._completions)
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


def failure(sentence: str, kind: str = "invalid_request_error") -> dict[str, Any]:
    """An error's body. Half a character, which a request may hold, is shown by its number."""
    shown = sentence.encode("utf-8", "backslashreplace").decode("utf-8")
    return {"error": {"message": shown, "type": kind, "param": None, "code": None}}


def models(name: str, created: int) -> dict[str, Any]:
    """The response to /v1/models: the one that is served."""
    return {
        "object": "list",
        "data": [{"id": name, "object": "model", "created": created, "owned_by": "doge_export"}],
    }
