"""A bundle as a model of lm-eval (EleutherAI's lm-evaluation-harness), which brings tasks and metrics."""

__all__ = ["BundleLM"]

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from doge_export.evaluate.perplexity import batches, calls_of, token_costs
from doge_export.runtime import GenerationOptions, Session, generate
from doge_export.runtime.reading import read_rows
from doge_export.tokenizer import Tokenizer

_ROWS = 16  # that are generated at a time
_NEW_TOKENS = 256  # where a task does not say, as in lm-eval

#: Tokens that are given, and those to be scored behind them.
Pair = tuple[list[int], list[int]]


class BundleLM(TemplateLM):  # type: ignore[misc] # lm-eval has no types
    """`session` answers lm-eval's three questions in batches. As lm-eval's own `hf` model does, texts are
    encoded without special tokens, an empty context is the beginning-of-text token, and what is longer than
    the model's max_position_embeddings (or a static cache) loses its beginning.

    `advance` is told of each request that is answered.
    """

    def __init__(
        self, session: Session, tokenizer: Tokenizer, advance: Callable[[int], None] = lambda count: None
    ) -> None:
        super().__init__()
        self._session, self._tokenizer, self._advance = session, tokenizer, advance
        config, capacity = session.bundle.config, session.bundle.manifest.cache.max_length
        self.max_length = min(config.max_position_embeddings, capacity or config.max_position_embeddings)

    @property
    def eot_token_id(self) -> int:
        """End of text; 0 in a model that has none."""
        return self._special("eos_token_id")

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it."""
        found = self._session.bundle.config.bos_token_id
        return self.eot_token_id if found is None else found

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's caches."""
        return str(self._session.bundle.path)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Without special tokens unless they are asked for."""
        return self._tokenizer.encode(string, add_special_tokens=bool(add_special_tokens))

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """(context, continuation) -> log-probability, and whether greedy decoding would give it."""
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return found

    def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        return self._scores([(context, target) for _, context, target in requests])

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> list[float]:
        """(text,) -> log-probability of all of it, in windows of max_length that do not overlap."""
        pairs: list[Pair] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            windows = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1)
            pairs += map(make_disjoint_window, windows)
            owners += [owner] * (len(pairs) - len(owners))
        totals = [0.0] * len(requests)
        for owner, (score, _) in zip(owners, self._scores(pairs), strict=True):
            totals[owner] += score
        return totals

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> list[str]:
        """(context, generation's arguments) -> the text up to the first stop string."""
        found = [""] * len(requests)
        for numbers in self._alike(requests):
            given = dict(requests[numbers[0]].args[1])
            options = self._options(given)
            room = max(1, self.max_length - (options.max_new_tokens or 0))
            prompts = [self.tok_encode(requests[number].args[0])[-room:] for number in numbers]
            prompts = [prompt or [self.prefix_token_id] for prompt in prompts]
            made = generate(self._session, prompts, options, self._tokenizer)
            for number, completion in zip(numbers, made.completions, strict=True):
                found[number] = completion.text
            self._advance(len(numbers))
        return found

    def _alike(self, requests: Any) -> Iterator[list[int]]:
        """Numbers of requests with the same arguments, the longest contexts first, some at a time."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(number)
        rows = min(_ROWS, self._session.max_batch or _ROWS)
        for group in groups.values():
            group.sort(key=lambda number: -len(requests[number].args[0]))
            yield from (group[at : at + rows] for at in range(0, len(group), rows))

    def _options(self, given: dict[str, Any]) -> GenerationOptions:
        until = given.get("until") or []
        sampled = bool(given.get("do_sample")) and float(given.get("temperature") or 0) > 0
        eos = self._session.bundle.config.eos_token_id
        return GenerationOptions(
            max_new_tokens=int(given.get("max_gen_toks", _NEW_TOKENS)),
            temperature=float(given["temperature"]) if sampled else 0.0,
            top_k=int(given.get("top_k") or 0) if sampled else 0,
            top_p=float(given.get("top_p") or 1) if sampled else 1.0,
            stop=tuple(each for each in ([until] if isinstance(until, str) else until) if each),
            seed=0,
            eos_token_ids=() if eos is None else tuple(eos if isinstance(eos, list) else [eos]),
        )

    def _special(self, name: str) -> int:
        found = getattr(self._session.bundle.config, name)
        return int((found[0] if isinstance(found, list) else found) or 0)

    def _scores(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """Each continuation's log-probability after its context, and whether every token is the best one."""
        # The last token is not read: nothing comes after it.
        rows = [(context + target)[-(self.max_length + 1) :] for context, target in pairs]
        found: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        order = sorted(range(len(pairs)), key=lambda number: -len(rows[number]))
        for part in batches(self._session, [len(rows[number]) - 1 for number in order]):
            batch = order[part]
            targets = [len(pairs[number][1]) for number in batch]
            scored = _score(self._session, [rows[number] for number in batch], targets)
            for number, score in zip(batch, scored, strict=True):
                found[number] = score
            self._advance(len(batch))
        return found


def _score(session: Session, rows: Sequence[list[int]], targets: Sequence[int]) -> list[tuple[float, bool]]:
    """The last `targets` tokens of each row. Shorter rows are filled up behind, which nothing before sees."""
    length = max(map(len, rows)) - 1
    ids = np.zeros((len(rows), length), np.int64)
    for row, tokens in zip(ids, rows, strict=True):
        row[: len(tokens) - 1] = tokens[:-1]
    totals, greedy = np.zeros(len(rows)), np.ones(len(rows), bool)
    for part, logits in read_rows(session, ids, calls_of(session, length), length):
        for number, (tokens, count) in enumerate(zip(rows, targets, strict=True)):
            begin, end = max(part.start, len(tokens) - 1 - count), min(part.stop, len(tokens) - 1)
            if begin < end:
                mine: npt.NDArray[np.float32] = logits[number, begin - part.start : end - part.start]
                wanted = np.array(tokens[begin + 1 : end + 1])
                greedy[number] &= bool((mine.argmax(-1) == wanted).all())
                totals[number] -= token_costs(mine, wanted)
    return list(zip(totals.tolist(), greedy.tolist(), strict=True))
