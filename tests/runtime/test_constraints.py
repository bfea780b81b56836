"""Texts within rules: on doge-tiny, drawn wildly, in Python from all logits and by the kernels."""

import builtins
import json
import re
from dataclasses import replace

import jsonschema
import numpy as np
import pytest

from doge_export.core.errors import DogeExportError
from doge_export.core.tokenizer import Tokenizer
from doge_export.export.options import ExportOptions
from doge_export.export.pipeline import export_model
from doge_export.runtime import GenerationDefaults, Session, generate, token_strategy
from doge_export.runtime.constraints import Rules, RuleTokenizer, compile_constraint
from tests.runtime._toy import EOS, write_toy_bundle
from tests.runtime.test_decoder import _without_decode

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "mood": {"enum": ["glad", "für 🙂", None]},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
NESTED = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "at": {"type": "string", "format": "date"},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["at", "next"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}
LIST = {"type": "array", "items": {"type": ["boolean", "number"], "multipleOf": 0.5}, "maxItems": 4}
SCHEMAS = {"person": PERSON, "nested": NESTED, "list": LIST, "object": {"type": "object"}}
REGEX = r"(\d{1,3}\.){3}\d{1,3}( or [a-z]{2,9}){0,2}!"
CHOICE = ["yes", "no\n", '"maybe" 🙂', "yes, indeed", "<|end_of_text|>"]
GRAMMAR = 'start: sum ";"\nsum: NUMBER ("+" NUMBER)*\nNUMBER: /[0-9]{1,3}/'
PROMPTS = ["My fellow citizens", "The", "In the year of the war, the people of the union were"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    options = ExportOptions.resolve(precision="int8")
    return export_model("doge-tiny", tmp_path_factory.mktemp("tiny") / "out", options, validate=False).bundle


@pytest.fixture(scope="module")
def tokenizer(bundle):
    return Tokenizer.load(bundle.path)


@pytest.fixture(scope="module")
def rule_tokenizer(bundle, tokenizer):
    return RuleTokenizer(tokenizer, bundle.config.vocab_size, _options(bundle).eos_token_ids)


@pytest.fixture(scope="module")
def kernels(bundle):
    return Session.open(bundle, threads=1)


@pytest.fixture(scope="module")
def every_logit(bundle):
    return Session.open(_without_decode(bundle), threads=1)


@pytest.fixture(scope="module")
def write(kernels, bundle, tokenizer, rule_tokenizer):
    """write(rules, session, **options) -> the completions of PROMPTS, each within rules of its own."""

    def written(rules, session=kernels, prompts=PROMPTS, **options):
        rules = rules if isinstance(rules, list) else [rules] * len(prompts)
        each = [None if one is None else compile_constraint(rule_tokenizer, one) for one in rules]
        ids = [tokenizer.encode(prompt) for prompt in prompts]
        return generate(session, ids, _options(bundle, **options), tokenizer, constraints=each).completions

    return written


def _options(bundle, **changes):
    wild = {"max_new_tokens": 40, "temperature": 1.5, "top_p": 1.0, "seed": 0}
    return GenerationDefaults.of(bundle).changed(**{**wild, **changes})


def _ended(completions):
    """The texts that were not cut; there must be some."""
    assert {each.finish_reason for each in completions} <= {"stop", "eos", "length"}
    texts = [each.text for each in completions if each.finish_reason != "length"]
    assert texts
    return texts


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_is_written_is_valid(write, name):
    rules = Rules.json_schema(None if name == "object" else SCHEMAS[name])
    everything = [each for seed in range(10) for each in write(rules, seed=seed)]
    validator = jsonschema.Draft202012Validator(SCHEMAS[name], format_checker=jsonschema.FormatChecker())
    for text in _ended(everything):
        validator.validate(json.loads(text))


def test_regular_expressions_choices_and_grammars(write):
    for seed in range(10):
        for text in _ended(write(Rules.regex(REGEX), seed=seed)):
            assert re.fullmatch(REGEX, text)
        for text in _ended(write(Rules.grammar(GRAMMAR), seed=seed, max_new_tokens=90)):
            assert re.fullmatch(r"\d{1,3}(\+\d{1,3})*;", text)
    chosen = [each for seed in range(10) for each in write(Rules.choice(CHOICE), seed=seed)]
    assert {each.text for each in chosen} <= set(CHOICE) and len({each.text for each in chosen}) > 1
    assert {each.finish_reason for each in chosen} == {"stop"}
    assert {each.text for each in write(Rules.choice(CHOICE[:1]))} == {"yes"}


def test_the_model_may_end_a_text_that_could_go_on(write):
    """Where the end is likeliest, it comes as soon as the rules allow it."""
    for completion in write(Rules.regex("[a-z]{1,20}"), sequence_bias=(((EOS,), 50.0),)):
        assert completion.finish_reason == "eos" and completion.ids[-1] == EOS
        assert len(completion.ids) == 2 and re.fullmatch("[a-z]{1,20}", completion.text)


def test_special_tokens_are_letters_in_a_text(write):
    """The text of an end token is written in letters: the token itself would end the text."""
    (completion,) = write(Rules.choice(CHOICE[-1:]), prompts=PROMPTS[:1])
    assert len(completion.ids) > 3 and EOS not in completion.ids
    assert (completion.text, completion.finish_reason) == (CHOICE[-1], "stop")


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {},
        {"temperature": 0.0, "repetition_penalty": 1.2, "suppress_tokens": tuple(range(100, 4000, 7))},
        {"top_k": 5, "min_p": 0.01, "bad_words_ids": ((70,), (71,))},
    ],
    ids=["greedy", "drawn", "greedy with penalties", "drawn from few"],
)
def test_the_kernels_choose_what_python_does(write, every_logit, kernels, options, monkeypatch):
    rules = [Rules.json_schema(PERSON), None, Rules.regex(REGEX)]
    expected = write(rules, every_logit, **options)
    monkeypatch.setattr(token_strategy, "AllLogits", None)
    assert write(rules, kernels, **options) == expected
    for row, prompt in enumerate(PROMPTS):
        if options.get("temperature") == 0:  # noise depends on the number of the row
            assert write(rules[row], kernels, [prompt], **options) == [expected[row]]


def test_a_text_does_not_depend_on_its_neighbours(write):
    rules = [Rules.choice(CHOICE), Rules.json_schema(PERSON), None]
    expected = write(rules)
    assert write([None, *rules[1:]])[1:] == expected[1:]
    assert write([rules[0], None, None])[::2] == expected[::2]
    assert write([rules[0], rules[1], rules[1]])[:2] == expected[:2]


def test_settings_that_python_alone_knows(write):
    for text in _ended(write(Rules.regex("[ab]{5,9}"), no_repeat_ngram_size=5, typical_p=0.9)):
        assert re.fullmatch("[ab]{5,9}", text)


def test_no_token_is_left(write, kernels, every_logit, tokenizer):
    every = tuple(token for token in range(4096) if "a" in tokenizer.decode([token]))
    for session in (kernels, every_logit):
        with pytest.raises(
            DogeExportError, match=r"Row 0: after .* no token is left .* the rules of the text"
        ):
            write(Rules.regex("a+"), session, PROMPTS[:1], suppress_tokens=every)


def test_bits_are_of_the_vocabulary(tokenizer):
    """Ids beyond the tokenizer's and special ones never; of two end tokens both, of none none."""
    text = Rules.regex("(?s:.*)")
    rules = RuleTokenizer(tokenizer, 4100, [1, 4, 9999]).start(text)
    bits = np.unpackbits(rules.allowed().view(np.uint8), bitorder="little")
    assert rules.allowed().dtype == np.int64 and rules.allowed().shape == (65,)
    allowed = set(np.flatnonzero(bits).tolist())
    assert {1, 4} <= allowed and not allowed & {0, 2, 3, *range(4096, 65 * 64)}
    assert len(allowed) > 3900
    endless = RuleTokenizer(tokenizer, 4096).start(text)
    bits = np.unpackbits(endless.allowed().view(np.uint8), bitorder="little")
    assert set(np.flatnonzero(bits).tolist()) == allowed - {1, 4}


def test_two_copies_go_their_own_ways(tokenizer):
    made = RuleTokenizer(tokenizer, 4096, [1])
    one, other = (compile_constraint(made, Rules.regex("ab?")) for _ in range(2))
    first, second = (tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "ab")
    begin = other.allowed().copy()
    one.accept(first)
    assert not one.ended and (other.allowed() == begin).all()
    one.accept(second)
    assert [one.ended, other.ended] == [True, False]
    with pytest.raises(DogeExportError, match=f"The token {second} is not allowed by regex"):
        other.accept(second)


def test_a_text_ends_without_an_end_token(write, bundle, kernels, tokenizer):
    made = RuleTokenizer(tokenizer, bundle.config.vocab_size)
    options = replace(_options(bundle), eos_token_ids=())
    ids = [tokenizer.encode(PROMPTS[0])]
    rules = [made.start(Rules.choice(["yes"]))]
    (completion,) = generate(kernels, ids, options, tokenizer, constraints=rules).completions
    assert (completion.text, completion.finish_reason) == ("yes", "stop")


def test_a_toy_without_kernels(tmp_path):
    bundle = write_toy_bundle(tmp_path / "toy")
    tokenizer = Tokenizer.load(bundle.path)
    made = RuleTokenizer(tokenizer, bundle.config.vocab_size, [EOS])
    options = GenerationDefaults.of(bundle).changed(max_new_tokens=20)
    rules = [made.start(Rules.json_schema({"enum": ["the cat", 17]}))]
    (completion,) = generate(
        Session.open(bundle), [tokenizer.encode("the")], options, tokenizer, constraints=rules
    ).completions
    assert json.loads(completion.text) in ("the cat", 17)
    with pytest.raises(DogeExportError, match="There are 1 constraints for 2 prompts"):
        generate(Session.open(bundle), [[3], [4]], options, tokenizer, constraints=rules)


@pytest.mark.parametrize(
    ("rules", "sentence"),
    [
        (Rules.regex("a("), "regex cannot be kept: unclosed group."),
        (Rules.regex("()"), "regex allows no text. See that something can match it."),
        (
            Rules.grammar("start: foo", "guided_grammar"),
            'guided_grammar cannot be kept: .*unknown name: "foo"',
        ),
        (Rules.json_schema({"type": "nope"}), "json_schema cannot be kept: Invalid type: nope."),
        (Rules.json_schema({"not": {}}), r'Unimplemented keys: \["not"\]. Leave them out of the schema.'),
        (Rules.json_schema({"$ref": "http://localhost/a"}), "Put what .ref points to into the schema itself"),
        (Rules.json_schema({"$ref": "#"}), "json_schema allows no text"),
        (Rules.json_schema({"oneOf": [PERSON, LIST, {}]}), "Write anyOf in the place of oneOf"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_kept_is_one_sentence(rule_tokenizer, rules, sentence):
    with pytest.raises(DogeExportError, match=sentence) as raised:
        compile_constraint(rule_tokenizer, rules)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Rules.regex(""), "regex is empty"),
        (lambda: Rules.choice([]), "choice is empty"),
        (lambda: Rules.choice(["a", ""]), "choice is empty, or has an empty text"),
        (lambda: Rules.regex("a" * 300_000), "regex has 300,000 characters, and 262,144 are the most"),
        (lambda: Rules.choice(["\ud83d"]), "choice has half of a character"),
        (lambda: Rules.json_schema({"a": object()}), "json_schema is no JSON schema: "),
    ],
)
def test_rules_that_are_none(make, sentence):
    with pytest.raises(DogeExportError, match=sentence):
        make()


def test_a_schema_without_end_is_refused(rule_tokenizer, monkeypatch):
    """llguidance goes on for hours over these patterns; the process that tries is ended."""
    monkeypatch.setattr("doge_export.runtime.rule_trial._SECONDS", 1)
    patterns = [{"type": "string", "pattern": f"(.*{number}.*)"} for number in range(30)]
    with pytest.raises(DogeExportError, match="json_schema asks for too much"):
        compile_constraint(rule_tokenizer, Rules.json_schema({"allOf": patterns}))


def test_without_llguidance(tokenizer, monkeypatch):
    imported = builtins.__import__

    def missing(name, *args):
        if name == "llguidance":
            raise ModuleNotFoundError(name)
        return imported(name, *args)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(DogeExportError, match=r"Run: pip install 'doge-export\[serve\]'"):
        RuleTokenizer(tokenizer, 4096, [1])
