"""The fields of a request's body: what `requests.py` checks them by, and `openapi.py` describes them by."""

__all__ = ["MAX_CHOICES", "OPTIONS", "UNSUPPORTED", "OptionField"]

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_CHOICES = 64


@dataclass(frozen=True)
class OptionField:
    """A field that sets an `option` of GenerationOptions, which checks the range. `limits` are that range in
    the words of JSON Schema."""

    option: str
    kind: type
    meaning: str
    limits: Mapping[str, float] = field(default_factory=dict)


_TOKENS = OptionField("max_new_tokens", int, "The most new tokens of a choice.", {"minimum": 1})

#: Field -> the option that it sets. Those after `seed` are not OpenAI's.
OPTIONS: Mapping[str, OptionField] = {
    "max_tokens": _TOKENS,
    "max_completion_tokens": _TOKENS,
    "temperature": OptionField(
        "temperature",
        float,
        "Logits are divided by it before a token is drawn; 0 takes the likeliest token.",
        {"minimum": 0},
    ),
    "top_p": OptionField(
        "top_p",
        float,
        "Only the likeliest tokens that together have this probability are drawn from.",
        {"minimum": 0, "maximum": 1},
    ),
    "seed": OptionField("seed", int, "The same seed draws the same tokens.", {"minimum": 0}),
    "top_k": OptionField(
        "top_k", int, "Only so many of the likeliest tokens are drawn from; 0 is all of them.", {"minimum": 0}
    ),
    "min_p": OptionField(
        "min_p",
        float,
        "Only tokens of at least this share of the likeliest one's probability are drawn from.",
        {"minimum": 0, "maximum": 1},
    ),
    "repetition_penalty": OptionField(
        "repetition_penalty",
        float,
        "Above 1, tokens that the text has already become less likely.",
        {"exclusiveMinimum": 0},
    ),
}

#: Fields that would change the text or add to the response, and are not done here -> what means "off".
UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "presence_penalty": (0,),
    "suffix": ("",),
    "tools": ([],),
    "top_logprobs": (0,),
}
