"""The wheel, installed without extras in an empty environment: every command works, or names the extra."""

import os
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import doge_export
from doge_export.cli.app import COMMANDS
from doge_export.core import presets
from doge_export.core.tokenizer import copy_tokenizer_files
from doge_export.export.options import ExportOptions
from doge_export.export.pipeline import export_model
from tests.conftest import write_checkpoint

ROOT = Path(__file__).parents[1]
#: Of a model that reads doge-tiny's tokens, in one layer.
SIZES: dict[str, Any] = {"vocab_size": 4096, "max_position_embeddings": 128, "num_hidden_layers": 1}
EXPORT = "pip install 'doge-export[export]'"
#: Command line -> exit code, and what is said. What needs an extra says so, the rest does its work.
LINES: dict[str, tuple[int, str]] = {
    "init Doge-20M -o random --set num_hidden_layers=1 --set vocab_size=64": (0, "random parameters"),
    "export -m checkpoint -o exported": (2, EXPORT),
    "export -m checkpoint -o exported --dry-run": (2, EXPORT),
    "convert -m checkpoint -o converted": (0, "converted: "),
    "validate bundle --reference checkpoint": (2, EXPORT),
    "verify bundle": (0, "files are what the export wrote"),
    "verify bundle --rebuild --reference checkpoint": (2, EXPORT),
    "inspect bundle": (0, "model.onnx"),
    "generate bundle -p Hello --max-new-tokens 3": (0, "prefill"),
    "chat bundle --max-new-tokens 3": (0, ""),
    "serve bundle --port 0": (2, "pip install 'doge-export[serve]'"),
    "bench bundle --prompt-tokens 2 --new-tokens 2 --rounds 1": (0, "doge-export  decode"),
    "bench bundle --against transformers --reference checkpoint": (2, EXPORT),
    "eval bundle --text text": (0, "perplexity"),
    "eval bundle --tasks piqa": (2, "pip install 'doge-export[eval]'"),
    "quantize bundle -o int8 --scheme int8": (0, "int8: int8, "),
    "quantize bundle -o learned --scheme int4-gptq --text text": (0, "top-1 agreement"),
    "sensitivity bundle --text text --windows 1 --type int8": (0, "rows whose set changed"),
    "quantize bundle -o tuned --scheme int4-gptq-tuned --text text": (2, EXPORT),
    "quantize bundle -o mixed --scheme searched-nearest --max-bytes 0.5 --text text": (0, "top-1 agreement"),
    "quantize bundle -o best --scheme searched --max-bytes 0.5 --text text": (2, EXPORT),
    "pareto bundle --text text -o front --scheme int8": (2, EXPORT),
    "build-engine for-tensorrt -o engine": (2, "pip install 'doge-export[tensorrt-rtx]'"),
    "deploy triton bundle -o repository": (0, "repository/run.sh starts it"),
    "doctor bundle": (0, f"there is no export, validate, pareto and tuned rounding\n{EXPORT}"),
}


def done(*command: str | Path, code: int = 0, **options: Any) -> str:
    """What the command says, which has to end with `code`."""
    found = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    assert found.returncode == code, found.stdout
    return found.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new environment, into which pip has put the wheel of this tree and what it requires,
    in the versions that are here. What is compiled stays in build/wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    kept = f"--config-settings=build-dir={ROOT / 'build' / 'wheel'}"
    done(*pip, "wheel", ROOT, "--no-deps", "--no-build-isolation", kept, "--wheel-dir", folder)
    (wheel,) = folder.glob("*.whl")
    here = {each.name: each.version for each in metadata.distributions()}
    versions = folder / "versions"
    versions.write_text("".join(f"{name}=={version}\n" for name, version in here.items()))
    python = folder / "environment" / "bin" / "python"
    done(sys.executable, "-m", "venv", "--without-pip", python.parents[1])
    done(*pip, "--python", python, "install", "--no-compile", "--constraint", versions, wheel)
    return python.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands work on: a checkpoint, two bundles that were made with torch, and a text."""
    root = tmp_path_factory.mktemp("work")
    checkpoint = write_checkpoint(root / "checkpoint", **SIZES)
    copy_tokenizer_files(presets.models_folder() / "doge-tiny", checkpoint)
    export_model(str(checkpoint), root / "bundle", validate=False)
    options = ExportOptions.resolve(target="tensorrt", dtype="float16")
    export_model(str(checkpoint), root / "for-tensorrt", options, validate=False)
    (root / "text").write_text((presets.models_folder() / "heldout.txt").read_text()[:9000])
    return root


def outside(environment: Path, folder: Path) -> dict[str, Any]:
    """How a program runs there: nothing of this environment or this tree is seen."""
    settings = {"PATH": f"{environment}:{os.defpath}", "HOME": str(environment), "HF_HUB_OFFLINE": "1"}
    return {"env": settings, "cwd": folder}


def test_no_extra_is_there(environment: Path, folder: Path) -> None:
    """And the package is the wheel's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = done(
        environment / "python",
        "-c",
        "import doge_export; from importlib import metadata;"
        "print(doge_export.__file__, *(each.name for each in metadata.distributions()), sep='\\n')",
        **outside(environment, folder),
    ).splitlines()
    assert listed[0].startswith(str(environment.parent))
    page = Path("serve", "static")  # no module, so nothing but the wheel's list brings it along
    installed, here = Path(listed[0]).parent / page, ROOT / "doge_export" / page
    assert sorted(each.name for each in installed.iterdir()) == sorted(each.name for each in here.iterdir())
    names = {each.lower().replace("_", "-") for each in listed[1:]}
    base = {Requirement(each).name.lower().replace("_", "-") for each in project["dependencies"]}
    assert base < names
    for extra in project["optional-dependencies"].values():
        assert not names & {Requirement(each).name for each in extra if not each.startswith("doge-export")}


@pytest.mark.parametrize("command", COMMANDS)
def test_help(environment: Path, folder: Path, command: str) -> None:
    said = done(environment / "doge-export", command, "--help", **outside(environment, folder))
    assert said.startswith(f"Usage: doge-export {command} ")


@pytest.mark.parametrize("line", LINES)
def test_a_command_works_or_names_the_extra(environment: Path, folder: Path, line: str) -> None:
    code, sentence = LINES[line]
    before = sorted(folder.iterdir())
    say = ["doge-export", *line.split()]
    said = done(environment / say[0], *say[1:], code=code, input="Hello\n", **outside(environment, folder))
    assert sentence in "\n".join(each.strip() for each in said.splitlines())
    if code == 2:
        assert said.startswith("error: ") and said.count("\n") == 1
        assert sorted(folder.iterdir()) == before


def test_every_command_is_run() -> None:
    assert {line.split()[0] for line in LINES} == set(COMMANDS)


def test_names_of_the_package(environment: Path, folder: Path) -> None:
    """All of them come; what needs torch says so when it is called."""
    code = (
        "import doge_export\n"
        f"for name in {doge_export.__all__}: getattr(doge_export, name)\n"
        "for call in (lambda: doge_export.export_model('checkpoint', 'exported'),\n"
        "             lambda: doge_export.validate_bundle('bundle', 'checkpoint')):\n"
        "    try: call()\n"
        "    except doge_export.DogeExportError as error: print(error.remedy)\n"
    )
    said = done(environment / "python", "-c", code, **outside(environment, folder))
    assert said.splitlines() == [EXPORT, EXPORT]


def test_the_module_is_the_command(environment: Path, folder: Path) -> None:
    said = done(environment / "python", "-m", "doge_export", "--version", **outside(environment, folder))
    assert said == f"doge-export {doge_export.__version__}\n"
