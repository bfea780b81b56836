"""`doge-export generate` from the command line inwards."""

import io
import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from doge_export.cli import main
from doge_export.core.bundle import Bundle
from doge_export.core.tokenizer import Tokenizer
from doge_export.runtime import Session
from doge_export.runtime.positions import _said, say_long
from tests.runtime._toy import continued, write_toy_bundle

PROMPT = "the cat"


@pytest.fixture(scope="module", params=["growing", "static"])
def bundle(request, tmp_path_factory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle")
    return write_toy_bundle(folder, request.param, generation={"do_sample": False, "eos_token_id": 1})


@pytest.fixture(scope="module")
def expected(bundle) -> str:
    """The text of 8 greedy tokens after PROMPT."""
    tokenizer = Tokenizer.load(bundle.path)
    return tokenizer.decode(continued(tokenizer.encode(PROMPT), 8))


def _stdin(monkeypatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


def _generate(bundle, *arguments: str) -> int:
    return main(["generate", str(bundle.path), "--max-new-tokens", "8", *arguments])


def test_the_new_text_is_all_of_stdout(bundle, expected, capsys):
    assert _generate(bundle, "-p", PROMPT, "--temperature", "0") == 0
    out, err = capsys.readouterr()
    assert out == expected + "\n"
    assert "tokens/s" in err and len(err.splitlines()) == 1


def test_quiet_leaves_stderr_empty(bundle, expected, capsys):
    assert main(["-q", "generate", str(bundle.path), "-p", PROMPT, "--max-new-tokens", "8"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == (expected + "\n", "")


def test_json_on_stdout_is_alone_there(bundle, expected, capsys):
    assert _generate(bundle, "-p", PROMPT, "--json", "-", "--threads", "1") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["prompt"] == PROMPT
    assert data["text"] == expected
    assert data["finish_reason"] == "length"
    assert data["ids"] == continued(data["prompt_ids"], 8)
    assert data["prefill_tokens"] == len(data["prompt_ids"])
    assert data["decode_tokens"] == 7
    assert data["prefill_tokens_per_second"] > 0 and data["decode_tokens_per_second"] > 0


def test_json_to_a_file_leaves_the_text_on_stdout(bundle, expected, capsys, tmp_path):
    assert _generate(bundle, "-p", PROMPT, "--json", str(tmp_path / "out.json")) == 0
    assert capsys.readouterr().out == expected + "\n"
    assert json.loads((tmp_path / "out.json").read_text())["text"] == expected


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_the_prompt_from_stdin(bundle, capsys, monkeypatch, end):
    _stdin(monkeypatch, b"the cat\nsaw \xc3\xa9" + end)
    assert _generate(bundle, "-p", "-", "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == "the cat\nsaw é"


def test_a_stop_string_ends_the_text(bundle, expected, capsys):
    stop = expected[3:5]
    assert _generate(bundle, "-p", PROMPT, "--stop", "never", "--stop", stop) == 0
    assert capsys.readouterr().out == expected[: expected.index(stop)] + "\n"


def test_a_seed_repeats_a_sampled_text(bundle, expected, capsys):
    def text(*arguments: str) -> str:
        assert _generate(bundle, "-p", PROMPT, *arguments) == 0
        return capsys.readouterr().out

    sampled = ("--temperature", "50", "--top-k", "0")
    assert text(*sampled, "--seed", "1") == text(*sampled, "--seed", "1")
    assert text(*sampled, "--seed", "1") != text(*sampled, "--seed", "2")
    assert text(*sampled, "--seed", "1", "--top-k", "1") == expected + "\n"
    assert text(*sampled, "--top-p", "0") == expected + "\n"
    assert text(*sampled, "--min-p", "1") == expected + "\n"
    assert text("--repetition-penalty", "1.0") == expected + "\n"


def test_the_penalty_reaches_the_sampler(bundle, capsys):
    # the scores are negative, so a penalty below 1 draws towards what was there before
    assert _generate(bundle, "-p", PROMPT, "--repetition-penalty", "0.001", "--json", "-") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["ids"] != continued(data["prompt_ids"], 8)
    assert data["options"]["repetition_penalty"] == 0.001


@pytest.mark.parametrize(
    "options",
    [("--temperature", "1e-38"), ("--temperature", "1e-320"), ("--temperature", "1", "--min-p", "1")],
)
def test_the_coldest_is_greedy(bundle, capsys, options):
    assert _generate(bundle, "-p", PROMPT, "--temperature", "0") == 0
    expected = capsys.readouterr().out
    assert _generate(bundle, "-p", PROMPT, *options) == 0
    assert capsys.readouterr().out == expected


def test_the_threads_reach_the_session(bundle, monkeypatch, capsys):
    asked = []
    open_session = Session.open

    def record(opened, threads=None):
        asked.append(threads)
        return open_session(opened, threads)

    monkeypatch.setattr(Session, "open", record)
    assert _generate(bundle, "-p", PROMPT) == _generate(bundle, "-p", PROMPT, "--threads", "2") == 0
    assert asked == [None, 2]


def test_chat_uses_the_template(bundle, capsys):
    assert _generate(bundle, "-p", " hi", "--chat", "--json", "-") == 0
    data = json.loads(capsys.readouterr().out)
    text = "<bos>[user]  hi\n[assistant] "
    assert Tokenizer.load(bundle.path).decode(data["prompt_ids"], skip_special_tokens=False) == text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-p", "x", "--top-p", "1.5"], "--top-p"),
        (["-p", "x", "--temperature", "-1"], "--temperature"),
        (["-p", "x", "--temperature", "nan"], "temperature"),
        (["-p", "x", "--repetition-penalty", "0"], "--repetition-penalty"),
        (["-p", "x", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["-p", "x", "--threads", "0"], "--threads"),
        (["-p", "x", "--stop", ""], "stop"),
        (["-p", "x\udcff"], "not valid UTF-8"),
        ([], "--prompt"),
    ],
    ids=str,
)
def test_wrong_arguments_exit_2_with_a_sentence(bundle, capsys, arguments, sentence):
    assert main(["generate", str(bundle.path), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert sentence in err
    assert "Traceback" not in err


SCHEMA = '{"enum": [[1], "the cat"]}'


def test_a_text_within_rules(bundle, capsys, tmp_path):
    """Each of the options that say what the text has to be; a schema as a text and in a file."""
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.lark"
    schema.write_text(SCHEMA)
    grammar.write_text('start: "a" "b"+ "."')
    for arguments, expected in (
        (["--json-schema", SCHEMA], r'\[\s*1\s*\]|"the cat"'),
        (["--json-schema", str(schema)], r'\[\s*1\s*\]|"the cat"'),
        (["--regex", "[ab]{3}"], "[ab]{3}"),
        (["--choice", "red", "--choice", "blue"], "red|blue"),
        (["--grammar", str(grammar)], r"ab+\."),
    ):
        assert _generate(bundle, "-p", PROMPT, "--json", "-", "--max-new-tokens", "40", *arguments) == 0
        answer = json.loads(capsys.readouterr().out)
        assert re.fullmatch(expected, answer["text"]) or answer["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--regex", "a", "--choice", "b"], "--regex and --choice both say what the text has to be"),
        (["--regex", "a("], "--regex cannot be kept: unclosed group."),
        (["--json-schema", "{a}"], "--json-schema is no JSON: "),
        (["--json-schema", "not-there.json"], "--json-schema: there is no file not-there.json"),
        (["--json-schema", '{"type": "city"}'], "--json-schema cannot be kept: Invalid type: city."),
        (["--grammar", "not-there.lark"], "--grammar: there is no file not-there.lark"),
        (["--choice", ""], "--choice is empty, or has an empty text"),
    ],
    ids=str,
)
def test_rules_that_are_none(bundle, capsys, arguments, sentence):
    assert main(["generate", str(bundle.path), "-p", "x", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and sentence in err and "Traceback" not in err


def test_stdin_that_is_not_utf8(bundle, capsys, monkeypatch):
    _stdin(monkeypatch, b"ab\xff")
    assert _generate(bundle, "-p", "-") == 2
    assert "not UTF-8 at byte 3" in capsys.readouterr().err


def test_what_is_no_bundle(capsys, tmp_path):
    for name in ("nothing-here", str(tmp_path)):
        assert main(["generate", name, "-p", "x"]) == 2
        assert "error: " in capsys.readouterr().err


def test_a_bundle_without_tokenizer(capsys, tmp_path):
    (write_toy_bundle(tmp_path).path / "tokenizer.json").unlink()
    assert main(["generate", str(tmp_path), "-p", "x"]) == 2
    assert "tokenizer.json" in capsys.readouterr().err


def test_more_than_a_static_cache_holds(capsys, tmp_path):
    write_toy_bundle(tmp_path, "static", max_length=8)
    assert main(["generate", str(tmp_path), "-p", "xyz", "--max-new-tokens", "99"]) == 2
    assert "holds 8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rope", "sentence"),
    [
        ({"rope_type": "default"}, "goes on to positions that the model was not made for"),
        ({"rope_type": "linear", "factor": 2.0}, "the linear rope is scaled for no more than that"),
    ],
    ids=lambda value: value["rope_type"] if isinstance(value, dict) else "",
)
def test_a_prompt_beyond_the_model_s_positions_is_named_once(capsys, tmp_path, rope, sentence):
    folder = write_toy_bundle(tmp_path / "toy").path
    config = json.loads((folder / "config.json").read_text())
    config |= {"max_position_embeddings": 3, "rope_parameters": {"rope_theta": 10000.0, **rope}}
    (folder / "config.json").write_text(json.dumps(config))
    bundle = Bundle.open(folder)
    assert _generate(bundle, "-p", "a") == 0
    assert "max_position_embeddings" not in capsys.readouterr().err, "it fits"
    assert _generate(bundle, "-p", "the cat and the dog") == 0
    err = capsys.readouterr().err
    assert "tokens and the model max_position_embeddings of 3: " in err and sentence in err
    text = folder / "text.txt"
    text.write_text("the cat and the dog")
    assert main(["eval", str(folder), "--text", str(text), "--window", "8"]) == 0
    assert "max_position_embeddings" not in capsys.readouterr().err, "it was said"
    _said.clear()
    assert main(["eval", str(folder), "--text", str(text), "--window", "8"]) == 0
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "sentence"), [("dynamic", "dynamic rope stretches"), ("yarn", "the yarn rope is scaled for")]
)
def test_what_a_rope_does_beyond_the_positions(caplog, tmp_path, kind, sentence):
    config = SimpleNamespace(max_position_embeddings=512, rope={"rope_type": kind})
    bundle = SimpleNamespace(path=tmp_path, config=config)
    say_long(bundle, 512)
    assert not caplog.records
    say_long(bundle, 3003)
    say_long(bundle, 3004)
    (record,) = caplog.records
    assert sentence in record.message and "3,003 tokens and the model max_position_embeddings of 512" in (
        record.message
    )


def test_torch_is_not_imported(bundle):
    code = (
        "import sys; from doge_export.cli import main\n"
        f"assert main(['-q', 'generate', {str(bundle.path)!r}, '-p', 'the', '--max-new-tokens', '2']) == 0\n"
        "heavy = {'torch', 'transformers', 'onnx', 'onnxscript'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
