"""The tokenizer that a bundle gets: the checkpoint's own files, or what transformers makes of them.

A bundle's tokenizer is read from tokenizer.json alone. Older checkpoints have the files that such a one is
made of, and some have a `tokenizer_class` that transformers builds anew, whatever tokenizer.json says.
"""

__all__ = ["TokenizerSource", "tokenizer_source"]

import contextlib
import importlib.util
import json
import logging
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from doge_export.core.errors import DogeExportError
from doge_export.core.json_file import read_object
from doge_export.core.quiet import quiet_transformers
from doge_export.core.temporary import temporary_folder
from doge_export.core.tokenizer import Tokenizer, has_tokenizer
from doge_export.core.tokenizer.chat import compiled
from doge_export.core.tokenizer.files import VOCABULARY_FILES, tokenizer_files
from doge_export.core.tokenizer.samples import SAMPLES

_log = logging.getLogger(__name__)

#: Classes that read tokenizer.json as it is.
_PLAIN = (None, "PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend", "PythonBackend")
#: A vocabulary's file -> the class that reads it in most models.
_CLASSES = {"merges.txt": "GPT2Tokenizer for a byte-level BPE", "vocab.txt": "BertTokenizer"}
_SAVE = (
    "Add a tokenizer.json: AutoTokenizer writes one with save_pretrained, where it can load the tokenizer."
)
_LOOSE = ("padding", "truncation", "version", "post_processor")  # samples show what the last does
_OF_THE_MACHINE = ("is_local", "local_files_only", "name_or_path")


@dataclass(frozen=True)
class TokenizerSource:
    """`folder` has the files to copy. `note`: what was made of other files, in a sentence; empty where they
    are the checkpoint's. `warnings`: what generate and chat will not be able to do, a sentence each.
    `present`: whether there is anything of a tokenizer."""

    folder: Path
    note: str = ""
    warnings: tuple[str, ...] = ()
    present: bool = True

    def to_dict(self) -> dict[str, Any]:
        """As JSON; no path of this machine in it."""
        return {"found": self.present, "made": self.note, "warnings": list(self.warnings)}

    def say(self) -> None:
        """Log what was made, and the warnings."""
        if self.note:
            _log.info("%s", self.note)
        for warning in self.warnings:
            _log.warning("%s", warning)


@contextlib.contextmanager
def tokenizer_source(folder: Path) -> Generator[TokenizerSource]:
    """What a bundle of the checkpoint in `folder` gets, for as long as this lasts.

    Raises:
        DogeExportError: the tokenizer is damaged.
    """
    with temporary_folder() as scratch:
        source = _source(folder, scratch)
        if has_tokenizer(source.folder):
            warnings = (*source.warnings, *_damaged_templates(source.folder))
            source = TokenizerSource(source.folder, source.note, warnings)
        yield source


def _source(folder: Path, target: Path) -> TokenizerSource:
    files = [name for name in tokenizer_files(folder) if name in VOCABULARY_FILES]
    whole = has_tokenizer(folder)
    config = read_object(folder / "tokenizer_config.json")
    named = config.get("tokenizer_class") or read_object(folder / "config.json").get("tokenizer_class")
    if config.get("auto_map"):
        code = f"The tokenizer has code of its own ({named}), which is never run"
        then = "tokenizer.json is taken as it is." if whole else f"generate will not work. {_SAVE}"
        return TokenizerSource(folder, warnings=(f"{code}; {then}",))
    if whole and named in _PLAIN:
        return TokenizerSource(folder)
    if not files and not whole:
        return TokenizerSource(folder, present=False)
    try:
        theirs = _loaded(folder)
    except Exception as error:  # whatever transformers raises for files that it cannot read
        return TokenizerSource(folder, warnings=(_lost(files, whole, named, error),))
    if whole and _alike(Tokenizer.load(folder), theirs):
        return TokenizerSource(folder)
    theirs.save_pretrained(target)
    _without_the_machine(target / "tokenizer_config.json")
    kind = type(theirs).__name__
    if not _alike(Tokenizer.load(target), theirs):
        lost = f"transformers' {kind} cannot be written as a tokenizer.json; generate will not work. Add one."
        return TokenizerSource(folder, warnings=(lost,))
    if whole:
        note = f"tokenizer.json was written anew by transformers' {kind}, which builds another tokenizer."
    else:
        note = f"tokenizer.json was made of {' and '.join(files)} by transformers' {kind}."
    return TokenizerSource(target, note)


def _lost(files: list[str], whole: bool, named: Any, error: Exception) -> str:
    """Why there is no tokenizer.json, and what to do."""
    reason = (" ".join(str(error).split())[:200] or type(error).__name__).removesuffix(".")
    if whole:
        return f"transformers cannot load the tokenizer ({reason}); tokenizer.json is taken as it is."
    missing = f"The checkpoint has {' and '.join(files)} and no tokenizer.json; generate will not work"
    if files[0].endswith(".model") and importlib.util.find_spec("sentencepiece") is None:
        return (
            f"{missing}. transformers makes one with: pip install sentencepiece protobuf. Then export again."
        )
    if named in _PLAIN:
        kind = next((row for name, row in _CLASSES.items() if name in files), "LlamaTokenizer")
        return (
            f"{missing}. transformers makes one where tokenizer_config.json names the tokenizer_class of "
            f"these files, such as {kind}."
        )
    return f"{missing}, and transformers cannot make one ({reason}). {_SAVE}"


def _loaded(folder: Path) -> Any:
    """transformers' tokenizer; no code of the folder is run."""
    if importlib.util.find_spec("transformers") is None:
        raise DogeExportError("transformers is not installed")
    from transformers import AutoTokenizer

    with quiet_transformers():
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise DogeExportError(f"{type(tokenizer).__name__} is written in Python")
    return tokenizer


def _alike(ours: Tokenizer, theirs: Any) -> bool:
    """Whether both are the same tokenizer: their parts, their special tokens, and what they do to samples."""
    mine, other = (_parts(backend) for backend in (ours.backend, theirs.backend_tokenizer))
    return (
        mine == other
        and dict(ours.special_tokens) == theirs.special_tokens_map
        and all(ours.encode(text) == theirs(text, verbose=False)["input_ids"] for text in SAMPLES)
    )


def _parts(backend: Any) -> dict[str, Any]:
    parts: dict[str, Any] = json.loads(backend.to_str())
    if parts["model"].get("type") == "Unigram":  # scores lose their last digit in a file
        parts["model"]["vocab"] = [piece for piece, _ in parts["model"]["vocab"]]
    return {key: value for key, value in parts.items() if key not in _LOOSE}


def _without_the_machine(path: Path) -> None:
    config = {key: value for key, value in read_object(path).items() if key not in _OF_THE_MACHINE}
    path.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _damaged_templates(folder: Path) -> Generator[str]:
    for name, template in Tokenizer.load(folder).chat_templates.items():
        try:
            compiled(template)
        except DogeExportError as error:
            yield f"chat will not work with the template {name!r}: {error}"
