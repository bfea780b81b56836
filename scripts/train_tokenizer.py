"""Train the fixtures' tokenizer: a byte-level BPE of 4096 entries with a Llama-3-style split.

Writes tokenizer.json, tokenizer_config.json, special_tokens_map.json and chat_template.jinja,
then loads the folder with both `tokenizers` and `transformers` and compares their ids.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCAB_SIZE = 4096
BOS, EOS, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"
SPECIAL_TOKENS = [BOS, EOS, PAD, "<|start_header_id|>", "<|end_header_id|>"]
MODEL_MAX_LENGTH = 512

# One alternative a line: contractions; a word with at most one leading sign or blank; up to
# three digits; a run of signs with its line ends; line ends; blanks before a word; other blanks.
SPLIT = "|".join(
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)

CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>' + '\\n' }}
    {{- message['content'] | trim + eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>' + '\\n' }}
{%- endif %}
"""

PROBES = [
    "",
    "Fellow-citizens of the Senate and House of Representatives:",
    "In the beginning God created the heaven and the earth.",
    "We'll spend $1,234,567.89 in 1862 \u2014 it's the Nation's will.\n\n  Two  blanks\there. ",
    "caf\u00e9 \u4f60\u597d \U0001f600 <|end_of_text|> after",
]


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def build(documents: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS}:1 $B:1",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    return tokenizer


def write_folder(tokenizer: Tokenizer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token in SPECIAL_TOKENS
    }
    config = {
        "added_tokens_decoder": added,
        **names,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": MODEL_MAX_LENGTH,
        "padding_side": "left",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    for name, content in (("tokenizer_config.json", config), ("special_tokens_map.json", names)):
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def check_folder(folder: Path, documents: list[str]) -> None:
    """Both loaders must give the same ids, and the ids must give the text back."""
    from transformers import AutoTokenizer

    ours = Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs = AutoTokenizer.from_pretrained(str(folder))
    if (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) != (0, 1, 2):
        raise ValueError("bos, eos and pad are not 0, 1 and 2")
    if theirs.padding_side != "left" or len(theirs) != VOCAB_SIZE:
        raise ValueError("padding side or vocabulary size were not kept")
    for text in PROBES + [document[:20_000] for document in documents[::40]]:
        ids = ours.encode(text).ids
        if ids != list(theirs(text)["input_ids"]) or ids[0] != 0:
            raise ValueError(f"the two loaders disagree on {text[:40]!r}")
        plain = ours.encode(text, add_special_tokens=False).ids
        if ours.decode(plain, skip_special_tokens=False) != text:
            raise ValueError(f"decoding does not give back {text[:40]!r}")
    chat = theirs.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    note(f"chat template gives {chat!r}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--corpus",
        type=Path,
        default=Path("build/corpus"),
        help="folder with train.txt (default %(default)s)",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    args = parser.parse_args()
    try:
        text = (args.corpus / "train.txt").read_text(encoding="utf-8")
        documents = text.split("\f")
        tokenizer = build(documents)
        if tokenizer.get_vocab_size() != VOCAB_SIZE:
            raise ValueError(f"the text is too short for {VOCAB_SIZE} entries")
        write_folder(tokenizer, args.out)
        check_folder(args.out, documents)
    except (OSError, ValueError) as error:
        note(f"error: {error}")
        return 2
    count = sum(len(e.ids) for e in tokenizer.encode_batch(documents, add_special_tokens=False))
    note(f"{count:,} tokens, {len(text.encode('utf-8')) / count:.3f} bytes per token")
    return 0


if __name__ == "__main__":
    sys.exit(main())
