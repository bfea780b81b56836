"""What stands beside tokenizer.json: named tokens, tokens to add, chat templates, all of the right types.

The rules are those of transformers 5 (`PreTrainedTokenizerBase._from_pretrained` and `TokenizersBackend`).
"""

__all__ = ["Settings"]

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doge_export.core.errors import DogeExportError
from doge_export.core.json_file import is_there, read_object, read_text
from doge_export.core.tokenizer.files import template_files

if TYPE_CHECKING:
    from tokenizers import AddedToken

_CONFIG, _MAP, _ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FIELDS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
_LISTED = "added_tokens_decoder"
_EXTRA, _OLD_EXTRA = "extra_special_tokens", "additional_special_tokens"
_REMEDY = "Put the tokenizer's own files into the folder."


@dataclass(frozen=True)
class Settings:
    """The settings beside tokenizer.json. `named`: name -> token, the model's own names among them. `listed`:
    tokens as the vocabulary must have them. `special`: tokens that it must have, as they are there or as
    here. `templates`: name -> chat template. `split_special`: a special token in a text is read as text."""

    named: Mapping[str, str]
    listed: "tuple[AddedToken, ...]"
    special: "tuple[AddedToken, ...]"
    templates: Mapping[str, str]
    split_special: bool = False

    @classmethod
    def read(
        cls, folder: Path, padding: str | None = None, there: "Mapping[int, AddedToken] | None" = None
    ) -> "Settings":
        """Read the files of `folder` that there are; `padding` is the pad token where they name none, and
        `there` are the added tokens of tokenizer.json, by their ids.

        Raises:
            DogeExportError: one of them is damaged, or has something of another type.
        """
        config = read_object(folder / _CONFIG)
        if _OLD_EXTRA in config and not config.get(_EXTRA):
            config[_EXTRA] = config.pop(_OLD_EXTRA)
        old = _LISTED not in config  # the names were in a file of their own before that key
        mapped = _map(folder, config) if old else {}
        merged = {**config, **mapped}
        extra = merged.get(_EXTRA)
        named = isinstance(extra, Mapping)
        more = extra.items() if isinstance(extra, Mapping) else ()
        rest = merged.get(_OLD_EXTRA) if named or _EXTRA not in merged else extra
        pairs = [*_names(merged), *more]
        tokens = {key: _token(key, value) for key, value in pairs if value is not None}
        if padding is not None and "pad_token" not in merged:
            tokens["pad_token"] = _token("pad_token", padding)
        extras = [_token(_EXTRA, each) for each in _list(_EXTRA, rest)]
        if old:
            # Objects of the configuration are not known as special there.
            plain = {key for key in _NAMED if key in mapped or isinstance(merged.get(key), str)}
            known = {token.content for key, token in tokens.items() if key in plain}
            known |= {each for each in (rest or ()) if isinstance(each, str)} if rest is extra else set()
            listed = _older(folder, known, there or {})
        else:
            listed = _decoder(config[_LISTED])
        return cls(
            {key: token.content for key, token in tokens.items()},
            tuple(listed),
            (*tokens.values(), *extras),
            _templates(folder, config.get("chat_template")),
            bool(merged.get("split_special_tokens")),
        )


def _map(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The tokens of special_tokens_map.json, which win, all special; the configuration's extra ones join."""
    tokens = {key: _special(value) for key, value in read_object(folder / _MAP).items()}
    mine, theirs = config.get(_EXTRA), tokens.get(_EXTRA)
    if isinstance(mine, list) and isinstance(theirs, list):
        tokens[_EXTRA] = [*mine, *(each for each in theirs if each not in mine)]
    return tokens


def _special(value: Any) -> Any:
    if isinstance(value, list):
        return [_special(each) for each in value]
    return {**value, "special": True} if isinstance(value, Mapping) and "content" in value else value


def _names(config: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """The tokens that have a name: those of every model, then those that only this one has."""
    yield from ((key, config[key]) for key in _NAMED if key in config)
    for key, value in config.items():
        if key.endswith("_token") and key not in _NAMED and isinstance(value, str | Mapping):
            yield key, value


def _token(setting: str, value: Any) -> "AddedToken":
    """A token that is given by its text, or by an object with `content` and how it is looked for."""
    return _object(setting, {"content": value, "special": True} if isinstance(value, str) else value)


def _object(setting: str, value: Any) -> "AddedToken":
    from tokenizers import AddedToken

    if isinstance(value, Mapping) and isinstance(value.get("content"), str):
        try:
            return AddedToken(**{key: value[key] for key in _FIELDS if key in value})
        except (TypeError, ValueError):
            pass
    raise DogeExportError(f"{_CONFIG}: {setting} has {_short(value)}, which is no token.", _REMEDY)


def _decoder(listed: Any) -> "list[AddedToken]":
    """Read `added_tokens_decoder`: id -> token, in the order of the ids."""
    if not isinstance(listed, Mapping):
        raise DogeExportError(
            f"{_CONFIG}: added_tokens_decoder is {_short(listed)}, not an object of tokens.", _REMEDY
        )
    by_id = {}
    for key, value in listed.items():
        if not (key.isdecimal() and len(key) < 10):
            raise DogeExportError(f"{_CONFIG}: added_tokens_decoder has {key!r}, which is no id.", _REMEDY)
        by_id[int(key)] = _object("added_tokens_decoder", value)
    return [by_id[key] for key in sorted(by_id)]


def _older(folder: Path, special: Set[str], there: "Mapping[int, AddedToken]") -> "list[AddedToken]":
    """The tokens of added_tokens.json, and those of tokenizer.json, which win; in the order of the ids."""
    by_id: dict[int, AddedToken] = {}
    for token, token_id in read_object(folder / _ADDED).items():
        if not isinstance(token_id, int) or isinstance(token_id, bool):
            raise DogeExportError(f"{_ADDED}: the id of {token!r} is {_short(token_id)}.", _REMEDY)
        known = token in special
        by_id[token_id] = _object(_ADDED, {"content": token, "normalized": not known, "special": known})
    by_id |= there
    return [by_id[token_id] for token_id in sorted(by_id)]


def _templates(folder: Path, configured: Any) -> dict[str, str]:
    """The chat templates by name: from files, or else from the configuration, which has one or several."""
    paths = {path.stem: path for path in template_files(folder)}
    if is_there(folder / "chat_template.jinja"):
        paths = {"default": folder / "chat_template.jinja", **paths}
    if paths:
        return {name: _read(path) for name, path in paths.items()}
    if configured is None:
        return {}
    if isinstance(configured, str):
        return {"default": configured}
    if isinstance(configured, Mapping):
        pairs = list(configured.items())
    else:
        pairs = [_pair(each) for each in _list("", configured)]
    for name, text in pairs:
        if not isinstance(name, str) or not isinstance(text, str):
            raise DogeExportError(
                f"{_CONFIG}: chat_template has {_short(text)} in the place of a template's name or text.",
                _REMEDY,
            )
    return dict(pairs)


def _pair(item: Any) -> tuple[Any, Any]:
    return (item.get("name"), item.get("template")) if isinstance(item, Mapping) else (None, item)


def _list(name: str, value: Any) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise DogeExportError(
            f"{_CONFIG}: {name or 'chat_template'} is {_short(value)}, not a list.", _REMEDY
        )
    return value


def _read(path: Path) -> str:
    try:
        return read_text(path)
    except FileNotFoundError:  # gone meanwhile
        raise DogeExportError(f"{path} cannot be read: it is gone.", _REMEDY) from None
    except DogeExportError as error:
        raise DogeExportError(error.message, error.remedy or _REMEDY) from None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
