"""What a task's `generation_kwargs` ask for, as lm-eval's `hf` model and transformers' `generate` take them.

Source: `HFLM.generate_until` of lm_eval/models/huggingface.py (0.4.13), which hands what it does not use
itself to `generate` (transformers 5.24). What these refuse is refused here, and so is what they could do and
we cannot, always by the argument's name.
"""

__all__ = ["Asked", "generation_arguments"]

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

from doge_export.core.errors import DogeExportError
from doge_export.core.token_ids import is_whole, outside
from doge_export.runtime import GenerationDefaults, GenerationOptions
from doge_export.runtime.settings import HARMLESS, NOT_HONOURED, SETTINGS

_NEW_TOKENS = 256  # where a task does not say, as in lm-eval


@dataclass(frozen=True)
class Asked:
    """`options` but for how many new tokens; `until`: texts to stop at, the tokenizer's end of text too.

    A context loses its beginning until `max_gen_toks` tokens fit behind it. `max_length`: of context and
    text together; None where max_gen_toks counts.
    """

    options: GenerationOptions
    until: tuple[str, ...]
    max_gen_toks: int
    max_length: int | None

    def for_context(self, tokens: int) -> GenerationOptions:
        """The options behind a context of so many tokens. As in transformers the max_new_tokens of a
        generation_config.json win over what the task says.

        Raises:
            DogeExportError: the context has max_length tokens or more.
        """
        if self.options.max_new_tokens is not None:
            return self.options
        new = self.max_gen_toks if self.max_length is None else self.max_length - tokens
        if new < 1:
            raise DogeExportError(
                f"its context has {tokens} tokens, and max_length {self.max_length} leaves no room for more.",
                "Give max_gen_toks, which counts new tokens alone.",
            )
        return replace(self.options, max_new_tokens=new)


#: What lm-eval's `hf` gives to `generate` itself, or cannot use what that gives for it.
_NOT_FOR_TASKS = ("use_cache", "pad_token_id", "stop_strings", "return_dict_in_generate")
#: Of which transformers takes no whole number but 1, which is off.
_FRACTIONS = ("repetition_penalty", "encoder_repetition_penalty")
#: What an option is where the task says null: it is off, whatever generation_config.json says.
_OFF = {field.name: field.default for field in fields(GenerationOptions)}


def generation_arguments(
    arguments: Mapping[str, Any],
    defaults: GenerationDefaults,
    end: str | None,
    max_length: int,
    vocab_size: int,
) -> Asked:
    """Read `arguments`, which the bundle's `defaults` complete. `end` is the text of the tokenizer's
    eos_token, `max_length` how many tokens the model takes.

    Raises:
        DogeExportError: an argument is not known, has a value that it cannot have, or is not done here.
    """
    if not isinstance(arguments, Mapping):
        raise DogeExportError(f"generation_kwargs is {arguments!r}, not a mapping of names to values.")
    try:
        rest: dict[str, Any] = dict(normalize_gen_kwargs(dict(arguments), _NEW_TOKENS))
    except (TypeError, ValueError, OverflowError) as error:
        raise DogeExportError(f"generation_kwargs cannot be read: {error}.") from None
    until = _until(rest.pop("until"), end)
    room = rest.pop("max_gen_toks")
    if not 1 <= room < max_length:
        raise DogeExportError(
            f"max_gen_toks is {room}, and the model takes {max_length} tokens, one of the context at least.",
            f"Give from 1 to {max_length - 1}.",
        )
    longest = rest.pop("max_length", None)
    if "max_length" in arguments and not is_whole(longest):
        raise DogeExportError(f"max_length is {longest!r}, not a whole number.", "Leave it out.")
    changes: dict[str, Any] = {"temperature": _temperature(rest), "max_length": None}
    drawn = changes["temperature"] > 0
    for name, value in rest.items():
        changes |= _taken(name, value, drawn, vocab_size)
    # Once more, as null and an empty list count for nothing among changes of the file's.
    return Asked(replace(defaults.changed(**changes), **changes), until, room, longest)


def _until(stops: list[Any], end: str | None) -> tuple[str, ...]:
    wrong = [each for each in stops if not isinstance(each, str)]
    if wrong:
        raise DogeExportError(f"until has {wrong[0]!r}, which is no text.", "Give a text or a list of them.")
    if end is None:
        raise DogeExportError(
            "The tokenizer names no eos_token, at whose text lm-eval's hf ends every generation.",
            "Name one in tokenizer_config.json.",
        )
    return tuple(handle_stop_sequences(stops, eos=end))


def _temperature(rest: dict[str, Any]) -> float:
    """Take do_sample and temperature out of `rest`; 0 is greedy. Drawing needs a temperature, which lm-eval
    takes for 0 where it is not given; without do_sample one above 0 draws."""
    sampled, temperature = rest.pop("do_sample"), rest.pop("temperature", 0.0)
    if not sampled:
        return 0.0
    if not (temperature == 1 or (isinstance(temperature, float) and temperature > 0)):
        raise DogeExportError(
            f"do_sample is {sampled!r} and temperature {temperature!r}, which transformers refuses.",
            "Give a temperature above 0 with a decimal point, or leave out do_sample.",
        )
    return float(temperature)


def _taken(name: str, value: Any, drawn: bool, vocab_size: int) -> dict[str, Any]:
    """The option that an argument of `generate` sets; none where it changes no text."""
    setting = SETTINGS.get(name)
    if name in _NOT_FOR_TASKS or (setting is None and value is not None):
        raise DogeExportError(
            f"generation_kwargs has {name}, which lm-eval's hf does not take.",
            "Leave it out; texts to stop at are until.",
        )
    if setting is None or setting.kind == HARMLESS or name == "bos_token_id":
        return {}
    if setting.sampled and not drawn:
        return {}
    if setting.kind == NOT_HONOURED:
        if value is None or value in setting.off:
            return {}
        raise DogeExportError(
            f"generation_kwargs has {name} {value!r}, which is not supported.",
            "Leave it out, or measure with lm-eval's own hf model.",
        )
    option = setting.option or name
    if value is None:
        return {option: _OFF[option]}
    try:
        if name in _FRACTIONS and value != 1 and not isinstance(value, float):
            raise ValueError("not a number with a decimal point")
        parsed = setting.read(value)
    except ValueError as wrong:
        raise DogeExportError(f"{name} is {value!r}, {wrong}.", "Correct it, or leave it out.") from None
    foreign = outside(setting.ids(parsed), vocab_size) if setting.ids else []
    if not foreign:
        return {option: parsed}
    if setting.needs_tokens:
        raise DogeExportError(
            f"{name} has {foreign[0]}, and the model's vocabulary has {vocab_size} entries.",
            "Correct it, or leave it out.",
        )
    return {option: tuple(token for token in parsed if token not in foreign)}
