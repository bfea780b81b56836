"""What to generate and how: the bundle's generation_config.json, and what the caller changes of it."""

__all__ = ["GenerationDefaults", "GenerationOptions"]

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from doge_export.bundle import Bundle
from doge_export.errors import DogeExportError

_log = logging.getLogger(__name__)

#: transformers' default where it samples and the file says nothing.
_TOP_K = 50
_SAMPLED = ("temperature", "top_k", "top_p")

#: Keys of generation_config.json that would change the text and are not done here -> what means "off".
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "min_p": (0.0,),
    "top_h": (),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "no_repeat_ngram_size": (0,),
    "min_new_tokens": (0,),
    "bad_words_ids": (),
    "suppress_tokens": (),
    "begin_suppress_tokens": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "sequence_bias": (),
    "penalty_alpha": (0.0,),
}


@dataclass(frozen=True)
class GenerationOptions:
    """How the next tokens are chosen, and when to stop.

    `temperature` 0 is greedy. `top_k` 0 and `top_p` 1 are off. `max_new_tokens` None is 100, or what a
    static cache has room for.

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
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int = 0

    def __post_init__(self) -> None:
        _check("max_new_tokens", self.max_new_tokens, self.max_new_tokens is None or self.max_new_tokens > 0)
        _check("temperature", self.temperature, self.temperature >= 0 and math.isfinite(self.temperature))
        _check("top_k", self.top_k, self.top_k >= 0)
        _check("top_p", self.top_p, 0 <= self.top_p <= 1)
        penalty = self.repetition_penalty
        _check("repetition_penalty", penalty, penalty > 0 and math.isfinite(penalty))
        _check("seed", self.seed, self.seed is None or self.seed >= 0)
        _check("stop", self.stop, all(self.stop))

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken each time."""
        return self.temperature == 0

    @property
    def candidates(self) -> int | None:
        """How many of the best tokens are enough to choose the next one as from all; None: it takes all.

        Equals of the k-th best stay in the choice, so that one token more must show that they end.
        """
        if self.repetition_penalty != 1.0:
            return None
        if self.greedy:
            return 1
        return self.top_k + 1 if self.top_k > 0 else None

    @classmethod
    def for_bundle(cls, bundle: Bundle, **changes: Any) -> "GenerationOptions":
        """The defaults of the bundle with `changes`: see `GenerationDefaults`.

        Raises:
            DogeExportError: the file is damaged, or a value is out of its range.
        """
        return GenerationDefaults.of(bundle).changed(**changes)


@dataclass(frozen=True)
class GenerationDefaults:
    """What a bundle's generation_config.json says: `always`, and `sampled` where sampling was asked for.

    As in transformers a file without `do_sample` that sets neither temperature, top_k nor top_p is greedy.
    """

    always: Mapping[str, Any]
    sampled: Mapping[str, Any]
    sampling: bool

    @classmethod
    def of(cls, bundle: Bundle) -> "GenerationDefaults":
        """Read the file; what it asks for and is not done here is logged.

        Raises:
            DogeExportError: it is damaged.
        """
        file = bundle.read_json("generation_config.json")
        eos = _ids(file.get("eos_token_id", bundle.config.eos_token_id))
        pad = file.get("pad_token_id", bundle.config.pad_token_id)
        for key in ignored(file):
            _log.warning("generation_config.json asks for %s, which is not supported and left out.", key)
        return cls(
            always={
                "eos_token_ids": eos,
                "repetition_penalty": _number(file, "repetition_penalty", 1.0),
                "max_new_tokens": _whole(file, "max_new_tokens", None),
                "pad_token_id": pad if _is_whole(pad) else next(iter(eos), 0),
            },
            sampled={
                "temperature": _number(file, "temperature", 1.0),
                "top_k": _whole(file, "top_k", _TOP_K),
                "top_p": _number(file, "top_p", 1.0),
            },
            sampling=bool(file.get("do_sample", any(file.get(key) is not None for key in _SAMPLED))),
        )

    def changed(self, **changes: Any) -> GenerationOptions:
        """The options with `changes`; a change to None is none. A change of temperature, top_k or top_p
        samples, unless the temperature is 0.

        Raises:
            DogeExportError: a value is out of its range.
        """
        changes = {key: value for key, value in changes.items() if value is not None}
        sampling = self.sampling or any(key in changes for key in _SAMPLED)
        return GenerationOptions(**{**self.always, **(self.sampled if sampling else {}), **changes})


def ignored(file: Mapping[str, Any]) -> list[str]:
    """The keys of a generation_config.json that would change the text and are left out."""
    return [key for key, off in _UNSUPPORTED.items() if file.get(key) is not None and file[key] not in off]


def _check(name: str, value: Any, good: bool) -> None:
    if not good:
        raise DogeExportError(f"{name} cannot be {value!r}.")


def _number(file: Mapping[str, Any], key: str, default: float) -> float:
    value = file.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DogeExportError(f"generation_config.json: {key} is {value!r}, not a number.")
    return float(value)


def _whole(file: Mapping[str, Any], key: str, default: int | None) -> int | None:
    value = file.get(key)
    if value is not None and not _is_whole(value):
        raise DogeExportError(f"generation_config.json: {key} is {value!r}, not a whole number.")
    return default if value is None else int(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _ids(value: Any) -> tuple[int, ...]:
    found = [] if value is None else value if isinstance(value, list) else [value]
    if not all(map(_is_whole, found)):
        raise DogeExportError(f"generation_config.json: eos_token_id is {value!r}, not a token id.")
    return tuple(found)
