"""What --force replaces: what we wrote, as we wrote it, and nothing that the same command reads."""

import json
import os
import shutil
from pathlib import Path

import pytest

from doge_export.cli.app import run
from doge_export.core.bundle import CHECKPOINT, check_output, check_target, mark_checkpoint, new_folder
from doge_export.core.errors import DogeExportError
from doge_export.export.convert import convert
from doge_export.export.init import init
from tests.runtime._toy import write_toy_bundle

SMALL = ["vocab_size=96", "hidden_size=32", "intermediate_size=48", "num_hidden_layers=1"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    init("Doge-20M", tmp_path / "in" / "ck", settings=SMALL)
    return tmp_path / "in" / "ck"


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _thesis(folder: Path) -> str:
    (folder / "thesis.txt").write_text("years")
    return "thesis.txt"


def _repository(folder: Path) -> str:
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/main")
    return ".git/HEAD"


def _trained(folder: Path) -> str:
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1  # of the same size
    (folder / "model.safetensors").write_bytes(weights)
    return r"model\.safetensors.*changed since"


def _link(folder: Path) -> str:
    (folder / "data").symlink_to("/usr", target_is_directory=True)
    return "data"


def _unmarked(folder: Path) -> str:
    (folder / CHECKPOINT).unlink()
    return rf"config\.json, generation_config\.json.* and none of .*{CHECKPOINT}"


def _odd_mark(folder: Path) -> str:
    (folder / CHECKPOINT).write_text('{"files": {"../x": 3}}')
    return "config"


@pytest.mark.parametrize("change", [_thesis, _repository, _trained, _link, _unmarked, _odd_mark])
def test_what_is_not_ours_stays(change, checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    convert(str(checkpoint), output)
    convert(str(checkpoint), output, force=True)  # as it was written: ours
    found = change(output)
    before = _bytes(output)
    with pytest.raises(DogeExportError, match=found) as caught:
        convert(str(checkpoint), output, force=True)
    assert "not replaced" in str(caught.value) and caught.value.remedy
    assert _bytes(output) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_an_empty_folder_and_what_python_leaves_are_nothing(tmp_path: Path) -> None:
    (tmp_path / "out" / "empty").mkdir(parents=True)
    (tmp_path / "out" / "__pycache__").mkdir()
    (tmp_path / "out" / "__pycache__" / "model.pyc").touch()
    with new_folder(tmp_path / "out", force=True) as folder:
        (folder / "a").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]


def test_what_came_while_we_worked_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(DogeExportError, match=r"holds late\.txt"), new_folder(tmp_path / "out", force=True):
        (tmp_path / "out" / "late.txt").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("output", "what"),
    [
        ("in/ck", "is .*ck"),
        ("in/../in/ck", "is .*ck"),
        ("in", "holds .*ck"),
        (".", "holds .*ck"),
        ("link", "is .*ck"),
        ("up", "holds .*ck"),
        ("in/ck/sub", "lies inside .*ck"),
        ("target", "holds files of .*linked"),
    ],
)
def test_an_input_is_never_replaced(
    output: str, what: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to("in/ck", target_is_directory=True)
    Path("up").symlink_to("in", target_is_directory=True)
    for name in ("in/ck/sub", "target"):
        Path(name).mkdir()
        (Path(name) / "config.json").touch()
        mark_checkpoint(Path(name))
    Path("linked").mkdir()
    (Path("linked") / "config.json").symlink_to("../target/config.json")
    given = Path("linked") if output == "target" else Path("in/ck")
    before = _bytes(tmp_path)
    with pytest.raises(DogeExportError, match=f"{what}, which is read here") as caught:
        check_output(Path(output), force=True, inputs=(given, None, Path("nowhere")))
    assert caught.value.exit_code == 2
    assert run(["convert", "-m", str(given), "-o", output, "--force"]) == 2
    assert _bytes(tmp_path) == before


@pytest.mark.parametrize("output", ["in/ck/new", "in/ck/new/deep", "link/new"])
def test_nothing_new_is_written_into_an_input(
    output: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """With --force it would be refused the next time."""
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to("in/ck", target_is_directory=True)
    before = _bytes(tmp_path)
    for arguments in (["convert"], ["export"], ["export", "--dry-run"], ["export", "--force"]):
        assert run([*arguments, "-m", "in/ck", "-o", output]) == 2
        assert "lies inside in/ck, which is read here, so nothing" in capsys.readouterr().err
    check_output(Path("in/new"), inputs=[Path("in/ck")])  # beside it
    check_output(Path("in/cknew"), inputs=[Path("in/ck")])
    assert _bytes(tmp_path) == before


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("/dev/null/x", "/dev/null is a file"),
        ("file/x/y", "file is a file"),
        ("n" * 250, "File name too long"),
        ("m" * 256 + "/x", "File name too long"),
    ],
)
def test_a_place_where_nothing_can_be_made_is_refused_at_once(
    output: str, sentence: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    for more in ([], ["--dry-run"]):
        assert run(["export", "-m", "in/ck", "-o", output, *more]) == 2
        assert sentence in capsys.readouterr().err
    with pytest.raises(DogeExportError, match=sentence), new_folder(Path(output)):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "in"]


def test_a_folder_that_may_not_be_written_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may write everywhere
    with pytest.raises(DogeExportError, match="cannot be written: Permission denied"):
        check_output(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_every_input_of_a_command_counts(checkpoint: Path, tmp_path: Path, capsys) -> None:
    bundle = write_toy_bundle(tmp_path / "b")
    text, recipe = tmp_path / "o" / "text.txt", tmp_path / "o" / "recipe.toml"
    text.parent.mkdir()
    text.write_text("a text")
    recipe.write_text("dtype = 'float32'")
    before = _bytes(tmp_path)
    for arguments in (
        ["export", "-m", str(checkpoint), "-o", str(tmp_path / "o"), "--recipe", str(recipe), "--force"],
        ["quantize", str(bundle.path), "-o", str(tmp_path / "o"), "--scheme", "int8", "--text", str(text)],
        ["quantize", str(bundle.path), "-o", str(bundle.path), "--scheme", "int8"],
        ["init", "Doge-20M", "-o", str(tmp_path / "b"), "--tokenizer", str(bundle.path)],
        ["init", "--from-dense", str(checkpoint), "-o", str(checkpoint)],
        ["deploy", "triton", str(bundle.path), "-o", str(bundle.path)],
        ["build-engine", str(bundle.path), "-o", str(tmp_path / "b")],
    ):
        assert run([*arguments, *(["--force"] if "--force" not in arguments else [])]) == 2
        assert "which is read here" in capsys.readouterr().err, arguments
    assert _bytes(tmp_path) == before


def test_reports_do_not_overwrite_what_is_read(checkpoint: Path, tmp_path: Path, capsys) -> None:
    bundle = write_toy_bundle(tmp_path / "b").path
    (tmp_path / "link.json").symlink_to(bundle / "config.json")
    os.link(bundle / "config.json", tmp_path / "hard.json")
    before = _bytes(tmp_path)
    for target in (bundle / "config.json", bundle / "doge_export.json", tmp_path / "link.json", bundle):
        assert run(["verify", str(bundle), "--json", str(target)]) == 2, target
        assert capsys.readouterr().err
    with pytest.raises(DogeExportError, match="is read here"):
        check_target(checkpoint / "config.json", [checkpoint])
    twice = str(tmp_path / "twice")
    arguments = ["validate", str(bundle), "--reference", "doge-tiny", "--json", twice, "--html", twice]
    assert run(arguments) == 2
    assert "name one file" in capsys.readouterr().err
    assert _bytes(tmp_path) == before
    # a report of ours that was put there is none of what is read
    assert run(["verify", str(bundle), "--json", str(bundle / "report.json")]) == 0
    assert run(["verify", str(bundle), "--json", str(bundle / "report.json")]) == 0
    assert json.loads((bundle / "report.json").read_text())["others"] == ["report.json"]


def test_a_report_in_the_new_folder_overwrites_nothing_of_it(
    checkpoint: Path, tmp_path: Path, capsys
) -> None:
    arguments = ["convert", "-m", str(checkpoint), "-o", str(tmp_path / "out"), "--json"]
    assert run([*arguments, str(tmp_path / "out" / "config.json")]) == 2
    assert "would overwrite what is written" in capsys.readouterr().err
    assert run([*arguments, str(tmp_path / "out" / "summary.json")]) == 0


def test_pareto_leaves_a_folder_of_others_alone(tmp_path: Path, capsys) -> None:
    bundle = write_toy_bundle(tmp_path / "b").path
    text = tmp_path / "text.txt"
    text.write_text("a text " * 100)
    mine = tmp_path / "out" / ".work" / "mine"
    mine.mkdir(parents=True)
    (mine / "notes").write_text("years")
    assert run(["pareto", str(bundle), "--text", str(text), "-o", str(tmp_path / "out")]) == 2
    assert "is no intermediate result" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "out" / ".work")
    (tmp_path / "out" / "pareto.svg").write_text("mine")
    assert run(["pareto", str(bundle), "--text", str(text), "-o", str(tmp_path / "out")]) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_file_in_a_journals_place_stays(tmp_path: Path) -> None:
    from doge_export.core.journal import Journal

    for content in (
        "thesis",
        '{"a": 1}\n',
        "\n\n",
        "[" * 5000,
        '{"subject": {"text": 1}}\n[1]\n',
    ):
        path = tmp_path / "journal"
        path.write_text(content)
        with pytest.raises(DogeExportError, match="is no journal of ours"):
            Journal(path, {"text": 1})
        assert path.read_text() == content
