"""What a text may be: ids of the vocabulary, and as many tokens as there is room for."""

__all__ = ["LimitError", "check_ids", "check_prompts", "most_tokens", "token_limit"]

from collections.abc import Sequence
from typing import Literal

from doge_export.core.bundle import Bundle
from doge_export.core.errors import DogeExportError
from doge_export.core.token_ids import outside
from doge_export.runtime.options import GenerationOptions

_MAX_NEW_TOKENS = 100


class LimitError(DogeExportError):
    """There is no room for a text; `about` says what of it is to be changed."""

    def __init__(self, about: Literal["prompt", "max_new_tokens"], message: str, remedy: str) -> None:
        super().__init__(message, remedy)
        self.about = about


def check_prompts(bundle: Bundle, prompts: Sequence[Sequence[int]]) -> None:
    """Refuse an empty prompt, and ids outside the vocabulary.

    Raises:
        DogeExportError: a prompt is one of these.
    """
    vocab = bundle.config.vocab_size
    for prompt in prompts:
        if len(prompt) == 0:
            raise LimitError("prompt", "The prompt is empty.", "Give at least one token.")
        if foreign := outside(tuple(prompt), vocab):
            raise DogeExportError(
                f"The prompt has the token id {foreign[0]}, and the model's vocabulary has {vocab} entries.",
                "The tokenizer does not belong to this model.",
            )


def check_ids(bundle: Bundle, options: GenerationOptions) -> None:
    """Refuse ids outside the vocabulary: that of padding, which is read as a token, and those of the
    options."""
    vocab = bundle.config.vocab_size
    for name, ids in (
        ("pad_token_id", (options.pad_token_id,)),
        ("forced_bos_token_id", options.forced_bos_token_id),
        ("forced_eos_token_id", options.forced_eos_token_id),
        ("bad_words_ids", tuple(token for sequence in options.bad_words_ids for token in sequence)),
        ("sequence_bias", tuple(token for sequence, _ in options.sequence_bias for token in sequence)),
    ):
        for token in outside(ids, vocab):
            raise DogeExportError(
                f"{name} has the id {token}, and the model's vocabulary has {vocab} entries, from 0 to "
                f"{vocab - 1}.",
                "Give the id of a token.",
            )


def most_tokens(options: GenerationOptions, prompt: int) -> int:
    """Return how many tokens the options leave room for after a prompt of so many."""
    if options.max_new_tokens is not None or options.max_length is None:
        return options.max_new_tokens or _MAX_NEW_TOKENS
    if prompt >= options.max_length:
        raise LimitError(
            "max_new_tokens",
            f"A prompt has {prompt} tokens, and max_length, which counts them too, is {options.max_length}.",
            "Say how many are to follow: --max-new-tokens (max_tokens in a request) wins over max_length.",
        )
    return options.max_length - prompt


def token_limit(capacity: int | None, slots: int, options: GenerationOptions, prompt: int) -> int:
    """Return how many tokens may be made after a prompt that takes so many `slots`, padding included. It is
    known before the first, so that no text breaks off with an error."""
    wanted, asked = most_tokens(options, prompt), options.max_new_tokens
    if capacity is None:
        return wanted
    room = capacity - slots + 1  # the last new token is never fed
    if room < 1:
        raise LimitError(
            "prompt",
            f"The prompt has {slots} tokens, and the bundle's static cache holds {capacity}.",
            f"Shorten it, or export with --max-length {slots} or more.",
        )
    if asked is not None and asked > room:
        raise LimitError(
            "max_new_tokens",
            f"A prompt of {slots} tokens and {asked} new ones need {slots + asked - 1} slots, and the "
            f"bundle's static cache holds {capacity}.",
            f"Ask for at most {room} new tokens, or export with a larger --max-length.",
        )
    return min(wanted, room)
