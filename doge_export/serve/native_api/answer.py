"""The answer to a request of /completion: texts, whole or token by token."""

__all__ = ["NativeAnswer"]

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from doge_export.runtime import Event
from doge_export.serve.door import Named, blame
from doge_export.serve.logprobs import of_native
from doge_export.serve.native_api.reader import NativeRequest
from doge_export.serve.requests import TextRequest
from doge_export.serve.shapes import failure
from doge_export.serve.stops import stop_text

_REASONS = {"length": "limit", "eos": "eos", None: "none"}
#: What is never done, as llama.cpp says it of a request that does not ask for it.
_OFF: Mapping[str, Any] = {
    "dynatemp_range": 0.0,
    "top_n_sigma": -1.0,
    "xtc_probability": 0.0,
    "repeat_last_n": -1,
    "dry_multiplier": 0.0,
    "mirostat": 0,
    "adaptive_target": -1.0,
    "adaptive_decay": 0.9,
    "n_keep": 0,
    "min_keep": 0,
    "grammar": "",
    "post_sampling_probs": False,
    "lora": [],
}


@dataclass
class _Text:
    """One text as it grows."""

    events: list[Event] = field(default_factory=list)
    first: float = 0.0
    last: float = 0.0


class NativeAnswer:
    """An answer as it grows. `arrived`: when the request was there, by `time.perf_counter`."""

    def __init__(self, request: NativeRequest, model: str, arrived: float) -> None:
        self._request, self._model, self._arrived = request, model, arrived
        self._tokenizer = request.text.served.tokenizer
        self._texts = [_Text() for _ in request.text.prompts]

    @property
    def request(self) -> TextRequest:
        """What is generated."""
        return self._request.text

    def begin(self) -> list[Named]:
        """Return what a stream sends before the first event."""
        return []

    def add(self, events: Sequence[Event]) -> list[Named]:
        """Take the events in; returns what a stream sends for them: one of its own for each, and another
        where a text has ended."""
        sent: list[Named] = []
        for event in events:
            text, now = self._texts[event.row], time.perf_counter()
            text.first, text.last = text.first or now, now
            text.events.append(event)
            if not self.request.stream:
                continue
            if not self.request.hidden:
                sent.append((None, self._part(event)))
            if event.finish_reason is not None:
                sent.append((None, self._ended(event.row)))
        return sent

    def last(self) -> list[Named]:
        """Return what a stream sends after the last event."""
        return []

    def whole(self) -> Any:
        """Return everything at once, after the last event: the text, or a list where there are several."""
        all_of_them = [self._ended(row) for row in range(len(self._texts))]
        return all_of_them if len(all_of_them) > 1 else all_of_them[0]

    def failed(self, error: Exception) -> Named:
        """Return what a stream sends in the place of the rest."""
        sentence, ours = blame(error)
        return None, failure(sentence, "server_error" if ours else "invalid_request_error")

    def _part(self, event: Event) -> dict[str, Any]:
        """What a stream says of one token."""
        row = event.row
        part = {
            "index": row,
            "content": event.text,
            "tokens": [event.token],
            "stop": False,
            "id_slot": -1,
            "tokens_predicted": len(self._texts[row].events),
            "tokens_evaluated": len(self.request.prompts[row]),
        }
        if self._request.timings_per_token:
            part["timings"] = self._timings(row)
        return part | self._probabilities([event])

    def _ended(self, row: int) -> dict[str, Any]:
        """What is said of a text that has ended; in a stream the text itself was sent already."""
        prompt, events = self.request.prompts[row], self._made(row)
        text = "".join(event.text for event in events)
        ids = [event.token for event in events]
        reason, stop = self._reason(row)
        streamed = self.request.stream
        answer = {
            "index": row,
            "content": "" if streamed else text,
            "tokens": ids if self._request.return_tokens and not streamed else [],
            "id_slot": -1,
            "stop": True,
            "model": self._model,
            "tokens_predicted": len(ids),
            "tokens_evaluated": len(prompt),
            "generation_settings": self._settings(),
            "prompt": self._tokenizer.decode(prompt, skip_special_tokens=False),
            "has_new_line": "\n" in text,
            "truncated": self._request.unlimited and reason == "limit",
            "stop_type": reason,
            "stopping_word": stop,
            # The last new token is never read.
            "tokens_cached": len(prompt) + max(0, len(ids) - 1),
            "timings": self._timings(row),
        }
        if not streamed:
            answer |= self._probabilities(events)
        fields = self._request.fields
        return {name: _within(answer, name) for name in fields if _has(answer, name)} if fields else answer

    def _made(self, row: int) -> list[Event]:
        """The new tokens; without those that were not asked for."""
        return [] if self.request.hidden else self._texts[row].events

    def _reason(self, row: int) -> tuple[str, str]:
        """Why a text ended, and the stop text that came."""
        if self.request.hidden:
            return "limit", ""
        text = self._texts[row]
        reason = text.events[-1].finish_reason if text.events else None
        if reason != "stop":
            return _REASONS[reason], ""
        ids = [event.token for event in text.events]
        stop = stop_text(self._request.stops, self.request.prompts[row], ids, self._tokenizer)
        return ("eos", "") if stop is None else ("word", stop)

    def _probabilities(self, events: Sequence[Event]) -> dict[str, Any]:
        if not self._request.probabilities:
            return {}
        return {"completion_probabilities": of_native(events, self._tokenizer)}

    def _timings(self, row: int) -> dict[str, Any]:
        text = self._texts[row]
        prompt, new = len(self.request.prompts[row]), len(self._made(row))
        read, made = 1000 * (text.first - self._arrived), 1000 * (text.last - text.first)
        return {
            "prompt_n": prompt,
            "prompt_ms": read,
            "prompt_per_token_ms": read / prompt,
            "prompt_per_second": 1000 * prompt / read if read > 0 else 0.0,
            "predicted_n": new,
            "predicted_ms": made,
            "predicted_per_token_ms": made / new if new else 0.0,
            "predicted_per_second": 1000 * new / made if made > 0 else 0.0,
        }

    def _settings(self) -> dict[str, Any]:
        options, request = self.request.options, self._request
        limit = 0 if self.request.hidden else -1 if request.unlimited else options.max_new_tokens
        return {
            "n_predict": limit,
            "max_tokens": limit,
            "seed": options.seed,
            "temperature": options.temperature,
            "top_k": options.top_k,
            "top_p": options.top_p,
            "min_p": options.min_p,
            "typical_p": options.typical_p,
            "repeat_penalty": options.repetition_penalty,
            "presence_penalty": options.presence_penalty,
            "frequency_penalty": options.frequency_penalty,
            "stop": list(options.stop),
            "ignore_eos": request.ignore_eos,
            "logit_bias": [{"token": token, "bias": bias} for token, bias in request.biases],
            "n_probs": request.probabilities,
            "stream": self.request.stream,
            "timings_per_token": request.timings_per_token,
            **_OFF,
        }


def _has(answer: Any, path: str) -> bool:
    for name in path.split("/"):
        if not isinstance(answer, dict) or name not in answer:
            return False
        answer = answer[name]
    return True


def _within(answer: Any, path: str) -> Any:
    for name in path.split("/"):
        answer = answer[name]
    return answer
