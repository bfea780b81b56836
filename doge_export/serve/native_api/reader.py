"""The body of a request to /completion, checked: prompts, and the options of their texts."""

__all__ = ["NativeReader", "NativeRequest"]

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from doge_export.runtime import GenerationOptions
from doge_export.serve.constraints import read_rules
from doge_export.serve.errors import shown
from doge_export.serve.native_api.fields import HARMLESS, OFF, SAME, TAKEN
from doge_export.serve.requests import RequestReader, TextRequest, check_choices
from doge_export.serve.values import check, is_off, missing, read_fields, wrong

_CHECKED = {name: schema for name, schema in {**TAKEN, **HARMLESS}.items() if name != "json_schema"}
_OTHERS = ("json_schema", "model", "prompt")
_PENALTIES = {"repeat_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}
_BIAS: Mapping[str, Any] = {"anyOf": [{"type": "number"}, {"const": False}]}
_TOKEN: Mapping[str, Any] = {"anyOf": [{"type": "integer"}, {"type": "string", "minLength": 1}]}
_OBJECT: Mapping[str, Any] = {
    "type": "object",
    "required": ["prompt_string"],
    "properties": {"prompt_string": {"type": "string"}},
}


@dataclass(frozen=True)
class NativeRequest:
    """A request, and what its answer is to show. `unlimited`: it goes on to the model's own length.
    `stops`: the texts that the client wants an answer to end before."""

    text: TextRequest
    unlimited: bool = False
    stops: tuple[str, ...] = ()
    probabilities: int = 0
    biases: tuple[tuple[int, float | bool], ...] = ()
    return_tokens: bool = False
    timings_per_token: bool = False
    ignore_eos: bool = False
    fields: tuple[str, ...] = ()


@dataclass(frozen=True)
class NativeReader:
    """Reads bodies for one bundle."""

    reader: RequestReader

    def read(self, body: Any) -> NativeRequest:
        """The request in a decoded body.

        Raises:
            DogeExportError: a field is missing, unknown, of another type or out of its range, or asks for
                what is not done here.
        """
        given = read_fields(body, _CHECKED, _OTHERS, OFF)
        prompts, copies = self._prompts(given.get("prompt")), int(given.get("n_cmpl", 1))
        check_choices(len(prompts), copies, "n_cmpl", "texts")
        _check_penalties(given)
        biases = self._biases(given.get("logit_bias", ()))
        limit = given.get("n_predict")
        rule = {name: given[name] for name in ("json_schema",) if name in given}
        stop = given.get("stop", ())
        return NativeRequest(
            TextRequest(
                prompts=tuple(tuple(prompt) for prompt in prompts for _ in range(copies)),
                options=self._options(given, biases),
                chat=False,
                copies=copies,
                stream=bool(given.get("stream")),
                hidden=limit == 0,
                rules=self.reader.ruled(read_rules(rule), None),
                salt=secrets.token_hex() if given.get("cache_prompt") is False else "",
                names={"prompt": "prompt", "max_new_tokens": "n_predict"},
                served=self.reader.served,
            ),
            unlimited=limit == -1,
            stops=(stop,) if isinstance(stop, str) else tuple(stop),
            probabilities=int(given.get("n_probs", 0)),
            biases=tuple(biases.items()),
            return_tokens=bool(given.get("return_tokens")),
            timings_per_token=bool(given.get("timings_per_token")),
            ignore_eos=bool(given.get("ignore_eos")),
            fields=tuple(given.get("response_fields", ())),
        )

    def _options(self, given: Mapping[str, Any], biases: Mapping[int, float | bool]) -> GenerationOptions:
        same = {ours: given[name] for name, ours in SAME.items() if name in given}
        seed = int(given.get("seed", -1 if self.reader.seed is None else self.reader.seed))
        same["seed"] = secrets.randbits(32) if seed == -1 else seed
        same["logit_bias"] = {token: bias for token, bias in biases.items() if bias is not False}
        if given.get("n_probs"):
            same["logprobs"] = given["n_probs"]
        limit = given.get("n_predict", -1)
        options = self.reader.options(same | ({"max_tokens": limit} if limit >= 0 else {}), chat=False)
        if given.get("n_predict") == -1:
            options = replace(options, max_new_tokens=None, max_length=self.reader.context)
        never = tuple(token for token, bias in biases.items() if bias is False)
        if never:
            options = replace(options, suppress_tokens=(*options.suppress_tokens, *never))
        if "typical_p" in given:
            options = replace(options, typical_p=float(given["typical_p"]))
        return options

    def _prompts(self, prompt: Any) -> list[list[int]]:
        """The ids of each prompt."""
        if prompt is None or prompt == []:
            raise missing("prompt")
        if not isinstance(prompt, list) or any(map(_is_id, prompt)):
            return [self._prompt(prompt, "prompt")]
        return [self._prompt(each, f"prompt[{at}]") for at, each in enumerate(prompt)]

    def _prompt(self, value: Any, where: str) -> list[int]:
        """The ids of one; what the tokenizer puts around a text is put around one that stands alone, and
        before one that a list begins with."""
        if isinstance(value, str):
            return self.reader.encoded(value, "prompt")
        if isinstance(value, dict):
            if value.get("multimodal_data") is not None:
                raise wrong(where, f"{where}.multimodal_data: the model reads text alone.", "Leave it out.")
            check(value, {**_OBJECT, "additionalProperties": False}, where)
            return self.reader.encoded(value["prompt_string"], "prompt")
        if (
            not isinstance(value, list)
            or not value
            or not all(isinstance(e, str) or _is_id(e) for e in value)
        ):
            raise wrong(
                where,
                f"{where} is {shown(value)}, not a text, a list of token ids and texts, or an object with "
                "prompt_string.",
                code="invalid_type",
            )
        ids: list[int] = []
        for at, each in enumerate(value):
            ids += self.reader.encoded(each, "prompt", at == 0) if isinstance(each, str) else [int(each)]
        self.reader.check_ids("prompt", ids)
        return ids

    def _biases(self, given: Any) -> dict[int, float | bool]:
        """Token -> what is added to its logit, or False where it is never to come."""
        pairs = list(given.items()) if isinstance(given, dict) else given
        found: dict[int, float | bool] = {}
        for at, pair in enumerate(pairs):
            where = f"logit_bias[{at}]"
            token, bias = pair
            check(token, _TOKEN, f"{where}[0]")
            check(bias, _BIAS, f"{where}[1]")
            if isinstance(token, str) and not (isinstance(given, dict) and _is_number(token)):
                ids = self.reader.encoded(token, "logit_bias", special=False)
            else:
                ids = [int(token)]
            self.reader.check_ids("logit_bias", ids)
            for each in ids:
                found[each] = False if bias is False or found.get(each) is False else float(bias)
        return found


def _is_id(value: Any) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, float) and value.is_integer()
    )


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _check_penalties(given: Mapping[str, Any]) -> None:
    """See that penalties are not to count the last tokens alone."""
    last = given.get("repeat_last_n", -1)
    asked = [name for name, off in _PENALTIES.items() if not is_off(given.get(name, off), (off,))]
    if asked and last != -1:
        raise wrong(
            "repeat_last_n",
            f"repeat_last_n is {last}, and {asked[0]} counts all of the text here.",
            "Leave it out, or send -1.",
        )
