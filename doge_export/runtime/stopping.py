"""The text of one row as it grows, cut exactly before the first stop string."""

__all__ = ["RowText"]

from collections.abc import Sequence

from doge_export.tokenizer import TextStream


class RowText:
    """Decodes the tokens of a row and holds back what may be the beginning of a stop string."""

    def __init__(self, text_stream: TextStream | None, stop: Sequence[str] = ()) -> None:
        self._stream, self._stop = text_stream, tuple(stop)
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that is certain to belong to the completion."""
        return "" if self._stream is None else self._take(self._stream.push(token), last=False)

    def end(self) -> str:
        """The rest: no token follows."""
        return "" if self._stream is None else self._take(self._stream.flush(), last=True)

    def _take(self, piece: str, last: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + piece
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = 0 if last else self._overlap(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _overlap(self, text: str) -> int:
        """The length of the longest end of `text` that a stop string begins with."""
        longest = min(len(text), max(map(len, self._stop), default=0))
        return next(
            (n for n in range(longest, 0, -1) if any(stop.startswith(text[-n:]) for stop in self._stop)), 0
        )
