"""The names the package promises, and that they cost nothing until used."""

import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import doge_export

NAMES = [
    "Bundle",
    "DogeConfig",
    "DogeExportError",
    "ExportOptions",
    "GenerationDefaults",
    "GenerationOptions",
    "ParityError",
    "Report",
    "Session",
    "Tokenizer",
    "__version__",
    "build_engine",
    "deploy_triton",
    "evaluate_text",
    "export_model",
    "generate",
    "plugin_library",
    "quantize_bundle",
    "stream",
    "validate_bundle",
]


def test_the_list() -> None:
    assert sorted(doge_export.__all__) == NAMES
    assert dir(doge_export) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_there(name: str) -> None:
    value = getattr(doge_export, name)
    assert isinstance(value, str) or callable(value)


def test_the_page_says_every_name() -> None:
    """docs/guides/python.md, whose programs tests/docs/test_snippets.py runs."""
    page = (Path(__file__).parents[1] / "docs" / "guides" / "python.md").read_text(encoding="utf-8")
    assert [name for name in NAMES if f"`{name}" not in page] == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'exprt_model'"):
        doge_export.exprt_model  # noqa: B018


def test_the_version_has_one_home() -> None:
    assert version("doge-export") == doge_export.__version__
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert "version" not in project


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, doge_export; doge_export.DogeConfig; "
        "print([m for m in ('torch', 'transformers', 'onnx', 'onnxruntime', 'numpy', 'click', 'rich') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_the_native_library_is_built() -> None:
    """`make setup` builds it, so that it is never missing where tests run."""
    library = doge_export.plugin_library()
    assert library.is_file() and library.is_absolute()


def test_a_missing_library_names_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("doge_export.core.native_library._LIBRARY", tmp_path / "libdoge_export.so")
    with pytest.raises(doge_export.DogeExportError, match="is missing") as caught:
        doge_export.plugin_library()
    assert "pip install --force-reinstall" in str(caught.value)  # of a wheel
    assert "make setup" in str(caught.value) and "make plugins" in str(caught.value)  # in a checkout
