"""decode.onnx: the best tokens with a cache written in place, against all logits of model.onnx."""

import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest

from doge_export.core.bundle import MANIFEST, Bundle
from doge_export.core.errors import DogeExportError
from doge_export.runtime import GenerationOptions, Session, calls, generate, token_strategy
from doge_export.runtime import decoder as module
from doge_export.runtime.onnx_session import OnnxSession
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


def _empty_cache(bundle, batch, slots, dtype="float32"):
    """The tensors of decode.onnx before the first token."""
    spec = bundle.manifest.decode
    tensors = {tensor.name: tensor for tensor in spec.inputs}
    shapes = {
        name: [{"batch": batch, "slots": slots}.get(size, size) for size in tensors[name].shape]
        for name in spec.cache.inputs
    }
    return {
        name: np.full(shape, -1) if tensors[name].dtype == "int64" else np.zeros(shape, dtype)
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4", "int8-head4"])
@pytest.mark.parametrize("moe", [False, True])
@pytest.mark.parametrize("kind", ["growing, as a static one", "bounded"])
def test_the_best_tokens_are_those_of_the_logits(exported, monkeypatch, precision, moe, kind):
    """To the last bit: kernels give a row the same result alone and among others, growing and in place."""
    monkeypatch.setattr(module, "_SLOTS", 4)  # the cache has to grow several times
    options = {"precision": precision, "routing": "per-token"}
    sliding = {"sliding_window": 14}
    if kind == "bounded":
        options["kv_cache"], sliding = kind, {}
    _, bundle = exported(options, is_moe=moe, **sliding)
    session = Session.open(bundle, threads=1)
    decoder, cache, mask = session.decoder(2), session.new_cache(2), np.empty((2, 0), np.int64)
    for ids, real, positions in _calls((9, 1, 1, 7, *[1] * 12)):
        mask = np.concatenate([mask, real], axis=1)
        logits, cache = session.step(ids, real if cache.streams else mask, positions, cache)
        token_ids, token_logits = decoder.step(ids, positions, real)
        expected = np.argsort(-logits[:, -1], axis=-1, kind="stable")[:, : session.candidates]
        np.testing.assert_array_equal(token_ids[:, 0], expected)
        np.testing.assert_array_equal(
            token_logits[:, 0], np.take_along_axis(logits[:, -1], expected, axis=-1)
        )
    assert decoder.length == mask.shape[1]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("sliding_window", [None, 9])
def test_the_bodies_of_decode_onnx_say_the_same(exported, dtype, sliding_window):
    """Plain onnxruntime, buffers that are not shared; where a cache is narrow, near-ties may fall apart."""
    _, bundle = exported({"dtype": dtype}, sliding_window=sliding_window, seed=2)
    spec = bundle.manifest.decode
    plain = onnxruntime.InferenceSession(bundle.decode_path, providers=["CPUExecutionProvider"])
    decoder = Session.open(bundle, threads=1).decoder(2)
    bounded = spec.cache.kind == "bounded"
    assert bounded is (sliding_window is None)
    slots, at = spec.cache.slots or 40, 0
    cache = _empty_cache(bundle, 2, slots, dtype)
    mask = np.zeros((2, slots), np.int64)

    def call(ids, positions, steps, real):
        place = {"rope_length": np.array(0)} if bounded else {"cache_position": np.full(2, at, np.int64)}
        feed = {"input_ids": ids, "position_ids": positions, "steps": np.array(steps)}
        return plain.run(None, {**feed, **place, "attention_mask": real if bounded else mask, **cache})

    for ids, real, positions in _calls((5, 1, 1) if dtype == "float16" else (9, 1, 7, 1, 1)):
        count = ids.shape[1]
        if not bounded:
            mask[:, at : at + count] = real
        _, logits, *presents = call(ids, positions, 1, real)
        at += count
        cache = dict(zip(spec.cache.inputs, presents, strict=True))
        limit = 1e-4 if dtype == "float32" else 3e-2
        np.testing.assert_allclose(decoder.step(ids, positions, real)[1], logits, rtol=limit, atol=limit)
    mask[:, at:] = 1  # the slots of the new tokens
    ids, positions = ids[:, :1], positions[:, -1:] + 1
    tokens, logits, *_ = call(ids, positions, 4, np.ones_like(ids))
    got_tokens, got_logits = decoder.step(ids, positions, steps=4)
    assert tokens.shape == (2, 4, 1)
    if dtype == "float32":  # a best token that differs would change what follows
        np.testing.assert_array_equal(got_tokens, tokens)
        np.testing.assert_allclose(got_logits, logits, rtol=limit, atol=limit)


@pytest.mark.parametrize(
    ("changes", "tokens"),
    [
        ({}, True),
        ({"temperature": 2.0, "top_k": 7, "seed": 1}, True),
        ({"temperature": 2.0, "top_k": 3, "top_p": 0.8, "seed": 1}, True),
        ({"temperature": 2.0, "top_k": 65, "seed": 1}, True),
        ({"temperature": 20.0, "seed": 1}, True),
        ({"temperature": 0.8, "top_p": 0.9, "seed": 2}, True),
        ({"temperature": 1.5, "min_p": 0.05, "repetition_penalty": 1.2, "seed": 2}, True),
        ({"repetition_penalty": 1.3}, True),
        ({"temperature": 1.0, "seed": 5, "suppress_tokens": (3, 4, 300), "bad_words_ids": ((9,),)}, True),
        ({"temperature": 1.0, "seed": 5, "sequence_bias": (((7,), 4.0), ((8,), float("-inf")))}, True),
        ({"temperature": 1.0, "seed": 5, "sequence_bias": (((7, 8), 4.0),)}, False),
        ({"temperature": 1.0, "no_repeat_ngram_size": 2, "seed": 1}, False),
        ({"temperature": 1e-30, "seed": 1}, False),
    ],
    ids=str,
)
def test_texts_from_the_best_tokens_are_those_from_all_logits(bundle, changes, tokens):
    options = GenerationOptions(max_new_tokens=30, **changes)
    expected = generate(Session.open(_without_decode(bundle), threads=1), PROMPTS, options).completions
    session = Session.open(bundle, threads=1)
    assert generate(session, PROMPTS, options).completions == expected
    assert list(session._loaded) == [tokens]


def _without_draws(bundle):
    """As an older version exported it."""
    decode = replace(bundle.manifest.decode, optional_inputs=())
    return replace(bundle, manifest=replace(bundle.manifest, decode=decode))


def test_all_logits_take_over_where_the_best_tokens_leave_it_open(bundle, monkeypatch):
    options = GenerationOptions(max_new_tokens=20, temperature=2.0, top_k=6, seed=4)
    prompts = [[*prompt, 7, 8, 9][:4] for prompt in PROMPTS]  # of one length: they share their calls
    expected = generate(Session.open(_without_decode(bundle), threads=1), prompts, options).completions
    asked = []
    choose = Sampler.choose_among

    def forgetful(self, row, token_ids, token_logits, position):
        asked.append(row)
        return None if len(asked) == 14 else choose(self, row, token_ids, token_logits, position)

    monkeypatch.setattr(Sampler, "choose_among", forgetful)
    session = Session.open(_without_draws(bundle), threads=1)
    assert generate(session, prompts, options).completions == expected
    assert len(session._loaded) == 2 and len(asked) == 15


def test_calls_are_kept_in_the_tokens_that_they_were():
    """Of 20,000 steps of two rows no more than 4 bytes a token, and they can be made again."""
    kept, made, previous = token_strategy._Calls(), [], None
    for ids, real, positions in _calls([5, *[1] * 20, 3, *[1] * 20_000]):
        kept.add(ids, real, positions)
        made.append((ids, real, positions))
    assert [len(tokens) for _, tokens in kept._parts] == [40, 40_000]
    assert {tokens.itemsize for _, tokens in kept._parts} == {4}
    for again, first in zip(kept, made, strict=True):
        for one, other in zip(again, first, strict=True):
            np.testing.assert_array_equal(one, other)
        assert previous is None or again[0].base is not previous
        previous = again[0]
    kept.clear()
    assert not list(kept)


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory):
    """A bundle whose logits float16 cannot hold."""
    from safetensors.numpy import load_file, save_file

    from doge_export.export.options import ExportOptions
    from doge_export.export.pipeline import export_model
    from tests.conftest import write_checkpoint

    folder = tmp_path_factory.mktemp("overflowing")
    checkpoint = write_checkpoint(folder / "checkpoint")
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.norm.weight"] *= 6e4
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    options = ExportOptions.resolve(dtype="float16")
    return export_model(str(checkpoint), folder / "bundle", options, validate=False).bundle


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize(
    "changes",
    [{}, {"temperature": 1.0, "top_k": 5}, {"temperature": 1.0}, {"no_repeat_ngram_size": 2}],
    ids=str,
)
@pytest.mark.parametrize("rows", [1, 2])
def test_logits_that_overflow_are_said_on_every_way(overflowing, native, changes, rows):
    options = GenerationOptions(max_new_tokens=5, seed=1, **changes)
    session = Session.open(overflowing, threads=1, native=native)
    with pytest.raises(DogeExportError, match=r"^Row 0: .* no number.* float16") as caught:
        generate(session, PROMPTS[:rows], options)
    assert caught.value.exit_code == 2


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
    with pytest.raises(DogeExportError, match=r"decode\.onnx is not the graph .* past_key_values"):
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


@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
def test_several_steps_are_as_many_calls(bundle, prompt):
    session = Session.open(bundle, threads=1)
    ids, positions = np.array([prompt]), np.arange(len(prompt))[None]
    one, many = session.decoder(1), session.decoder(1)
    expected = []
    for at in range(13):
        token_ids, token_logits = one.step(ids, positions)
        expected.append((token_ids[0, 0].copy(), token_logits[0, 0].copy()))
        ids, positions = token_ids[:, :1, 0].copy(), np.array([[len(prompt) + at]])
    got_ids, got_logits = many.step(np.array([prompt]), np.arange(len(prompt))[None], steps=13)
    assert got_ids.shape == got_logits.shape == (1, 13, 1)
    np.testing.assert_array_equal(got_ids[0], [ids[:1] for ids, _ in expected])
    np.testing.assert_array_equal(got_logits[0], [logits[:1] for _, logits in expected])
    assert many.length == one.length == len(prompt) + 12


def test_greedy_decoding_looks_ahead_and_stops_where_it_must(bundle, monkeypatch):
    monkeypatch.setattr(OnnxSession, "pools", False)  # as in a bundle of an older version
    monkeypatch.setattr(calls, "_PATIENCE", 1e9)  # however slow this machine is
    session, asked = Session.open(bundle, threads=1), []
    step = module.TokenDecoder.step

    def counted(self, input_ids, position_ids, real=None, steps=1, rope_length=0, draws=None):
        asked.append(steps)
        return step(self, input_ids, position_ids, real, steps, rope_length, draws)

    monkeypatch.setattr(module.TokenDecoder, "step", counted)
    whole = generate(session, PROMPTS[:1], GenerationOptions(max_new_tokens=30)).completions[0]
    assert asked == [1, 1, 16, 8, 4] and len(whole.ids) == 30
    end = whole.ids[9]
    stopped = generate(session, PROMPTS[:1], GenerationOptions(max_new_tokens=30, eos_token_ids=(end,)))
    first = whole.ids.index(end)
    assert stopped.completions[0].ids == whole.ids[: first + 1]
    assert stopped.completions[0].finish_reason == "eos"
    asked.clear()
    prompts = [PROMPTS[0], PROMPTS[0][::-1]]
    generate(session, prompts, GenerationOptions(max_new_tokens=4, temperature=1.0))
    assert asked == [1, 1, 2], "rows that share their calls take as many"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"steps": np.array(0)}, "nothing to do"),
        ({"steps": np.array(8)}, "3 tokens and 7 more from slot 0 on do not fit in a cache of 9 slots"),
        ({"cache_position": np.array([7])}, "do not fit in a cache of 9 slots"),
        ({"cache_position": np.array([-1])}, "cache_position is -1"),
        ({"input_ids": np.array([[3, 257, 4]])}, "257 is outside the vocabulary"),
        ({"position_ids": np.array([[0, 1]])}, "position_ids has the shape"),
        ({"attention_mask": np.ones((1, 8), np.int64)}, "attention_mask has the shape"),
        ({"past_key_values.dt": np.zeros((2, 1, 2, 8), np.float32)}, "past_dt has the shape"),
    ],
    ids=str,
)
def test_a_wrong_call_is_one_sentence(exported, change, sentence):
    _, bundle = exported(sliding_window=14)
    feed = {"input_ids": np.array([[3, 4, 5]]), "position_ids": np.arange(3)[None]}
    feed |= {"attention_mask": np.ones((1, 9), np.int64), "cache_position": np.zeros(1, np.int64)}
    feed |= {"steps": np.array(1), **_empty_cache(bundle, 1, 9), **change}
    session = Session.open(bundle, threads=1)
    with pytest.raises(Exception, match=f"doge::DecodeTokens: .*{sentence}"):
        session._graph(tokens=True).session.run(None, feed)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"steps": np.array(8)}, "3 tokens and 7 more after 0 do not fit in a cache of 9 slots; with 12 any"),
        ({"position_ids": np.array([[0, 1]])}, "position_ids has the shape"),
        ({"position_ids": np.array([[0, 1, -1]])}, "position_ids has -1"),
        ({"attention_mask": np.ones((1, 9), np.int64)}, "attention_mask has the shape"),
        ({"past_key_values.position": np.zeros((2, 1, 2, 8), np.int64)}, "past_position has the shape"),
        (
            {"past_key_values.position": np.array([[[[0] + [-1] * 8, [-1] * 9]]] * 2)},
            "different numbers of keys",
        ),
        ({"rope_length": np.array([0])}, "rope_length has the shape"),
    ],
    ids=str,
)
def test_a_wrong_call_with_a_bounded_cache_is_one_sentence(exported, change, sentence):
    _, bundle = exported()
    feed = {"input_ids": np.array([[3, 4, 5]]), "position_ids": np.arange(3)[None]}
    feed |= {"attention_mask": np.ones((1, 3), np.int64), "rope_length": np.array(0), "steps": np.array(1)}
    session = Session.open(bundle, threads=1)
    with pytest.raises(Exception, match=f"doge::DecodeTokens: .*{sentence}"):
        session._graph(tokens=True).session.run(None, {**feed, **_empty_cache(bundle, 1, 9), **change})
    with pytest.raises(Exception, match="13 slots, and no more than keep_window_size, 12, are of use"):
        session._graph(tokens=True).session.run(None, {**feed, **_empty_cache(bundle, 1, 13)})


@pytest.mark.parametrize("kind", ["default", "linear", "dynamic", "yarn", "llama3", "longrope"])
def test_the_kernel_turns_by_every_rope(exported, kind):
    """Beyond the model's length too, where two of them turn otherwise; against the function body."""
    parameters = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0}
    parameters |= {"original_max_position_embeddings": 16} if kind in ("yarn", "llama3", "longrope") else {}
    parameters |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if kind == "llama3" else {}
    if kind == "longrope":
        parameters |= {"short_factor": [1.0] * 8, "long_factor": [2.0, 3.0] * 4}
    _, bundle = exported(rope_parameters=parameters, max_position_embeddings=24)
    ids = np.random.default_rng(1).integers(3, 257, (1, 40))
    results = []
    for native in (True, False):
        session = Session.open(bundle, threads=1, native=native)
        cache, at, logits = session.new_cache(1), 0, []
        for count in (12, 4, 1, 7, 1, 15):  # no call but the last ones reaches beyond 16 and 24
            part = slice(at, at + count)
            at += count
            mask = np.ones((1, at), np.int64)
            given, cache = session.step(ids[:, part], mask, np.arange(at)[None, part], cache)
            logits.append(given)
        results.append(np.concatenate(logits, 1))
        assert session.kernels == ({} if not native else {**session.kernels, "RotaryAngles": 1})
    np.testing.assert_allclose(results[0], results[1], atol=1e-4)
