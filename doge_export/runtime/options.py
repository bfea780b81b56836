"""How the next tokens are chosen, and when a text ends."""

__all__ = ["GenerationOptions", "Ids", "SequenceBias"]

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from doge_export.core.errors import DogeExportError

Ids = tuple[int, ...]
#: Token ids, and what is added to the score of the last of them where the others stand before it.
SequenceBias = tuple[tuple[Ids, float], ...]


@dataclass(frozen=True)
class GenerationOptions:
    """How the next tokens are chosen, and when to stop. Names and meaning are those of transformers'
    GenerationConfig; a field's default is what leaves it out.

    `temperature` 0 is greedy: what is only done where tokens are drawn (temperature, top_k, top_p and those
    behind them up to `eta_cutoff`) does nothing then. `top_k` 0 and `top_p` 1 are off.

    `max_new_tokens` None is what `max_length`, of prompt and text together, leaves; where there is none
    either, 100, or what a static cache has room for. `min_new_tokens` wins over `min_length` likewise.
    `max_time` is in seconds, from the prompt on; the token under way is finished. `stop` are stop_strings.

    Not of transformers: `frequency_penalty` and `presence_penalty`, which are OpenAI's and count new tokens
    alone; `logprobs`, with which every new token comes with its log-probability and so many of the best ones,
    and `prompt_logprobs`, with which those of the prompt come too. They are of the model's own distribution,
    whatever changes the choice.

    Of a batch, each row counts its own tokens, without padding, so that it is what it would be alone.

    Raises:
        DogeExportError: a value is out of its range.
    """

    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    eos_token_ids: Ids = ()
    pad_token_id: int = 0
    min_p: float = 0.0
    top_h: float | None = None
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    max_length: int | None = None
    min_length: int = 0
    min_new_tokens: int | None = None
    max_time: float | None = None
    encoder_repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    sequence_bias: SequenceBias = ()
    bad_words_ids: tuple[Ids, ...] = ()
    suppress_tokens: Ids = ()
    begin_suppress_tokens: Ids = ()
    forced_bos_token_id: Ids = ()
    forced_eos_token_id: Ids = ()
    exponential_decay_length_penalty: tuple[float, float] | None = None
    remove_invalid_values: bool = False
    renormalize_logits: bool = False
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logprobs: int | None = None
    prompt_logprobs: bool = False

    def __post_init__(self) -> None:
        for name, good in _RANGES.items():
            value = getattr(self, name)
            if not good(value):
                raise DogeExportError(f"{name} cannot be {value!r}.")
        if self.exponential_decay_length_penalty is not None and not self.eos_token_ids:
            raise DogeExportError(
                "exponential_decay_length_penalty makes an end of the text more likely, and there is no "
                "eos_token_id.",
                "Name one in generation_config.json, or take the penalty out.",
            )

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken each time."""
        return self.temperature == 0

    @property
    def scored(self) -> bool:
        """Whether log-probabilities are asked for, which takes the logits of all tokens."""
        return self.logprobs is not None or self.prompt_logprobs


def _positive(value: float) -> bool:
    return value > 0 and math.isfinite(value)


_RANGES: Mapping[str, Callable[[Any], bool]] = {
    "max_new_tokens": lambda value: value is None or value > 0,
    "temperature": lambda value: value >= 0 and math.isfinite(value),
    "top_k": lambda value: value >= 0,
    "top_p": lambda value: 0 <= value <= 1,
    "repetition_penalty": _positive,
    "seed": lambda value: value is None or value >= 0,
    "stop": all,
    "min_p": lambda value: 0 <= value <= 1,
    "top_h": lambda value: value is None or 0 < value <= 1,
    "typical_p": lambda value: 0 < value <= 1,
    "epsilon_cutoff": lambda value: 0 <= value < 1,
    "eta_cutoff": lambda value: 0 <= value < 1,
    "max_time": lambda value: value is None or not math.isnan(value),
    "encoder_repetition_penalty": _positive,
    "exponential_decay_length_penalty": lambda value: value is None or math.isfinite(value[1]),
    "frequency_penalty": math.isfinite,
    "presence_penalty": math.isfinite,
    "logprobs": lambda value: value is None or value >= 0,
}
