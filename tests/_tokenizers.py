"""Small tokenizers of every kind that people have, made with the `tokenizers` library."""

__all__ = ["KINDS", "take_apart", "write_kind"]

import json
from collections.abc import Callable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

_WORDS = ["the", "cat", "saw", "dog", "house", "end", "of", "and", "stop"]
_LETTERS = sorted(set("abcdefghijklmnopqrstuvwxyz.,!?'\"-<>|/ABCé你"))
_SPECIAL = ["<s>", "</s>", "<unk>", "<|end|>"]


def _merges(words: list[str], marker: str = "") -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary of BPE that makes a token of each word, from the left."""
    vocab, merges = {}, []
    for word in words:
        parts = [marker, *word] if marker else list(word)
        for part in parts:
            vocab.setdefault(part, len(vocab))
        made = parts[0]
        for part in parts[1:]:
            if (made, part) not in merges:
                merges.append((made, part))
            made += part
            vocab.setdefault(made, len(vocab))
    return vocab, merges


def _byte_level() -> Tokenizer:
    vocab, merges = _merges(_WORDS, "Ġ")
    for char in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab.setdefault(char, len(vocab))
    backend = Tokenizer(models.BPE(vocab, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _byte_level_in_a_sequence() -> Tokenizer:
    """Split by a pattern first, as newer models do."""
    backend = _byte_level()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}{1,3}| ?\p{L}+|\s+|[^\s\p{L}\p{N}]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])
    return backend


def _byte_fallback() -> Tokenizer:
    """As converters make it of a sentencepiece model with byte fallback."""
    vocab, merges = _merges(_WORDS, "▁")
    for char in [*_LETTERS, *(f"<0x{byte:02X}>" for byte in range(256))]:
        if char != "你":
            vocab.setdefault(char, len(vocab))
    vocab["<unk>"] = len(vocab)
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return backend


def _unigram() -> Tokenizer:
    pieces = ["<unk>", "▁", *_LETTERS, *_WORDS, *(f"▁{word}" for word in _WORDS)]
    backend = Tokenizer(models.Unigram([(piece, -1.0 * (n > 0)) for n, piece in enumerate(pieces)], 0))
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    return backend


def _word_piece() -> Tokenizer:
    pieces = ["[UNK]", *_LETTERS, *_WORDS, *(f"##{each}" for each in [*_LETTERS, *_WORDS])]
    backend = Tokenizer(models.WordPiece({each: n for n, each in enumerate(pieces)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend


def _word_ends() -> Tokenizer:
    """The last piece of a word carries a mark, and the last of a text no blank."""
    pieces = ["<unk>", *_LETTERS, *(f"{each}</w>" for each in [*_LETTERS, *_WORDS])]
    backend = Tokenizer(
        models.BPE(
            {each: n for n, each in enumerate(pieces)}, [], unk_token="<unk>", end_of_word_suffix="</w>"
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.BPEDecoder()
    return backend


def _words() -> Tokenizer:
    """No decoder: a blank between any two."""
    backend = Tokenizer(
        models.WordLevel({each: n for n, each in enumerate(["<unk>", *_WORDS, *_LETTERS])}, "<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return backend


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": _byte_level,
    "byte-level in a sequence": _byte_level_in_a_sequence,
    "byte fallback": _byte_fallback,
    "unigram": _unigram,
    "word pieces": _word_piece,
    "word ends": _word_ends,
    "words": _words,
}


def write_kind(kind: str, folder: Path, config: dict | None = None) -> Path:
    """tokenizer.json and tokenizer_config.json of a kind, with special tokens; one is put in front."""
    backend = KINDS[kind]()
    backend.add_special_tokens([AddedToken(each, normalized=False, special=True) for each in _SPECIAL])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    named = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
    }
    named |= {"tokenizer_class": "PreTrainedTokenizerFast", **(config or {})}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return folder


def take_apart(folder: Path) -> None:
    """vocab.json and merges.txt in the place of tokenizer.json, as a BPE of before it has them."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    (folder / "tokenizer.json").unlink()
