"""The files of a tokenizer in a folder."""

__all__ = [
    "TEMPLATE_FOLDER",
    "TOKENIZER_FILES",
    "VOCABULARY_FILES",
    "copy_tokenizer_files",
    "has_tokenizer",
]

import shutil
from pathlib import Path

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
    """Whether `folder` has a tokenizer that `Tokenizer.load` can read."""
    return (folder / "tokenizer.json").is_file()


def copy_tokenizer_files(source: Path, target: Path) -> list[str]:
    """Copy the tokenizer's files that `source` has; returns their names."""
    names = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    further = sorted((source / TEMPLATE_FOLDER).glob("*.jinja"))
    names += [path.relative_to(source).as_posix() for path in further if path.is_file()]
    for name in names:
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, target / name)
    return names
