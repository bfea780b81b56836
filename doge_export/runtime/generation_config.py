"""generation_config.json: the options that a file asks for, and what it asks for and does not get.

Source of the keys, of their defaults and of what is refused: transformers 5, `GenerationConfig` and the
processors and criteria that `generate` makes of it. Where a folder has no such file, transformers takes the
keys from config.json, and so is it done here.
"""

__all__ = ["GENERATION_CONFIG", "GenerationDefaults", "notes_of", "of_config", "say"]

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from doge_export.core.bundle import Bundle
from doge_export.core.config import DogeConfig
from doge_export.core.errors import DogeExportError
from doge_export.core.json_file import is_there
from doge_export.core.token_ids import ID_KEYS, outside
from doge_export.runtime.options import GenerationOptions
from doge_export.runtime.settings import HONOURED, NOT_HONOURED, SETTINGS, refused_at_load, shown

_log = logging.getLogger(__name__)

GENERATION_CONFIG = "generation_config.json"
#: transformers' default where it samples and the file says nothing.
_TOP_K = 50
#: A change of one of these samples.
_SAMPLES = ("temperature", "top_k", "top_p", "min_p")
_SAMPLED = frozenset(setting.option or key for key, setting in SETTINGS.items() if setting.sampled)
_said: set[tuple[str, str]] = set()


@dataclass(frozen=True)
class GenerationDefaults:
    """The settings of a bundle's generation_config.json: `always`, and `sampled` where sampling was asked
    for.

    As in transformers only a file with `do_sample` samples. `notes` are what a user should know: what the
    file asks for and does not get. `refused`: options of which the file has a value that cannot be sampled
    with; it matters where it would be.
    """

    always: Mapping[str, Any]
    sampled: Mapping[str, Any]
    sampling: bool
    notes: tuple[str, ...] = field(default=(), compare=False)
    refused: Mapping[str, DogeExportError] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, bundle: Bundle) -> "GenerationDefaults":
        """Read the file; what it asks for and does not get is logged, once a file.

        Raises:
            DogeExportError: it is damaged, or asks for what transformers refuses.
        """
        path = bundle.path / GENERATION_CONFIG
        defaults = cls.read(bundle.read_json(GENERATION_CONFIG) if is_there(path) else None, bundle.config)
        say(defaults.notes, bundle.path)
        return defaults

    @classmethod
    def read(cls, file: Mapping[str, Any] | None, config: DogeConfig) -> "GenerationDefaults":
        """Read the settings in `file`, or in config.json where there is none.

        Raises:
            DogeExportError: it asks for what transformers refuses.
        """
        defaults = cls._read(file, config)
        for option, error in defaults.refused.items():
            if option not in _SAMPLED:
                raise error
        return defaults

    @classmethod
    def _read(cls, file: Mapping[str, Any] | None, config: DogeConfig) -> "GenerationDefaults":
        name, settings = _source(file, config)
        check_loads(file, config)
        ids = _Ids(name, config.vocab_size)
        always: dict[str, Any] = {"eos_token_ids": ()}
        sampled: dict[str, Any] = {"temperature": 1.0, "top_k": _TOP_K}
        refused: dict[str, DogeExportError] = {}
        for key, setting in SETTINGS.items():
            if setting.kind != HONOURED or settings.get(key) is None:
                continue
            option = setting.option or key
            try:
                value = ids.known(key, _value(name, key, settings[key]))
            except DogeExportError as error:
                refused[option] = error
            else:
                (sampled if setting.sampled else always)[option] = value
        sampling = always.pop("do_sample", False)
        notes = [*ids.notes, *_notes(name, settings, config, sampling)]
        always.pop("bos_token_id", None)  # the tokenizer's to put, and it has its own
        always["pad_token_id"] = next(iter((*always.get("pad_token_id", ()), *always["eos_token_ids"])), 0)
        notes += [
            f"{error} Until then generate fails on it."
            for option, error in refused.items()
            if sampling or option not in _SAMPLED
        ]
        return cls(always, sampled, sampling, tuple(notes), refused)

    def changed(self, **changes: Any) -> GenerationOptions:
        """Return the options with `changes`; None changes nothing, nor does an empty `stop`. A change of
        temperature, top_k, top_p or min_p samples, unless the temperature is 0.

        Raises:
            DogeExportError: a value is out of its range, or the file's cannot be sampled with.
        """
        changes = {key: value for key, value in changes.items() if value is not None and value != ()}
        sampling = self.sampling or any(key in changes for key in _SAMPLES)
        if sampling and changes.get("temperature") != 0:
            for option, error in self.refused.items():
                if option not in changes:
                    raise error
        return GenerationOptions(**{**self.always, **(self.sampled if sampling else {}), **changes})


def say(notes: Iterable[str], folder: Path) -> None:
    """Log the notes, each once for `folder`."""
    for note in notes:
        if (key := (str(folder.resolve()), note)) not in _said:
            _said.add(key)
            _log.warning("%s", note)


def of_config(config: DogeConfig) -> dict[str, Any]:
    """Return the generation settings that transformers takes from a config.json without a
    generation_config.json beside it: its token ids, and whatever else of it is such a setting."""
    keys = [key for key in SETTINGS if key not in ID_KEYS and config.raw.get(key) is not None]
    ids = [key for key in ID_KEYS if getattr(config, key) is not None]
    return {key: getattr(config, key) for key in ids} | {key: config.raw[key] for key in keys}


def check_loads(file: Mapping[str, Any] | None, config: DogeConfig) -> None:
    """Check that transformers loads a model with this generation_config.json, or without one.

    Raises:
        DogeExportError: it does not.
    """
    name, settings = _source(file, config)
    if (reason := refused_at_load(settings)) is not None:
        raise DogeExportError(f"{name}: {reason}.", f"Correct it, or take it out of {name}.")


def notes_of(file: Mapping[str, Any] | None, config: DogeConfig) -> list[str]:
    """Return what a user should know of a checkpoint's generation_config.json (None: there is none) before
    the model is run.

    Raises:
        DogeExportError: transformers does not load the model with it.
    """
    return list(GenerationDefaults._read(file, config).notes)


def _source(file: Mapping[str, Any] | None, config: DogeConfig) -> tuple[str, Mapping[str, Any]]:
    """The name of the file that transformers reads, and what it finds there."""
    if file is not None:
        return GENERATION_CONFIG, file
    ids = {key: config.raw[key] for key in ID_KEYS if config.raw.get(key) is not None}
    return "config.json", of_config(config) | ids  # those too that no token has, to be named


class _Ids:
    """Looks for ids that no token has, and says so in `notes`."""

    def __init__(self, name: str, vocab_size: int) -> None:
        self._name, self._vocab_size = name, vocab_size
        self.notes: list[str] = []

    def known(self, key: str, value: Any) -> Any:
        """Return `value` without ids that no token has, where transformers does without them too.

        Raises:
            DogeExportError: transformers fails on such an id.
        """
        setting = SETTINGS[key]
        if setting.ids is None:
            return value
        foreign = outside(setting.ids(value), self._vocab_size)
        if not foreign:
            return value
        said = f"{self._name}: {key} {foreign[0]} is no token of a vocabulary of {self._vocab_size}"
        if setting.needs_tokens:
            raise DogeExportError(
                f"{said}, which has the ids 0 to {self._vocab_size - 1}.",
                f"Correct it, or take it out of {self._name}.",
            )
        self.notes.append(f"{said}, and is left out. Name a token there, or null for none.")
        return tuple(token for token in value if token not in foreign)


def _value(name: str, key: str, value: Any) -> Any:
    try:
        return SETTINGS[key].read(value)
    except ValueError as wrong:
        raise DogeExportError(
            f"{name}: {key} is {shown(value)}, {wrong}.", f"Correct it, or take it out of {name}."
        ) from None


def _notes(name: str, settings: Mapping[str, Any], config: DogeConfig, sampling: bool) -> Iterator[str]:
    for key, value in settings.items():
        setting = SETTINGS.get(key)
        if setting is None:
            yield f"{name} has {shown(key)}, which transformers does not know and which does nothing here."
        elif setting.kind == NOT_HONOURED and value is not None and value not in setting.off:
            yield f"{name} asks for {key}, which is not supported and left out."
    if settings.get("do_sample") is not None and not isinstance(settings["do_sample"], bool):
        yield f"{name}: do_sample is {shown(settings['do_sample'])}, which transformers takes for {sampling}."
    if settings.get("do_sample") is None:
        sampled = {key: row.off for key, row in SETTINGS.items() if row.sampled}
        asked = [key for key, off in sampled.items() if settings.get(key) not in (None, *off)]
        if asked:
            yield (
                f"{name} sets {', '.join(asked)} and no do_sample: as in transformers the best token is "
                'taken each time. Add "do_sample": true to it, or give --temperature.'
            )
    # Of null there is nothing to say: it says that it means none.
    if name == GENERATION_CONFIG and "eos_token_id" not in settings and config.eos_token_id not in (None, []):
        yield (
            f"{name} has no eos_token_id, so that as in transformers no token ends a text; config.json has "
            f"{config.eos_token_id}. Add it there."
        )
