"""The answer to a request of /v1/responses: items of text and calls, whole or as events."""

__all__ = ["ResponseAnswer"]

import secrets
import time
from collections.abc import Sequence
from typing import Any

from doge_export.runtime import Event
from doge_export.serve.door import Named, blame
from doge_export.serve.requests import TextRequest
from doge_export.serve.responses_api.reader import ResponseRequest
from doge_export.serve.responses_api.store import ResponseStore, Stored
from doge_export.serve.tools import Call, ChatAnswer
from doge_export.serve.usage import Reused

Item = dict[str, Any]


class ResponseAnswer:
    """An answer as it grows. When it is whole it is kept in the `store`, if the request says so."""

    def __init__(self, request: ResponseRequest, model: str, store: ResponseStore) -> None:
        self._request, self._store = request, store
        self._answer, self._reused = ChatAnswer(request.text.tools), Reused(request.text)
        self._head = {
            "id": request.key,
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "background": False,
            "truncation": "disabled",
            **request.echoed,
        }
        self._items: list[Item] = []
        self._open: Item | None = None  # the message that is being written
        self._tokens = self._number = 0
        self._reason = ""

    @property
    def request(self) -> TextRequest:
        """What is generated."""
        return self._request.text

    def begin(self) -> list[Named]:
        """Return what a stream sends before the first event."""
        names = ("response.created", "response.in_progress")
        return [self._event(name, response=self._response("in_progress")) for name in names]

    def add(self, events: Sequence[Event]) -> list[Named]:
        """Take the events in; returns what a stream sends for them."""
        sent: list[Named] = []
        self._tokens += len(events)
        self._reused.add(events)
        ended = [event.finish_reason for event in events if event.finish_reason is not None]
        self._reason = ended[0] if ended else self._reason
        for part in self._answer.add("".join(event.text for event in events), bool(ended)):
            sent += self._called(part) if isinstance(part, Call) else self._written(part)
        if ended:
            if not self._items:  # an answer without a word is one all the same
                sent += self._written("")
            sent += self._closed(cut=self._reason == "length")
        return sent

    def last(self) -> list[Named]:
        """Return what a stream sends after the last event; the response is kept by then."""
        whole = self.whole()
        return [self._event(f"response.{whole['status']}", response=whole)]

    def whole(self) -> dict[str, Any]:
        """Return everything at once, after the last event, and keep it."""
        whole = self._response("incomplete" if self._reason == "length" else "completed")
        if self._request.store:
            said: dict[str, Any] = {"role": "assistant", "content": self._answer.text}
            calls = [
                {
                    "id": f"call_{call.key}",
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in self._answer.calls
            ]
            if calls:
                said |= {"content": self._answer.text or None, "tool_calls": calls}
            self._store.put(Stored(whole, (*self._request.messages, said)))
        return whole

    def failed(self, error: Exception) -> Named:
        """Return what a stream sends in the place of the rest."""
        message, ours = blame(error)
        code = "server_error" if ours else "invalid_prompt"
        whole = self._response("failed") | {"error": {"code": code, "message": message}}
        return self._event("response.failed", response=whole)

    def _event(self, name: str, /, **data: Any) -> Named:
        self._number += 1
        return name, {"type": name, "sequence_number": self._number - 1, **data}

    def _response(self, status: str) -> dict[str, Any]:
        ended = status in ("completed", "incomplete")
        length = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return self._head | {
            "status": status,
            "completed_at": int(time.time()) if status == "completed" else None,
            "error": None,
            "incomplete_details": length,
            "output": [dict(item) for item in self._items],
            "usage": self._usage() if ended else None,
        }

    def _usage(self) -> dict[str, Any]:
        prompt = self.request.prompt_tokens
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": self._reused.tokens, "cache_write_tokens": 0},
            "output_tokens": self._tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + self._tokens,
        }

    def _written(self, text: str) -> list[Named]:
        sent: list[Named] = []
        if self._open is None:
            self._open = {
                "id": f"msg_{secrets.token_hex(24)}",
                "type": "message",
                "status": "in_progress",
                "role": "assistant",
                "content": [],
            }
            sent = self._begun(self._open)
            part = _part("")
            self._open["content"] = [part]
            sent.append(self._event("response.content_part.added", **self._place(), part=dict(part)))
        if text:
            self._open["content"][0]["text"] += text
            delta = {"delta": text, "logprobs": []}
            sent.append(self._event("response.output_text.delta", **self._place(), **delta))
        return sent

    def _closed(self, cut: bool = False) -> list[Named]:
        """End the message that is open, if one is."""
        if self._open is None:
            return []
        (part,) = self._open["content"]
        whole = {"text": part["text"], "logprobs": []}
        sent = [
            self._event("response.output_text.done", **self._place(), **whole),
            self._event("response.content_part.done", **self._place(), part=dict(part)),
        ]
        self._open["status"] = "incomplete" if cut else "completed"
        sent.append(self._ended(self._open))
        self._open = None
        return sent

    def _called(self, call: Call) -> list[Named]:
        sent = self._closed()
        item = {
            "id": f"fc_{call.key}",
            "type": "function_call",
            "status": "in_progress",
            "call_id": f"call_{call.key}",
            "name": call.name,
            "arguments": "",
        }
        sent += self._begun(item)
        place = {"item_id": item["id"], "output_index": len(self._items) - 1}
        sent.append(self._event("response.function_call_arguments.delta", **place, delta=call.json))
        named = {"name": call.name, "arguments": call.json}
        sent.append(self._event("response.function_call_arguments.done", **place, **named))
        item |= {"status": "completed", "arguments": call.json}
        return [*sent, self._ended(item)]

    def _begun(self, item: Item) -> list[Named]:
        self._items.append(item)
        index = len(self._items) - 1
        return [self._event("response.output_item.added", output_index=index, item=dict(item))]

    def _ended(self, item: Item) -> Named:
        index = len(self._items) - 1
        return self._event("response.output_item.done", output_index=index, item=dict(item))

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1, "content_index": 0}


def _part(text: str) -> Item:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
