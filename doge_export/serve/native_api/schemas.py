"""What `openapi.py` says of llama.cpp's own completions."""

__all__ = ["NATIVE_ROUTES", "NATIVE_SCHEMAS"]

from collections.abc import Mapping

from doge_export.serve.native_api.fields import HARMLESS, OFF, PROMPT, TAKEN
from doge_export.serve.schemas import (
    COUNT,
    ERRORS,
    TEXT,
    Schema,
    json_body,
    listed,
    nullable,
    object_of,
    off,
    optional,
    post,
    ref,
)

_SCORED: Schema = {
    "id": COUNT,
    "token": TEXT,
    "bytes": listed({"type": "integer", "minimum": 0, "maximum": 255}),
    "logprob": {"type": "number", "description": "-9999 where the model gives it no chance."},
}
_PROBABILITIES = listed(object_of({**_SCORED, "top_logprobs": listed(object_of(_SCORED))}))
_IDS = listed(COUNT)
_MILLISECONDS: Schema = {"type": "number", "minimum": 0}
_TIMES = {
    name: _MILLISECONDS
    for part in ("prompt", "predicted")
    for name in (f"{part}_ms", f"{part}_per_token_ms", f"{part}_per_second")
}
_TIMINGS = object_of({"prompt_n": COUNT, "predicted_n": COUNT, **_TIMES}) | {
    "description": "Of the whole prompt, from the arrival of the request to the first token, and of the "
    "tokens after it."
}
_SAID: Schema = {
    "index": COUNT | {"description": "Of the text: prompts in their order, n_cmpl of each side by side."},
    "content": TEXT,
    "tokens": _IDS,
    "id_slot": {"const": -1},
    "tokens_predicted": COUNT,
    "tokens_evaluated": COUNT | {"description": "Tokens of the prompt."},
}

_ENDED: Mapping[str, Schema] = {
    "model": TEXT,
    "generation_settings": {"type": "object", "description": "What the text was made with."},
    "prompt": TEXT | {"description": "As the model reads it."},
    "has_new_line": {"type": "boolean"},
    "truncated": {"type": "boolean", "description": "n_predict was -1, and the model's length is used up."},
    "stop_type": {
        "enum": ["eos", "limit", "word"],
        "description": "eos: the model ended the text, or it is whole by its rules.",
    },
    "stopping_word": TEXT | {"description": "The stop text that came."},
    "tokens_cached": COUNT | {"description": "Tokens that were read by the end, of prompt and text."},
    "timings": _TIMINGS,
    "completion_probabilities": _PROBABILITIES,
}

NATIVE_SCHEMAS: Mapping[str, Schema] = {
    "NativeRequest": object_of(
        {"prompt": dict(PROMPT)},
        model=optional("string", "A name that /v1/models gives; of a single model it may be left out."),
        **{name: nullable(schema) for name, schema in {**TAKEN, **HARMLESS}.items()},
        **off(OFF),
    )
    | {"additionalProperties": False},
    "NativeAnswer": object_of({}, **_SAID, stop={"const": True}, **_ENDED),
    "NativeEvent": object_of({**_SAID, "stop": {"type": "boolean"}}, **_ENDED)
    | {"description": "One token, or with `stop` what is said of a text at its end."},
}

NATIVE_ROUTES: Mapping[str, Schema] = {
    "/completion": post(
        "Continue a text, as llama.cpp's own route does.",
        "NativeRequest",
        json_body(
            {"anyOf": [ref("NativeAnswer"), listed(ref("NativeAnswer"))]},
            "The text, or a list where there are several. With `stream`: events whose data are NativeEvent "
            "objects, one for each token, and one more with `stop` and no content at the end of each text; "
            "or an Error.",
        ),
        "Error",
        ERRORS,
    ),
}
