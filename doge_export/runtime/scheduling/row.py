"""One text of a pool: what it has read, what it has made, and how its next token is chosen."""

__all__ = ["Row", "can_be_pooled"]

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from doge_export.core.bundle import Bundle
from doge_export.core.errors import DogeExportError
from doge_export.runtime.calls import MAX_STEPS
from doge_export.runtime.constraints import Constraint
from doge_export.runtime.drafts import PromptLookup
from doge_export.runtime.draws import DraftDraws, Draws, draws_of
from doge_export.runtime.events import event_of, rules_end
from doge_export.runtime.limits import token_limit
from doge_export.runtime.options import GenerationOptions
from doge_export.runtime.pool_sizes import PoolSizes
from doge_export.runtime.processors import best_tokens_needed
from doge_export.runtime.sampling import check_logits
from doge_export.runtime.scheduling.job import Job
from doge_export.runtime.scheduling.prefixes import Loading
from doge_export.runtime.session import Session
from doge_export.runtime.slot_checkpoint import Checkpoint
from doge_export.runtime.stop_strings import RowText
from doge_export.runtime.text_changes import CHANGING, TextChanges, change_with_text


def can_be_pooled(
    session: Session,
    options: GenerationOptions,
    constraints: Sequence[Constraint | None] | None = None,
) -> bool:
    """Whether the kernels choose the tokens of such texts, so that they can share calls with others."""
    if not (session.candidates and session.pools):
        return False
    if options.remove_invalid_values:
        return False
    if best_tokens_needed(options) == 1 and not any(constraints or ()):
        return True
    if not TextChanges.possible(options):
        return False
    return session.draws and _draws(options, 0, 0, session.bundle.config.vocab_size) is not None


def _draws(options: GenerationOptions, seed: int, number: int, vocab: int) -> Draws | None:
    return draws_of(options, seed, 1, number, vocab, CHANGING)


class Row:
    """Row `number` of a job. `seen`: its prompt and its tokens; of them `read` are in the cache of `slot`,
    and what is due comes next."""

    def __init__(
        self, job: Job, number: int, bundle: Bundle, draws: bool, rewindable: int | None = None
    ) -> None:
        options, prompt = job.options, job.prompts[number]
        self.job, self.number, self.options = job, number, options
        self.seen, self.prompt_length, self.read = list(prompt), len(prompt), 0
        self.slot: int | None = None
        decode = bundle.manifest.decode
        assert decode is not None
        self.limit = token_limit(decode.cache.max_length, len(prompt), options, len(prompt))
        self.constraint = None if job.constraints is None else job.constraints[number]
        #: Whether the best token is taken each time, whatever came before.
        self.plain = best_tokens_needed(options) == 1 and self.constraint is None
        vocab = bundle.config.vocab_size
        self.draws = _draws(options, job.seed, number, vocab) if draws else None
        self.changes = TextChanges(options, vocab, len(prompt)) if change_with_text(options) else None
        self.lookup = PromptLookup(rewindable)
        self._draft_draws: DraftDraws | None = None
        self._regime = bundle.config.rope_regime
        regime = self._regime(len(prompt))
        #: Whether the rope turns by the length of the prompt, which all pieces are told then.
        self.turns = regime != 0
        #: What has been read with the same salt and frequencies has the same bits. No two pairs look alike.
        self.salt = f"\0{regime}\0{job.salt}" if regime or job.salt.startswith("\0") else job.salt
        #: The tokens that it may have read in the end, those that a call makes beyond the last one included.
        self.room = len(prompt) + self.limit - 1 + (MAX_STEPS - 1 if decode.cache.max_length is None else 0)
        self.ended = False
        self.begun = 0.0  # when it got its slot
        self.known_length = 0  # of what others had read of it
        self.reused = 0  # tokens of its prompt that it did not read, since others had
        self.checkpoint: Checkpoint | None = None  # before the call that is under way
        self.loading: Loading | None = None  # what is read of it from disk
        #: The same for rows that read the same before their first token.
        self.beginning = hash((job.salt, tuple(prompt[:-1])))
        self.known: dict[int, None] = dict.fromkeys(prompt)  # what is in it, each token once
        self._text = RowText(job.tokenizer, options.stop, prompt)

    def check_room(self, sizes: PoolSizes) -> None:
        """Refuse a text that a pool of these sizes cannot hold, were it alone.

        Raises:
            DogeExportError: it is one.
        """
        most = sizes.most_tokens
        if most is None or self.room <= most:
            return
        fewer = self.limit - (self.room - most)
        raise DogeExportError(
            f"The prompt's {self.prompt_length:,} tokens and {self.limit:,} new ones need a cache of "
            f"{sizes.bytes(self.room):,} bytes, and all texts together may have {sizes.limit:,} "
            "(--cache-bytes).",
            f"Ask for at most {fewer:,} new tokens (max_tokens), or shorten the prompt."
            if fewer > 0
            else "Shorten the prompt, or have the server started with more --cache-bytes.",
        )

    @property
    def shares(self) -> bool:
        """Whether what it has read has the bits that it has in prompts of which the rope turns likewise: each
        token of a prompt turns by the prompt's length, and each after it by its own place."""
        return self.read <= self.prompt_length or self._regime(self.read) == self._regime(self.prompt_length)

    @property
    def due(self) -> int:
        """Tokens that are to be read before the next one is known."""
        return len(self.seen) - self.read

    @property
    def made(self) -> int:
        """Its new tokens."""
        return len(self.seen) - self.prompt_length

    @property
    def left(self) -> int:
        """New tokens that are wanted yet, at most."""
        return self.limit - self.made

    @property
    def steps(self) -> int:
        """The most tokens that a call may make, before something else has to be asked."""
        if self.constraint is not None:
            return 1
        if self.changes is not None and (steps := self.changes.steps) is not None:
            return steps
        return MAX_STEPS

    def allowed(self) -> npt.NDArray[np.int64] | None:
        """The bits of the tokens that may come next, by its rules and settings; None where all may."""
        ruled = None if self.constraint is None else self.constraint.allowed()
        early = None if self.changes is None else self.changes.allowed
        if ruled is None or early is None:
            return early if ruled is None else ruled
        return ruled & early

    def draft(self) -> list[int]:
        """Return what may come after its text, where it pays to read that in one call."""
        if self.steps == 1:
            return []
        return self.lookup.draft(self.seen, self.left - 1)

    def draft_draws(self, draft: Sequence[int]) -> Draws | None:
        """Return how the tokens before each of a draft and after it are drawn; None where it takes the best
        ones."""
        if self.plain or self.draws is None:
            return None
        if self._draft_draws is None:
            self._draft_draws = DraftDraws(self.draws)
        return self._draft_draws.of(draft, self.known)

    def take(self, tokens: list[int], logits: list[float]) -> None:
        """Take the tokens that follow what was read, up to the one that ends the text.

        Raises:
            NoNumbersError: a logit is no number.
        """
        limit, now = self.options.max_time, time.perf_counter()
        late = now > self.job.until or (limit is not None and now - self.begun > limit)
        for token, logit in zip(tokens, logits, strict=True):
            if not math.isfinite(logit):
                check_logits(self.number, np.array([logit], np.float32), best_alone=True)
            self.seen.append(token)
            self.known[token] = None
            if self.changes is not None:
                self.changes.accept(token)
            last = late or self.left == 0
            whole = rules_end(self.constraint, token)
            event = event_of(self.number, token, self._text, self.options, last, whole)
            if self.made == 1:
                event = replace(event, reused_tokens=self.reused)
            self.job.add(event)
            if event.finish_reason is not None:
                self.ended = True
                return
