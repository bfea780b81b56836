"""The bundle: opening, verifying, and writing a folder whole or not at all."""

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from doge_export.core.bundle import MANIFEST, Bundle, mark_checkpoint, new_folder, write_manifest
from doge_export.core.errors import DogeExportError
from tests.runtime._toy import write_toy_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_toy_bundle(tmp_path / "bundle")


def _arguments(bundle: Bundle) -> dict[str, Any]:
    """What `write_manifest` was called with."""
    raw = json.loads((bundle.path / MANIFEST).read_text())
    return {key: raw[key] for key in ("options", "versions", "graph", "cache", "call")}


def test_open_reads_manifest_and_config(bundle):
    assert bundle.model_path.name == "model.onnx"
    assert bundle.manifest.cache.kind == "growing"
    assert bundle.manifest.cache.inputs[0] == "past_key_values.0.key"
    assert bundle.manifest.inputs[0].shape == ("batch", "sequence")
    assert bundle.config.num_hidden_layers == bundle.manifest.cache.layers
    bundle.verify()


def test_a_second_graph_is_optional_and_must_be_there_if_named(bundle):
    assert bundle.manifest.decode is None and bundle.decode_path is None
    assert "decode" not in json.loads((bundle.path / MANIFEST).read_text())
    outputs = [{"name": "token_ids", "dtype": "int64", "shape": ["batch", 7]}]
    arguments = _arguments(bundle)
    decode = {
        "file": "decode.onnx",
        "count": 7,
        "inputs": [],
        "outputs": outputs,
        "cache": arguments["cache"],
    }
    write_manifest(bundle.path, **_arguments(bundle), decode=decode)
    with pytest.raises(DogeExportError, match=r"lacks decode\.onnx"):
        Bundle.open(bundle.path)
    (bundle.path / "decode.onnx").write_bytes(b"graph")
    opened = Bundle.open(bundle.path)
    assert opened.decode_path == bundle.path / "decode.onnx"
    assert opened.manifest.decode.count == 7
    assert opened.manifest.decode.outputs[0].shape == ("batch", 7)
    with pytest.raises(DogeExportError, match="not a file of the bundle"):
        write_manifest(bundle.path, **_arguments(bundle), decode={**decode, "file": "../decode.onnx"})


def test_manifest_has_the_hash_of_every_file_and_no_other(bundle):
    raw = json.loads((bundle.path / MANIFEST).read_text())
    there = {path.name for path in bundle.path.iterdir()} - {MANIFEST}
    assert set(raw["files"]) == there
    for name, entry in raw["files"].items():
        data = (bundle.path / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def test_manifest_is_the_same_for_the_same_files(tmp_path):
    first, second = (write_toy_bundle(tmp_path / name).path / MANIFEST for name in ("a", "another"))
    assert first.read_bytes() == second.read_bytes()


def test_manifest_does_not_depend_on_the_order_of_its_arguments(bundle):
    before = (bundle.path / MANIFEST).read_bytes()
    arguments = _arguments(bundle)
    for key in ("options", "graph", "cache"):
        arguments[key] = dict(reversed(arguments[key].items()))
    write_manifest(bundle.path, **arguments)
    assert (bundle.path / MANIFEST).read_bytes() == before


def test_files_in_subfolders_are_hashed_too(tmp_path):
    bundle = write_toy_bundle(tmp_path / "b")
    (bundle.path / "notes").mkdir()
    (bundle.path / "notes" / "a.txt").write_text("x")
    assert "notes/a.txt" in write_manifest(bundle.path, **_arguments(bundle)).files


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is truncated: it has"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\0"), "was changed"),
        (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "was changed"),
    ],
    ids=["missing", "truncated", "changed", "longer"],
)
def test_verify_names_the_damaged_file(bundle, damage, sentence):
    damage(bundle.path / "tokenizer.json")
    with pytest.raises(DogeExportError, match=rf"tokenizer\.json {sentence}"):
        bundle.verify()


def test_open_refuses_what_is_no_bundle(tmp_path):
    with pytest.raises(DogeExportError, match="does not exist"):
        Bundle.open(tmp_path / "nothing")
    with pytest.raises(DogeExportError, match=r"has no doge_export\.json"):
        Bundle.open(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(DogeExportError, match="is a file"):
        Bundle.open(tmp_path / "file")


@pytest.mark.parametrize("name", ["model.onnx", "config.json"])
def test_open_names_a_required_file_that_is_missing(bundle, name):
    (bundle.path / name).unlink()
    with pytest.raises(DogeExportError, match=name):
        Bundle.open(bundle.path)


def test_open_misses_external_weights(bundle):
    (bundle.path / "model.onnx.data").write_bytes(b"weights")
    raw = json.loads((bundle.path / MANIFEST).read_text())
    write_manifest(
        bundle.path, **{key: raw[key] for key in ("options", "versions", "graph", "cache", "call")}
    )
    Bundle.open(bundle.path).verify()
    (bundle.path / "model.onnx.data").unlink()
    with pytest.raises(DogeExportError, match=r"lacks model\.onnx\.data"):
        Bundle.open(bundle.path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda raw: raw.update(format=2), "format 2"),
        (lambda raw: raw.update(format="1"), "not a bundle's manifest"),
        (lambda raw: raw.pop("cache"), "lacks 'cache'"),
        (lambda raw: raw["cache"].pop("kv_heads"), "lacks 'kv_heads'"),
        (lambda raw: raw.update(graph={"inputs": 3, "outputs": []}), "damaged"),
        (lambda raw: raw["files"].update({"../secret": {"sha256": "", "bytes": 0}}), r"\.\./secret"),
        (lambda raw: raw["files"].update({"/etc/passwd": {"sha256": "", "bytes": 0}}), "/etc/passwd"),
    ],
)
def test_open_refuses_a_manifest_it_cannot_use(bundle, change, sentence):
    path = bundle.path / MANIFEST
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(DogeExportError, match=sentence):
        Bundle.open(bundle.path)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[]"])
def test_open_refuses_a_manifest_that_is_no_json_object(bundle, content):
    (bundle.path / MANIFEST).write_bytes(content)
    with pytest.raises(DogeExportError, match=r"doge_export\.json"):
        Bundle.open(bundle.path)


def test_read_json(bundle):
    assert bundle.read_json("generation_config.json") == {}
    (bundle.path / "generation_config.json").write_text("[1]")
    with pytest.raises(DogeExportError, match="does not hold a JSON object"):
        bundle.read_json("generation_config.json")


def _only(folder: Path, *names: str) -> bool:
    return sorted(path.name for path in folder.iterdir()) == sorted(names)


def _ours(folder: Path) -> Path:
    """A folder of one file that we wrote."""
    folder.mkdir()
    (folder / "config.json").write_text("old")
    mark_checkpoint(folder)
    return folder


def test_new_folder_appears_when_the_block_ends_well(tmp_path):
    output = tmp_path / "out"
    with new_folder(output) as folder:
        (folder / "a").write_text("1")
        assert not output.exists()
        assert folder.parent == tmp_path  # the same disk, so that the rename is one step
    assert (output / "a").read_text() == "1"
    assert _only(tmp_path, "out")


def test_new_folder_has_the_permissions_of_any_new_folder(tmp_path):
    with new_folder(tmp_path / "out"):
        pass
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, DogeExportError])
@pytest.mark.parametrize("force", [False, True])
def test_new_folder_leaves_nothing_behind_a_failure(tmp_path, error, force):
    output = tmp_path / "out"
    if force:
        _ours(output)
    with pytest.raises(error), new_folder(output, force) as folder:
        (folder / "config.json").write_text("half")
        raise error("stop")
    assert _only(tmp_path, *["out"] * force)
    assert not force or (output / "config.json").read_text() == "old"


def test_new_folder_refuses_an_existing_output(tmp_path):
    (tmp_path / "out").mkdir()
    with (
        pytest.raises(DogeExportError, match=r"exists already\. Pass --force") as raised,
        new_folder(tmp_path / "out"),
    ):
        pytest.fail("the block must not run")
    assert raised.value.exit_code == 2


def test_new_folder_with_force_replaces_everything(tmp_path):
    output = _ours(tmp_path / "out")
    with new_folder(output, force=True) as folder:
        (folder / "a").write_text("new")
        assert (output / "config.json").read_text() == "old"
    assert _only(output, "a")
    assert _only(tmp_path, "out")


def test_new_folder_with_force_spares_a_folder_of_other_things(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("years")
    with pytest.raises(DogeExportError, match="not replaced"), new_folder(home, force=True):
        pytest.fail("the block must not run")
    assert (home / "thesis.txt").read_text() == "years"


def test_new_folder_puts_the_old_one_back_when_the_last_step_fails(tmp_path, monkeypatch):
    output = _ours(tmp_path / "out")
    rename = Path.rename

    def fail(self, target):
        if self.name.endswith(".partial"):
            raise OSError(errno.EACCES, "Permission denied", str(target))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(DogeExportError, match="Permission denied"), new_folder(output, force=True):
        pass
    assert (output / "config.json").read_text() == "old"
    assert _only(tmp_path, "out")


def test_new_folder_follows_a_link(tmp_path):
    _ours(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    with new_folder(tmp_path / "link", force=True) as folder:
        (folder / "a").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert _only(tmp_path / "real", "a")


def test_new_folder_makes_its_parents(tmp_path):
    with new_folder(tmp_path / "no" / "out") as folder:
        (folder / "a").write_text("new")
    assert _only(tmp_path / "no" / "out", "a")


def test_new_folder_says_that_a_parent_is_a_file(tmp_path):
    (tmp_path / "no").touch()
    with (
        pytest.raises(DogeExportError, match="cannot be written"),
        new_folder(tmp_path / "no" / "out"),
    ):
        pass


def test_new_folder_refuses_a_file(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(DogeExportError, match="is a file"), new_folder(tmp_path / "out", force=True):
        pass
    with pytest.raises(DogeExportError, match="cannot be written"), new_folder(tmp_path / "out" / "below"):
        pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_new_folder_says_that_the_disk_is_full(tmp_path):
    with (
        pytest.raises(DogeExportError, match="no space is left") as raised,
        new_folder(tmp_path / "out"),
        Path("/dev/full").open("wb", buffering=0) as full,
    ):
        full.write(b"x")
    assert isinstance(raised.value.__cause__, OSError)
    assert _only(tmp_path)


def test_new_folder_knows_a_full_disk_behind_other_exceptions(tmp_path):
    text = f"I/O error: {os.strerror(errno.ENOSPC)} (os error {errno.ENOSPC})"
    with pytest.raises(DogeExportError, match="no space is left"), new_folder(tmp_path / "out"):
        raise RuntimeError(text)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_new_folder_says_that_it_may_not_write(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(DogeExportError, match="Permission denied"), new_folder(tmp_path / "out"):
            pass
    finally:
        tmp_path.chmod(0o700)
