"""Reading a checkpoint folder: what is whole is read, what is not is refused in one sentence."""

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from doge_export.core.checkpoint.folder import Checkpoint
from doge_export.core.errors import DogeExportError

CONFIG = {
    "model_type": "doge",
    "vocab_size": 11,
    "hidden_size": 4,
    "intermediate_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "tie_word_embeddings": True,
}
TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(4, dtype=np.float16),
    "c": np.ones((), np.float32),
}
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One whole file."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two files and their index."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    names["c"] = names["b"]
    for file in set(names.values()):
        save_file({key: TENSORS[key] for key in names if names[key] == file}, tmp_path / file)
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return tmp_path


def refused(folder: Path) -> DogeExportError:
    """The error that opening the folder gives, checked for its form."""
    with pytest.raises(DogeExportError) as caught:
        Checkpoint.open(folder)
    message = caught.value.message
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert message.endswith(".") and not message.startswith("Traceback")
    return caught.value


def write_header(folder: Path, header: Any, data: bytes = b"", length: int | None = None) -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    prefix = struct.pack("<Q", len(raw) if length is None else length)
    (folder / "model.safetensors").write_bytes(prefix + raw + data)


def entry(shape: Any = (2,), offsets: Any = (0, 8), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_one_file(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.folder == folder
    assert checkpoint.config.vocab_size == 11
    assert dict(checkpoint.shapes) == {"a": (2, 3), "b": (4,), "c": ()}
    assert dict(checkpoint.dtypes) == {"a": "F32", "b": "F16", "c": "F32"}
    for name, array in TENSORS.items():
        tensor = checkpoint.tensor(name).numpy()
        assert tensor.dtype == array.dtype
        np.testing.assert_array_equal(tensor, array)


def test_shards(shards: Path) -> None:
    checkpoint = Checkpoint.open(shards)
    assert set(checkpoint.shapes) == set(TENSORS)
    assert checkpoint.files["a"] != checkpoint.files["b"] == checkpoint.files["c"]
    for name, array in TENSORS.items():
        np.testing.assert_array_equal(checkpoint.tensor(name).numpy(), array)


def test_a_single_file_comes_before_an_index_as_in_transformers(shards: Path) -> None:
    """The index may be of an earlier save, and its shards gone."""
    save_file({"z": np.zeros(3, np.float32)}, shards / "model.safetensors")
    assert set(Checkpoint.open(shards).shapes) == {"z"}
    (shards / "model-00001-of-00002.safetensors").unlink()
    assert set(Checkpoint.open(shards).shapes) == {"z"}


def test_float64_is_read(folder: Path) -> None:
    save_file({"a": np.arange(3, dtype=np.float64)}, folder / "model.safetensors")
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.dtypes["a"] == "F64" and checkpoint.tensor("a").tolist() == [0, 1, 2]


def test_a_tensor_is_a_view_of_the_file(folder: Path) -> None:
    tensor = Checkpoint.open(folder).tensor("a")
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc here")
    places = [line.split() for line in maps.read_text().splitlines() if "model.safetensors" in line]
    ranges = [tuple(int(number, 16) for number in place[0].split("-")) for place in places]
    assert any(first <= tensor.data_ptr() < last for first, last in ranges)


def test_bfloat16(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    save_torch({"a": torch.arange(5).to(torch.bfloat16)}, folder / "model.safetensors")
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.dtypes["a"] == "BF16"
    assert checkpoint.tensor("a").dtype == torch.bfloat16


def test_opening_reads_no_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Headers only: with a file of gigabytes, opening costs milliseconds."""
    import safetensors

    class HeaderOnly:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.file = safe_open(*arguments, **options)

        def __enter__(self) -> "HeaderOnly":
            return self

        def __exit__(self, *exception: object) -> None:
            self.file.__exit__(*exception)

        def keys(self) -> Any:
            return self.file.keys()

        def get_slice(self, name: str) -> Any:
            part = self.file.get_slice(name)
            return SimpleNamespace(get_dtype=part.get_dtype, get_shape=part.get_shape)

    safe_open = safetensors.safe_open
    monkeypatch.setattr(safetensors, "safe_open", HeaderOnly)
    Checkpoint.open(folder)


def test_not_a_folder(folder: Path) -> None:
    assert "not a folder" in refused(folder / "absent").message
    assert "not a folder" in refused(folder / "config.json").message


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "config.json" in refused(folder).message


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe\x00", b'{"model_type": "llama"}'])
def test_config_that_is_none(content: bytes, folder: Path) -> None:
    (folder / "config.json").write_bytes(content)
    assert "config.json" in refused(folder).message


def test_an_empty_folder_of_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    error = refused(folder)
    assert "model.safetensors" in error.message and error.remedy


class _Bomb:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return pytest.fail, ("a pickle was loaded",)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_alone_are_refused_unopened(name: str, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(_Bomb()))
    (folder / name).chmod(0)
    error = refused(folder)
    assert "pickle" in error.message and "python -c" in error.remedy


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_pickle_beside_is_not_opened(name: str, folder: Path) -> None:
    (folder / name).write_bytes(pickle.dumps(_Bomb()))
    (folder / name).chmod(0)
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.tensor("b").shape == (4,)
    assert name not in {path.name for path in checkpoint.files.values()}


def test_a_pickle_under_another_name_is_not_loaded(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(_Bomb()))
    assert "not a safetensors file" in refused(folder).message


def test_an_index_that_names_a_pickle(shards: Path) -> None:
    (shards / "pytorch_model.bin").write_bytes(pickle.dumps(_Bomb()))
    (shards / INDEX).write_text(json.dumps({"weight_map": {"a": "pytorch_model.bin"}}))
    assert "not a safetensors file" in refused(shards).message


def test_truncated_anywhere(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    for size in (0, 1, 7, 8, 9, 8 + length // 2, 8 + length - 1, 8 + length, 8 + length + 1, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert str(path) in refused(folder).message, size


def test_a_truncated_shard(shards: Path) -> None:
    path = shards / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert path.name in refused(shards).message


def test_bytes_too_many(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"\0")
    assert str(path) in refused(folder).message


@pytest.mark.parametrize("length", [0, 1, 99, 100_000_001, 2**31, 2**63, 2**64 - 1])
def test_header_of_an_absurd_length(length: int, folder: Path) -> None:
    write_header(folder, {"a": entry()}, bytes(8), length)
    refused(folder)


GARBAGE: dict[str, Any] = {
    "no JSON": b"\x00" * 20,
    "no text": b"\xff\xfe\xfd",
    "empty": b"",
    "half of it": b'{"a": {"dtype": "F32"',
    "a list": [],
    "a number": 5,
    "null": None,
    "an entry that is a list": {"a": []},
    "an entry that is a number": {"a": 1},
    "no dtype": {"a": {"shape": [2], "data_offsets": [0, 8]}},
    "no shape": {"a": {"dtype": "F32", "data_offsets": [0, 8]}},
    "no offsets": {"a": {"dtype": "F32", "shape": [2]}},
    "one offset": {"a": entry(offsets=[8])},
    "a shape below zero": {"a": entry(shape=[-2])},
    "a shape of fractions": {"a": entry(shape=[2.0])},
    "a shape of text": {"a": entry(shape="2")},
    "offsets beyond the file": {"a": entry(offsets=[8, 16])},
    "a dtype that is a list": {"a": entry(dtype=["F32"])},
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_in_the_header(name: str, folder: Path) -> None:
    write_header(folder, GARBAGE[name], bytes(8))
    refused(folder)


LIES: dict[str, Any] = {
    "offsets of text": {"a": entry(offsets=["0", "8"])},
    "offsets of fractions": {"a": entry(offsets=[0.0, 8.0])},
    "shape and offsets apart": {"a": entry(shape=[3])},
    "offsets before the data": {"a": entry(offsets=[-8, 0]), "b": entry()},
    "offsets backwards": {"a": entry(offsets=[8, 0]), "b": entry()},
    "a hole before the first": {"a": entry(shape=[1], offsets=[4, 8])},
    "a hole between": {"a": entry(shape=[0], offsets=[0, 0]), "b": entry(shape=[1], offsets=[4, 8])},
    "overlap": {"a": entry(), "b": entry()},
    "overlap by half": {"a": entry(), "b": entry(shape=[1], offsets=[4, 8])},
}


@pytest.mark.parametrize("name", LIES)
def test_a_header_that_lies(name: str, folder: Path) -> None:
    """If not when the folder is opened, then when the tensor is read: refused, and no traceback."""
    write_header(folder, LIES[name], bytes(8))
    with pytest.raises(DogeExportError):
        checkpoint = Checkpoint.open(folder)
        for tensor in checkpoint.shapes:
            checkpoint.tensor(tensor)


def test_json_nested_without_end(folder: Path) -> None:
    write_header(folder, b"[" * 100_000, bytes(8))
    refused(folder)
    (folder / "config.json").write_bytes(b'{"a":' * 100_000)
    refused(folder)


@pytest.mark.parametrize(("dtype", "size"), [("I8", 1), ("U8", 1), ("I64", 8), ("BOOL", 1)])
def test_other_dtypes(dtype: str, size: int, folder: Path) -> None:
    header = {"weight": {"dtype": dtype, "shape": [1], "data_offsets": [0, size]}}
    write_header(folder, header, bytes(size))
    error = refused(folder)
    assert "weight" in error.message
    assert dtype in error.message


@pytest.mark.parametrize("dtype", ["nonsense", None, 3])
def test_dtypes_that_are_none(dtype: Any, folder: Path) -> None:
    write_header(folder, {"weight": entry(dtype=dtype)}, bytes(8))
    refused(folder)


def test_an_int8_shard(shards: Path) -> None:
    save_file({"a": np.zeros(3, np.int8)}, shards / "model-00001-of-00002.safetensors")
    assert "I8" in refused(shards).message


def test_a_missing_shard(shards: Path) -> None:
    (shards / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors" in refused(shards).message


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"{}",
        b'{"weight_map": []}',
        b'{"weight_map": null}',
        b'{"weight_map": {"a": 1}}',
        b'{"weight_map": {"a": null}}',
        b'{"weight_map": {"a": ["x"]}}',
        b'{"weight_map": {"a": "x", "b": 2}}',
    ],
)
def test_garbage_in_the_index(content: bytes, shards: Path) -> None:
    (shards / INDEX).write_bytes(content)
    assert INDEX in refused(shards).message


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors",
        "/etc/passwd",
        "sub/model.safetensors",
        "..",
        ".",
        "",
        "a\0b",
        "x" * 5000,
        "./x",
    ],
)
def test_an_index_that_names_no_file_of_the_folder(name: str, shards: Path) -> None:
    save_file(TENSORS, shards.parent / "model.safetensors")
    (shards / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    refused(shards)


def test_an_index_that_places_a_tensor_wrongly(shards: Path) -> None:
    index = json.loads((shards / INDEX).read_text())
    index["weight_map"]["c"] = index["weight_map"]["a"]
    (shards / INDEX).write_text(json.dumps(index))
    assert "'c'" in refused(shards).message


def test_an_index_that_names_what_is_nowhere(shards: Path) -> None:
    index = json.loads((shards / INDEX).read_text())
    index["weight_map"]["d"] = index["weight_map"]["a"]
    (shards / INDEX).write_text(json.dumps(index))
    assert "'d'" in refused(shards).message


def test_a_tensor_in_two_shards_is_read_where_the_index_says(shards: Path) -> None:
    """Or refused; never the other one."""
    other = shards / "model-00002-of-00002.safetensors"
    save_file({**load_file(other), "a": np.full((2, 3), 7, np.float32)}, other)
    try:
        checkpoint = Checkpoint.open(shards)
    except DogeExportError:
        return
    np.testing.assert_array_equal(checkpoint.tensor("a").numpy(), TENSORS["a"])


def test_directories_in_place_of_files(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    refused(folder)
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    refused(folder)
