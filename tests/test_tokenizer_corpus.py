"""1 MB of text without one difference: ids, text and chats of the fixture's tokenizer and of the authors', in
ours, in `tokenizers`, in transformers, and in onnxruntime-genai, which reads tokenizer.json with code of its
own."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest

from doge_export.core.config import DogeConfig
from doge_export.core.presets import config_dict, models_folder
from doge_export.core.tokenizer import Tokenizer, copy_tokenizer_files
from doge_export.export.genai import GENAI_CONFIG, genai_config
from tests._corpus import BYTES, corpus
from tests.test_tokenizer import AUTHORS


class Four(NamedTuple):
    """The same tokenizer in each library."""

    ours: Tokenizer
    bare: Any
    transformers: Any
    genai: Any
    texts: dict[str, list[str]]


@pytest.fixture(scope="module", params=["fixture", "authors"])
def four(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Four:
    import onnxruntime_genai
    import tokenizers
    from transformers import AutoTokenizer

    source = models_folder() / "doge-tiny" if request.param == "fixture" else AUTHORS
    if not source.is_dir():
        pytest.skip("the authors' tokenizer is not here")
    folder = tmp_path_factory.mktemp("bundle")  # a bundle but for the graph, which no tokenizer needs
    copy_tokenizer_files(source, folder)  # and what onnxruntime-genai asks for first
    config = DogeConfig.from_dict(config_dict("Doge-20M"))
    (folder / GENAI_CONFIG).write_text(json.dumps(genai_config(config, {})))
    ours = Tokenizer.load(folder)
    special = [token.content for token in ours.backend.get_added_tokens_decoder().values()][:12]
    return Four(
        ours,
        tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")),
        AutoTokenizer.from_pretrained(str(folder)),
        onnxruntime_genai.Tokenizer(str(folder)),
        corpus(special),
    )


def differing(texts: Sequence[str], mine: Sequence[Any], theirs: Sequence[Any]) -> list[str]:
    return [text for text, a, b in zip(texts, mine, theirs, strict=True) if a != b]


def test_the_corpus_has_a_megabyte_of_every_kind(four: Four) -> None:
    sizes = {kind: sum(len(text.encode()) for text in texts) for kind, texts in four.texts.items()}
    assert sum(sizes.values()) >= BYTES and min(sizes.values()) > 50_000
    assert corpus(["<a>"]) == corpus(["<a>"])


def test_ids_and_text_are_those_of_transformers(four: Four) -> None:
    for kind, texts in four.texts.items():
        expected = four.transformers(texts, verbose=False)["input_ids"]
        given = [four.ours.encode(text) for text in texts]
        assert not differing(texts, given, expected), kind
        plain = [encoding.ids for encoding in four.bare.encode_batch(texts)]
        assert not differing(texts, given, plain), kind
        back = four.transformers.batch_decode(expected, skip_special_tokens=True)
        assert not differing(texts, [four.ours.decode(ids) for ids in given], back), kind


def test_chats_are_those_of_transformers(four: Four) -> None:
    for messages in _chats(four):
        expected = four.transformers.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert four.ours.apply_chat_template(messages) == expected


def test_ids_and_text_are_those_of_onnxruntime_genai(four: Four) -> None:
    """But for U+0085 after a blank, which its regular expressions do not take for one (0.18.0)."""
    four.genai.update_options(add_special_tokens="true")
    for kind, texts in four.texts.items():
        given = [four.ours.encode(text) for text in texts]
        theirs = [four.genai.encode(text).tolist() for text in texts]
        others = differing(texts, given, theirs)
        assert len(others) < 60 and not [text for text in others if "\x85" not in text], kind
        back = [four.ours.decode(ids) for ids in given]
        assert not differing(texts, [four.genai.decode(ids) for ids in given], back), kind


def test_chats_are_those_of_onnxruntime_genai(four: Four) -> None:
    """But for blanks at a message's ends that are none of ASCII, which its `trim` leaves."""
    for messages in _chats(four):
        trimmed = [{**message, "content": message["content"].strip()} for message in messages]
        for prompt in (True, False):
            theirs = four.genai.apply_chat_template(json.dumps(trimmed), add_generation_prompt=prompt)
            assert theirs == four.ours.apply_chat_template(messages, prompt)


def test_where_onnxruntime_genai_differs(four: Four) -> None:
    """What docs/lab/2026-11-26-interop.md says of it still holds, and is all there is."""
    four.genai.update_options(add_special_tokens="false")

    def alike(text: str) -> bool:
        ids: list[int] = four.genai.encode(text).tolist()
        return ids == four.ours.encode(text, add_special_tokens=False)

    def chats_alike(text: str) -> bool:
        messages = [{"role": "user", "content": text}]
        theirs = four.genai.apply_chat_template(json.dumps(messages), add_generation_prompt=True)
        return bool(theirs == four.ours.apply_chat_template(messages))

    # Only a vocabulary that has two blanks in one token shows the first, and the fixture's has none.
    assert alike("a  \x85b") == (four.ours.vocab_size < 10_000)
    assert all(alike(f"a  {blank}b") for blank in " \t\n\v\f\r\x1c\xa0\u2028\u3000")
    assert all(chats_alike(f"a{blank}") for blank in " \t\n\r")
    assert not any(chats_alike(f"a{blank}") for blank in "\v\f\x1c\x85\xa0\u2003\u2028\u3000")
    assert not alike("a\0b") and not chats_alike("a\0b")


def _chats(four: Four) -> list[list[dict[str, str]]]:
    roles = ("system", "user", "assistant", "user")
    texts = [text for kind in four.texts.values() for text in kind]
    every = range(0, len(texts) - 4, 4)
    return [
        [{"role": role, "content": text} for role, text in zip(roles, texts[at : at + 4], strict=True)]
        for at in every
    ]
