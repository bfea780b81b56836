"""The tokenizer against transformers' AutoTokenizer, and decoding token by token."""

import json
import random
from pathlib import Path

import pytest

from doge_export.core.errors import DogeExportError
from doge_export.core.tokenizer import Tokenizer, copy_tokenizer_files, has_tokenizer
from tests.runtime._toy import BOS, EOS, write_tokenizer

AUTHORS = Path(__file__).parents[2] / "shared" / "data" / "tokenizer"

TEXTS = [
    "",
    " ",
    "the cat and the dog",
    "We'll pay $1,234,567.89 in 1862 - it's the house's will.\n\n  Two  blanks\there. ",
    "café 你好 \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 <eos> after <|end_of_text|><bos>",
    "\r\n\r\n \t x\u00a0y\u3000z",
    "na\u0308ive \u202ertl\u202c \x00\x07",
]
CONVERSATIONS = [
    [{"role": "user", "content": "  What is the cat?  "}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi <b>& 'you'</b>"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "你好"},
    ],
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path)
    return tmp_path


@pytest.fixture(scope="module", params=["tiny", "authors"])
def both(request, tmp_path_factory):
    """Our tokenizer and transformers' of the same folder."""
    if request.param == "tiny":
        folder = tmp_path_factory.mktemp("tokenizer")
        write_tokenizer(folder)
        return _both(folder)
    if not AUTHORS.is_dir():
        pytest.skip("the authors' tokenizer is not here")
    return _both(AUTHORS)


def _both(folder: Path):
    from transformers import AutoTokenizer

    return Tokenizer.load(folder), AutoTokenizer.from_pretrained(str(folder))


def test_ids_and_text_are_those_of_transformers(both):
    ours, theirs = both
    for text in TEXTS:
        for special in (True, False):
            ids = ours.encode(text, add_special_tokens=special)
            assert ids == theirs.encode(text, add_special_tokens=special), text
            for skip in (True, False):
                assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip), text


def test_named_tokens_are_those_of_transformers(both):
    ours, theirs = both
    assert dict(ours.special_tokens) == theirs.special_tokens_map
    assert ours.token_id("eos_token") == theirs.eos_token_id == 1
    assert ours.token_id("mask_token") is None
    assert ours.vocab_size == len(theirs)


def test_chat_is_that_of_transformers(both):
    ours, theirs = both
    for messages in CONVERSATIONS:
        for prompt in (True, False):
            expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
            assert ours.apply_chat_template(messages, prompt) == expected


@pytest.mark.parametrize(
    "config",
    [
        {"extra_special_tokens": ["<tool>"], "bos_token": "<bos>"},
        {"additional_special_tokens": ["<tool>"], "unk_token": "<unk>"},
        {"eos_token": {"content": "<end>", "__type": "AddedToken", "lstrip": False, "rstrip": False,
                       "normalized": False, "single_word": False, "special": True}},
        {"added_tokens_decoder": {"303": {"content": "<plain>", "special": False, "normalized": True}}},
        {"added_tokens_decoder": {"310": {"content": "<end>"}, "99": {"content": "<tool>"}}, "x": 1},
        {"add_bos_token": False, "bos_token": "<bos>"},
        {"split_special_tokens": True, "bos_token": "<bos>"},
    ],
    ids=lambda config: "-".join(config),
)  # fmt: skip
def test_tokens_that_only_the_configuration_names(folder, config):
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**config, "tokenizer_class": "PreTrainedTokenizerFast"})
    )
    ours, theirs = _both(folder)
    for text in ("a <tool> b", "<end> <unk>", "x<plain>y <bos>"):
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert dict(ours.special_tokens) == theirs.special_tokens_map


def test_names_from_the_older_file(folder):
    (folder / "tokenizer_config.json").unlink()
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<eos>"}}))
    assert Tokenizer.load(folder).token_id("eos_token") == EOS


def test_padding_and_truncation_of_the_file_are_ignored(folder):
    import tokenizers

    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=16)
    backend.save(str(folder / "tokenizer.json"))
    ours, theirs = _both(folder)
    ids = ours.encode("the cat saw the dog at the door")
    assert len(ids) not in (4, 16)
    assert ids == theirs.encode("the cat saw the dog at the door")


@pytest.mark.parametrize("seed", range(20))
def test_streamed_pieces_join_to_the_whole_text(both, seed):
    tokenizer, _ = both
    random_ids = random.Random(seed).choices(range(tokenizer.vocab_size), k=60)
    for ids in (random_ids, tokenizer.encode("".join(TEXTS))):
        stream = tokenizer.stream()
        pieces = [stream.push(token) for token in ids]
        assert "".join(pieces) + stream.flush() == tokenizer.decode(ids)


def test_a_stream_never_shows_half_a_character(folder):
    tokenizer = Tokenizer.load(folder)
    ids = tokenizer.encode("aé你\U0001f600b", add_special_tokens=False)
    assert len(ids) == 1 + 2 + 3 + 4 + 1  # the tiny tokenizer has no merges for them
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in ids]
    assert pieces == ["a", "", "é", "", "", "你", "", "", "", "\U0001f600", "b"]
    assert stream.flush() == ""


def test_a_stream_ends_with_what_was_incomplete(folder):
    tokenizer = Tokenizer.load(folder)
    ids = tokenizer.encode("b\U0001f600", add_special_tokens=False)[:-1]
    stream = tokenizer.stream()
    assert "".join(map(stream.push, ids)) == "b"
    assert stream.flush() == "\N{REPLACEMENT CHARACTER}"
    assert stream.flush() == ""


def test_a_stream_holds_back_one_incomplete_character_and_no_more(folder):
    tokenizer = Tokenizer.load(folder)
    half, _ = tokenizer.encode("é", add_special_tokens=False)
    stream = tokenizer.stream()
    pieces = [stream.push(half) for _ in range(3)]
    assert pieces == ["", "\N{REPLACEMENT CHARACTER}", "\N{REPLACEMENT CHARACTER}"]
    assert stream.flush() == "\N{REPLACEMENT CHARACTER}"


def test_a_stream_keeps_the_blanks_that_a_decoder_puts_between_tokens(tmp_path):
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    words = {"▁the": 0, "▁cat": 1, "s": 2, "▁": 3}
    backend = Backend(models.BPE(words, []))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    stream = tokenizer.stream()
    assert [stream.push(token) for token in (0, 1, 2, 0, 3, 1)] == ["the", " cat", "s", " the", " ", " cat"]


def test_a_stream_skips_special_tokens_inside_a_character(folder):
    tokenizer = Tokenizer.load(folder)
    first, *rest = tokenizer.encode("é", add_special_tokens=False)
    stream = tokenizer.stream()
    assert [stream.push(token) for token in (first, BOS, *rest)] == ["", "", "é"]


def test_template_of_the_configuration_and_its_list_of_templates(folder):
    (folder / "chat_template.jinja").unlink()
    for template in ("{{ eos_token }}!", [{"name": "x", "template": "no"},
                                          {"name": "default", "template": "{{ eos_token }}!"}]):  # fmt: skip
        config = {"eos_token": "<eos>", "chat_template": template}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        assert Tokenizer.load(folder).apply_chat_template([{"role": "user", "content": "x"}]) == "<eos>!"


def test_template_helpers_are_those_of_transformers(folder):
    template = (
        "  {% for m in messages %}\n  {% if m.role == 'stop' %}{% break %}{% endif %}{{ m | tojson }}"
        "{{ {'b': '<é>', 'a': 1} | tojson(indent=2, sort_keys=true) }}"
        "{% generation %}{{ m.content }}{% set x = 1 %}{% endgeneration %}{{ x is defined }}{% endfor %}"
        "{{ tools is none }}{{ dict(a=1) }}{% set n = namespace(i=1) %}{{ n.i }}"
    )
    (folder / "chat_template.jinja").write_text(template)
    ours, theirs = _both(folder)
    messages = [{"role": "user", "content": "hé", "name": None}, {"role": "stop", "content": "no"}]
    assert ours.apply_chat_template(messages) == theirs.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{{ raise_exception('Only users!') }}", "Only users!"),
        ("{% if %}", "damaged"),
        ("{{ ''.__class__.__mro__ }}", "refuses"),
        ("{{ messages.append(1) }}", "refuses"),
        ("{{ 1 // 0 }}", "refuses"),
        ("{{ messages[0]['content'] + 1 }}", "refuses"),
    ],
)
def test_a_bad_template_is_one_sentence(folder, template, sentence):
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(DogeExportError, match=sentence):
        Tokenizer.load(folder).apply_chat_template([{"role": "user", "content": "x"}])


def test_no_template_and_no_messages(tmp_path):
    write_tokenizer(tmp_path, template=None)
    tokenizer = Tokenizer.load(tmp_path)
    with pytest.raises(DogeExportError, match="no chat template"):
        tokenizer.apply_chat_template([{"role": "user", "content": "x"}])
    with pytest.raises(DogeExportError, match="at least one message"):
        tokenizer.apply_chat_template([])


def test_a_lone_surrogate_is_refused(folder):
    with pytest.raises(DogeExportError, match="not valid UTF-8 at character 3"):
        Tokenizer.load(folder).encode("ab\udcff")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_file_is_one_sentence(folder, name, content):
    (folder / name).write_text(content)
    with pytest.raises(DogeExportError, match=name):
        Tokenizer.load(folder)


def test_files_are_copied_where_present(folder, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (folder / "model.safetensors").touch()
    names = copy_tokenizer_files(folder, target)
    assert names == ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
    assert sorted(path.name for path in target.iterdir()) == sorted(names)
    assert has_tokenizer(target)
    assert not has_tokenizer(tmp_path / "nowhere")
    with pytest.raises(DogeExportError, match=r"no tokenizer\.json"):
        Tokenizer.load(tmp_path / "nowhere")


_ODD = [
    *(5, None, True, 1e400, "", "x", "\x00", "\ud800", [], [5], [["x"]], [""], {}, {"a": 1}, {"content": 5}),
    *({"content": "\ud800"}, {"content": "y", "lstrip": 5}, {"content": "y", "foo": 1}, {"1": 5}),
    *({"a": {"content": "z"}}, {"-1": {"content": "z"}}, {"9" * 20: {"content": "z"}}, {"z": -5}, {"z": 1.5}),
    *([{"name": "default", "template": 5}], [{"name": ["a"], "template": "x"}], {"default": 5}),
]
_KEYS = ["eos_token", "extra_special_tokens", "additional_special_tokens", "added_tokens_decoder"]
_KEYS += ["chat_template", "split_special_tokens", "image_token"]


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"])
@pytest.mark.parametrize("key", _KEYS)
def test_odd_values_are_taken_or_refused_in_a_sentence(folder, name, key):
    refused = 0
    for value in _ODD:
        (folder / "tokenizer_config.json").write_text("{}")
        (folder / name).write_text(json.dumps({key: value}))
        try:
            tokenizer = Tokenizer.load(folder)
            tokenizer.decode(tokenizer.encode("x y z"))
            tokenizer.apply_chat_template([{"role": "user", "content": "x"}])
        except DogeExportError as error:
            assert "\n" not in str(error) and str(error).endswith(".")
            refused += 1
    assert refused < len(_ODD)
