"""The bundle's tokenizer against transformers' of the reference: ids, and text again."""

import logging
from pathlib import Path
from typing import Any

from doge_export.tokenizer import Tokenizer, has_tokenizer
from doge_export.validate.report import Check

__all__ = ["SAMPLES", "compare_tokenizers"]

#: Scripts, white space, digits, emoji, and what looks like something else.
SAMPLES = (
    "My fellow citizens: I stand here today humbled by the task before us.",
    "  leading,  double   and trailing spaces  ",
    "tabs\tand\nlines\r\nof\n\n\nevery kind\u00a0\u2003\u200b",
    "0 1 12 123 1234 3.14159 1,000,000 0x7fff 1e-9 ½ ²",
    "Größe, naïve, Ærøskøbing, Dvořák, İstanbul, e\u0301 (combining)",
    "Русский, Ελληνικά, עברית, العربية, हिन्दी, ไทย",
    "日本語のテキスト、中文文本，한국어 텍스트",
    "😀 👍🏽 👨‍👩‍👧‍👦 🇩🇪 ❤️",
    "def f(x):\n    return {'a': x ** 2, \"b\": [1, 2]}  # code",
    "<html>&amp;</html> https://example.org/?q=a%20b user@example.org",
    "I'll we've DON'T can't 'quoted' \"double\" -- dash – en — em …",
    "\x00\x07\x1b[0m control \ufeff\ufffd",
    "",
)


def compare_tokenizers(bundle: Path, reference: Path, text: str | None) -> tuple[list[Check], dict[str, Any]]:
    """Each line of `text`, and the whole, or the samples: ids with and without special tokens, and the text
    that both make of them, must be equal. Special tokens of the tokenizer are woven in.

    Returns: two checks, and what was compared; no check and the reason in `skipped` without a tokenizer.
    """
    if not (has_tokenizer(bundle) and has_tokenizer(reference)):
        if has_tokenizer(reference):
            check = Check("tokenizer: the checkpoint has one, and the bundle has none", 1.0, 0.0)
            return [check], {"skipped": "the bundle has no tokenizer"}
        return [], {"skipped": "the checkpoint has no tokenizer that can be read (tokenizer.json)"}
    from transformers import AutoTokenizer

    logging.getLogger("transformers").setLevel(logging.ERROR)
    ours = Tokenizer.load(bundle)
    theirs: Any = AutoTokenizer.from_pretrained(reference, local_files_only=True)
    texts = list(SAMPLES) if text is None else [*text.splitlines(keepends=True), text]
    special = [token for token in ours.special_tokens.values()]
    texts += [f"before {token}after{token}" for token in special]
    ids_apart, text_apart, tokens = 0, 0, 0
    first = None
    for one in texts:
        for added in (True, False):
            expected = theirs(one, add_special_tokens=added, verbose=False)["input_ids"]
            given = ours.encode(one, add_special_tokens=added)
            tokens += len(given)
            ids_apart += given != expected
            for skip in (True, False):
                decoded = ours.decode(given, skip_special_tokens=skip)
                wanted = theirs.decode(given, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
                text_apart += decoded != wanted
            if first is None and (ids_apart or text_apart):
                first = one[:80]
    checks = [
        Check("tokenizer: texts with other ids", float(ids_apart), 0.0),
        Check("tokenizer: ids that give another text", float(text_apart), 0.0),
    ]
    return checks, {"texts": len(texts), "tokens": tokens, "first_difference": first}
