"""The bundle's tokenizer against transformers' of the reference: ids, text again, and chats."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from doge_export.core.json_file import is_there
from doge_export.core.quiet import quiet_transformers
from doge_export.core.tokenizer import Tokenizer, has_tokenizer
from doge_export.core.tokenizer.files import VOCABULARY_FILES
from doge_export.core.tokenizer.samples import SAMPLES
from doge_export.validate.report import Check

__all__ = ["SAMPLES", "compare_tokenizers", "conversations"]


_Messages = list[dict[str, str]]


def conversations(special: Sequence[str]) -> list[_Messages]:
    """Chats of every shape; `special` tokens stand in what is said."""
    system = {"role": "system", "content": "Be brief."}
    question = {"role": "user", "content": "  What is the cat?  "}
    answer = {"role": "assistant", "content": "A *cat*.\n\n  - yes\n"}
    return [
        [question],
        [system, question],
        [system],
        [question, answer, {"role": "user", "content": "И что ещё? 你好 \U0001f600 e\u0301"}],
        [system, question, answer, question, answer],
        [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}, question],
        [question, question],
        [{"role": "user", "content": "<b>& 'you' {{ x }} {% if %}</b>"}],
        [{"role": "user", "content": f"before {token}after{token}"} for token in special] or [question],
        [{"role": "tool", "content": "42"}],
    ]


def compare_tokenizers(bundle: Path, reference: Path, text: str | None) -> tuple[list[Check], dict[str, Any]]:
    """Each line of `text`, and the whole, or the samples: ids with and without special tokens, and the text
    that both make of them, must be equal. Special tokens of the tokenizer are woven in. So must the chats be
    that each of its templates makes of a few conversations.

    Returns: two checks, or three with chats, and what was compared; no check and the reason in `skipped`
    without a tokenizer.
    """
    if not (has_tokenizer(bundle) and _can_be_read(reference)):
        if has_tokenizer(reference):
            check = Check("tokenizer: the checkpoint has one, and the bundle has none", 1.0, 0.0)
            return [check], {"skipped": "the bundle has no tokenizer"}
        return [], {"skipped": "the checkpoint has no tokenizer that can be read (tokenizer.json)"}
    from transformers import AutoTokenizer

    ours = Tokenizer.load(bundle)
    try:
        with quiet_transformers():
            theirs: Any = AutoTokenizer.from_pretrained(
                reference, local_files_only=True, trust_remote_code=False
            )
            theirs("a")  # some settings are looked at only then
    except Exception as error:  # whatever transformers raises for files that it cannot read
        reason = " ".join(str(error).split())[:200]
        return [], {"skipped": f"transformers cannot load the checkpoint's tokenizer ({reason})"}
    checks, compared = _texts(ours, theirs, text)
    chats, chat_count = _chats(ours, theirs)
    return [*checks, *chats], {**compared, "chats": chat_count}


def _can_be_read(folder: Path) -> bool:
    return has_tokenizer(folder) or any(is_there(folder / name) for name in VOCABULARY_FILES)


def _texts(ours: Tokenizer, theirs: Any, text: str | None) -> tuple[list[Check], dict[str, Any]]:
    texts = list(SAMPLES) if text is None else [*text.splitlines(keepends=True), text]
    special = [token for token in ours.special_tokens.values()]
    texts += [f"before {token}after{token}" for token in special]
    ids_apart, text_apart, tokens = 0, 0, 0
    first = None
    for one in texts:
        for added in (True, False):
            expected = theirs(one, add_special_tokens=added, verbose=False)["input_ids"]
            ids = ours.encode(one, add_special_tokens=added)
            tokens += len(ids)
            ids_apart += ids != expected
            for skip in (True, False):
                decoded = ours.decode(ids, skip_special_tokens=skip)
                wanted = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
                text_apart += decoded != wanted
            if first is None and (ids_apart or text_apart):
                first = one[:80]
    checks = [
        Check("tokenizer: texts with other ids", float(ids_apart), 0.0),
        Check("tokenizer: ids that give another text", float(text_apart), 0.0),
    ]
    return checks, {"texts": len(texts), "tokens": tokens, "first_difference": first}


def _chats(ours: Tokenizer, theirs: Any) -> tuple[list[Check], int]:
    """Compare the chats of both; one that a template refuses must be refused by both."""
    templates = theirs.chat_template
    names = sorted(templates) if isinstance(templates, dict) else ["default"] * (templates is not None)
    if not names and not ours.chat_templates:
        return [], 0
    apart = float(names != sorted(ours.chat_templates))
    chats = conversations(list(ours.special_tokens.values()))
    for name in names:
        for messages in chats:
            for prompted in (True, False):
                mine = _applied(ours.apply_chat_template, messages, prompted, template=name)
                named = name if isinstance(templates, dict) else None
                wanted = _applied(
                    theirs.apply_chat_template,
                    messages,
                    chat_template=named,
                    add_generation_prompt=prompted,
                    tokenize=False,
                )
                apart += mine != wanted
    count = 2 * len(names) * len(chats)
    return [Check("tokenizer: chats with another text", apart, 0.0)], count


def _applied(apply: Callable[..., str], *arguments: Any, **options: Any) -> str | None:
    """The text of the chat; None where the messages are refused."""
    try:
        return apply(*arguments, **options)
    except Exception:  # the template's own: what it raises is anything
        return None
