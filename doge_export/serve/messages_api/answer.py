"""The answer to a request of /v1/messages: blocks of text and calls, whole or as events."""

__all__ = ["MessageAnswer"]

import secrets
from collections.abc import Sequence
from typing import Any

from doge_export.core.tokenizer import Tokenizer
from doge_export.runtime import Event
from doge_export.serve.door import Named, blame
from doge_export.serve.messages_api.reader import MessageRequest
from doge_export.serve.requests import TextRequest
from doge_export.serve.shapes import message_failure
from doge_export.serve.stops import stop_text
from doge_export.serve.tools import Call, ChatAnswer
from doge_export.serve.usage import Reused


class MessageAnswer:
    """An answer as it grows."""

    def __init__(self, request: MessageRequest, model: str, tokenizer: Tokenizer) -> None:
        self._request, self._tokenizer = request, tokenizer
        self._answer, self._reused = ChatAnswer(request.text.tools), Reused(request.text)
        self._head = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": model,
        }
        self._blocks: list[dict[str, Any]] = []
        self._writing = False  # the last block, a text, has not ended
        self._ids: list[int] = []
        self._reason = ""

    @property
    def request(self) -> TextRequest:
        """What is generated."""
        return self._request.text

    def begin(self) -> list[Named]:
        """Return what a stream sends before the first event."""
        return [_event("message_start", message=self._message()), _event("ping")]

    def add(self, events: Sequence[Event]) -> list[Named]:
        """Take the events in; returns what a stream sends for them."""
        sent: list[Named] = []
        self._ids += [event.token for event in events]
        self._reused.add(events)
        ended = [event.finish_reason for event in events if event.finish_reason is not None]
        self._reason = ended[0] if ended else self._reason
        for part in self._answer.add("".join(event.text for event in events), bool(ended)):
            sent += self._called(part) if isinstance(part, Call) else self._written(part)
        return [*sent, *self._closed()] if ended else sent

    def last(self) -> list[Named]:
        """Return what a stream sends after the last event."""
        message = self.whole()
        delta = {name: message[name] for name in ("stop_reason", "stop_sequence")}
        return [_event("message_delta", delta=delta, usage=message["usage"]), _event("message_stop")]

    def whole(self) -> dict[str, Any]:
        """Return everything at once, after the last event."""
        reason, stop = {"length": "max_tokens"}.get(self._reason, "end_turn"), None
        if self._reason == "stop" and (stop := self._stop_text()) is not None:
            reason = "stop_sequence"
        if self._answer.calls and reason == "end_turn":
            reason = "tool_use"
        return self._message() | {"stop_reason": reason, "stop_sequence": stop}

    def failed(self, error: Exception) -> Named:
        """Return what a stream sends in the place of the rest."""
        sentence, ours = blame(error)
        return "error", message_failure(sentence, "api_error" if ours else "invalid_request_error")

    def _message(self) -> dict[str, Any]:
        reused = self._reused.tokens  # Anthropic's input_tokens are those beside them
        usage = {"input_tokens": self.request.prompt_tokens - reused, "output_tokens": len(self._ids)}
        cached = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": reused}
        content = [dict(block) for block in self._blocks]
        stop = {"stop_reason": None, "stop_sequence": None}
        return self._head | {"content": content, **stop, "usage": usage | cached}

    def _stop_text(self) -> str | None:
        (prompt,) = self.request.prompts
        return stop_text(self._request.stops, prompt, self._ids, self._tokenizer)

    def _written(self, text: str) -> list[Named]:
        sent: list[Named] = []
        if not self._writing:
            self._blocks.append({"type": "text", "text": ""})
            self._writing = True
            sent.append(self._at("content_block_start", content_block=dict(self._blocks[-1])))
        self._blocks[-1]["text"] += text
        return [*sent, self._at("content_block_delta", delta={"type": "text_delta", "text": text})]

    def _closed(self) -> list[Named]:
        """End the text that is being written, if one is."""
        was, self._writing = self._writing, False
        return [self._at("content_block_stop")] if was else []

    def _called(self, call: Call) -> list[Named]:
        sent = self._closed()
        block = {"type": "tool_use", "id": f"toolu_{call.key}", "name": call.name, "input": {}}
        self._blocks.append(block)
        sent.append(self._at("content_block_start", content_block=dict(block)))
        delta = {"type": "input_json_delta", "partial_json": call.json}
        sent.append(self._at("content_block_delta", delta=delta))
        block["input"] = call.arguments
        return [*sent, self._at("content_block_stop")]

    def _at(self, name: str, /, **data: Any) -> Named:
        return _event(name, index=len(self._blocks) - 1, **data)


def _event(name: str, /, **data: Any) -> Named:
    return name, {"type": name, **data}
