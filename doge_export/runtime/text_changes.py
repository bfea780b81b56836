"""Settings whose effect changes with every token of a text, as what the kernels know: biases and masks."""

__all__ = ["CHANGING", "TextChanges", "change_with_text"]

import numpy as np
import numpy.typing as npt

from doge_export.runtime.options import GenerationOptions
from doge_export.runtime.processors import PROCESSORS, fewest_tokens

#: Of the processors, those that are done here.
CHANGING = frozenset({"count_penalty", "min_length"})
_LARGEST = 10.0  # of a penalty for one token; OpenAI's go to 2
_WORD = 64


def change_with_text(options: GenerationOptions) -> bool:
    """Whether there is such a setting."""
    return any(row.applies(options) for row in PROCESSORS if row.name in CHANGING)


class TextChanges:
    """The bias of each token, and the tokens that end a text too early, after what was made of one text.

    A penalty is subtracted after `sequence_bias` and `repetition_penalty`, which round; so it is a bias only
    where these are none (`possible`).
    """

    def __init__(self, options: GenerationOptions, vocab: int, prompt: int) -> None:
        self._options, self._prompt, self._made = options, prompt, 0
        self._counts: dict[int, int] = {}
        self._counting = options.frequency_penalty != 0 or options.presence_penalty != 0
        #: [vocab], or nothing where there is no penalty. Whoever has it bound may put another one here.
        self.bias = np.zeros(vocab if self._counting else 0, np.float32)
        early = np.ones(-(-vocab // _WORD) * _WORD, bool)
        early[[token for token in options.eos_token_ids if 0 <= token < vocab]] = False
        self._early = np.packbits(early, bitorder="little").view(np.int64)

    @staticmethod
    def possible(options: GenerationOptions) -> bool:
        """Whether the kernels can do what the options ask for: a penalty that is no number of usual size can
        leave float32."""
        penalties = (options.frequency_penalty, options.presence_penalty)
        if not any(penalties):
            return True
        alone = not options.sequence_bias and options.repetition_penalty == 1.0
        return alone and all(abs(penalty) <= _LARGEST for penalty in penalties)

    def accept(self, token: int) -> None:
        """Take the next token."""
        self._made += 1
        if self._counting:
            self._counts[token] = count = self._counts.get(token, 0) + 1
            options = self._options
            self.bias[token] = np.float32(-(count * options.frequency_penalty + options.presence_penalty))

    @property
    def allowed(self) -> npt.NDArray[np.int64] | None:
        """The bits of the tokens that may come next; None where all may."""
        return self._early if self._until_end > 0 else None

    @property
    def steps(self) -> int | None:
        """After how many tokens something changes; None where nothing does."""
        if self._counting:
            return 1
        return self._until_end if self._until_end > 0 else None

    @property
    def _until_end(self) -> int:
        """How many tokens may not be the end."""
        if not self._options.eos_token_ids:
            return 0
        before = 0 if self._options.min_new_tokens is not None else self._prompt
        return fewest_tokens(self._options) - before - self._made
