"""`doge-export chat`: a conversation over stdin."""

import io
import sys

import pytest

from doge_export.cli import main
from doge_export.core.bundle import Bundle
from doge_export.core.tokenizer import Tokenizer
from tests.runtime._toy import EOS, continued, write_toy_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    return write_toy_bundle(
        tmp_path_factory.mktemp("b"), generation={"do_sample": False, "eos_token_id": EOS}
    )


@pytest.fixture
def chat(bundle, monkeypatch, capsys):
    def run(lines: bytes, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines), encoding="utf-8"))
        code = main(["chat", str(bundle.path), "--max-new-tokens", "6", *arguments])
        return code, *capsys.readouterr()

    return run


def _answer(bundle: Bundle, text: str) -> str:
    tokenizer = Tokenizer.load(bundle.path)
    return tokenizer.decode(continued(tokenizer.encode(text, add_special_tokens=False), 6))


def test_each_answer_follows_from_all_before_it(bundle, chat):
    beginning = "<bos>[system] be kind\n"
    text = beginning + "[user] the cat\n[assistant] "
    first = _answer(bundle, text)
    second = _answer(bundle, f"{text}{first}\n[user] a dog\n[assistant] ")
    again = _answer(bundle, beginning + "[user] a dog\n[assistant] ")
    assert len({first, second, again}) == 3
    code, out, err = chat(b"the cat\na dog\n/reset\n a dog \n\nnever read\n", "--system", "be kind")
    assert (code, out, err) == (0, f"{first}\n{second}\n{again}\n", "")


def test_the_end_of_stdin_ends_it(chat):
    code, out, _ = chat(b"")
    assert (code, out) == (0, "")


def test_stdin_that_is_not_utf8(chat):
    code, out, err = chat(b"\xff\n")
    assert (code, out) == (2, "") and "not UTF-8" in err


def test_without_a_chat_template(tmp_path, capsys):
    (write_toy_bundle(tmp_path).path / "chat_template.jinja").unlink()
    assert main(["chat", str(tmp_path)]) == 2
    assert "no chat template" in capsys.readouterr().err
