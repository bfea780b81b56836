"""`eval`: perplexity of a text, against transformers and by arithmetic."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from doge_export.cli.app import run
from doge_export.core import presets
from doge_export.core.bundle import Bundle
from doge_export.core.errors import DogeExportError
from doge_export.core.tokenizer import Tokenizer
from doge_export.evaluate import evaluate_text
from doge_export.export.options import ExportOptions
from doge_export.export.pipeline import export_model
from doge_export.runtime import Session
from doge_export.validate.backends.deterministic_reference import pinned

TEXT = (presets.models_folder() / "heldout.txt").read_text(encoding="utf-8")[:6000]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    made: dict[str, Bundle] = {}

    def get(name: str = "doge-tiny", **options: Any) -> Bundle:
        key = repr((name, sorted(options.items())))
        if key not in made:
            output = tmp_path_factory.mktemp("eval") / "bundle"
            resolved = ExportOptions.resolve(**options)
            made[key] = export_model(name, output, resolved, validate=False).bundle
        return made[key]

    return get


def transformers_figure(name: str, ids: list[int], window: int, stride: int) -> float:
    """Mean negative log-likelihood: one window after the other, each in one call."""
    from transformers import DogeForCausalLM

    folder = presets.models_folder() / name
    model: Any = DogeForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    total, scored = 0.0, 1
    for start in range(0, len(ids), stride):
        end = min(start + window, len(ids))
        part = torch.tensor([ids[start:end]])
        with torch.inference_mode(), pinned():
            logits = model(part).logits[0].double().log_softmax(-1)
        for place in range(scored, end):
            total -= float(logits[place - start - 1, ids[place]])
        scored = end
        if end == len(ids):
            break
    assert scored == len(ids)
    return total / (len(ids) - 1)


@pytest.mark.parametrize(
    ("name", "options", "window", "stride", "limit"),
    [
        ("doge-tiny", {}, 200, 100, 900),
        ("doge-tiny", {}, 200, 77, 900),
        ("doge-tiny", {}, 300, 299, 1000),
        ("doge-tiny", {}, 400, 1, 404),
        ("doge-tiny", {"kv_cache": "bounded"}, 200, 100, 900),
        ("doge-tiny", {"kv_cache": "static", "max_length": 256}, 200, 100, 900),
        ("doge-tiny", {}, 700, 350, 1100),  # beyond the rope's length, where pieces turn otherwise
        ("doge-tiny", {"kv_cache": "bounded"}, 700, 350, 1100),
        ("doge-tiny-moe", {}, 150, 75, 500),  # mixing experts: a window is one call
    ],
)
@pytest.mark.parametrize("native", [True, False])
def test_it_is_what_transformers_computes(
    name: str, options: dict[str, Any], window: int, stride: int, limit: int, native: bool, bundle: Any
) -> None:
    opened = bundle(name, **options)
    tokenizer = Tokenizer.load(opened.path)
    session = Session.open(opened, threads=1, native=native)
    told: list[int] = []
    found = evaluate_text(
        session,
        tokenizer,
        TEXT,
        window=window,
        stride=stride,
        limit=limit,
        progress=lambda tokens, stage: told.append(tokens),
    )
    ids = tokenizer.encode(TEXT)[:limit]
    expected = transformers_figure(name, ids, window, stride)
    assert found.perplexity == pytest.approx(math.exp(expected), rel=1e-4)
    assert found.tokens == limit - 1 == sum(told)
    assert found.bytes == len(tokenizer.decode(ids).encode("utf-8"))
    bits = expected * found.tokens / math.log(2) / found.bytes
    assert found.bits_per_byte == pytest.approx(bits, rel=1e-4)


def test_windows_in_batches_are_windows_alone(bundle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = bundle()
    tokenizer, session = Tokenizer.load(opened.path), Session.open(opened, threads=1)
    several = evaluate_text(session, tokenizer, TEXT, window=128, stride=64, limit=1000)
    monkeypatch.setattr("doge_export.evaluate.perplexity._LOGITS", 1)
    alone = evaluate_text(session, tokenizer, TEXT, window=128, stride=64, limit=1000)
    assert several.perplexity == pytest.approx(alone.perplexity, rel=1e-6)
    assert several.tokens == alone.tokens


def test_every_token_is_scored_once(bundle: Any) -> None:
    opened = bundle()
    tokenizer, session = Tokenizer.load(opened.path), Session.open(opened, threads=1)
    for window, stride, limit in (
        (50, 7, 333),
        (50, 49, 100),
        (50, 49, 99),
        (50, 1, 60),
        (10, 3, 10),
        (64, 63, 2),
    ):
        told: list[int] = []
        with pytest.warns(DeprecationWarning, match="progress"):
            evaluate_text(
                session, tokenizer, TEXT, window=window, stride=stride, limit=limit, advance=told.append
            )
        assert sum(told) == limit - 1


def test_the_command(bundle: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, figures = tmp_path / "text.txt", tmp_path / "figures.json"
    path.write_text(TEXT[:1500], encoding="utf-8")
    folder = str(bundle().path)
    assert run(["eval", folder, "--text", str(path), "--json", str(figures)]) == 0
    shown = capsys.readouterr().out
    found = json.loads(figures.read_text())
    assert shown.startswith(
        f"perplexity {found['perplexity']:.4f}, {found['bits_per_byte']:.4f} bits per byte"
    )
    assert found["bytes"] == len(TEXT[:1500].encode()) and found["window"] == min(512, found["tokens"] + 1)
    assert 1.0 < found["bits_per_byte"] < 3.0, "it is a language model"
    assert run(["eval", folder, "--text", str(path), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == found


@pytest.mark.parametrize(
    ("content", "flags", "sentence"),
    [
        (b"", [], "is empty"),
        (b" \n\n", [], "is empty"),
        (b"caf\xe9 au lait", [], "is not UTF-8 at byte 4"),
        (None, [], "There is no text"),
        (b"a whole sentence of some words", ["--window", "4", "--stride", "5"], "does not fit a window of 4"),
        (b"a whole sentence of some words", ["--limit", "1"], "--limit"),
    ],
    ids=["empty", "blank", "latin-1", "missing", "stride", "limit"],
)
def test_bad_input_is_one_sentence(
    content: bytes | None,
    flags: list[str],
    sentence: str,
    bundle: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    assert run(["eval", str(bundle().path), "--text", str(path), *flags]) == 2
    error = capsys.readouterr().err
    assert sentence in error and "Traceback" not in error


def test_a_window_beyond_a_static_cache(bundle: Any) -> None:
    opened = bundle(kv_cache="static", max_length=256)
    with pytest.raises(DogeExportError, match="does not fit in the bundle's static cache of 256"):
        evaluate_text(Session.open(opened), Tokenizer.load(opened.path), TEXT, window=300)


def test_nan_is_not_hidden() -> None:
    from doge_export.evaluate.perplexity import token_costs

    with pytest.raises(DogeExportError, match="no numbers"):
        token_costs(np.array([[np.nan, 1.0]], np.float32), np.array([1]))
