"""What a new token of a row means to its reader: text, and perhaps the end; and how long tokens took."""

__all__ = ["Event", "Statistics", "event_of", "rules_end"]

from dataclasses import dataclass, field

from doge_export.runtime.constraints import Constraint
from doge_export.runtime.logprobs import TokenLogprobs
from doge_export.runtime.options import GenerationOptions
from doge_export.runtime.stop_strings import RowText


@dataclass(frozen=True)
class Event:
    """One new token of one row, the text that became certain with it, and why the row ends, if it does.

    `finish_reason`: "eos", "stop" (a stop string, or the text's rules allow no more) or "length", which is
    the end of `max_time` too.
    `logprobs`: of the token, where the options ask for them. `prompt_logprobs`: likewise, with a row's first
    token, of each token of its prompt but the first. `reused_tokens`: likewise, how many of its prompt's
    another text had read; it is no part of what the row says.
    """

    row: int
    token: int
    text: str
    finish_reason: str | None
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
    reused_tokens: int = field(default=0, compare=False)


@dataclass
class Statistics:
    """Tokens and seconds of prefill and decode. Padding does not count; the first new token is prefill's."""

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0

    @property
    def prefill_tokens_per_second(self) -> float:
        """Speed of prefill; 0 where nothing was run."""
        return self.prefill_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Speed of decoding; 0 where the first token was the last."""
        return self.decode_tokens / self.decode_seconds if self.decode_seconds else 0.0


def rules_end(rules: Constraint | None, token: int) -> bool:
    """Tell the rules of a text its token; returns whether they allow no more."""
    if rules is None:
        return False
    rules.accept(token)
    return rules.ended


def event_of(
    row: int, token: int, text: RowText, options: GenerationOptions, last: bool, whole: bool = False
) -> Event:
    """Take the next token of row number `row`, whose text `text` is; with `last` no other follows, with
    `whole` its rules allow no other."""
    if token in options.eos_token_ids:
        return Event(row, token, text.end(token), "eos")
    piece = text.push(token)
    if last or whole:
        piece += text.end()
    if text.stopped or whole:
        return Event(row, token, piece, "stop")
    return Event(row, token, piece, "length" if last else None)
