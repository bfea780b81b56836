"""What single tokens contribute to a text, as bytes."""

__all__ = ["Pieces"]

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers

_BASE = "abcdef"  # any text: a token after it is not the first, which decoders treat differently
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Pieces:
    """The bytes of each token where it is not the first of a text.

    They are those that transformers' `StopStringCriteria` looks for stop strings in: a token of a byte-level
    vocabulary, or of a byte fallback, may be a part of a character. Special tokens have bytes too.
    """

    def __init__(self, backend: "tokenizers.Tokenizer") -> None:
        self._backend, self._known = backend, dict[int, bytes]()
        kinds = _kinds(backend.decoder)
        self.byte_fallback = "ByteFallback" in kinds
        self._bytes = _byte_alphabet() if "ByteLevel" in kinds and not self.byte_fallback else {}
        #: Whether the pieces of a text's tokens, joined, are the text.
        self.exact = self.byte_fallback or bool(self._bytes)
        self._base = backend.encode(_BASE, add_special_tokens=False).tokens

    def __contains__(self, token: int) -> bool:
        """Whether there is a token of this id."""
        return token >= 0 and self._backend.id_to_token(token) is not None

    def __getitem__(self, token: int) -> bytes:
        """The bytes of the token of this id; none where there is no such token."""
        if token not in self._known:
            text = self._backend.id_to_token(token) if token >= 0 else None
            self._known[token] = b"" if text is None else self._made(text)
        return self._known[token]

    def is_byte(self, token: int) -> bool:
        """Whether it is one byte of a byte fallback."""
        text = self._backend.id_to_token(token) if self.byte_fallback else None
        return text is not None and _BYTE.fullmatch(text) is not None

    def _made(self, text: str) -> bytes:
        if self._bytes and all(char in self._bytes for char in text):
            return bytes(self._bytes[char] for char in text)
        if self.byte_fallback and (match := _BYTE.fullmatch(text)):
            return bytes([int(match[1], 16)])
        before, whole = self._decoded(self._base), self._decoded([*self._base, text])
        return whole[len(before) :].encode("utf-8", "replace") if whole.startswith(before) else text.encode()

    def _decoded(self, tokens: list[str]) -> str:
        decoder = self._backend.decoder
        return " ".join(tokens) if decoder is None else str(decoder.decode(tokens))


def _kinds(decoder: Any) -> set[str]:
    """The types of a decoder and of those that it consists of."""
    if decoder is None:
        return set()
    kinds, waiting = set(), [json.loads(decoder.__getstate__())]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            kinds.add(str(each.get("type")))
            waiting.extend(each.values())
        elif isinstance(each, list):
            waiting.extend(each)
    return kinds


def _byte_alphabet() -> dict[str, int]:
    """Character of a byte-level vocabulary -> its byte: printable ones of Latin-1 are themselves, the others
    follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
