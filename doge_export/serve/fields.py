"""The fields of a request's body: what `requests.py` checks them by, and `openapi.py` describes them by. One
that stands in none of these tables is refused: whatever it would do, it would not be done."""

__all__ = [
    "FIELDS",
    "HARMLESS",
    "LARGEST",
    "MAX_CHOICES",
    "MAX_LOGPROBS",
    "MAX_SALT",
    "MAX_STOP_BYTES",
    "UNSUPPORTED",
    "Field",
    "Unsupported",
    "known_fields",
]

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from doge_export.serve.constraints import RULES
from doge_export.serve.tools.schemas import CHAT_FIELDS
from doge_export.serve.values import Schema

MAX_CHOICES = 64
MAX_LOGPROBS = 20
MAX_STOP_BYTES = 1024
MAX_SALT = 256  # characters
LARGEST = 2**63 - 1  # of a whole number
_MAX_STOPS = 16
_MAX_STOP_IDS = 256
CHAT, COMPLETIONS = "chat", "completions"


@dataclass(frozen=True)
class Field:
    """A field that may be left out. `option`: of GenerationOptions, where it sets one as it is. `only`: the
    one kind of request that has it. `checked`: by its schema
    alone; rules and tools have readers of their own."""

    schema: Schema
    option: str = ""
    only: str = ""
    checked: bool = True


@dataclass(frozen=True)
class Unsupported:
    """A field that would change the text or add to the response, and is not done here; `off` says so, too."""

    off: tuple[Any, ...] = ()
    only: str = ""


def _field(kind: str, meaning: str, option: str = "", only: str = "", **limits: Any) -> Field:
    return Field({"type": kind, "description": meaning, **limits}, option, only)


def _ids(meaning: str, **limits: Any) -> Field:
    return _field("array", meaning, items={"type": "integer", "minimum": 0, "maximum": LARGEST}, **limits)


_TOKENS = "The most new tokens of a choice"
_STOP = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_BYTES}
_PENALTY: Mapping[str, Any] = {"minimum": -2, "maximum": 2}

#: Those that are done. The order is that of the description.
FIELDS: Mapping[str, Field] = {
    "max_tokens": _field(
        "integer",
        f"{_TOKENS}; 0 is for `echo` alone.",
        "max_new_tokens",
        minimum=0,
        maximum=LARGEST,
    ),
    "max_completion_tokens": _field(
        "integer", f"{_TOKENS}: another name of max_tokens.", "max_new_tokens", minimum=1, maximum=LARGEST
    ),
    "min_tokens": _field(
        "integer", "No end of text comes before so many.", "min_new_tokens", minimum=0, maximum=LARGEST
    ),
    "temperature": _field(
        "number",
        "Logits are divided by it before a token is drawn; 0 takes the likeliest token.",
        "temperature",
        minimum=0,
    ),
    "top_p": _field(
        "number",
        "Only the likeliest tokens that together have this probability are drawn from.",
        "top_p",
        minimum=0,
        maximum=1,
    ),
    "top_k": _field(
        "integer",
        "Only so many of the likeliest tokens are drawn from; 0 and -1 are all of them.",
        minimum=-1,
        maximum=LARGEST,
    ),
    "min_p": _field(
        "number",
        "Only tokens of at least this share of the likeliest one's probability are drawn from.",
        "min_p",
        minimum=0,
        maximum=1,
    ),
    "seed": _field("integer", "The same seed draws the same tokens.", "seed", minimum=0, maximum=2**64 - 1),
    "frequency_penalty": _field(
        "number",
        "Taken from a token's logit as many times as the new text has it.",
        "frequency_penalty",
        **_PENALTY,
    ),
    "presence_penalty": _field(
        "number", "Taken once from the logit of each token of the new text.", "presence_penalty", **_PENALTY
    ),
    "repetition_penalty": _field(
        "number",
        "Above 1, tokens that prompt and text have already become less likely.",
        "repetition_penalty",
        exclusiveMinimum=0,
    ),
    "logit_bias": _field(
        "object",
        "Token id -> what is added to its logit, from -100 to 100.",
        propertyNames={"pattern": "^(0|[1-9][0-9]{0,17})$", "description": "a token id"},
        additionalProperties={"type": "number", "minimum": -100, "maximum": 100},
    ),
    "stop": Field(
        {
            "anyOf": [_STOP, {"type": "array", "items": _STOP, "maxItems": _MAX_STOPS}],
            "description": f"The text ends before any of these, {_MAX_STOPS} at most, each of "
            f"{MAX_STOP_BYTES} bytes at most.",
        }
    ),
    "stop_token_ids": _ids("Tokens that end the text, and do not show in it.", maxItems=_MAX_STOP_IDS),
    "ignore_eos": _field("boolean", "The model's own end of text does not end it."),
    "n": _field(
        "integer",
        f"Choices for each prompt; of all prompts together {MAX_CHOICES} at most.",
        minimum=1,
        maximum=MAX_CHOICES,
    ),
    "echo": _field("boolean", "The text begins with the prompt.", only=COMPLETIONS),
    "logprobs": _field(
        "integer",
        "Return the log-probability of every token, and so many of the likeliest in its place; with `echo` "
        "those of the prompt, too. They are the model's own, before anything changes the choice.",
        only=COMPLETIONS,
        minimum=0,
        maximum=MAX_LOGPROBS,
    ),
    "top_logprobs": _field(
        "integer",
        "So many of the likeliest tokens in each one's place, too; it needs `logprobs`.",
        only=CHAT,
        minimum=0,
        maximum=MAX_LOGPROBS,
    ),
    # `tools/use.py` checks the two.
    "tools": Field(CHAT_FIELDS["tools"], only=CHAT, checked=False),
    "tool_choice": Field(CHAT_FIELDS["tool_choice"], only=CHAT, checked=False),
    "parallel_tool_calls": _field("boolean", "With false an answer ends after its first call.", only=CHAT),
    "continue_final_message": _field(
        "boolean",
        "As in vLLM: the answer goes on with the last message, in which there is no end of a turn then.",
        only=CHAT,
    ),
    "add_generation_prompt": _field(
        "boolean",
        "With false the prompt ends with the last message, and not with what an answer begins with.",
        only=CHAT,
    ),
    "chat_template_kwargs": Field(
        {"type": "object", "description": "Names and values for the chat template to read."},
        only=CHAT,
        checked=False,
    ),
    "stream": _field("boolean", "Send the text in pieces, as server-sent events."),
    "stream_options": _field(
        "object",
        "With include_usage a stream ends with a chunk that has no choices and the usage; with vLLM's "
        "continuous_usage_stats beside it each chunk has the usage so far. include_obfuscation changes "
        "nothing.",
        properties={
            "include_usage": {"type": ["boolean", "null"]},
            "continuous_usage_stats": {"type": ["boolean", "null"]},
            "include_obfuscation": {"type": ["boolean", "null"]},
        },
        additionalProperties=False,
    ),
    "cache_salt": _field(
        "string",
        "As in vLLM: beginnings of texts that were read with another salt are not used, so that nobody "
        "learns from the time to the first token what others have sent.",
        minLength=1,
        maxLength=MAX_SALT,
    ),
    **{name: Field(schema, checked=False) for name, schema in RULES.items()},
}

#: In a chat `logprobs` says whether, and `top_logprobs` how many.
CHAT_LOGPROBS = _field(
    "boolean",
    "Return the log-probability of every token, the model's own, before anything changes the choice.",
    only=CHAT,
)

_NOTHING = "Accepted, and changes nothing."

#: Those that ask for nothing that this server could do or leave undone.
HARMLESS: Mapping[str, Field] = {
    "user": _field("string", _NOTHING),
    "safety_identifier": _field("string", _NOTHING),
    "metadata": _field("object", _NOTHING),
    "store": _field("boolean", "Accepted; nothing is stored."),
    "service_tier": _field("string", _NOTHING),
    "prompt_cache_key": _field("string", _NOTHING),
    "prompt_cache_retention": _field("string", _NOTHING),
    "prediction": _field("object", "Accepted: it would change the time alone.", only=CHAT),
}

UNSUPPORTED: Mapping[str, Unsupported] = {
    "audio": Unsupported(only=CHAT),
    "best_of": Unsupported((1,), COMPLETIONS),
    "function_call": Unsupported(("none",), CHAT),
    "functions": Unsupported(([],), CHAT),
    "modalities": Unsupported((["text"],), CHAT),
    "reasoning_effort": Unsupported(("none",), CHAT),
    "suffix": Unsupported(("",), COMPLETIONS),
    "verbosity": Unsupported(("medium",), CHAT),
    "web_search_options": Unsupported(only=CHAT),
}


def known_fields(chat: bool) -> tuple[dict[str, Field], dict[str, Unsupported]]:
    """The fields of a chat request, or of a completion's, that may be left out: those that are taken, and
    those that are only taken where they ask for nothing."""
    kind = CHAT if chat else COMPLETIONS
    taken = {name: each for name, each in {**FIELDS, **HARMLESS}.items() if each.only in ("", kind)}
    off = {name: each for name, each in UNSUPPORTED.items() if each.only in ("", kind)}
    return taken | ({"logprobs": CHAT_LOGPROBS} if chat else {}), off
