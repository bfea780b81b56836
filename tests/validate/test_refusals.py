"""What transformers itself does not take: one sentence with its words, whatever it raises."""

import importlib.metadata
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from doge_export.bench.reference import Reference as Bench
from doge_export.cli.app import run
from doge_export.core.checkpoint.folder import Checkpoint
from doge_export.core.errors import DogeExportError, refusal
from doge_export.export.pipeline import export_model
from doge_export.validate.backends.reference import Reference
from doge_export.validate.backends.transformers_model import check_taken, load_current
from tests.conftest import write_checkpoint
from tests.convert._peft import train

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "ValueError": ({"experts_implementation": "none"}, "experts_implementation"),
    "its dataclass": ({"initializer_range": None}, "initializer_range"),
    "its validator": ({"layer_types": ["none"]}, "layer_types"),
    "IndexError": ({"dtype": ["float32"]}, "IndexError"),
    "a dtype of torch": ({"dtype": "torch.float32"}, "torch.float32"),
    "a dtype of nobody": ({"dtype": "nope"}, "nope"),
    "a text for a number": ({"attention_dropout": "x"}, "attention_dropout"),
    "a property": ({"use_return_dict": True}, "use_return_dict"),
    "TypeError": ({"to_dict": 1}, "TypeError"),
    "while it runs": ({"return_dict": False}, "cannot run"),
    "odd types while it runs": ({"output_hidden_states": "x"}, "cannot run"),
}
#: And what it takes, for all that it looks odd.
TAKEN: dict[str, dict[str, Any]] = {
    "eps": {"rms_norm_eps": 0.0},
    "architectures": {"architectures": [3]},
    "dtype": {"dtype": 5, "torch_dtype": "none"},
    "attention": {"attn_implementation": "flash_attention_2", "_attn_implementation": "none"},
    "quantization": {"quantization_config": None},
    "outputs": {"output_attentions": True, "output_hidden_states": True},
    "rope": {"rope_parameters": {}, "rope_scaling": []},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("refusals") / "ck")


def _changed(checkpoint: Path, folder: Path, changes: dict[str, Any]) -> Path:
    folder.mkdir()
    for path in checkpoint.iterdir():
        (folder / path.name).symlink_to(path)
    raw = json.loads((checkpoint / "config.json").read_text())
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps({**raw, **changes}))
    return folder


@pytest.mark.filterwarnings("ignore")  # transformers' own
@pytest.mark.parametrize(("changes", "words"), REFUSED.values(), ids=REFUSED)
def test_what_it_raises_is_said(
    changes: dict[str, Any], words: str, checkpoint: Path, tmp_path: Path
) -> None:
    folder = _changed(checkpoint, tmp_path / "ck", changes)
    with pytest.raises(DogeExportError, match=words) as caught:
        Reference(folder)
    assert str(caught.value).startswith(
        f"transformers cannot {'run' if 'run' in words else 'load'} {folder}: "
    )
    assert caught.value.remedy and "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("changes", [changes for changes, _ in REFUSED.values()], ids=REFUSED)
def test_a_dry_run_says_it_too(
    changes: dict[str, Any],
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As where $CI is set: what transformers logs reaches our own handler, and would be a second sentence.
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    folder = _changed(checkpoint, tmp_path / "ck", changes)
    with pytest.raises(DogeExportError) as caught:
        Reference(folder)  # with the weights
    arguments = ["export", "-m", str(folder), "-o", str(tmp_path / "out")]
    for more in (["--dry-run"], []):
        assert run([*arguments, *more]) == 2
        assert capsys.readouterr().err == f"error: {caught.value}\n"
    with pytest.raises(DogeExportError, match=re.escape(str(caught.value))):
        export_model(str(folder), tmp_path / "out")
    assert run([*arguments, "--dry-run", "--no-validate"]) == 0  # asks no reference
    assert not (tmp_path / "out").exists()


def _recipe(folder: Path, *lines: str) -> list[str]:
    (folder / "recipe.toml").write_text("\n".join(lines))
    return ["--recipe", str(folder / "recipe.toml")]


def _too_large(checkpoint: Path, folder: Path) -> list[str]:
    """An adapter with which a matrix is beyond float16, in which neither of the two is."""
    lora = train(checkpoint, folder / "lora", size=40.0, target_modules=["q_proj"], lora_alpha=4000)
    return ["--adapter", str(lora), "--dtype", "float16"]


def _without(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = importlib.metadata.version

    def version(name: str) -> str:
        if name == package:
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("more", ["text", "adapter", "torch", "triton"])
def test_what_export_refuses_a_dry_run_refuses(
    more: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    if more in ("torch", "triton"):
        _without(more, monkeypatch)
    options, words = {
        "text": lambda: (_recipe(tmp_path, 'precision = "int8"', 'rounding = "gptq"'), "learns from a text"),
        "adapter": lambda: (_too_large(checkpoint, tmp_path), "with the adapter merged holds .* float16"),
        "torch": lambda: ([], "need torch, which is not installed"),
        "triton": lambda: (["--target", "tensorrt", "--plugins"], "need triton|needs triton"),
    }[more]()
    arguments = ["export", "-m", str(checkpoint), "-o", str(tmp_path / "out"), *options]
    said = []
    for rest in (["--dry-run"], [], ["--no-validate"]):
        assert run([*arguments, *rest]) == 2
        said.append(capsys.readouterr().err)
    assert len(set(said)) == 1 and re.search(words, said[0]), said
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("moe", [False, True])
def test_without_the_weights_transformers_refuses_the_same(moe: bool, tmp_path: Path) -> None:
    """Every key of config.json with values of every kind."""
    from transformers import DogeConfig

    folder, refused = write_checkpoint(tmp_path / "ck", is_moe=moe), 0
    raw = json.loads((folder / "config.json").read_text())
    for key in sorted({*DogeConfig().to_dict(), "layer_types", "experts_implementation", "fusion_config"}):
        for value in (None, "x", -1, 1.5, ["a"], {"a": 1}):
            (folder / "config.json").write_text(json.dumps({**raw, key: value}))
            try:
                opened = Checkpoint.open(folder)
            except DogeExportError:
                continue
            said = [_said(read, opened) for read in (load_current, check_taken)]
            assert said[0] == said[1], (key, value)
            refused += said[0] is not None
    assert refused > 50


def _said(read: Callable[[Checkpoint, str], Any], checkpoint: Checkpoint) -> str | None:
    try:
        read(checkpoint, "float32")
    except DogeExportError as error:
        return str(error)
    return None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("changes", TAKEN.values(), ids=TAKEN)
def test_what_it_takes_is_taken(changes: dict[str, Any], checkpoint: Path, tmp_path: Path) -> None:
    folder = _changed(checkpoint, tmp_path / "ck", changes)
    Reference(folder)
    check_taken(Checkpoint.open(folder), "float32")


@pytest.mark.filterwarnings("ignore")
def test_what_is_measured_against_says_so_too(checkpoint: Path, tmp_path: Path) -> None:
    folder = _changed(checkpoint, tmp_path / "ck", REFUSED["IndexError"][0])
    with pytest.raises(DogeExportError, match=f"transformers cannot load {folder}: IndexError"):
        Bench().open(str(folder), 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rms_norm_eps": 0}, r"takes no whole number there\. Write 0\.0"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps is"),
        ({"rope_parameters": []}, "rope_parameters is"),
        ({"rope_parameters": {"rope_theta": None}}, "rope_theta is null"),
        ({"rope_parameters": {"rope_theta": 10**400}}, "rope_theta is"),
        ({"num_hidden_layers": 10**4000}, r"num_hidden_layers is 2\*\*13287 or more"),
        ({"hidden_size": 2**30, "head_dim": 64}, "hidden_size is 1073741824, and the most"),
        ({"vocab_size": 2**31 - 1}, "vocab_size is"),
        ({"head_dim": 2**30}, "head_dim is"),
        ({"num_experts": 2**31 - 1, "is_moe": True}, "num_experts is"),
    ],
)
def test_what_no_model_has_is_answered_at_once(
    changes: dict[str, Any], words: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _changed(checkpoint, tmp_path / "ck", changes)
    for rest in (["--dry-run"], []):
        assert run(["export", "-m", str(folder), "-o", str(tmp_path / "out"), *rest]) == 2
        shown = capsys.readouterr().err
        assert words.replace("\\", "")[:12] in shown and len(shown.splitlines()) == 1
    with pytest.raises(DogeExportError, match=words):
        Reference(folder)


def test_init_answers_at_once_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for setting in (
        "num_hidden_layers=1000000",
        "hidden_size=1073741824",
        "x" * 10,
        "rms_norm_eps=" + "[" * 99999,
    ):
        assert run(["init", "Doge-20M", "-o", str(tmp_path / "m"), "--set", setting]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_memory_is_not_the_files_fault() -> None:
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")):
        with pytest.raises(MemoryError):
            raise refusal("x cannot load y", error)
    assert str(refusal("it cannot", KeyError("a"), "Mend it.")) == "it cannot: KeyError: 'a'. Mend it."
    assert len(str(refusal("it cannot", ValueError("a\n" * 9999)))) < 500
