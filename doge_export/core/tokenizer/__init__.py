"""Text to token ids and back with the `tokenizers` library, giving the ids that transformers gives, and chats
to text with the tokenizer's own templates."""

__all__ = [
    "TOKENIZER_FILES",
    "TextStream",
    "Tokenizer",
    "check_vocabulary",
    "copy_tokenizer_files",
    "has_tokenizer",
]

from doge_export.core.tokenizer.core import Tokenizer, check_vocabulary
from doge_export.core.tokenizer.files import TOKENIZER_FILES, copy_tokenizer_files, has_tokenizer
from doge_export.core.tokenizer.stream import TextStream
