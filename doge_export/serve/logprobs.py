"""Log-probabilities in the two shapes of OpenAI's API, and in llama.cpp's."""

__all__ = ["ScoredToken", "ScoredTokens", "of_chat", "of_completion", "of_native"]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from doge_export.core.tokenizer import Tokenizer
from doge_export.runtime import Event, TokenLogprobs

_LEAST = -9999.0  # stands for what JSON has not: the logarithm of 0


@dataclass(frozen=True)
class ScoredToken:
    """A token, the place in the text where it begins, and its log-probability; the first token of a prompt
    has none."""

    token: int
    offset: int
    scores: TokenLogprobs | None


class ScoredTokens:
    """The tokens of one choice as they come; `take` gives those that were not given out yet."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream, self._at = tokenizer.stream(), 0
        self._new: list[ScoredToken] = []

    def prompt(self, ids: Sequence[int], scores: Sequence[TokenLogprobs], text: str) -> None:
        """Put the prompt in front, which is `text` in the response."""
        for token, each in zip(ids, (None, *scores), strict=True):
            self._add(token, each, len(text))
        self._stream, self._at = self._tokenizer.stream(), len(text)

    def add(self, token: int, scores: TokenLogprobs) -> None:
        """Take the next token."""
        self._add(token, scores)

    def take(self) -> list[ScoredToken]:
        """The tokens since the last call."""
        new, self._new = self._new, []
        return new

    def _add(self, token: int, scores: TokenLogprobs | None, most: int | None = None) -> None:
        before, piece = self._at, self._stream.push(token)
        self._at += len(piece)
        # What was held back, half a character, comes out before the token's own text.
        own = self._tokenizer.pieces[token].decode("utf-8", "replace")
        offset = self._at - len(own) if piece.endswith(own) else before
        self._new.append(ScoredToken(token, offset if most is None else min(offset, most), scores))


def of_chat(tokens: Sequence[ScoredToken], tokenizer: Tokenizer) -> dict[str, Any]:
    """`logprobs` of a choice of a chat."""

    def shape(token: int, logprob: float) -> dict[str, Any]:
        # The bytes of all tokens together are the text, which leaves special tokens out.
        special = token in tokenizer.special_ids
        spelled = None if special else list(tokenizer.pieces[token])
        return {"token": _text(token, tokenizer), "bytes": spelled, "logprob": _finite(logprob)}

    content = [
        {
            **shape(each.token, each.scores.logprob),
            "top_logprobs": [shape(token, logprob) for token, logprob in each.scores.best],
        }
        for each in tokens
        if each.scores is not None
    ]
    return {"content": content, "refusal": None}


def of_completion(tokens: Sequence[ScoredToken], tokenizer: Tokenizer) -> dict[str, Any]:
    """`logprobs` of a choice of a completion. The token itself is among the likeliest ones always."""

    def best(each: ScoredToken) -> dict[str, float] | None:
        if each.scores is None:
            return None
        pairs = [*each.scores.best, (each.token, each.scores.logprob)]
        found: dict[str, float] = {}
        for token, logprob in pairs:  # of two with the same bytes the likelier one
            found.setdefault(_text(token, tokenizer), _finite(logprob))
        return found

    return {
        "tokens": [_text(each.token, tokenizer) for each in tokens],
        "token_logprobs": [each.scores and _finite(each.scores.logprob) for each in tokens],
        "top_logprobs": [best(each) for each in tokens],
        "text_offset": [each.offset for each in tokens],
    }


def of_native(events: Sequence[Event], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """`completion_probabilities` of llama.cpp's own route."""

    def shape(token: int, logprob: float) -> dict[str, Any]:
        piece = tokenizer.pieces[token]
        text = piece.decode("utf-8", "replace")
        return {"id": token, "token": text, "bytes": list(piece), "logprob": _finite(logprob)}

    return [
        shape(event.token, event.logprobs.logprob)
        | {"top_logprobs": [shape(token, logprob) for token, logprob in event.logprobs.best]}
        for event in events
        if event.logprobs is not None
    ]


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST)


def _text(token: int, tokenizer: Tokenizer) -> str:
    """The token's text; of a part of a character the bytes, as OpenAI spells them."""
    piece = tokenizer.pieces[token]
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)
