"""Tokenizers and chat templates as they come: what kinds, which files, and who wrote them."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from doge_export.core.tokenizer import Tokenizer
from doge_export.export.tokenizer_source import tokenizer_source
from tests._tokenizers import KINDS, take_apart, write_kind
from tests.wild._specimen import REFUSED, Area, Specimen

__all__ = ["AREA", "ROWS"]

_TEXTS = (
    "",
    "the cat and the dog saw the house.",
    "  two  blanks\tand\nlines \n\n",
    "we'll stop at 12,345 - isn't it?",
    "na\u0308ive café 你好 \U0001f600 <unk>",
    "a <|end|> b<|end|>c <s></s> <tool> x<tool>y <img>",
)
_CHATS: tuple[list[dict[str, Any]], ...] = (
    [{"role": "user", "content": "  What is <|end|>?  "}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi <b>& 'you'</b> 你好", "name": None},
        {"role": "assistant", "content": "", "thinking": "hm"},
        {"role": "user", "content": "{{ x }}"},
    ],
)
_PLAIN = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
_NAMES = _PLAIN + "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ tool_token }}|{{ image_token }}"
_MUCH = """
{%- macro say(m, sep='; ') -%}{{ m.role ~ sep ~ m['content'][::-1] }}{%- endmacro %}
{%- set ns = namespace(n=0, all=[]) %}
{%- for m in messages if m.role != 'system' %}
    {%- set ns.n = ns.n + 1 %}
    {%- if 0 < ns.n <= 9 and m.content is string and 'x' not in m.content %}{{ say(m) }}
    {%- else %}{% break %}{% endif %}
    {{- '%5s|%-4d' % (m.role, loop.index) }}{{ '{:>9}'.format(m.role) }}{{ loop.length }}
{%- endfor %}
{{ messages | map(attribute='role') | unique | join(', ') }}
{{ messages | selectattr('role', 'eq', 'user') | list | length }}{{ messages[-1:] + messages[:1] }}
{{ {'b': [1, (2, 3)], ('a'): '<é>'} | tojson(indent=2) }}{{ 7 // 2 ** 2 }}{{ 'ab' * 3 }}{{ [1] + [2] }}
{{ dict(a=1, **{'b': 2}) | dictsort }}{{ ' x '.strip().center(5) }}
{{ 'a,b'.split(',') | batch(3, '-') | list }}
{{ 'a-b' | replace('-', '+') | upper | indent(2, true) }}{{ '<' | e }}
{{ (messages | first).role in ['user'] }}
""".strip()


def _reference(folder: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    ids = [
        tokenizer(text, add_special_tokens=added)["input_ids"] for text in _TEXTS for added in (True, False)
    ]
    if tokenizer.chat_template is None:
        return ids, None
    apply = tokenizer.apply_chat_template
    return ids, [
        apply(chat, tokenize=False, add_generation_prompt=prompt)
        for chat in _CHATS
        for prompt in (True, False)
    ]


def _ours(folder: Path) -> Any:
    """As an export reads it."""
    with tokenizer_source(folder) as source:
        source.say()
        tokenizer = Tokenizer.load(source.folder)
    ids = [tokenizer.encode(text, added) for text in _TEXTS for added in (True, False)]
    if not tokenizer.chat_templates:
        return ids, None
    return ids, [tokenizer.apply_chat_template(chat, prompt) for chat in _CHATS for prompt in (True, False)]


def _compare(reference: Any, ours: Any) -> None:
    assert ours[0] == reference[0]
    assert ours[1] == reference[1]


AREA = Area("tokenizers", _reference, _ours, _compare)


def _kind(
    kind: str = "byte-level", config: dict[str, Any] | None = None, **files: Any
) -> Callable[[Path], None]:
    """A tokenizer of a kind, in a checkpoint's folder, with what its configuration has beside the usual, and
    further files: name -> text, or what becomes JSON; None takes one away. `__` is a folder's slash, and `_`
    before the ending a dot."""

    def make(folder: Path) -> None:
        write_kind(kind, folder, config)
        (folder / "config.json").write_text(json.dumps({"model_type": "doge", "vocab_size": 999}))
        for key, content in files.items():
            stem, _, ending = key.rpartition("_")
            path = folder / f"{stem.replace('__', '/')}.{ending}"
            if content is None:
                path.unlink()
                continue
            path.parent.mkdir(exist_ok=True)
            data = content if isinstance(content, str | bytes) else json.dumps(content)
            path.write_bytes(data.encode() if isinstance(data, str) else data)

    return make


def _template(template: str) -> Callable[[Path], None]:
    return _kind(chat_template_jinja=template)


def _changed(change: Callable[[dict[str, Any]], Any], kind: str = "byte-level") -> Callable[[Path], None]:
    """tokenizer.json with a change."""

    def make(folder: Path) -> None:
        _kind(kind, chat_template_jinja=_NAMES)(folder)
        content = json.loads((folder / "tokenizer.json").read_text())
        change(content)
        (folder / "tokenizer.json").write_text(json.dumps(content))

    return make


def _in_parts(named: str | None) -> Callable[[Path], None]:
    """vocab.json and merges.txt, as a GPT-2 of before tokenizer.json has them."""

    def make(folder: Path) -> None:
        _kind(config={"tokenizer_class": named})(folder)
        take_apart(folder)

    return make


def _word_list(folder: Path) -> None:
    """vocab.txt, as BERT has it."""
    _kind(config={"tokenizer_class": "BertTokenizer"}, tokenizer_json=None)(folder)
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "the",
        "cat",
        "##s",
        "dog",
        "a",
        "b",
        "<s>",
        "</s>",
        "<unk>",
    ]
    (folder / "vocab.txt").write_text("\n".join(words))


def _padded(content: dict[str, Any]) -> None:
    content["padding"] = {
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 3,
        "pad_type_id": 0, "pad_token": "<|end|>",
    }  # fmt: skip
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}


def _old_merges(content: dict[str, Any]) -> None:
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    del content["model"]["type"]


def _stripping(content: dict[str, Any]) -> None:
    for token in content["added_tokens"]:
        token |= {"lstrip": True, "rstrip": token["content"] == "<|end|>"}


def _endless(content: dict[str, Any]) -> None:
    content["pre_tokenizer"] = {
        "type": "Split", "pattern": {"Regex": r"([a-z ]+)+$"}, "behavior": "Isolated", "invert": False,
    }  # fmt: skip


def _instead(name: str, make: Callable[[Path], Any]) -> Callable[[Path], None]:
    """Something else in the place of one of the files."""

    def write(folder: Path) -> None:
        _kind()(folder)
        path = folder / name
        path.unlink(missing_ok=True)
        path.parent.mkdir(exist_ok=True)
        make(path)

    return write


def _to_nothing(path: Path) -> None:
    path.symlink_to("elsewhere")


_OBJECT = {"content": "<tool>", "lstrip": True, "rstrip": False, "single_word": False, "normalized": False}
_REMOTE = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}
_NO_CLASS = "vocab.json and merges.txt and no tokenizer.json; generate will not work.*GPT2Tokenizer"

ROWS = (
    *(Specimen(kind, _kind(kind, chat_template_jinja=_PLAIN)) for kind in KINDS),
    # tokenizer.json
    Specimen("its padding names the pad token, and pads nothing", _changed(_padded)),
    Specimen("merges of an older format", _changed(_old_merges)),
    Specimen(
        "a vocabulary that wins over its merges", _changed(lambda c: c["model"].update(ignore_merges=True))
    ),
    Specimen("no post-processor", _changed(lambda c: c.update(post_processor=None))),
    Specimen("special tokens that take the blanks around them", _changed(_stripping)),
    Specimen(  # transformers dies of a panic, which is no Exception
        "an expression without end", _changed(_endless), None, "fails on this text: Onig: .*retry-limit"
    ),
    # What is no file: transformers waits for the pipe, or passes over what is there.
    Specimen("a pipe", _instead("tokenizer.json", os.mkfifo), None, "tokenizer.json is a pipe, not a file"),
    Specimen("a folder", _instead("tokenizer.json", Path.mkdir), None, "is a folder, not a file"),
    Specimen("a link to nothing", _instead("tokenizer.json", _to_nothing), None, "a file that is not there"),
    Specimen("a vocabulary that is a pipe", _instead("vocab.txt", os.mkfifo), None, "vocab.txt is a pipe"),
    Specimen(
        "a template that is a pipe",
        _instead("chat_template.jinja", os.mkfifo),
        None,
        "chat_template.jinja is a pipe",
    ),
    Specimen(
        "a further template that is a pipe",
        _instead("additional_chat_templates/tool_use.jinja", os.mkfifo),
        None,
        "tool_use.jinja is a pipe",
    ),
    Specimen("damaged", _kind(tokenizer_json="{"), REFUSED, "cannot be read as a tokenizer"),
    # the files beside it
    Specimen("tokenizer.json alone", _kind(tokenizer_config_json=None)),
    Specimen("add_bos_token, which tokenizer.json decides", _kind(config={"add_bos_token": False})),
    Specimen("split_special_tokens", _kind(config={"split_special_tokens": True})),
    Specimen(
        "a list of extra special tokens",
        _kind(config={"extra_special_tokens": ["<tool>", "<img>"]}, chat_template_jinja=_NAMES),
    ),
    Specimen(
        "extra special tokens with names",
        _kind(config={"extra_special_tokens": {"tool_token": "<tool>"}}, chat_template_jinja=_NAMES),
    ),
    Specimen(
        "a token with a name of the model's own",
        _kind(config={"image_token": "<img>"}, chat_template_jinja=_NAMES),
    ),
    Specimen(
        "a token that is an object",
        _kind(config={"eos_token": {"__type": "AddedToken", **_OBJECT}}, chat_template_jinja=_NAMES),
    ),
    Specimen(
        "names in special_tokens_map.json",
        _kind(
            chat_template_jinja=_NAMES,
            special_tokens_map_json={
                "eos_token": _OBJECT,
                "pad_token": "<|end|>",
                "additional_special_tokens": ["<img>"],
            },
        ),
    ),
    Specimen("added_tokens.json", _kind(added_tokens_json={"<tool>": 500, "<img>": 499})),
    Specimen(
        "added_tokens_decoder",
        _kind(
            config={
                "added_tokens_decoder": {
                    "501": {"content": "<tool>", "special": False},
                    "500": {"content": "<img>", "special": True},
                }
            }
        ),
    ),
    Specimen(
        "an object of no extra special tokens beside the older list",
        _kind(
            config={"extra_special_tokens": {}},
            special_tokens_map_json={"additional_special_tokens": ["<tool>"]},
        ),
    ),
    Specimen(
        "an extra special token that is an object",
        _kind(config={"extra_special_tokens": [{"__type": "AddedToken", **_OBJECT}, "<img>"]}),
    ),
    Specimen(
        "added_tokens.json about tokens of tokenizer.json",
        _kind(added_tokens_json={"<|end|>": 3, "<s>": 500, "<tool>": 3}),
    ),
    Specimen(
        "an added_tokens_decoder about tokens of tokenizer.json",
        _kind(
            config={
                "bos_token": "<|end|>",
                "added_tokens_decoder": {
                    "1": {"content": "<|end|>", "lstrip": True, "normalized": True},
                    "2": {"content": "<s>", "special": False},
                },
            },
            chat_template_jinja=_NAMES,
        ),
    ),
    Specimen("an eos_token that is a number", _kind(config={"eos_token": 5}), REFUSED, "eos_token has 5"),
    Specimen(
        "extra special tokens in one text",
        _kind(config={"extra_special_tokens": "<tool>"}),
        REFUSED,
        "extra_special_tokens is '<tool>', not a list",
    ),
    Specimen(
        "an added_tokens_decoder that is a list",
        _kind(config={"added_tokens_decoder": ["<tool>"]}),
        REFUSED,
        "added_tokens_decoder is",
    ),
    Specimen(
        "an added token that is a text",
        _kind(config={"added_tokens_decoder": {"500": "<tool>"}}),
        REFUSED,
        "which is no token",
    ),
    # who makes it
    Specimen("a class that is not known", _kind(config={"tokenizer_class": "NobodysTokenizer"})),
    Specimen(
        "a class that builds another one",
        _kind("byte-level in a sequence", {"tokenizer_class": "Qwen2Tokenizer"}, chat_template_jinja=_NAMES),
    ),
    Specimen("LlamaTokenizer for a byte-level one", _kind(config={"tokenizer_class": "LlamaTokenizerFast"})),
    Specimen(
        "a class in config.json",
        _kind(
            config={"tokenizer_class": None},
            config_json={"model_type": "doge", "tokenizer_class": "GPT2Tokenizer"},
        ),
    ),
    Specimen("vocab.json and merges.txt", _in_parts("GPT2Tokenizer")),
    Specimen(
        "vocab.json and merges.txt of no class", _in_parts(None), REFUSED, r"no tokenizer\.json", _NO_CLASS
    ),
    Specimen("vocab.txt", _word_list),
    Specimen("code of its own beside tokenizer.json", _kind(config=_REMOTE), REFUSED, warns="never run"),
    Specimen(
        "code of its own alone",
        _kind(config=_REMOTE, tokenizer_json=None),
        REFUSED,
        r"no tokenizer\.json",
        "never run; generate will not work",
    ),
    # where a template stands
    Specimen("a template in the configuration", _kind(config={"chat_template": _NAMES})),
    Specimen(
        "a template for each of some names", _kind(config={"chat_template": {"default": _PLAIN, "x": "no"}})
    ),
    Specimen(
        "a list of templates",
        _kind(
            config={
                "chat_template": [{"name": "x", "template": "no"}, {"name": "default", "template": _PLAIN}]
            }
        ),
    ),
    Specimen(
        "a file, which wins over the configuration",
        _kind(config={"chat_template": "no"}, chat_template_jinja=_PLAIN),
    ),
    Specimen(
        "further templates beside the default",
        _kind(chat_template_jinja=_PLAIN, additional_chat_templates__rag_jinja="no"),
    ),
    Specimen("a default among the further ones", _kind(additional_chat_templates__default_jinja=_PLAIN)),
    Specimen(
        "further templates and no default",
        _kind(additional_chat_templates__rag_jinja="a", additional_chat_templates__tool_use_jinja="b"),
        REFUSED,
        r"--chat-template. There are rag, tool_use\.",
    ),
    Specimen(
        "a list without a default",
        _kind(config={"chat_template": [{"name": "x", "template": "no"}]}),
        REFUSED,
        r"There are x\.",
    ),
    Specimen("a processor's chat_template.json", _kind(chat_template_json={"chat_template": "no"})),
    Specimen(
        "templates without names",
        _kind(config={"chat_template": [{"template": "no"}]}),
        REFUSED,
        "chat_template",
    ),
    Specimen(
        "a template that is a number", _kind(config={"chat_template": 5}), REFUSED, "chat_template is 5"
    ),
    # what a template does
    Specimen(
        "line ends of Windows", _template("{% for m in messages %}\r\n{{ m.content }}\r\n{% endfor %}\r\n")
    ),
    Specimen("a mark of the byte order", _template("\ufeff" + _PLAIN)),
    Specimen(
        "a template in UTF-16", _kind(chat_template_jinja=_PLAIN.encode("utf-16")), REFUSED, "cannot be read"
    ),
    Specimen(
        "thoughts by another name",
        _template(
            "{% for m in messages %}{{ m.reasoning_content }}|{{ m.thinking }}{{ m | tojson }}{% endfor %}"
        ),
    ),
    Specimen(
        "the assistant's words marked",
        _template("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"),
    ),
    Specimen(
        "macros, namespaces, slices, chains, breaks",
        _template(_MUCH),
    ),
    Specimen(
        "a template that refuses", _template("{{ raise_exception('Only users!') }}"), REFUSED, "Only users!"
    ),
    Specimen(
        "a template that calls itself",
        _template("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"),
        REFUSED,
        "calls itself without end",
    ),
    Specimen("a template that is no template", _template("{% if %}"), REFUSED, "damaged", "damaged"),
    Specimen("a break without a loop", _template("{% break %}"), REFUSED, "damaged", "damaged"),
    Specimen("a width of 10^9", _template("{{ '%1000000000d' % 1 }}"), None, "was stopped"),
    Specimen(
        "loops without end",
        _template("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"),
        None,
        "was stopped",
    ),
)
