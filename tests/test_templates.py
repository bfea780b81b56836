"""Chat templates: which one, what it is given, and the limits within which it runs."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from doge_export.core.errors import DogeExportError
from doge_export.core.tokenizer import Tokenizer, budget
from tests.runtime._toy import write_tokenizer

USER = [{"role": "user", "content": "x"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path, template=None)
    return tmp_path


def _both(folder: Path) -> tuple[Tokenizer, Any]:
    from transformers import AutoTokenizer

    return Tokenizer.load(folder), AutoTokenizer.from_pretrained(str(folder))


def _rendered(template: str, messages: list[dict[str, Any]] = USER) -> str:
    return Tokenizer(None, {}, {"default": template}).apply_chat_template(messages)  # type: ignore[arg-type]


NAMED = {"default": "plain", "tool_use": "{{ tools | tojson }}", "rag": "{{ documents | tojson }}"}


def test_a_template_is_chosen_by_name_or_by_tools(folder: Path) -> None:
    config = {"chat_template": [{"name": key, "template": text} for key, text in NAMED.items()]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    ours, theirs = _both(folder)
    tools: list[dict[str, Any]] = [{"type": "function", "function": {"name": "f", "description": "é"}}]
    documents = [{"title": "t", "text": "<x>"}]
    for given in ({}, {"tools": tools}, {"documents": documents}, {"tools": []}):
        expected = theirs.apply_chat_template(USER, tokenize=False, **given)
        assert ours.apply_chat_template(USER, **given) == expected
    assert ours.apply_chat_template(USER, documents=documents, template="rag") == theirs.apply_chat_template(
        USER, tokenize=False, documents=documents, chat_template="rag"
    )
    chosen = Tokenizer.load(folder, "rag")
    assert chosen.chat_template == NAMED["rag"] and ours.chat_template == "plain"
    assert chosen.apply_chat_template(USER, documents=documents) == json.dumps(documents)
    with pytest.raises(DogeExportError, match=r"no chat template 'no'. There are default, rag, tool_use\."):
        Tokenizer.load(folder, "no")
    with pytest.raises(DogeExportError, match="There are"):
        ours.apply_chat_template(USER, template="no")


def test_names_of_the_callers_own_and_none_reach_the_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ enable_thinking }}{{ bos_token }}{{ tools is none }}")
    ours, theirs = _both(folder)
    for given in ({}, {"enable_thinking": False}, {"bos_token": "other"}):
        expected = theirs.apply_chat_template(USER, tokenize=False, **given)
        assert ours.apply_chat_template(USER, **given) == expected


CONTINUED = "{% for m in messages %}<{{ m.role }}>{{ m.content SHOWN }}</>\n{% endfor %}"


@pytest.mark.parametrize("shown", ["", "| trim", "| upper", "[0].text"])
@pytest.mark.parametrize("content", ["The cat", "The cat ", "  ", [{"type": "text", "text": "It is "}], None])
def test_a_message_is_continued_as_in_transformers(folder: Path, shown: str, content: Any) -> None:
    (folder / "chat_template.jinja").write_text(CONTINUED.replace("SHOWN", shown))
    ours, theirs = _both(folder)
    messages = [*USER, {"role": "assistant", "content": content}]
    try:
        expected = theirs.apply_chat_template(messages, tokenize=False, continue_final_message=True)
    except Exception:
        with pytest.raises(DogeExportError):
            ours.apply_chat_template(messages, continue_final_message=True)
        return
    assert ours.apply_chat_template(messages, continue_final_message=True) == expected


def test_the_callers_messages_stay_as_they_are(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content[0].text }}{% endfor %}")
    messages = [{"role": "assistant", "content": [{"type": "text", "text": "It"}], "thinking": "hm"}]
    before = json.dumps(messages)
    assert Tokenizer.load(folder).apply_chat_template(messages, continue_final_message=True) == "It"
    assert json.dumps(messages) == before


def test_a_chat_is_continued_or_answered(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(DogeExportError, match="either continues"):
        Tokenizer.load(folder).apply_chat_template(USER, True, continue_final_message=True)


_TWICE = "{% set ns = namespace(x=FIRST, y=FIRST) %}{% for a in range(60) %}{% set ns.x = NEXT %}{% endfor %}"
_LISTS = _TWICE.replace("FIRST", "[1]").replace("NEXT", "[ns.x, ns.x]")
_TUPLES = _TWICE.replace("FIRST", "(1,)").replace("NEXT", "(ns.x, ns.x)")
_BIG = "{% set b = 'x ' * 999999 %}{% for a in range(99999) %}"
_MANY = "{% set b = range(99999) | list %}{% for a in range(99999) %}"

#: Each would take hours, or all the memory there is.
ENDLESS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a loop of nothing": "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}"
    "{% endfor %}",
    "a macro twice": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(99) }}",
    "text ~": _TWICE.replace("FIRST", "'x'").replace("NEXT", "ns.x ~ ns.x"),
    "text +": _TWICE.replace("FIRST", "'x'").replace("NEXT", "ns.x + ns.x"),
    "text in a block": "{% set ns = namespace(x='x') %}{% for a in range(60) %}"
    "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
    "text *": "{{ 'x' * 10**9 }}",
    "list *": "{{ ([1] * 10**9) | length }}",
    "number *": _TWICE.replace("FIRST", "10").replace("NEXT", "ns.x * ns.x"),
    "number **": "{{ 10 ** (10 ** 9) }}",
    "% width": "{{ '%1000000000d' % 1 }}",
    "% width given": "{{ '%*d' % (10**9, 1) }}",
    "% precision": "{{ '%.1000000000f' % 1.0 }}",
    "% often": "{{ ('%(a)s' * 99999) % {'a': 'x' * 999999} }}",
    "format": "{{ '{:1000000000d}'.format(1) }}",
    "format given": "{{ '{:{w}d}'.format(1, w=10**9) }}",
    "format_map": "{{ '{a:1000000000d}'.format_map({'a': 1}) }}",
    "format of Markup": "{{ ('{:1000000000d}' | safe).format(1) }}",
    "the filter format": "{{ '%1000000000d' | format(1) }}",
    "tojson": "{{ [[1]] | tojson(indent=10**9) }}",
    "tojson by text": "{{ b | default(range(9999) | list) | tojson(indent='x' * 99999) }}",
    "tojson between": "{{ range(99999) | list | tojson(separators=('x' * 99999, ':')) }}",
    "the filter center": "{{ 'x' | center(1000000000) }}",
    "center": "{{ 'x'.center(10**9) }}",
    "zfill": "{{ 'x'.zfill(10**9) }}",
    "expandtabs": "{{ ('\t' * 999).expandtabs(10**9) }}",
    "to_bytes": "{{ (1).to_bytes(10**9, 'big') }}",
    "translate": "{{ ('a' * 999999).translate({97: 'x' * 999999}) }}",
    "replace": "{{ ('x' * 999999).replace('', 'y' * 999999) }}",
    "the filter replace": "{{ ('x' * 999999) | replace('x', 'y' * 999999) }}",
    "join": "{{ ('x' * 999999).join(range(99999) | map('string')) }}",
    "the filter join": "{{ ([('x' * 999999)] * 99999) | map('string') | join }}",
    "indent": "{{ ('a\n' * 99999) | indent(9999) }}",
    "batch": "{{ [1] | batch(10**9, 'x') | list | length }}",
    "slice": "{{ [1] | slice(10**9) | list | length }}",
    "round": "{{ 1.5 | round(10**9, 'ceil') }}",
    "sum": "{{ ([range(99999) | list] * 999) | sum(start=[]) | length }}",
    "urlize": "{{ ('http://a.b ' * 99999) | urlize(rel='x' * 99999) }}",
    "wordwrap": "{{ ('a ' * 99999) | wordwrap(1, wrapstring='x' * 999999) }}",
    "lipsum": "{{ lipsum(n=10**9) }}",
    "strftime_now": "{{ strftime_now('%1000000000d') }}",
    "strip": "{{ ('a' * 4000000).strip('b' * 4000000 ~ 'a') | length }}",
    "rfind": "{{ ('a' * 4000000).rfind('a' * 999999 ~ 'b' ~ 'a' * 999999) }}",
    "a codec": "{{ ('é' * 999999).encode('punycode') }}",
    "striptags": "{{ ('<!---->' * 500000) | striptags }}",
    "striptags of Markup": "{{ (('<a>' * 999999) | safe).striptags() }}",
    "one long word": "{{ ('a' * 4000000) | wordwrap(1) }}",
    "a long text in a list": "{{ 'x' * 999999 ~ 'a' in ['x' * 999999 ~ 'b'] * 99999 }}",
    "a list in a list": "{{ ['x' * 99999 ~ 'a'] in [['x' * 99999 ~ 'b']] * 99999 }}",
    "a long text counted": "{{ (['x' * 999999 ~ 'a'] * 99999).count('x' * 999999 ~ 'b') }}",
    "dictsort": "{{ dict.fromkeys(range(9999) | list, 'x' * 999999) | dictsort(by='value') }}",
    "upper": _BIG + "{{ b is upper }}{% endfor %}",
    "title": _BIG + "{{ b | title | length }}{% endfor %}",
    "pprint": _MANY + "{{ b | pprint | length }}{% endfor %}",
    "words": "{% for a in range(9999) %}{% set c = lipsum(n=100) %}{% endfor %}",
    "braces": _BIG + "{{ ('{{' * 999999).format() | length }}{% endfor %}",
    "lists in lists": _LISTS + "{{ ns.x }}",
    "lists in lists as JSON": _LISTS + "{{ ns.x | tojson }}",
    "lists in lists ~": _LISTS + "{% set t = ns.x ~ '' %}",
    "lists in lists %": _LISTS + "{{ '%s' % ns.x }}",
    "lists in lists format": _LISTS + "{{ '{}'.format(ns.x) }}",
    "lists in a namespace": _LISTS + "{{ ns }}",
    "lists compared": _LISTS + "{% set y = ns.x %}" + _LISTS + "{{ ns.x == y }}",
    "lists compared in a chain": _LISTS + "{% set y = ns.x %}" + _LISTS + "{{ ns.x <= y <= ns.x }}",
    "lists compared by a test": _LISTS + "{% set y = ns.x %}" + _LISTS + "{{ ns.x is eq(y) }}",
    "lists counted": _LISTS + "{% set y = ns.x %}" + _LISTS + "{{ [ns.x].count(y) }}",
    "lists grouped": _LISTS + "{{ [{'a': ns.x}] | groupby('a') }}",
    "lists raised": _LISTS + "{{ raise_exception(ns.x) }}",
    "a tuple as a key": _TUPLES + "{% set d = {ns.x: 1} %}",
    "a tuple looked up": _TUPLES + "{{ {1: 1}[ns.x] }}",
    "a tuple asked for": _TUPLES + "{{ {1: 1}.get(ns.x) }}",
    "a tuple looked for": _TUPLES + "{{ ns.x in {1: 1} }}",
    "slices": _BIG + "{% set c = b[1:] %}{% endfor %}",
    "searches": _BIG + "{% set c = 'y' in b %}{% endfor %}",
    "methods": _BIG + "{% set c = b.find('y') %}{% endfor %}",
    "filters": _BIG + "{% set c = b | upper %}{% endfor %}",
    "splits": _BIG + "{% set c = b.split() %}{% endfor %}",
    "sorted again and again": _MANY + "{% set c = b | sort %}{% endfor %}",
    "mapped again and again": _MANY + "{% set c = b | map('int') | list %}{% endfor %}",
    "looked through again and again": _MANY + "{% set c = -1 in b %}{% endfor %}",
}  # fmt: skip


@pytest.mark.parametrize("name", ENDLESS)
def test_time_and_memory_of_a_template_are_limited(name: str) -> None:
    with pytest.raises(DogeExportError, match=r"was stopped: it (takes|asks|computes)") as caught:
        _rendered(ENDLESS[name])
    assert caught.value.remedy and "\n" not in str(caught.value)


#: What jinja, Python and the sandbox raise: each is one sentence.
FAILING = {
    "RecursionError": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a loop in itself": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "a block in itself": "{% block a %}{{ self.a() }}{% endblock %}",
    "a caller in itself": "{% macro m() %}{{ caller() }}{% endmacro %}{% macro r() %}{% call m() %}{{ r() }}"
    "{% endcall %}{% endmacro %}{{ r() }}",
    "SyntaxError": "{% break %}",
    "too deep": "{{ " + "(" * 50000 + "1" + ")" * 50000 + " }}",
    "too many": "{% if 1 %}" * 999 + "{% endif %}" * 999,
    "a huge number": "{{ " + "9" * 5000 + " }}",
    "too long": "x" * 300000,
    "ZeroDivisionError": "{{ 1 / 0 }}",
    "OverflowError": "{{ 1e308 * 10 ** 308 // 1 | int }}{{ 2.0 ** 99999 }}",
    "AttributeError": "{{ messages.x.y }}",
    "KeyError": "{{ {}['a']['b'] }}",
    "TypeError": "{{ none() }}",
    "a generator as JSON": "{{ messages | map('length') | tojson }}",
    "the length of a generator": "{{ messages | map('length') | length }}",
    "no such filter": "{{ 1 | nothing }}",
    "no such test": "{{ 1 is nothing }}",
    "a file": "{% include 'x' %}",
    "an import": "{% from 'x' import y %}",
    "Python": "{{ ''.__class__.__mro__[1] }}",
    "Python by a format": "{{ '{0.__class__.__mro__}'.format(1) }}{{ x.y }}",
    "an underscore": "{% set ns = namespace(_x=1) %}",
    "a change of a list": "{{ messages.append(1) }}",
    "its own words": "{{ raise_exception('a\nb') }}",
}


@pytest.mark.parametrize("name", FAILING)
def test_whatever_a_template_raises_is_one_sentence(name: str) -> None:
    with pytest.raises(DogeExportError, match="chat template") as caught:
        _rendered(FAILING[name])
    assert caught.value.remedy and "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("error", "sentence"), [(AssertionError(), "AssertionError"), (MemoryError(), "more memory")]
)
def test_what_no_template_here_makes_python_raise_is_one_too(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, sentence: str
) -> None:
    def fail(self: budget.Budget, units: int) -> None:
        raise error

    monkeypatch.setattr(budget.Budget, "spend", fail)
    with pytest.raises(DogeExportError, match=sentence):
        _rendered("{{ 1 }}")


def test_the_limits_grow_with_the_messages() -> None:
    """A conversation of thousands of messages, and one message of millions of characters, pass."""
    template = (
        "{% for m in messages %}{{ ' ' ~ m.role + ': ' + m.content | trim }}{% if loop.last %}!{% endif %}"
        "{% endfor %}"
    )
    many = [{"role": "user", "content": f"What is {n}?"} for n in range(20_000)]
    assert len(_rendered(template, many)) > 20_000 * 15
    long = "x" * 9_000_000
    assert _rendered(template, [{"role": "user", "content": long}]) == f" user: {long}!"


def test_a_budget_is_that_of_one_rendering() -> None:
    """Threads share a tokenizer, and not what is left; nor does a second rendering get less."""
    template = "{% for a in range(5000) %}{% for b in range(20) %}x{% endfor %}{% endfor %}"
    tokenizer = Tokenizer(None, {}, {"default": template})  # type: ignore[arg-type]
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(tokenizer.apply_chat_template(USER))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["x" * 5000 * 20] * 3


def test_what_is_small_is_as_without_limits() -> None:
    """The counted operations do what jinja's do."""
    cases = {
        "{{ 'a' ~ 1 ~ none ~ [1] }}": "a1None[1]",
        "{{ 1 < 2 < 3 }}{{ 3 > 2 > 2 }}{{ 1 == 1.0 }}{{ 'a' != 'b' }}": "TrueFalseTrueTrue",
        "{{ 1 <= 1 }}{{ 2 >= 3 }}": "TrueFalse",
        "{{ 1 in [1] }}{{ 'a' not in 'abc' }}{{ 'a' in {'a': 1} }}{{ x == 1 }}": "TrueFalseTrueFalse",
        "{{ 'abc'[1:] }}{{ [1, 2, 3][::-1] }}{{ 'abc'[-1] }}{{ 'abcdef'[1:5:2] }}": "bc[3, 2, 1]cbd",
        "{{ 'a' * 3 }}{{ 3 * [0] }}{{ 7 % 4 }}{{ 2 ** 10 }}": "aaa[0, 0, 0]31024",
        "{{ '%s-%03d' % ('a', 7) }}": "a-007",
        "{{ '{0:>4}|{a}'.format(1, a='x') }}{{ '{a}'.format_map({'a': 2}) }}": "   1|x2",
        "{{ 'a-b'.replace('-', '+').upper().center(7) }}{{ ','.join(['a', 'b']) }}": "  A+B  a,b",
        "{{ {(1, 2): 'x'}[(1, 2)] }}{{ {'a': 1}.get('b', 2) }}": "x2",
        "{% autoescape true %}{{ '<' ~ '>' }}{% endautoescape %}": "&lt;&gt;",
        "{% for a in [1, 2, 3] if a != 2 %}{{ loop.index }}{{ loop.last }}{% endfor %}": "1False2True",
        "{% for a in [[1], 2] recursive %}{{ loop(a) if a is iterable else a }}{% endfor %}": "12",
        "{{ [3, 1] | map('string') | join }}{{ ','.join(['a'] | map('upper')) }}": "31A",
        "{{ (['a', 'b'] | select | list)[0] }}{{ ['a', 'b'] | map('upper') | first }}": "aA",
        "{{ [3, 1, 2] | sort }}{{ [1, 2] | sum }}{{ ['a', 'b'] | join('-') }}": "[1, 2, 3]3a-b",
    }  # fmt: skip
    for template, expected in cases.items():
        assert _rendered(template) == expected, template
