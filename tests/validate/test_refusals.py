"""What transformers itself does not take: one sentence with its words, whatever it raises."""

import json
from pathlib import Path
from typing import Any

import pytest

from doge_export.bench.reference import Reference as Bench
from doge_export.cli.app import run
from doge_export.errors import DogeExportError, refusal
from doge_export.validate.reference import Reference
from tests.conftest import write_checkpoint

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "ValueError": ({"experts_implementation": "none"}, "experts_implementation"),
    "its dataclass": ({"initializer_range": None}, "initializer_range"),
    "its validator": ({"layer_types": ["none"]}, "layer_types"),
    "IndexError": ({"dtype": ["float32"]}, "IndexError"),
    "a dtype of torch": ({"dtype": "torch.float32"}, "torch.float32"),
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
@pytest.mark.parametrize("changes", TAKEN.values(), ids=TAKEN)
def test_what_it_takes_is_taken(changes: dict[str, Any], checkpoint: Path, tmp_path: Path) -> None:
    Reference(_changed(checkpoint, tmp_path / "ck", changes))


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
