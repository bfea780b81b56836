"""The fields of a request to /completion, under llama.cpp's names."""

__all__ = ["HARMLESS", "OFF", "PROMPT", "SAME", "TAKEN"]

from collections.abc import Mapping
from typing import Any

from doge_export.serve.constraints import RULES
from doge_export.serve.fields import FIELDS, LARGEST, MAX_CHOICES, MAX_LOGPROBS
from doge_export.serve.values import Off, Schema

#: Field -> its name in /v1/completions, where it means the same.
SAME: Mapping[str, str] = {
    **{
        name: name
        for name in (
            *("temperature", "top_k", "top_p", "min_p", "presence_penalty", "frequency_penalty"),
            *("stop", "ignore_eos"),
        )
    },
    "repeat_penalty": "repetition_penalty",
}


def _flag(meaning: str) -> Schema:
    return {"type": "boolean", "description": meaning}


_BIASES = (
    "What is added to logits: a list of pairs, or an object, from a token's id, or from a text, of which "
    "every token is meant, to a number; false in its place leaves the token out altogether."
)
_PAIR: Schema = {
    "type": "array",
    "minItems": 2,
    "maxItems": 2,
    "prefixItems": [
        {
            "anyOf": [
                {"type": "integer", "minimum": 0, "maximum": LARGEST},
                {"type": "string", "minLength": 1},
            ]
        },
        {"anyOf": [{"type": "number"}, {"const": False}]},
    ],
}

#: Those that are done. The order is that of the description.
TAKEN: Mapping[str, Schema] = {
    "n_predict": {
        "type": "integer",
        "description": "The most new tokens of a text; -1 goes on to the length that the model was made for, "
        "and 0 reads the prompt alone. Default: as for max_tokens.",
        "minimum": -1,
        "maximum": LARGEST,
    },
    "n_cmpl": {
        "type": "integer",
        "description": f"Texts for each prompt; of all prompts together {MAX_CHOICES} at most.",
        "minimum": 1,
        "maximum": MAX_CHOICES,
    },
    **{name: FIELDS[same].schema for name, same in SAME.items()},
    "typical_p": {
        "type": "number",
        "description": "Only tokens about as likely as is to be expected, which together have this "
        "probability, are drawn from; 1 is off.",
        "exclusiveMinimum": 0,
        "maximum": 1,
    },
    "repeat_last_n": {
        "type": "integer",
        "description": "-1: repeat_penalty counts all of prompt and text, which is what is done here. "
        "Another number is refused beside a penalty.",
        "minimum": -1,
        "maximum": LARGEST,
    },
    "seed": {
        "type": "integer",
        "description": "The same seed draws the same tokens; -1 is another one each time, which "
        "generation_settings shows.",
        "minimum": -1,
        "maximum": 2**64 - 1,
    },
    "n_probs": {
        "type": "integer",
        "description": "Above 0: completion_probabilities has the log-probability of every token, and so "
        "many of the likeliest in its place. They are the model's own, before anything changes the choice.",
        "minimum": 0,
        "maximum": MAX_LOGPROBS,
    },
    "logit_bias": {
        "anyOf": [
            {"type": "array", "items": _PAIR},
            {"type": "object", "additionalProperties": {"anyOf": [{"type": "number"}, {"const": False}]}},
        ],
        "description": _BIASES,
    },
    "stream": _flag("Send the text token by token, as server-sent events."),
    "return_tokens": _flag("Return the ids of the new tokens, too; a stream always has them."),
    "cache_prompt": _flag(
        "With false nothing that was read before is used. The text is the same to the bit either way."
    ),
    "timings_per_token": _flag("Say in every event of a stream how long it took so far."),
    "response_fields": {
        "type": "array",
        "items": {"type": "string"},
        "description": "Return these alone; with a slash what lies within one, under the whole name. Those "
        "that there are not are left out.",
    },
    "json_schema": RULES["json_schema"],
}

_OF_WHAT_IS_OFF = "Accepted: it says how to do what is not done here."
#: Those that ask for nothing that this server could do or leave undone.
HARMLESS: Mapping[str, Schema] = {
    **{
        name: {"type": kind, "description": _OF_WHAT_IS_OFF}
        for name, kind in {
            "dynatemp_exponent": "number",
            "dry_base": "number",
            "dry_allowed_length": "integer",
            "dry_penalty_last_n": "integer",
            "dry_sequence_breakers": "array",
            "mirostat_tau": "number",
            "mirostat_eta": "number",
            "xtc_threshold": "number",
            "adaptive_decay": "number",
        }.items()
    },
    **{
        name: {"type": kind, "description": "Accepted: no text is ever cut to make room."}
        for name, kind in {"n_keep": "integer", "n_discard": "integer", "n_cache_reuse": "integer"}.items()
    },
}

#: Fields that would change the answer, and are not done here -> what means "off".
OFF: Off = {
    "adaptive_target": (-1,),
    "backend_sampling": (False,),
    "dry_multiplier": (0,),
    "dynatemp_range": (0,),
    "grammar": ("",),
    "id_slot": (-1,),
    "lora": ([],),
    "min_keep": (0,),
    "mirostat": (0,),
    "n_indent": (0,),
    "post_sampling_probs": (False,),
    "return_progress": (False,),
    "samplers": (),
    "sse_ping_interval": (),
    "t_max_predict_ms": (0, -1),
    "t_max_prompt_ms": (0, -1),
    "top_n_sigma": (-1, 0),
    "xtc_probability": (0,),
}

_ID: Mapping[str, Any] = {"type": "integer", "minimum": 0, "maximum": LARGEST}
_ONE: list[Mapping[str, Any]] = [
    {"type": "string"},
    {
        "type": "object",
        "required": ["prompt_string"],
        "properties": {"prompt_string": {"type": "string"}},
        "additionalProperties": False,
    },
]
_MIXED: Mapping[str, Any] = {
    "type": "array",
    "minItems": 1,
    "items": {"anyOf": [_ID, {"type": "string"}]},
    "description": "Token ids with texts among them.",
}
PROMPT: Schema = {
    "anyOf": [
        *_ONE,
        {**_MIXED, "contains": _ID},
        {"type": "array", "minItems": 1, "items": {"anyOf": [*_ONE, _MIXED]}},
    ],
    "description": "A text, token ids, ids with texts among them, an object with the text in prompt_string, "
    "or a list of such.",
}
