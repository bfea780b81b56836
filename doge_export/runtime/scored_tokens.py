"""The next token from all logits, with the log-probabilities of it and of the prompt."""

__all__ = ["ScoredTokens"]

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from doge_export.runtime.logprobs import TokenLogprobs, token_logprobs
from doge_export.runtime.options import GenerationOptions
from doge_export.runtime.processors import remove_invalid_values
from doge_export.runtime.sampling import Sampler, check_logits
from doge_export.runtime.session import Session
from doge_export.runtime.token_strategy import AllLogits, Read, Rules

Ids = npt.NDArray[np.int64]


class ScoredTokens(AllLogits):
    """AllLogits that remembers what was asked for beside the tokens.

    `made`: row -> of the token that was chosen last. `prompts`: row -> of every token of its prompt but the
    first, which nothing comes before; empty where they are not asked for.
    """

    def __init__(
        self,
        session: Session,
        options: GenerationOptions,
        batch: int,
        read: Read,
        first: int = 0,
        rules: Rules = (),
    ) -> None:
        """`first`: the number of the first row; `rules`: theirs."""
        super().__init__(session, Sampler(options, batch, first), batch, read, rules)
        self._options, self._count, self._first = options, options.logprobs or 0, first
        self._begun = not options.prompt_logprobs
        self.made: dict[int, TokenLogprobs] = {}
        self.prompts: dict[int, tuple[TokenLogprobs, ...]] = {}

    def choose(
        self, input_ids: Ids, real: Ids, position_ids: Ids, rows: Mapping[int, Sequence[int]], left: int
    ) -> dict[int, int]:
        """See TokenStrategy."""
        if self._begun:
            logits = self.last_logits(input_ids, real, position_ids)
        else:
            logits = self._read_prompts(input_ids, real, position_ids)
            self._begun = True
        tokens = self.chosen(logits, rows, left)
        self.made = {row: self._scores(logits[row, -1], token) for row, token in tokens.items()}
        return tokens

    def _read_prompts(self, input_ids: Ids, real: Ids, position_ids: Ids) -> npt.NDArray[np.float32]:
        """Run the prompts, and score each token by the logits before it; returns the last ones."""
        scores: list[list[TokenLogprobs]] = [[] for _ in input_ids]
        at, end = 0, input_ids.shape[1]
        for logits in self.calls(input_ids, real, position_ids):
            for place in range(at, min(at + logits.shape[1], end - 1)):
                self._read(0)  # nothing new; but who is told may end it here, and a prompt can be long
                for row in np.flatnonzero(real[:, place]):
                    here = logits[row, place - at]
                    if not self._options.remove_invalid_values:
                        check_logits(self._first + int(row), here)
                    scores[row].append(self._scores(here, int(input_ids[row, place + 1])))
            at += logits.shape[1]
        self.prompts = {row: tuple(each) for row, each in enumerate(scores)}
        return logits

    def _scores(self, logits: npt.NDArray[np.float32], token: int) -> TokenLogprobs:
        if self._options.remove_invalid_values:
            logits = remove_invalid_values(logits).astype(np.float32)
        return token_logprobs(logits, token, self._count)
