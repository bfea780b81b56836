"""How many tokens of a request's prompts were not read for it, since another text had read them."""

__all__ = ["Reused"]

from collections.abc import Sequence

from doge_export.runtime import Event
from doge_export.serve.requests import TextRequest


class Reused:
    """Counts them as the choices begin. Of a prompt that has several choices, which is read for the first of
    them and not for the others, the fewest of any count: what nobody had read before the request."""

    def __init__(self, request: TextRequest) -> None:
        self._copies = request.copies
        self._begun: set[int] = set()
        self._prompts: dict[int, int] = {}  # its place among the request's prompts -> tokens

    @property
    def tokens(self) -> int:
        """Those of all prompts whose choices have begun."""
        return sum(self._prompts.values())

    def add(self, events: Sequence[Event]) -> None:
        """Take the events in."""
        for event in events:
            if event.row not in self._begun:
                self._begun.add(event.row)
                prompt = event.row // self._copies
                before = self._prompts.get(prompt, event.reused_tokens)
                self._prompts[prompt] = min(before, event.reused_tokens)
