"""A bundle as a model of lm-eval (EleutherAI's lm-evaluation-harness), which brings tasks and metrics.

What it gives is what lm-eval's own `hf` model gives with transformers' Doge at batch_size 1: the reference is
`HFLM` in lm_eval/models/huggingface.py, and its base `TemplateLM`, of 0.4.13
(docs/lab/2026-11-30-evaluation.md). Sums are float64, as its are with softmax_dtype=float64.
"""

__all__ = ["BundleLM"]

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import has_bos_prefix, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from doge_export.core.errors import DogeExportError
from doge_export.core.progress import Progress, silent
from doge_export.core.tokenizer import Tokenizer
from doge_export.evaluate.arguments import Asked, generation_arguments
from doge_export.evaluate.continuations import continuations
from doge_export.evaluate.likelihood import Pair, score_pairs
from doge_export.evaluate.task_options import ModelArguments
from doge_export.runtime import GenerationDefaults, GenerationOptions, Session
from doge_export.runtime.neighbours import rows_are_independent

_log = logging.getLogger(__name__)

_ROWS = 16  # that are generated at a time
_DEFAULTS = ModelArguments()


class BundleLM(TemplateLM):  # type: ignore[misc] # lm-eval has no types
    """A model of lm-eval: `session` answers its requests. `progress` gets answered requests.

    Every request is answered as it is alone, whatever shares its calls.

    Raises:
        DogeExportError: an argument is out of its range, or the tokenizer names neither bos_token nor
            eos_token and there is no `prefix_token_id`.
    """

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer,
        arguments: ModelArguments = _DEFAULTS,
        progress: Progress = silent,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer  # TemplateLM.chat_template reads it
        self._session, self._progress = session, progress
        self._add_bos = arguments.add_bos_token
        self.max_length = _max_length(session, arguments.max_length)
        self._prefix = _prefix(session, tokenizer, arguments.prefix_token_id)
        self._prefix_text = tokenizer.decode([self._prefix], skip_special_tokens=False)
        self._think_end, self._thinks = arguments.think_end, bool(arguments.enable_thinking)
        self._variables = arguments.template_variables
        self._read: dict[str, Asked] = {}
        self._told = False

    @property
    def eot_token_id(self) -> int | None:
        """The tokenizer's eos_token; None where it names none."""
        return self.tokenizer.token_id("eos_token")

    @property
    def prefix_token_id(self) -> int:
        """The token put before a text that has nothing before it."""
        return self._prefix

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's name in lm-eval's caches."""
        return str(self._session.bundle.path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Encode with the special tokens that the tokenizer adds, or that add_bos_token asks for; without
        them where the text begins with the prefix token's text."""
        if add_special_tokens is None:
            add_special_tokens = not has_bos_prefix(string, self._prefix_text) and self._add_bos is not False
        return self._encode(string, add_special_tokens)

    def _encode(self, text: str, special: bool) -> list[int]:
        """Encode `text`. `special`: with what the tokenizer adds; with add_bos_token that is bos_token
        alone."""
        if special and self._add_bos:
            bos = self.tokenizer.token_id("bos_token")
            return [*([] if bos is None else [bos]), *self._encode(text, False)]
        return self.tokenizer.encode(text, add_special_tokens=special)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The conversation as one text. Without `add_generation_prompt` it ends where its last message does,
        to be continued. A template that refuses the messages gets them without the system's.

        Raises:
            DogeExportError: there is no template, or it refuses them then too.
        """
        try:
            return self._templated(chat_history, add_generation_prompt)
        except DogeExportError as error:
            others = [message for message in chat_history if message["role"] != "system"]
            if self.tokenizer.chat_template is None or len(others) in (0, len(chat_history)):
                raise
            if not self._told:
                _log.warning("Chats are made without their system messages: %s", error)
            self._told = True
            return self._templated(others, add_generation_prompt)

    def _templated(self, messages: Sequence[Mapping[str, str]], prompted: bool) -> str:
        return self.tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=prompted,
            continue_final_message=not prompted,
            **self._variables,
        )

    def check(self, requests: Any) -> None:
        """See whether `requests` ask for nothing that cannot be done; nothing is run.

        Raises:
            DogeExportError: naming the task and the argument.
        """
        for request in requests:
            if request.request_type == "generate_until":
                self._asked(request)
            elif request.request_type not in ("loglikelihood", "loglikelihood_rolling"):
                raise _refused(request, f"there is no answer to requests of type {request.request_type}.")
            elif self._thinks and request.request_type == "loglikelihood":
                raise _refused(request, "enable_thinking is for tasks that generate alone.")

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """(context, continuation) -> log-probability, and whether greedy decoding would give it.

        Raises:
            DogeExportError: a continuation has no tokens, or more than max_length.
        """
        self.check(requests)
        return self._scores([self._pair(request) for request in requests])

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
        """(context, generation's arguments) -> the text up to the first stop string.

        Raises:
            DogeExportError: an argument cannot be done, or a context is empty or does not fit.
        """
        self.check(requests)
        contexts = [self._context(request) for request in requests]
        options = [
            self._options(*each) for each in zip(requests, contexts, range(len(requests)), strict=True)
        ]
        texts = [""] * len(requests)
        for numbers in self._together(requests, contexts, options):
            first = numbers[0]
            until = self._asked(requests[first]).until
            generated = continuations(
                self._session, self.tokenizer, [contexts[number] for number in numbers], options[first], until
            )
            for number, ids in zip(numbers, generated, strict=True):
                texts[number] = self._text(ids, until)
            self._progress(len(numbers))
        return texts

    def _scores(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        return score_pairs(self._session, pairs, self.max_length, self._progress)

    def _pair(self, request: Any) -> Pair:
        context, continuation = request.args
        if context == "":
            target = self.tok_encode(continuation, add_special_tokens=False)
            source = [self._prefix]
            if target[:1] == source:
                source, target = target[:1], target[1:]
        else:
            source, target = self._encode_pair(context, continuation)
        for ids, name in ((source, "context"), (target, "continuation")):
            if not ids:
                raise _refused(
                    request,
                    f"the {name} of {context[-40:]!r} and {continuation[:40]!r} has no token of its own.",
                    "lm-eval's hf fails there too: mend the document.",
                )
        if len(target) > self.max_length:
            raise _refused(
                request,
                f"a continuation has {len(target)} tokens, and the model takes {self.max_length}.",
                "lm-eval's hf fails there too: shorten it.",
            )
        return source, target

    def _asked(self, request: Any) -> Asked:
        """Return the arguments of a request, read once."""
        arguments = request.args[1]
        key = repr(sorted(arguments.items(), key=str)) if isinstance(arguments, dict) else repr(arguments)
        if key not in self._read:
            try:
                self._read[key] = generation_arguments(
                    arguments,
                    self._defaults,
                    self._end,
                    self.max_length,
                    self._session.bundle.config.vocab_size,
                )
            except DogeExportError as error:
                raise _refused(request, error.message, error.remedy) from None
        return self._read[key]

    @cached_property
    def _end(self) -> str | None:
        """The text of the eos_token."""
        eos = self.eot_token_id
        return None if eos is None else self.tokenizer.decode([eos], skip_special_tokens=False)

    @cached_property
    def _defaults(self) -> GenerationDefaults:
        """The generation settings of the bundle.

        Raises:
            DogeExportError: they are damaged, or have stop_strings.
        """
        defaults = GenerationDefaults.of(self._session.bundle)
        if defaults.always.get("stop"):
            raise DogeExportError(
                "generation_config.json has stop_strings, which transformers refuses from lm-eval's hf.",
                "Take them out of it.",
            )
        return defaults

    def _context(self, request: Any) -> list[int]:
        """Return the ids of a context, cut on the left where the new tokens would have no room."""
        text = request.args[0]
        begun = has_bos_prefix(text, self.tokenizer.special_tokens.get("bos_token"))
        ids = self._encode(text, not begun and self._add_bos is not False)
        if not ids:
            raise _refused(
                request,
                "the context is empty, and the tokenizer adds nothing to it.",
                "lm-eval's hf fails there too: give the task a text, or add_bos_token=true.",
            )
        return ids[-(self.max_length - self._asked(request).max_gen_toks) :]

    def _options(self, request: Any, context: Sequence[int], number: int) -> GenerationOptions:
        """Return the options of a request. Its number is in the seed: the same request twice draws two
        texts."""
        try:
            options = self._asked(request).for_context(len(context))
        except DogeExportError as error:
            raise _refused(request, error.message, error.remedy) from None
        needed, slots = len(context) + (options.max_new_tokens or 0) - 1, _capacity(self._session)
        if slots is not None and needed > slots:
            raise _refused(
                request,
                f"context and new tokens need {needed} slots, and the bundle's static cache holds {slots}.",
                "Ask for less, or export with a larger --max-length.",
            )
        return options if options.greedy else replace(options, seed=number)

    def _together(
        self,
        requests: Any,
        contexts: Sequence[Sequence[int]],
        options: Sequence[GenerationOptions],
    ) -> Iterator[list[int]]:
        """Yield numbers of requests that may share their calls, the longest contexts first. A request that
        draws has a seed of its own, and is alone."""
        groups: dict[Any, list[int]] = {}
        for number, (request, option) in enumerate(zip(requests, options, strict=True)):
            groups.setdefault((option, self._asked(request).until), []).append(number)
        max_rows = min(_ROWS, self._session.max_batch or _ROWS)
        for group in groups.values():
            group.sort(key=lambda number: -len(contexts[number]))
            new, at = options[group[0]].max_new_tokens or 0, 0
            while at < len(group):
                lengths = [len(contexts[number]) for number in group[at : at + max_rows]]
                alone = not rows_are_independent(self._session.bundle, lengths, lengths[0] + new)
                end = at + (1 if alone else len(lengths))
                yield group[at:end]
                at = end

    def _text(self, ids: list[int], until: Sequence[str]) -> str:
        """Return the text behind the last end of thinking, and before the first of `until`."""
        thought = self._think_end if isinstance(self._think_end, str) else None
        if isinstance(self._think_end, int):
            if self._think_end in ids:
                ids = ids[len(ids) - ids[::-1].index(self._think_end) :]
            text = self.tokenizer.decode(ids).lstrip()
        else:
            text = self.tokenizer.decode(ids)
        return str(postprocess_generated_text(text, list(until), thought))


def _capacity(session: Session) -> int | None:
    return session.bundle.manifest.cache.max_length


def _max_length(session: Session, asked: int | None) -> int:
    """Return the longest context as lm-eval resolves it, or what a static cache holds if that is less."""
    config, capacity = session.bundle.config, _capacity(session)
    positions = config.raw.get("n_positions")
    length = positions if isinstance(positions, int) else config.max_position_embeddings
    if asked:  # 0 is none, as there
        if asked < 0:
            raise DogeExportError(f"max_length is {asked}, and no number of tokens.")
        if capacity is not None and asked > capacity:
            raise DogeExportError(
                f"max_length is {asked}, and the bundle's static cache holds {capacity}.",
                "Export with a larger --max-length.",
            )
        return asked
    if capacity is not None and capacity < length:
        _log.warning(
            "The static cache holds %d tokens: longer texts lose their beginning, as in lm-eval's hf "
            "with max_length=%d.",
            *(capacity, capacity),
        )
        return capacity
    return length


def _prefix(session: Session, tokenizer: Tokenizer, asked: int | None) -> int:
    named = [tokenizer.token_id(name) for name in ("bos_token", "eos_token")]
    prefix = next((token for token in (asked, *named) if token is not None), None)
    if prefix is None:
        raise DogeExportError(
            "The tokenizer names neither bos_token nor eos_token, and lm-eval needs one before a text.",
            "Give prefix_token_id.",
        )
    if not 0 <= prefix < session.bundle.config.vocab_size:
        raise DogeExportError(f"prefix_token_id {prefix} is not in the model's vocabulary.")
    return prefix


def _refused(request: Any, sentence: str, remedy: str = "") -> DogeExportError:
    where = "A request" if request.task_name is None else f"Task {request.task_name}"
    return DogeExportError(f"{where}: {sentence}", remedy)
