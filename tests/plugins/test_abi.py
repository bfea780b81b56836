"""Our copy of ONNX Runtime's ABI against the real header, which npm brings."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_ort_abi", ROOT / "scripts" / "check_ort_abi.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def headers(script: ModuleType) -> Path:
    try:
        found = script.fetch_headers()
    except script.Unavailable as error:
        pytest.skip(str(error))
    assert isinstance(found, Path)
    return found


def test_every_slot_member_and_value_is_the_header_s(script: ModuleType, headers: Path) -> None:
    done = script.check(headers)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("X(KernelContext_ParallelFor, 274,", "X(KernelContext_ParallelFor, 275,", "ParallelFor has moved"),
        ("90, Status*, const KernelContext*, size_t,", "90, Status*, const KernelContext*,", "otherwise"),
        (
            "  MemoryType (*GetInputMemoryType)(const CustomOp*, size_t);\n",
            "",
            "VariadicInputMinArity has mo",
        ),
        ("kInt4 = 22", "kInt4 = 21", "INT4 has another value"),
    ],
    ids=["slot", "arguments", "member", "value"],
)
def test_a_mistake_is_found(
    script: ModuleType, headers: Path, tmp_path: Path, old: str, new: str, sentence: str
) -> None:
    text = (ROOT / "plugins" / "onnxruntime" / "ort_abi.h").read_text()
    assert old in text
    changed = tmp_path / "ort_abi.h"
    changed.write_text(text.replace(old, new))
    source = (ROOT / "plugins" / "onnxruntime" / "check_abi.cc").read_text()
    (tmp_path / "check_abi.cc").write_text(source)
    done = script.check(headers, source=tmp_path / "check_abi.cc")
    assert done.returncode != 0 and sentence in done.stderr
