"""The keys of transformers' GenerationConfig, one row each: honoured, without a bearing on the text, or not
honoured and named; and what transformers refuses when it reads the file."""

__all__ = ["HARMLESS", "HONOURED", "NOT_HONOURED", "SETTINGS", "Setting", "refused_at_load", "shown"]

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from doge_export.core.token_ids import is_whole, read_ids, read_special_ids

HONOURED = "honoured"
HARMLESS = "harmless"
NOT_HONOURED = "not honoured"

#: Where keys and values lie, and nothing else.
_CACHES = (
    "dynamic",
    "offloaded",
    "static",
    "offloaded_static",
    "sliding_window",
    "hybrid",
    "hybrid_chunked",
    "offloaded_hybrid",
    "offloaded_hybrid_chunked",
)
_MAX_SHOWN = 80  # letters
_LONGEST = 2**63 - 1  # of a text, in tokens


@dataclass(frozen=True)
class Setting:
    """A key of GenerationConfig. `option` is the field of GenerationOptions that it sets, where that has
    another name, and `sampled` whether it is only for where tokens are drawn. `read` makes the option's value
    of the file's, and raises ValueError where there is none.

    `off`: values that ask for nothing, beside null. `ids`: the token ids in a value that was read;
    `needs_tokens`: whether transformers fails where one of them is no token.
    """

    kind: str
    read: Callable[[Any], Any] = lambda value: value
    option: str = ""
    sampled: bool = False
    off: tuple[Any, ...] = ()
    ids: Callable[[Any], tuple[int, ...]] | None = None
    needs_tokens: bool = False


def shown(value: Any) -> str:
    """The value as a message shows it, cut: a file may hold lists of any length."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("not a number")
    try:
        result = float(value)
    except OverflowError:
        raise ValueError("too large a number") from None
    if math.isnan(result):
        raise ValueError("not a number")
    return result


def _positive(value: Any) -> float:
    if not 0 < (result := _number(value)) < math.inf:
        raise ValueError("not a finite number above 0")
    return result


def _temperature(value: Any) -> float:
    if not 0 <= (result := _number(value)) < math.inf:
        raise ValueError("not a finite number of at least 0")
    return result


def _share(value: Any) -> float:
    if not 0 <= (result := _number(value)) <= 1:
        raise ValueError("not a number from 0 to 1")
    return result


def _top_h(value: Any) -> float:
    if (result := _share(value)) == 0:
        raise ValueError("not a number above 0")
    return result


def _below_1(value: Any) -> float:
    """Read a share; transformers does nothing from 1 on."""
    return _share(min(_number(value), 1.0))


def _typical(value: Any) -> float:
    if (result := _below_1(value)) == 0:
        raise ValueError("not a number above 0")
    return result


def _cutoff(value: Any) -> float:
    """Read a probability; transformers does nothing from 1 on and up to 0."""
    return result if 0 < (result := _number(value)) < 1 else 0.0


def _whole(value: Any) -> int:
    if not is_whole(value):
        raise ValueError("not a whole number")
    return int(value)


def _count(value: Any) -> int:
    """Read a number of tokens; a negative one is 0, and transformers takes 12.0 for 12."""
    whole = int(value) if isinstance(value, float) and value.is_integer() else _whole(value)
    return min(max(whole, 0), _LONGEST)


def _top_k(value: Any) -> int:
    if (result := _whole(value)) < 0:
        raise ValueError("not a whole number of at least 0, and 0 is off")
    return result


def _texts(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise ValueError("neither a text nor a list of texts")
    return tuple(texts)


def _forced(value: Any) -> tuple[int, ...]:
    if not (ids := read_ids(value)):
        raise ValueError("a list without a token id")
    return ids


def _id_list(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise ValueError("not a list of token ids")
    return read_ids(value)


def _sequence(value: Any) -> tuple[int, ...]:
    if min(ids := _id_list(value), default=0) < 0:
        raise ValueError("not lists of token ids")
    return ids


def _sequences(value: Any) -> tuple[tuple[int, ...], ...]:
    if not isinstance(value, list) or not value:
        raise ValueError("not a list of lists of token ids, or an empty one")
    return tuple(map(_sequence, value))


def _biases(value: Any) -> tuple[tuple[tuple[int, ...], float], ...]:
    pairs = (
        isinstance(value, list) and value and all(isinstance(row, list) and len(row) == 2 for row in value)
    )
    if not pairs:
        raise ValueError("not a list of pairs of token ids and a number, such as [[[5, 6], -1.5]]")
    return tuple({_sequence(ids): _number(bias) for ids, bias in value}.items())


def _decay(value: Any) -> tuple[float, float]:
    if not isinstance(value, list) or len(value) < 2:
        raise ValueError("not a pair of a number of tokens and a factor, such as [20, 1.05]")
    start, factor = _number(value[0]), _number(value[1])
    if not (math.isfinite(start) and math.isfinite(factor)):
        raise ValueError("not a pair of finite numbers")
    return start, factor


def _exactly_true(value: Any) -> bool:
    return value is True


def _all(value: Any) -> tuple[int, ...]:
    return tuple(value)


def _all_of_sequences(value: Any) -> tuple[int, ...]:
    return tuple(token for ids in value for token in ids)


def _all_of_biases(value: Any) -> tuple[int, ...]:
    return tuple(token for ids, _ in value for token in ids)


SETTINGS: Mapping[str, Setting] = {
    # How long a text is.
    "max_length": Setting(HONOURED, _whole),
    "max_new_tokens": Setting(HONOURED, _whole),
    "min_length": Setting(HONOURED, _count),
    "min_new_tokens": Setting(HONOURED, _count),
    "max_time": Setting(HONOURED, _number),
    "stop_strings": Setting(HONOURED, _texts, option="stop"),
    # How a token is chosen.
    "do_sample": Setting(HONOURED, bool),
    "temperature": Setting(HONOURED, _temperature, sampled=True, off=(1,)),
    "top_k": Setting(HONOURED, _top_k, sampled=True, off=(0, 50)),
    "top_p": Setting(HONOURED, _below_1, sampled=True, off=(1,)),
    "min_p": Setting(HONOURED, _share, sampled=True, off=(0,)),
    "top_h": Setting(HONOURED, _top_h, sampled=True),
    "typical_p": Setting(HONOURED, _typical, sampled=True, off=(1,)),
    "epsilon_cutoff": Setting(HONOURED, _cutoff, sampled=True, off=(0,)),
    "eta_cutoff": Setting(HONOURED, _cutoff, sampled=True, off=(0,)),
    "repetition_penalty": Setting(HONOURED, _positive),
    "encoder_repetition_penalty": Setting(HONOURED, _positive),
    "no_repeat_ngram_size": Setting(HONOURED, _count),
    "encoder_no_repeat_ngram_size": Setting(HONOURED, _count),
    "bad_words_ids": Setting(HONOURED, _sequences, ids=_all_of_sequences, needs_tokens=True),
    "sequence_bias": Setting(HONOURED, _biases, ids=_all_of_biases, needs_tokens=True),
    "suppress_tokens": Setting(HONOURED, _id_list, ids=_all),
    "begin_suppress_tokens": Setting(HONOURED, _id_list, ids=_all),
    "forced_bos_token_id": Setting(HONOURED, _forced, ids=_all, needs_tokens=True),
    "forced_eos_token_id": Setting(HONOURED, _forced, ids=_all, needs_tokens=True),
    "exponential_decay_length_penalty": Setting(HONOURED, _decay),
    "remove_invalid_values": Setting(HONOURED, _exactly_true),
    "renormalize_logits": Setting(HONOURED, _exactly_true),
    "eos_token_id": Setting(HONOURED, read_special_ids, option="eos_token_ids", ids=_all),
    "pad_token_id": Setting(HONOURED, read_special_ids, ids=_all),
    "bos_token_id": Setting(HONOURED, read_special_ids, ids=_all),
    # Other ways to a text than token after token, each the likeliest or drawn.
    "num_beams": Setting(NOT_HONOURED, off=(1,)),
    "num_beam_groups": Setting(NOT_HONOURED, off=(1,)),
    "constraints": Setting(NOT_HONOURED),
    "force_words_ids": Setting(NOT_HONOURED),
    "penalty_alpha": Setting(NOT_HONOURED, off=(0,)),
    "dola_layers": Setting(NOT_HONOURED),
    "guidance_scale": Setting(NOT_HONOURED, off=(1,)),
    "num_return_sequences": Setting(NOT_HONOURED, off=(1,)),
    "token_healing": Setting(NOT_HONOURED, off=(False,)),
    "watermarking_config": Setting(NOT_HONOURED),
    "use_mtp": Setting(NOT_HONOURED, off=(False,)),
    "is_assistant": Setting(NOT_HONOURED, off=(False,)),
    # Several tokens in a call, or all again in each: Doge's mask is another then beyond keep_window_size.
    "use_cache": Setting(NOT_HONOURED, off=(True,)),
    "prefill_chunk_size": Setting(NOT_HONOURED),
    "prompt_lookup_num_tokens": Setting(NOT_HONOURED),
    "assistant_early_exit": Setting(NOT_HONOURED),
    "cache_implementation": Setting(
        NOT_HONOURED,  # quantized: other numbers; paged: other calls
        off=_CACHES,
    ),
    # Of beams, of encoders with decoders, of a second model: without them they do nothing.
    "early_stopping": Setting(HARMLESS),
    "length_penalty": Setting(HARMLESS),
    "diversity_penalty": Setting(HARMLESS),
    "decoder_start_token_id": Setting(HARMLESS),
    "num_assistant_tokens": Setting(HARMLESS),
    "num_assistant_tokens_schedule": Setting(HARMLESS),
    "assistant_confidence_threshold": Setting(HARMLESS),
    "assistant_ensemble_weight": Setting(HARMLESS),
    "assistant_lookbehind": Setting(HARMLESS),
    "target_lookbehind": Setting(HARMLESS),
    "max_matching_ngram_size": Setting(HARMLESS),
    "speculation_type": Setting(HARMLESS),
    # Where and how it is computed, what is returned beside the text, where the file comes from.
    "cache_config": Setting(HARMLESS),
    "max_cache_len": Setting(HARMLESS),
    "compile_config": Setting(HARMLESS),
    "disable_compile": Setting(HARMLESS),
    "continuous_batching_config": Setting(HARMLESS),
    "low_memory": Setting(HARMLESS),
    "output_attentions": Setting(HARMLESS),
    "output_hidden_states": Setting(HARMLESS),
    "output_scores": Setting(HARMLESS),
    "output_logits": Setting(HARMLESS),
    "return_dict_in_generate": Setting(HARMLESS),
    "transformers_version": Setting(HARMLESS),
    "_from_model_config": Setting(HARMLESS),
    "_commit_hash": Setting(HARMLESS),
}

#: Arguments of `generate`, which transformers does not take from the file.
_ARGUMENTS = (
    "logits_processor",
    "stopping_criteria",
    "prefix_allowed_tokens_fn",
    "synced_gpus",
    "assistant_model",
    "streamer",
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _is_flat(value: Any) -> bool:
    """Whether a value is a text, or a list or object that holds no other."""
    return isinstance(value, list | str | dict) and not any(isinstance(item, list | dict) for item in value)


def _is_watermark(value: Any) -> bool:
    """Whether a value is an object with transformers' keys, and with values that it takes."""
    if not isinstance(value, dict) or not set(value) <= set(_WATERMARK):
        return False
    ratio, width = value.get("greenlist_ratio", 0.25), value.get("context_width", 1)
    known = value.get("seeding_scheme", "lefthash") in ("selfhash", "lefthash")
    return known and _is_number(ratio) and 0 <= ratio <= 1 and _is_number(width) and width >= 1


_WATERMARK = ("greenlist_ratio", "bias", "hashing_key", "seeding_scheme", "context_width")
#: Key -> whether transformers takes the value when it reads the file, and what it wants.
_AT_LOAD: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "pad_token_id": (_is_number, "one token id, and no list"),
    "max_new_tokens": (lambda value: _is_number(value) and value > 0, "a whole number above 0"),
    "early_stopping": (lambda value: value in (True, False, "never"), 'true, false or "never"'),
    "assistant_ensemble_weight": (
        lambda value: _is_number(value) and 0 < value < 1,
        "a number between 0 and 1",
    ),
    "cache_implementation": (lambda value: value in (*_CACHES, "quantized", "paged"), "one of its caches"),
    "compile_config": (lambda value: False, "what no file can hold"),
    "watermarking_config": (_is_watermark, f"an object of {', '.join(_WATERMARK)}"),
    "num_return_sequences": (_is_number, "a whole number"),
    "suppress_tokens": (_is_flat, "a list of token ids"),
}


def refused_at_load(settings: Mapping[str, Any]) -> str | None:
    """Return why transformers does not load a model with these settings; None where it does."""
    for key, (takes, wanted) in _AT_LOAD.items():
        if settings.get(key) is not None and not takes(settings[key]):
            return f"{key} is {shown(settings[key])}, and transformers wants {wanted}"
    if arguments := [key for key in _ARGUMENTS if key in settings]:
        return f"{arguments[0]} is an argument of transformers' generate, and no setting"
    copies, beams = settings.get("num_return_sequences") or 1, settings.get("num_beams")
    if copies > 1 and beams in (None, 1) and not settings.get("do_sample"):
        return f"num_return_sequences is {copies}, and transformers wants 1 without do_sample"
    if copies > 1 and beams not in (None, 1) and not (_is_number(beams) and copies <= beams):
        return f"num_return_sequences is {copies}, and transformers wants no more than num_beams"
    for key in ("forced_bos_token_id", "forced_eos_token_id"):
        ids, forbidden = settings.get(key), settings.get("suppress_tokens") or ()
        ids = [ids] if is_whole(ids) else ids
        if ids and isinstance(ids, list) and all(token in forbidden for token in ids):
            return f"{key} is {shown(settings[key])}, and suppress_tokens forbids it"
    return None
