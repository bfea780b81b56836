"""What the commands do with tokenizers and chat templates that are not the usual one."""

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from doge_export.cli.app import run
from doge_export.core.errors import DogeExportError
from doge_export.core.tokenizer import Tokenizer, check_vocabulary
from doge_export.export.tokenizer_source import tokenizer_source
from doge_export.validate.tokenizers import compare_tokenizers
from tests._tokenizers import take_apart, write_kind
from tests.conftest import write_checkpoint
from tests.runtime._toy import continued, write_toy_bundle


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("weights"), vocab_size=400, num_hidden_layers=1)


@pytest.fixture
def checkpoint(weights: Path, tmp_path: Path) -> Path:
    return shutil.copytree(weights, tmp_path / "checkpoint")


def _plan(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    assert run(["export", "-m", str(checkpoint), "-o", "nowhere", "--dry-run", "--json", "-"]) == 0
    printed = capsys.readouterr()
    return json.loads(printed.out)["tokenizer"], printed.err


def test_a_tokenizer_is_made_of_its_parts(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_kind("byte-level", checkpoint, {"tokenizer_class": "GPT2Tokenizer"})
    take_apart(checkpoint)
    plan, err = _plan(checkpoint, capsys)
    assert plan["made"].startswith("tokenizer.json was made of vocab.json and merges.txt") and err == ""
    output = tmp_path / "bundle"
    assert run(["export", "-m", str(checkpoint), "-o", str(output), "--no-validate"]) == 0
    assert capsys.readouterr().err == plan["made"] + "\n"
    checks, compared = compare_tokenizers(output, checkpoint, None)
    assert [check.value for check in checks] == [0, 0] and compared["texts"] > 10
    saved = json.loads((output / "tokenizer_config.json").read_text())
    assert not {"is_local", "local_files_only", "name_or_path"} & set(saved)
    assert str(tmp_path) not in (output / "tokenizer_config.json").read_text()
    assert run(["generate", str(output), "-p", "the cat", "--max-new-tokens", "3"]) == 0


def test_what_generate_will_not_do_is_said_by_export_and_by_its_plan(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_kind("byte-level", checkpoint)
    take_apart(checkpoint)
    plan, err = _plan(checkpoint, capsys)
    (warning,) = plan["warnings"]
    assert "generate will not work" in warning and "tokenizer_class" in warning
    assert err == f"warning: {warning}\n"
    output = tmp_path / "bundle"
    assert run(["export", "-m", str(checkpoint), "-o", str(output), "--no-validate"]) == 0
    assert capsys.readouterr().err.count(warning) == 1
    assert (output / "merges.txt").is_file()
    assert run(["generate", str(output), "-p", "x"]) == 2


def test_no_tokenizer_is_said_in_one_line(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", "-m", str(checkpoint), "-o", "nowhere", "--dry-run"]) == 0
    printed = capsys.readouterr()
    assert "no tokenizer: generate, chat and serve need one" in printed.out and printed.err == ""


@pytest.mark.parametrize(
    ("name", "warning"),
    [
        ("tokenizer.model", "pip install sentencepiece"),
        ("vocab.txt", "such as BertTokenizer"),
        ("spiece.model", "generate will not work"),
        ("tekken.json", "generate will not work"),
    ],
)
def test_every_form_has_its_remedy(checkpoint: Path, name: str, warning: str) -> None:
    (checkpoint / name).write_bytes(b"\x00")
    with tokenizer_source(checkpoint) as source:
        (said,) = source.warnings
    assert warning in said and "\n" not in said and name in said


def test_a_damaged_template_is_a_warning(checkpoint: Path) -> None:
    write_kind("byte-level", checkpoint, {"chat_template": {"default": "{% if %}", "good": "{{ 1 }}"}})
    with tokenizer_source(checkpoint) as source:
        (said,) = source.warnings
    assert "'default'" in said and "damaged" in said


def test_a_damaged_tokenizer_ends_the_export(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkpoint / "tokenizer.json").write_text('{"model": 1}')
    assert run(["export", "-m", str(checkpoint), "-o", "nowhere", "--dry-run"]) == 2
    assert "cannot be read as a tokenizer" in capsys.readouterr().err


def test_templates_travel_with_a_bundle(checkpoint: Path, tmp_path: Path) -> None:
    from doge_export.core.tokenizer import copy_tokenizer_files

    write_kind("byte-level", checkpoint)
    (checkpoint / "additional_chat_templates").mkdir()
    (checkpoint / "additional_chat_templates" / "rag.jinja").write_text("{{ documents }}")
    target = tmp_path / "target"
    target.mkdir()
    names = copy_tokenizer_files(checkpoint, target)
    assert names == ["tokenizer.json", "tokenizer_config.json", "additional_chat_templates/rag.jinja"]
    assert dict(Tokenizer.load(target).chat_templates) == {"rag": "{{ documents }}"}


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A bundle whose tokenizer has two templates and no default."""
    bundle = write_toy_bundle(tmp_path / "toy", generation={"do_sample": False, "eos_token_id": 1})
    (bundle.path / "chat_template.jinja").unlink()
    more = bundle.path / "additional_chat_templates"
    more.mkdir()
    (more / "short.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}{{ name }}")
    (more / "long.jinja").write_text("<bos>{% for m in messages %}the {{ m.content }}{% endfor %}")
    return bundle.path


@pytest.mark.parametrize(("name", "prompt"), [("short", "cat"), ("long", "<bos>the cat")])
def test_generate_and_chat_take_the_template_that_is_named(
    toy: Path, name: str, prompt: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = Tokenizer.load(toy)
    expected = tokenizer.decode(continued(tokenizer.encode(prompt, add_special_tokens=False), 5))
    arguments = ["--chat-template", name, "--max-new-tokens", "5"]
    assert run(["-q", "generate", str(toy), "-p", "cat", "--chat", *arguments]) == 0
    assert capsys.readouterr().out == expected + "\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"cat\n"), encoding="utf-8"))
    assert run(["-q", "chat", str(toy), *arguments]) == 0
    assert capsys.readouterr().out == expected + "\n"


def test_templates_without_a_default_are_named(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["generate", str(toy), "-p", "x", "--chat"], ["chat", str(toy)]):
        assert run(command) == 2
        assert "--chat-template. There are long, short." in capsys.readouterr().err
        assert run([*command, "--chat-template", "no"]) == 2
        assert "no chat template 'no'. There are long, short." in capsys.readouterr().err


def test_serve_takes_the_template_that_is_named(toy: Path) -> None:
    from doge_export.runtime import open_folder
    from doge_export.serve import Server

    with pytest.raises(DogeExportError, match="There are long, short"):
        Server(open_folder(toy), port=0, chat_template="no")
    server = Server(open_folder(toy), port=0, chat_template="short", variables={"name": "b"})
    loaded = server._registry.states()[server.name].service
    assert loaded is not None
    try:
        assert loaded.tokenizer.apply_chat_template([{"role": "user", "content": "a"}]) == "ab"
        assert loaded.tokenizer.apply_chat_template([{"role": "user", "content": "a"}], name="c") == "ac"
    finally:
        loaded.close()
        server._socket.close()


def test_generate_stops_at_a_special_token(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = Tokenizer.load(toy)
    ids = tokenizer.encode("the cat")
    at = next(
        n for n, token in enumerate(continued(ids, 300)) if token in tokenizer.special_ids and token != 1
    )
    shown = tokenizer.decode(continued(ids, at))
    stop = tokenizer.backend.id_to_token(continued(ids, at + 1)[-1])
    command = [
        "generate",
        str(toy),
        "-p",
        "the cat",
        "--max-new-tokens",
        "300",
        "--json",
        "-",
        "--stop",
        stop,
    ]
    assert run(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["text"], found["finish_reason"], len(found["ids"])) == (shown, "stop", at + 1)


CHATS = "tokenizer: chats with another text"


def test_validate_compares_chats(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.role }}{{ m.content | trim }}{% endfor %}"
    reference = write_kind("byte-level", tmp_path / "reference", {"chat_template": template})
    same = shutil.copytree(reference, tmp_path / "same")
    checks, compared = compare_tokenizers(same, reference, None)
    assert [check.name for check in checks][-1] == CHATS and checks[-1].passed
    assert compared["chats"] == 20
    for name, other in (
        ("blanks", template.replace(" | trim", "")),
        ("roles", "{% if messages[0].role == 'tool' %}{{ raise_exception('x') }}{% endif %}" + template),
        ("names", {"default": template, "more": template}),
        ("none", None),
    ):
        folder = write_kind("byte-level", tmp_path / name, {"chat_template": other})
        checks, _ = compare_tokenizers(folder, reference, None)
        assert [check.name for check in checks if not check.passed] == [CHATS], name


def test_a_tokenizer_of_far_fewer_entries_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may be another model's; one of more entries is an error, and a vocabulary rounded up is usual."""
    checkpoint = write_checkpoint(tmp_path / "checkpoint", vocab_size=4000, num_hidden_layers=1)
    write_kind("byte-level", checkpoint)
    size = len(Tokenizer.load(checkpoint).backend.get_vocab())
    plan, err = _plan(checkpoint, capsys)
    sentence = f"The tokenizer has {size:,} entries and the model a vocab_size of 4,000: is it the one"
    assert err.count(sentence) == 1 and any(sentence in each for each in plan["warnings"])
    assert check_vocabulary(checkpoint, 2 * size, "") is None
    with pytest.raises(DogeExportError, match=f"The tokenizer has {size} entries, more than"):
        check_vocabulary(checkpoint, size - 1, "")
