"""What is scored beside others, or in pieces, is scored as it is alone and in one call."""

from typing import Any

import numpy as np
import pytest

from doge_export.core import presets
from doge_export.core.bundle import Bundle
from doge_export.core.errors import DogeExportError
from doge_export.core.tokenizer import Tokenizer
from doge_export.evaluate import perplexity
from doge_export.evaluate.harness import BundleLM
from doge_export.evaluate.perplexity import token_costs
from doge_export.export.options import ExportOptions
from doge_export.export.pipeline import export_model
from doge_export.runtime import Session
from doge_export.runtime.prefill import read_rows
from tests.generations._checkpoints import make

#: Options and changes of SMALL, or an earlier generation, whose rows cannot share calls wherever they lie.
SEVERAL: dict[str, Any] = {
    "mixing experts": ({}, {"is_moe": True}),
    "a rope that turns": ({}, {}),
    "a rope that turns, bounded": ({"kv_cache": "bounded"}, {}),
    "3b": "3b",
    "2": "2",
    "dense": ({}, {"max_position_embeddings": 99}),
}


@pytest.fixture(scope="module", params=SEVERAL)
def small(request: pytest.FixtureRequest, exported: Any, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    kind, root = SEVERAL[request.param], tmp_path_factory.mktemp("small")
    if not isinstance(kind, str):
        options, changes = kind
        found: Bundle = exported(options, **changes)[1]
        return found
    folder = make(root / "c", kind, settings=("max_position_embeddings=30",))
    return export_model(str(folder), root / "b", ExportOptions.resolve(), validate=False).bundle


def test_rows_are_scored_as_alone(small: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several lengths, on both sides of the rope's limit, in pieces where pieces give the same."""
    monkeypatch.setattr("doge_export.evaluate.perplexity._CALL", 4)
    rng = np.random.default_rng(0)
    rows = [rng.integers(3, 257, length).tolist() for length in (29, 9, 16, 4, 29)]
    pairs = [(row[:-2], row[-2:]) for row in rows]
    lm = BundleLM(Session.open(small, threads=1), Tokenizer.load(presets.models_folder() / "doge-tiny"))
    lm.max_length = 29
    found = lm._scores(pairs)
    for pair, row, (score, _) in zip(pairs, rows, found, strict=True):
        assert score == pytest.approx(lm._scores([pair])[0][0], abs=1e-4)
        session = Session.open(small, threads=1)
        (logits,) = (each for _, each in read_rows(session, np.array([row[:-1]]), [slice(0, len(row) - 1)]))
        assert score == pytest.approx(-token_costs(logits[0, -2:], np.array(row[-2:])), abs=1e-4)


def test_windows_are_scored_as_one_call_each(small: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, session = np.random.default_rng(1).integers(3, 257, 90), Session.open(small, threads=1)
    whole = [each for each in perplexity._scores(session, ids, 28, 9)]
    monkeypatch.setattr("doge_export.evaluate.perplexity._CALL", 4)
    monkeypatch.setattr("doge_export.evaluate.perplexity._LOGITS", 1)
    pieces = [each for each in perplexity._scores(session, ids, 28, 9)]
    assert len(pieces) > len(whole) or small.config.mixes_tokens
    assert sum(count for _, count in whole) == sum(count for _, count in pieces) == 89
    assert sum(total for total, _ in whole) == pytest.approx(sum(total for total, _ in pieces), rel=1e-6)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_no_result(wrong: float) -> None:
    logits = np.zeros((3, 5), np.float32)
    targets = np.array([0, 1, 2])
    assert token_costs(logits.copy(), targets) == pytest.approx(3 * np.log(5))
    logits[1, 3] = wrong
    with pytest.raises(DogeExportError, match="no numbers"):
        token_costs(logits, targets)
