"""Continuing contexts until texts that a task names, as lm-eval's `hf` model does."""

__all__ = ["continuations"]

import contextlib
from collections.abc import Sequence

from doge_export.core.tokenizer import Tokenizer
from doge_export.runtime import GenerationOptions, Session, stream


def continuations(
    session: Session,
    tokenizer: Tokenizer,
    contexts: Sequence[Sequence[int]],
    options: GenerationOptions,
    until: Sequence[str],
) -> list[list[int]]:
    """The new tokens of each context, with the one that ended it: of eos_token_ids, the last of
    max_new_tokens, or one that completed a text of `until`.

    Raises:
        DogeExportError: see doge_export.runtime.stream.
    """
    ends = _Until(tokenizer, until)
    tokens: list[list[int]] = [[] for _ in contexts]
    going = set(range(len(contexts)))
    with contextlib.closing(stream(session, contexts, options)) as events:
        for event in events:
            if event.row in going:
                tokens[event.row].append(event.token)
                if event.finish_reason is not None or ends.reached(tokens[event.row]):
                    going.remove(event.row)
            if not going:
                break
    return tokens


class _Until:
    """Texts that end a generation. They are looked for in the last tokens alone, two more than a text has
    itself, special ones among them: MultiTokenEOSCriteria of lm_eval/models/utils_hf.py. What comes out later
    is cut by the caller."""

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._texts: dict[int, list[str]] = {}  # by how many tokens to look back
        for text in texts:
            length = len(tokenizer.encode(text, add_special_tokens=False)) + 2
            self._texts.setdefault(length, []).append(text)

    def reached(self, ids: Sequence[int]) -> bool:
        """Whether a text is there, of which the last token may be a part."""
        for length, texts in self._texts.items():
            last = self._tokenizer.decode(ids[-length:], skip_special_tokens=False)
            if any(text in last for text in texts):
                return True
        return False
