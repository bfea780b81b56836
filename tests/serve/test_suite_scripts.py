"""What scripts/run_llama_suite.py does before it runs anything: the tests out of what they come in, and the
options of the other server."""

import io
import json
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from llama_suite.reasons import only_llama, set_aside
from llama_suite.shim import options_of, without_model
from llama_suite.source import extract

FILES = {
    "tools/server/tests/utils.py": "",
    "tools/server/tests/unit/test_a.py": 'assert body["system_fingerprint"].startswith("b")\n',
    "models/templates/one.jinja": "{{ messages }}",
    "src/llama.cpp": "",
}


def _clone(folder: Path) -> Path:
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def _git(folder: Path) -> Path:
    work = _clone(folder / "work")
    bare = folder / "bare.git"
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "a"]):
        subprocess.run(["git", "-C", str(work), *command], check=True)
    subprocess.run(["git", "clone", "-q", "--bare", str(work), str(bare)], check=True)
    return bare


def _sdist(folder: Path) -> Path:
    file = folder / "sdist.tar.gz"
    with tarfile.open(file, "w:gz") as archive:
        for name, text in FILES.items():
            member = tarfile.TarInfo(f"llama_cpp_python-1/vendor/llama.cpp/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return file


@pytest.mark.parametrize("source", [_clone, _git, _sdist])
def test_the_tests_and_their_templates_are_taken_out(source: Callable[[Path], Path], tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    tests = extract(source(tmp_path / "source"), tmp_path / "out")
    assert '.startswith(("b", "fp_"))' in (tests / "unit" / "test_a.py").read_text()
    assert (tests / "../../../models/templates/one.jinja").read_text() == "{{ messages }}"
    assert not (tmp_path / "out" / "src").exists()


def test_what_has_no_tests(tmp_path: Path) -> None:
    (tmp_path / "tools" / "server" / "tests").mkdir(parents=True)
    with pytest.raises((ValueError, subprocess.CalledProcessError)):
        extract(tmp_path, tmp_path / "out")


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("mine")
    monkeypatch.setenv("DOGE_SUITE_BUNDLE", str(folder))
    monkeypatch.setenv("DOGE_SUITE_FOLDER", str(tmp_path))
    monkeypatch.delenv("DOGE_SUITE_NAME", raising=False)
    return folder


ASKED = ["--port", "1", "--host", "h", "--threads", "2", "--no-jinja"]


def test_options_of_the_other_server(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [*ASKED, "--alias", "a", "--parallel", "2", "--api-key", "k", "--hf-repo", "x", "--offline"]
    ours = ["serve", str(bundle), "--host", "h", "--port", "1", "--name", "a", "--parallel", "2"]
    *found, name, variables = options_of(asked)
    assert found == [*ours, "--api-key", "k", "--cors", "*", "--cors-credentials"]
    assert name == "--chat-template-kwargs" and json.loads(variables)["enable_thinking"] is True
    monkeypatch.setenv("DOGE_SUITE_NAME", "gpt")
    found = options_of([*ASKED, "--cors-origins", "o", "--seed", "3", "--reasoning", "off"])
    assert found[6:-2] == ["--name", "gpt", "--cors", "o", "--cors-credentials", "--seed", "3"]
    assert json.loads(found[-1])["enable_thinking"] is False
    assert without_model(asked) == [*ASKED, *asked[len(ASKED) : -3]]


def test_an_option_that_there_is_not(bundle: Path) -> None:
    with pytest.raises(SystemExit, match="nothing like --no-ui"):
        options_of([*ASKED, "--no-ui"])


def test_another_template(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "their.jinja").write_text("their")
    for options in (["--chat-template", "their"], ["--chat-template-file", str(tmp_path / "their.jinja")]):
        folder = Path(options_of([*ASKED, *options])[1])
        assert (folder / "chat_template.jinja").read_text() == "their"
        assert (folder / "config.json").read_text() == "{}"
    assert (bundle / "chat_template.jinja").read_text() == "mine"


def test_the_other_servers_own_settings(bundle: Path) -> None:
    (bundle / "generation_config.json").write_text('{"top_p": 0.5, "do_sample": true}')
    folder = Path(options_of([*ASKED, "--temp", "0.0", "--n-predict", "9"])[1])
    settings = json.loads((folder / "generation_config.json").read_text())
    assert settings == {"top_p": 0.5, "do_sample": False, "temperature": 1.0, "max_new_tokens": 9}
    folder = Path(options_of([*ASKED, "--temp", "0.8", "--n-predict", "-1"])[1])
    settings = json.loads((folder / "generation_config.json").read_text())
    assert settings == {"top_p": 0.5, "do_sample": True, "temperature": 0.8}


def test_reasons() -> None:
    assert set_aside("test_a", slow=True) and set_aside("test_a", slow=False) is None
    assert (
        only_llama("completion", "test_n_probs_post_sampling[True]")
        and only_llama("chat_completion", "test_logit_bias") is None
    )
