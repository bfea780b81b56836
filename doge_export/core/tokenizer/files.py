"""The files of a tokenizer in a folder."""

__all__ = [
    "TEMPLATE_FOLDER",
    "TOKENIZER_FILES",
    "VOCABULARY_FILES",
    "copy_tokenizer_files",
    "has_tokenizer",
    "template_files",
    "tokenizer_files",
]

import shutil
from pathlib import Path

from doge_export.core.json_file import is_there

#: What transformers can make a tokenizer.json of.
VOCABULARY_FILES = (
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tiktoken.model",
    "tekken.json",
)
#: What belongs to a tokenizer; a folder has some of them.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    *VOCABULARY_FILES,
    "added_tokens.json",
)
#: Further chat templates, NAME.jinja each.
TEMPLATE_FOLDER = "additional_chat_templates"


def has_tokenizer(folder: Path) -> bool:
    """Whether `folder` has a tokenizer that `Tokenizer.load` can read.

    Raises:
        DogeExportError: what has the place of its file is none, such as a pipe.
    """
    return is_there(folder / "tokenizer.json")


def template_files(folder: Path) -> list[Path]:
    """The further chat templates of `folder`, by their names.

    Raises:
        DogeExportError: one is no file.
    """
    return [path for path in sorted((folder / TEMPLATE_FOLDER).glob("*.jinja")) if is_there(path)]


def tokenizer_files(folder: Path) -> list[str]:
    """The names of the tokenizer's files that `folder` has.

    Raises:
        DogeExportError: one of them is no file.
    """
    names = [name for name in TOKENIZER_FILES if is_there(folder / name)]
    return names + [path.relative_to(folder).as_posix() for path in template_files(folder)]


def copy_tokenizer_files(source: Path, target: Path) -> list[str]:
    """Copy the tokenizer's files that `source` has; returns their names.

    Raises:
        DogeExportError: one of them is no file.
    """
    names = tokenizer_files(source)
    for name in names:
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, target / name)
    return names
