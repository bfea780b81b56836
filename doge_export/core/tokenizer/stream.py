"""Text from token ids as they come."""

__all__ = ["TextStream"]

from collections.abc import Callable, Sequence, Set

from doge_export.core.tokenizer.pieces import Pieces

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_MOST = 24  # ids that wait for a character to become whole
_KEPT = 12  # of them, what is decoded again: more than a character's bytes


class TextStream:
    """Text from token ids as they come.

    The pieces that `push` and `flush` return, joined, are what `decode` makes of all the ids at once. The
    time for a token does not depend on how many came before. Bytes of a byte fallback (`<0xE4>`) wait for
    the first token that is none: until then they can still turn out to be no characters, all of them.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        pieces: Pieces,
        skipped: Set[int] = frozenset(),
    ) -> None:
        """`decode` makes the text of ids; those in `skipped`, and those of no token, have none."""
        self._decode_ids, self._pieces, self._skipped = decode, pieces, skipped
        # Only the ids since the last but one complete character are decoded again. The earlier segment
        # stays in front, as some decoders treat the first token of a text differently.
        self._ids: list[int] = []
        self._context = 0
        self._emitted = 0

    def push(self, token: int) -> str:
        """The text that became certain with `token`; empty while a character is incomplete."""
        if token in self._skipped or token not in self._pieces:
            return ""
        self._ids.append(token)
        if self._pieces.is_byte(token):
            return ""
        text = self._decode()
        if text.endswith(_REPLACEMENT):
            # The last character may be half a character. Those before it can no longer change.
            piece = self._emit(text[:-1])
            if len(self._ids) > _MOST:
                self._shorten(held=1)
            return piece
        piece = self._emit(text)
        if piece and not piece.isspace():  # blanks at the beginning of a segment may be stripped from it
            self._ids = self._ids[self._context :]
            self._context = len(self._ids)
            self._emitted = len(self._decode())
        elif len(self._ids) > _MOST:
            self._shorten(held=0)
        return piece

    def flush(self) -> str:
        """Return the text that was held back, as it is: no token follows."""
        return self._emit(self._decode())

    def _shorten(self, held: int) -> None:
        """Keep the last ids alone, whose text but for `held` characters is out."""
        self._ids = self._ids[-_KEPT:]
        self._context = 0
        self._emitted = len(self._decode()) - held

    def _decode(self) -> str:
        return self._decode_ids(self._ids)

    def _emit(self, text: str) -> str:
        piece = text[self._emitted :]
        self._emitted = max(self._emitted, len(text))
        return piece
