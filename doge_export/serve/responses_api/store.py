"""Responses that were given, and their conversations: in memory, the last ones used."""

__all__ = ["ResponseStore", "Stored"]

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MAX_RESPONSES = 1000
MAX_BYTES = 64 << 20


@dataclass(frozen=True)
class Stored:
    """A response as it was given, and the conversation that it ends."""

    response: dict[str, Any]
    messages: Sequence[dict[str, Any]]

    @property
    def size(self) -> int:
        """About how many bytes it takes: those of its JSON."""
        return len(json.dumps([self.response, self.messages]))


class ResponseStore:
    """Keeps responses by their ids, up to so many and so many bytes of them; the one that was used longest
    ago goes first. For several threads."""

    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._max_responses, self._max_bytes = max_responses, max_bytes
        self._kept: OrderedDict[str, tuple[int, Stored]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def put(self, stored: Stored) -> None:
        """Keep it. One that is too large by itself is not kept."""
        size = stored.size
        if size > self._max_bytes:
            return
        with self._lock:
            self._kept[stored.response["id"]] = size, stored
            self._bytes += size
            while self._bytes > self._max_bytes or len(self._kept) > self._max_responses:
                _, (gone, _) = self._kept.popitem(last=False)
                self._bytes -= gone

    def get(self, key: str) -> Stored | None:
        """Return the response `key`, if it is there; it counts as used."""
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key][1]

    def delete(self, key: str) -> bool:
        """Forget the response `key`; returns whether it was there."""
        with self._lock:
            size, stored = self._kept.pop(key, (0, None))
            self._bytes -= size
            return stored is not None
