"""The text of one row as it grows, cut exactly before the first stop string."""

__all__ = ["RowText"]

from collections.abc import Sequence

from doge_export.core.tokenizer import Tokenizer


class RowText:
    """Decodes the tokens of a row and holds back those that may be the beginning of a stop string.

    A stop string is looked for as transformers' `StopStringCriteria` does: in the bytes of the tokens,
    special ones among them, which the text leaves out; it ends within a new token, and may begin in the
    prompt.
    """

    def __init__(
        self, tokenizer: Tokenizer | None, stop: Sequence[str] = (), prompt: Sequence[int] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._stream = None if tokenizer is None else tokenizer.stream()
        self._searches = [_Search(each.encode("utf-8", "surrogatepass")) for each in stop]
        self._held: list[int] = []  # tokens that the stream has not seen yet
        self._bytes = 0  # of these
        self.stopped = False
        if tokenizer is not None and self._searches:
            self._begin(tokenizer, prompt)

    def push(self, token: int) -> str:
        """Take a token; returns the text that is certain by now to belong to the completion."""
        if self._stream is None or self.stopped:
            return ""
        if not self._searches:
            return self._stream.push(token)
        if self._completes(token):
            return self._text
        self._held.append(token)
        self._bytes += self._size(token)
        keep = max(search.matched for search in self._searches)
        seen = 0
        while seen < len(self._held) and self._bytes - self._size(self._held[seen]) >= keep:
            self._bytes -= self._size(self._held[seen])
            seen += 1
        shown, self._held = self._held[:seen], self._held[seen:]
        return "".join(map(self._stream.push, shown))

    def end(self, token: int | None = None) -> str:
        """Return the rest of the text: no token follows. `token` ended the text and is not shown, but may
        have completed a stop string."""
        if self._stream is None or self.stopped:
            return ""
        if token is not None and self._completes(token):
            return self._text
        return self._shown(self._held)

    def _begin(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        """Read as much of the prompt's end as a stop string can begin in."""
        longest = max(len(search.text) for search in self._searches)
        last: list[bytes] = []
        for token in reversed(prompt):
            if sum(map(len, last)) >= longest - 1:
                break
            last.append(tokenizer.pieces[token])
        for search in self._searches:
            search.read(b"".join(reversed(last)))

    def _completes(self, token: int) -> bool:
        """Whether `token` completes a stop string; `_text` is what is before the one that begins first."""
        assert self._tokenizer is not None
        piece = self._tokenizer.pieces[token]
        ends = [
            (end - len(search.text)) for search in self._searches if (end := search.read(piece)) is not None
        ]
        if not ends:
            return False
        self.stopped = True
        self._text = self._before(token, min(ends))
        return True

    def _before(self, token: int, offset: int) -> str:
        """Return the text up to the byte `offset`, counted from the first of `token`."""
        assert self._tokenizer is not None
        ids = [*self._held, token]
        at = len(self._held)
        while offset < 0 and at > 0:
            at -= 1
            offset += self._size(ids[at])
        if offset <= 0 or ids[at] in self._tokenizer.special_ids:
            return self._shown(ids[:at])
        # The stop string begins with a whole character, so what follows in its token is as long by itself.
        behind = self._tokenizer.pieces[ids[at]][offset:].decode("utf-8", "replace")
        text = self._shown(ids[: at + 1])
        return text[: max(0, len(text) - len(behind))]

    def _shown(self, ids: Sequence[int]) -> str:
        assert self._stream is not None
        self._held = []
        return "".join(map(self._stream.push, ids)) + self._stream.flush()

    def _size(self, token: int) -> int:
        assert self._tokenizer is not None
        return len(self._tokenizer.pieces[token])


class _Search:
    """Looks for one text in bytes as they come, each looked at once (Knuth, Morris and Pratt).

    `matched`: how much of it the bytes so far end with.
    """

    def __init__(self, text: bytes) -> None:
        self.text, self.matched = text, 0
        # Where to go on after the first n bytes: the longest beginning that they end with.
        self._shorter = [0, 0]
        for byte in text[1:]:
            self._shorter.append(self._next(self._shorter[-1], byte))

    def read(self, data: bytes) -> int | None:
        """Return where in `data` the text ends for the first time."""
        first = None
        for at, byte in enumerate(data):
            self.matched = self._next(self.matched, byte)
            if self.matched == len(self.text):
                first = at + 1 if first is None else first
                self.matched = self._shorter[self.matched]
        return first

    def _next(self, matched: int, byte: int) -> int:
        while matched and self.text[matched] != byte:
            matched = self._shorter[matched]
        return matched + 1 if self.text[matched] == byte else 0
