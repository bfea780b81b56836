"""decode.onnx: the best tokens with a cache written in place, against all logits of model.onnx."""

import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest

from doge_export.bundle import MANIFEST, Bundle
from doge_export.errors import DogeExportError
from doge_export.runtime import GenerationOptions, Session, generate
from doge_export.runtime import decoder as module
from doge_export.runtime.sampling import Sampler

KINDS = {"growing": {}, "static": {"kv_cache": "static", "max_length": 60}}
PROMPTS = [[5, 6, 7, 5, 6, 7, 5, 9], [11, 12, 13], [40]]


@pytest.fixture(params=list(KINDS))
def bundle(request, exported):
    return exported(KINDS[request.param])[1]


def _without_decode(bundle: Bundle) -> Bundle:
    return replace(bundle, manifest=replace(bundle.manifest, decode=None))


def _calls(lengths):
    """ids, what is real of them, positions: two rows, the second left padded."""
    ids = np.random.default_rng(3).integers(3, 257, (2, sum(lengths)))
    real = np.ones_like(ids)
    real[1, :2] = 0
    positions = np.clip(np.cumsum(real, axis=1) - 1, 0, None)
    at = 0
    for count in lengths:
        yield ids[:, at : at + count], real[:, at : at + count], positions[:, at : at + count]
        at += count


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4", "int8-head4"])
@pytest.mark.parametrize("moe", [False, True])
def test_the_best_tokens_are_those_of_the_logits(exported, monkeypatch, precision, moe):
    """To the last bit: kernels give a row the same result alone and among others, growing and in place."""
    monkeypatch.setattr(module, "_SLOTS", 4)  # the cache has to grow several times
    _, bundle = exported({"precision": precision, "routing": "per-token"}, is_moe=moe)
    session = Session.open(bundle, threads=1)
    decoder, cache, mask = session.decoder(2), session.new_cache(2), np.empty((2, 0), np.int64)
    for ids, real, positions in _calls((9, 1, 1, 7, *[1] * 12)):
        mask = np.concatenate([mask, real], axis=1)
        logits, cache = session.step(ids, mask, positions, cache)
        token_ids, token_logits = decoder.step(ids, positions, real)
        expected = np.argsort(-logits[:, -1], axis=-1, kind="stable")[:, : session.candidates]
        np.testing.assert_array_equal(token_ids, expected)
        np.testing.assert_array_equal(token_logits, np.take_along_axis(logits[:, -1], expected, axis=-1))
    assert decoder.length == mask.shape[1]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("sliding_window", [None, 9])
def test_the_bodies_of_decode_onnx_say_the_same(exported, dtype, sliding_window):
    """Plain onnxruntime, buffers that are not shared; where a cache is narrow, near-ties may fall apart."""
    _, bundle = exported({"dtype": dtype}, sliding_window=sliding_window, seed=2)
    spec = bundle.manifest.decode
    plain = onnxruntime.InferenceSession(bundle.decode_path, providers=["CPUExecutionProvider"])
    decoder = Session.open(bundle, threads=1).decoder(2)
    slots, at = 40, 0
    shapes = {tensor.name: tensor.shape for tensor in spec.inputs}
    cache = {
        name: np.zeros([2, *(slots if size == "slots" else size for size in shapes[name][1:])], dtype)
        for name in spec.cache.inputs
    }
    mask = np.zeros((2, slots), np.int64)
    for ids, real, positions in _calls((5, 1, 1) if dtype == "float16" else (9, 1, 7, 1, 1)):
        count = ids.shape[1]
        mask[:, at : at + count] = real
        feed = {
            "input_ids": ids,
            "position_ids": positions,
            "attention_mask": mask,
            "cache_position": np.full(2, at, np.int64),
        }
        at += count
        _, logits, *presents = plain.run(None, {**feed, **cache})
        cache = dict(zip(spec.cache.inputs, presents, strict=True))
        limit = 1e-4 if dtype == "float32" else 3e-2
        np.testing.assert_allclose(decoder.step(ids, positions, real)[1], logits, rtol=limit, atol=limit)


@pytest.mark.parametrize(
    ("changes", "tokens"),
    [
        ({}, True),
        ({"temperature": 2.0, "top_k": 7, "seed": 1}, True),
        ({"temperature": 2.0, "top_k": 3, "top_p": 0.8, "seed": 1}, True),
        ({"temperature": 2.0, "top_k": 65, "seed": 1}, False),
        ({"temperature": 20.0, "seed": 1}, False),
        ({"repetition_penalty": 1.3}, False),
    ],
    ids=str,
)
def test_texts_from_the_best_tokens_are_those_from_all_logits(bundle, changes, tokens):
    options = GenerationOptions(max_new_tokens=30, **changes)
    expected = generate(Session.open(_without_decode(bundle), threads=1), PROMPTS, options).completions
    session = Session.open(bundle, threads=1)
    assert generate(session, PROMPTS, options).completions == expected
    assert list(session._loaded) == [tokens]


def test_all_logits_take_over_where_the_best_tokens_leave_it_open(bundle, monkeypatch):
    options = GenerationOptions(max_new_tokens=20, temperature=2.0, top_k=6, seed=4)
    expected = generate(Session.open(_without_decode(bundle), threads=1), PROMPTS, options).completions
    asked = []
    choose = Sampler.choose_among

    def forgetful(self, row, token_ids, token_logits):
        asked.append(row)
        return None if len(asked) == 14 else choose(self, row, token_ids, token_logits)

    monkeypatch.setattr(Sampler, "choose_among", forgetful)
    session = Session.open(bundle, threads=1)
    assert generate(session, PROMPTS, options).completions == expected
    assert len(session._loaded) == 2 and len(asked) == 15


def test_a_static_cache_is_full_at_some_point(exported):
    _, bundle = exported(KINDS["static"])
    decoder = Session.open(bundle, threads=1).decoder(1)
    assert decoder.capacity == 60
    ids = np.full((1, 60), 5)
    decoder.step(ids, np.arange(60)[None])
    with pytest.raises(DogeExportError, match="holds 60 tokens, and this needs 61"):
        decoder.step(ids[:, :1], np.array([[60]]))


def test_without_kernels_there_are_all_logits(exported):
    _, bundle = exported()
    session = Session.open(bundle, native=False)
    assert session.candidates == 0
    with pytest.raises(DogeExportError, match="needs the native kernels"):
        session.decoder(1)
    with pytest.raises(DogeExportError, match="no graph that gives tokens"):
        Session.open(_without_decode(bundle)).decoder(1)


def test_a_wrong_graph_is_one_sentence(exported, tmp_path):
    shutil.copytree(exported()[1].path, tmp_path / "copy")
    bundle = Bundle.open(tmp_path / "copy")
    onnx.save(onnx.load(bundle.model_path, load_external_data=False), bundle.decode_path)
    with pytest.raises(DogeExportError, match=r"decode\.onnx is not the graph .* cache_position, "):
        Session.open(bundle).load(tokens=True)
    bundle.decode_path.write_bytes(b"junk")
    with pytest.raises(DogeExportError, match=r"cannot load .*decode\.onnx"):
        Session.open(bundle).load(tokens=True)
    bundle.decode_path.unlink()
    with pytest.raises(DogeExportError, match=r"lacks decode\.onnx"):
        Bundle.open(bundle.path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda decode: decode.update(file="../decode.onnx"), "not a file of the bundle"),
        (lambda decode: decode.pop("count"), "lacks 'count'"),
        (lambda decode: decode.pop("cache"), "lacks 'cache'"),
        (lambda decode: decode.update(outputs=decode["outputs"][1:]), "no token_ids"),
    ],
    ids=["outside", "count", "cache", "outputs"],
)
def test_a_damaged_entry_is_one_sentence(exported, tmp_path, change, sentence):
    shutil.copytree(exported()[1].path, tmp_path / "copy")
    path = tmp_path / "copy" / MANIFEST
    raw = json.loads(path.read_text())
    change(raw["decode"])
    path.write_text(json.dumps(raw))
    with pytest.raises(DogeExportError, match=sentence):
        Session.open(Bundle.open(path.parent))
