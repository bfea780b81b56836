"""Every file that a user may give, and what is made of a valid one by changing it somewhere. Whatever comes
out, its reader takes it or raises DogeExportError."""

import copy
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import tomli_w
from safetensors.numpy import save_file

from doge_export.core.adapters import Adapter
from doge_export.core.bundle import ENGINE_MANIFEST, MANIFEST, Bundle
from doge_export.core.checkpoint.folder import Checkpoint
from doge_export.core.errors import DogeExportError
from doge_export.core.journal import Journal
from doge_export.core.json_file import parse_json, read_object
from doge_export.core.tensor_shapes import parameter_count
from doge_export.core.tokenizer import Tokenizer, check_vocabulary
from doge_export.export.genai import genai_config
from doge_export.export.init import init
from doge_export.export.options import ExportOptions
from doge_export.render.certificate import certificate_faults
from doge_export.runtime import GenerationDefaults, Session, generate
from doge_export.runtime.tensorrt.engine_folder import Engine
from doge_export.serve.requests import RequestReader
from tests.runtime._toy import write_toy_bundle

SETTINGS = ["vocab_size=64", "hidden_size=8", "intermediate_size=8", "num_hidden_layers=1"]
CHAT = [{"role": "user", "content": "a b"}]


@dataclass(frozen=True)
class Reader:
    """A file of `folder`, and what reads it there. `header`: its JSON has its length before it, and more
    behind it. `bytes_only`: it is no JSON."""

    file: str
    read: Callable[[Path], Any]
    header: bool = False
    bytes_only: bool = False
    toml: bool = False


def _checkpoint(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    assert parameter_count(checkpoint.config) > 0
    for name in checkpoint.shapes:
        checkpoint.array(name)


def _adapter(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder.parent / "checkpoint")
    adapter = Adapter.open(folder, checkpoint)
    for name in checkpoint.shapes:
        with np.errstate(all="ignore"):
            adapter.merged(name)


def _tokenizer(folder: Path) -> None:
    check_vocabulary(folder, 1 << 20, "")
    tokenizer = Tokenizer.load(folder)
    tokenizer.decode(tokenizer.encode("a <eos> b"))
    tokenizer.token_id("eos_token")
    if tokenizer.chat_template is not None:
        tokenizer.apply_chat_template(CHAT)


def _generation(folder: Path) -> None:
    bundle = Bundle.open(folder)
    genai_config(bundle.config, read_object(folder / "generation_config.json"))
    options = GenerationDefaults.of(bundle).changed(max_new_tokens=2)
    generate(Session.open(bundle, 1), [[3, 4]], options)


def _bundle(folder: Path) -> None:
    bundle = Bundle.open(folder)
    bundle.verify()
    certificate_faults(folder.parent / "certificate.json", bundle)
    generate(Session.open(bundle, 1), [[3, 4]], GenerationDefaults.of(bundle).changed(max_new_tokens=2))


def _engine(folder: Path) -> None:
    engine = Engine.open(folder)
    assert engine.max_batch >= 0
    engine.verify()


def _recipe(folder: Path) -> None:
    config = Checkpoint.open(folder.parent / "checkpoint").config
    options = ExportOptions.resolve(folder / "recipe.toml")
    options.check_model(config)
    options.to_dict()


def _certificate(folder: Path) -> None:
    certificate_faults(folder / "certificate.json", Bundle.open(folder.parent / "bundle"))


def _body(folder: Path) -> None:
    bundle = Bundle.open(folder.parent / "bundle")
    reader = RequestReader(bundle, Tokenizer.load(bundle.path), "x")
    try:
        body = parse_json((folder / "body.json").read_bytes())
    except ValueError:
        return
    for chat in (True, False):
        try:
            reader.read(body, chat)
        except DogeExportError as error:
            str(error)


def _journal(folder: Path) -> None:
    Journal(folder / "journal", {"a": 1}).get("b")


#: Name -> the file, in a folder of the name before the colon.
READERS = {
    "checkpoint: config": Reader("config.json", _checkpoint),
    "checkpoint: weights": Reader("model.safetensors", _checkpoint, header=True),
    "sharded: index": Reader("model.safetensors.index.json", _checkpoint),
    "adapter: config": Reader("adapter_config.json", _adapter),
    "adapter: weights": Reader("adapter_model.safetensors", _adapter, header=True),
    "tokenizer: tokenizer": Reader("tokenizer.json", _tokenizer),
    "tokenizer: config": Reader("tokenizer_config.json", _tokenizer),
    "tokenizer: template": Reader("chat_template.jinja", _tokenizer, bytes_only=True),
    "bundle: generation": Reader("generation_config.json", _generation),
    "bundle: manifest": Reader(MANIFEST, _bundle),
    "bundle: config": Reader("config.json", _bundle),
    "engine: manifest": Reader(ENGINE_MANIFEST, _engine),
    "recipes: recipe": Reader("recipe.toml", _recipe, toml=True),
    "certificates: certificate": Reader("certificate.json", _certificate),
    "requests: body": Reader("body.json", _body),
    "journals: journal": Reader("journal", _journal),
}


def write_valid(root: Path) -> None:
    """A valid one of each, in folders below `root`."""
    init("Doge-20M", root / "checkpoint", settings=SETTINGS)
    bundle = write_toy_bundle(root / "bundle").path
    _write_sharded(root)
    adapter = root / "adapter"
    adapter.mkdir()
    names = {
        f"base_model.model.model.layers.0.self_attn.{part}.lora_{half}.weight": np.ones(shape, np.float32)
        for part in ("q_proj", "o_proj")
        for half, shape in (("A", (2, 8)), ("B", (8, 2)))
    }
    save_file(names, adapter / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "o_proj"]}
    patterns = {"rank_pattern": {}, "alpha_pattern": {"q_proj": 8}, "bias": "none", "use_rslora": False}
    _write(adapter / "adapter_config.json", {**settings, **patterns, "init_lora_weights": True})
    tokens = root / "tokenizer"
    tokens.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (bundle / name).is_file():
            (tokens / name).write_bytes((bundle / name).read_bytes())
    raw = json.loads((tokens / "tokenizer_config.json").read_text())
    _write(tokens / "tokenizer_config.json", {**raw, **_TOKENS})
    generation = {"eos_token_id": [1], "pad_token_id": 2, "do_sample": True, "temperature": 0.8, "top_k": 5}
    extra = {"top_p": 0.9, "repetition_penalty": 1.1, "max_new_tokens": 3}
    (bundle / "generation_config.json").unlink(missing_ok=True)
    _write_manifest_again(bundle)
    for folder in ("recipes", "certificates", "requests", "journals", "engine"):
        (root / folder).mkdir()
    files = {name: entry.sha256 for name, entry in Bundle.open(bundle).files.items()}
    check = {"name": "all", "value": 0.0, "limit": 1.0, "passed": True}
    report = {"files": files, "passed": True, "checks": [check], "cause": None}
    _write(root / "certificates" / "certificate.json", report)
    _write(root / "certificate.json", report)
    _write(bundle / "generation_config.json", {**generation, **extra})
    _write_manifest_again(bundle)
    (root / "recipes" / "recipe.toml").write_text(tomli_w.dumps(_RECIPE))
    _write(root / "requests" / "body.json", _BODY)
    (root / "journals" / "journal").write_text('{"subject": {"a": 1}}\n{"b": {"kl": 0.5}}\n')
    _write_engine(root / "engine", bundle)


_TOKENS = {
    "added_tokens_decoder": {"3": {"content": "<x>", "special": True, "normalized": False, "lstrip": False}},
    "extra_special_tokens": {"x_token": "<y>"},
    "chat_template": [{"name": "default", "template": "{{ messages[0].content }}"}],
    "split_special_tokens": False,
}
_RECIPE = {
    "target": "ort-cpu",
    "precision": "int8",
    "kv_cache": "static",
    "max_length": 16,
    "types": {"v_proj": "int8:8", "layers.0.o_proj": "fp32"},
    "roundings": {"v_proj": "search"},
}
_BODY = {
    "model": "x",
    "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
    "prompt": [[3, 4], [5]],
    "temperature": 0.5,
    "top_p": 0.5,
    "seed": 3,
    "stop": ["a"],
    "n": 2,
    "stream": True,
    "stream_options": {"include_usage": True},
    "max_tokens": 3,
}


def _write(path: Path, raw: Any) -> None:
    path.write_text(json.dumps(raw), encoding="utf-8")


def _write_sharded(root: Path) -> None:
    folder = root / "sharded"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        target = "model-00001-of-00001.safetensors" if name.startswith("model") else name
        (folder / target).write_bytes((root / "checkpoint" / name).read_bytes())
    names = Checkpoint.open(root / "checkpoint").stored.values()
    weights = dict.fromkeys(names, "model-00001-of-00001.safetensors")
    _write(folder / "model.safetensors.index.json", {"metadata": {"total_size": 1}, "weight_map": weights})


def _write_manifest_again(bundle: Path) -> None:
    from doge_export.core.bundle import write_manifest

    raw = json.loads((bundle / MANIFEST).read_text())
    write_manifest(bundle, **{key: raw[key] for key in ("options", "versions", "graph", "cache", "call")})


def _write_engine(folder: Path, bundle: Path) -> None:
    from doge_export.core.bundle import hash_files

    (folder / "model.engine").write_bytes(b"engine")
    (folder / "config.json").write_bytes((bundle / "config.json").read_bytes())
    shapes = {"input_ids": [[1, 1], [1, 4], [2, 8]]}
    raw = {
        "format": 1,
        "runtime": {"kind": "tensorrt", "version": "10", "compute_capabilities": ["8.9"]},
        "profiles": [{"name": "prefill", "inputs": shapes}],
        "bundle": json.loads((bundle / MANIFEST).read_text()),
        "files": hash_files(folder),
    }
    _write(folder / ENGINE_MANIFEST, raw)


def _deep(depth: int) -> Any:
    value: Any = None
    for _ in range(depth):
        value = [value]
    return value


_ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 7, 2**31, 2**63, 2**64, 10**30, 10**400, -(10**400)),
    *(0.5, -0.0, 1.5, 1e-45, 1e-300, 1e308, float("nan"), float("inf"), -float("inf")),
    *("", "a", "1", "\ud800", "a\0b", "../x", "/etc/passwd", "a" * 300, "(", "{{", "é", "float32", "none"),
    *([], [[]], [None], [1], ["a", 1], [float("nan")], {}, {"": None}, {"a": {}}, _deep(60), _deep(150)),
]


def mutants(content: bytes, reader: Reader) -> st.SearchStrategy[bytes]:
    """What a valid file becomes."""
    if reader.bytes_only:
        return _bytes(content)
    if reader.toml:
        return st.one_of(_values(_RECIPE).map(_toml), _bytes(content))
    if reader.header:
        (length,) = struct.unpack("<Q", content[:8])
        head, rest = content[8 : 8 + length], content[8 + length :]
        framed = st.one_of(_values(json.loads(head)).map(_json), _bytes(head)).map(
            lambda made: struct.pack("<Q", len(made)) + made + rest
        )
        return st.one_of(framed, _bytes(content))
    if reader.file == "journal":
        return _bytes(content)
    return st.one_of(
        _values(json.loads(content)).map(_json), _values(json.loads(content)).map(_twice), _bytes(content)
    )


def _json(raw: Any) -> bytes:
    return json.dumps(raw).encode("utf-8")


def _twice(raw: Any) -> bytes:
    """With its first key once more."""
    text = json.dumps(raw)
    if not isinstance(raw, dict) or not raw:
        return text.encode("utf-8")
    return f"{text[:-1]}, {json.dumps(next(iter(raw)))}: 0}}".encode()


def _toml(raw: Any) -> bytes:
    try:
        return tomli_w.dumps(raw).encode("utf-8", "surrogatepass")
    except (TypeError, ValueError, AttributeError, RecursionError):
        return b"a = [[[["


def _places(raw: Any) -> list[tuple[Any, Any]]:
    """Container and key of every value within."""
    found: list[tuple[Any, Any]] = []
    left = [raw]
    while left:
        each = left.pop()
        keys = list(each) if isinstance(each, dict) else range(len(each)) if isinstance(each, list) else ()
        found += [(each, key) for key in keys]
        left += [each[key] for key in keys if isinstance(each[key], dict | list)]
    return found


@st.composite
def _values(draw: st.DrawFn, raw: Any) -> Any:
    raw = copy.deepcopy(raw)
    for _ in range(draw(st.integers(1, 3))):
        places = _places(raw)
        if not places:
            return copy.deepcopy(draw(st.sampled_from(_ODD)))
        at = draw(st.integers(0, len(places) - 1))
        outer, key = places[min(at, draw(st.integers(0, len(places) - 1)))]  # rather near the top
        how = draw(st.sampled_from(["odd", "odd", "odd", "remove", "rename", "copy", "near", "add", "wrap"]))
        if how == "odd":
            outer[key] = copy.deepcopy(draw(st.sampled_from(_ODD)))
        elif how == "remove":
            del outer[key]
        elif how == "rename" and isinstance(outer, dict):
            outer[draw(st.sampled_from(["", "a", "\0", "../x", f"{key}x", str(key).upper()]))] = outer.pop(
                key
            )
        elif how == "copy":
            source, name = places[draw(st.integers(0, len(places) - 1))]
            if name in source if isinstance(source, dict) else name < len(source):
                outer[key] = copy.deepcopy(source[name])
        elif how == "near" and isinstance(outer[key], int | float):
            outer[key] = draw(st.sampled_from([outer[key] + 1, outer[key] - 1, -outer[key], outer[key] * 2]))
        elif how == "add" and isinstance(outer, dict):
            outer[draw(st.sampled_from(["x", "", "a" * 300]))] = copy.deepcopy(draw(st.sampled_from(_ODD)))
        else:
            outer[key] = [outer[key]]
    return raw


@st.composite
def _bytes(draw: st.DrawFn, content: bytes) -> bytes:
    made = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(made) - 1)))
        how = draw(st.sampled_from(["flip", "cut", "insert", "drop", "repeat", "many"]))
        if how == "flip" and made:
            made[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del made[at:]
        elif how == "insert":
            made[at:at] = draw(
                st.sampled_from([b"\0", b"\xff", b"{", b"}", b"[", b'"', b",", b"9" * 40, b"\\u", b"e9"])
            )
        elif how == "drop":
            del made[at : at + draw(st.integers(1, 8))]
        elif how == "repeat":
            made[at:at] = made[at : at + draw(st.integers(1, 32))]
        else:
            made[at:at] = draw(st.sampled_from([b"[", b"{", b"(", b"-"])) * draw(
                st.sampled_from([50, 300, 5000])
            )
    return bytes(made)
