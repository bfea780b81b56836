"""`pareto`: which points none beats, one command that measures them, and goes on where it was interrupted."""

import itertools
import json
import random
import statistics
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from doge_export.cli.app import run
from doge_export.compress import distillation as tune
from doge_export.compress import pareto as module
from doge_export.compress.mixed_precision import Study, costs
from doge_export.compress.pareto import SAME_SPEED, SCHEMES, Pareto, dominates, front
from doge_export.compress.quantize_bundle import judge, judged_windows, quantize_bundle
from doge_export.core import presets
from doge_export.core.bundle import Bundle
from doge_export.core.tokenizer import copy_tokenizer_files
from doge_export.export.options import ExportOptions
from doge_export.export.pipeline import export_model
from doge_export.render.charts import pareto_svg
from tests._precision import form
from tests.conftest import write_checkpoint

#: Of a model that reads doge-tiny's tokens in windows of 512.
SIZES: dict[str, Any] = {"vocab_size": 4096, "max_position_embeddings": 512, "is_moe": False}
HELDOUT = presets.models_folder() / "heldout.txt"


def point(bytes_: int, kl: float, speed: float) -> dict[str, Any]:
    return {"name": f"{bytes_}", "bytes": bytes_, "kl_divergence": kl, "tokens_per_second": speed}


def test_the_front_is_what_none_beats() -> None:
    best = [point(100, 0.1, 50), point(200, 0.01, 40), point(400, 0.0, 20), point(300, 0.01, 60)]
    beaten = [point(210, 0.01, 40), point(200, 0.02, 30), point(450, 0.0, 20)]
    assert front(best + beaten) == [True] * 4 + [False] * 3
    # The noise of a clock puts nothing on the front, and takes nothing from it.
    close = point(210, 0.02, 40 * (1 + SAME_SPEED / 2))
    assert front([*best, close]) == [True] * 4 + [False]
    assert front([point(1, 1, 1), point(1, 1, 1)]) == [True, True]


@pytest.mark.parametrize("seed", range(20))
def test_every_beaten_point_is_beaten_by_one_on_the_front_but_for_noise(seed: int) -> None:
    rng = random.Random(seed)
    points = [point(rng.randint(1, 5), rng.randint(0, 4) / 10, rng.choice((10, 20, 30))) for _ in range(12)]
    kept = [each for each, on in zip(points, front(points), strict=True) if on]
    assert kept
    for each, on in zip(points, front(points), strict=True):
        assert on == (not any(dominates(other, each) for other in kept))
    assert not any(dominates(one, other) for one, other in itertools.permutations(kept, 2))


def test_the_picture_names_the_front() -> None:
    points = [point(100, 0.1, 50) | {"front": True}, point(400, 0.0, 20) | {"front": True}]
    points.append(point(450, 0.2, 10) | {"front": False})
    root = ElementTree.fromstring(pareto_svg(points, "a <model>"))
    texts = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("100") == 2 and texts.count("400") == 2 and "450" not in texts
    circles = list(root.iter("{http://www.w3.org/2000/svg}circle"))
    assert len(circles) == 6, "two panels"
    assert sum("hollow" in each.get("class", "") for each in circles) == 2
    assert not any("V" in each.get("d", "") for each in root.iter())
    told = [each | {"kl_error": each["kl_divergence"] / 2} for each in points]
    lines = [each.get("d", "") for each in ElementTree.fromstring(pareto_svg(told, "a")).iter()]
    assert sum("V" in each for each in lines) == 2 * 2, "of the two that lose something, in two panels"
    assert len(
        list(ElementTree.fromstring(pareto_svg([{"name": "a", "bytes": 1, "kl_divergence": 0.0}], "b")))
    )


@pytest.mark.parametrize("seed", range(5))
def test_names_do_not_lie_on_each_other(seed: int) -> None:
    """Of points in one heap; a letter is at most as wide as the line is high."""
    rng = random.Random(seed)
    points = [point(rng.randint(100, 104), rng.uniform(0.01, 0.015), 10) | {"named": True} for _ in range(14)]
    points += [point(rng.randint(10, 1000), rng.uniform(1e-4, 1), 10) | {"named": True} for _ in range(6)]
    texts = ElementTree.fromstring(pareto_svg(points, "a")).iter("{http://www.w3.org/2000/svg}text")
    names = {each["name"] for each in points}
    boxes = []
    for text in texts:
        if text.text in names:
            x, y, width = float(text.get("x", "")), float(text.get("y", "")), 6.0 * len(text.text)
            boxes.append((x - width if text.get("text-anchor") == "end" else x, y, width))
    assert len(boxes) == 2 * len(points), "two panels"
    for (x, y, width), (other, line, far) in itertools.combinations(boxes, 2):
        assert abs(y - line) > 11 or x + width <= other or other + far <= x


def test_the_error_is_that_of_the_mean_of_windows(source: Bundle, tmp_path: Path) -> None:
    made = quantize_bundle(source.path, tmp_path / "made", "int4", None)
    text = HELDOUT.read_text(encoding="utf-8")[:24_000]
    ids = judged_windows(source, text * 2)[:3]
    alone = [judge(source, made.exported.bundle, row[None], lambda steps, stage: None) for row in ids]
    both = judge(source, made.exported.bundle, ids, lambda steps, stage: None)
    assert both is not None and all(each is not None and each.kl_error is None for each in alone)
    means = [each.kl_divergence for each in alone if each is not None]
    assert both.kl_divergence == pytest.approx(statistics.mean(means), rel=1e-5)
    assert both.kl_error == pytest.approx(statistics.stdev(means) / 3**0.5, rel=1e-4)
    shares = [each.top1_agreement for each in alone if each is not None]
    assert both.top1_agreement == pytest.approx(statistics.mean(shares))
    assert both.top1_error == pytest.approx(statistics.stdev(shares) / 3**0.5)


def test_every_precision_and_method_is_tried() -> None:
    assert {"int8", "int4-gptq", "int8-head4-awq-gptq", "int4-hqq", "int8-fine-gptq-tuned"} <= set(SCHEMES)
    assert len(SCHEMES) == len(set(SCHEMES)) == 28 and not any("fp32" in each for each in SCHEMES)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Of one layer, with doge-tiny's tokenizer: a search measures every matrix."""
    folder = tmp_path_factory.mktemp("full")
    checkpoint = write_checkpoint(folder / "checkpoint", num_hidden_layers=1, **SIZES)
    copy_tokenizer_files(presets.models_folder() / "doge-tiny", checkpoint)
    options = ExportOptions.resolve(routing="per-token")
    return export_model(str(checkpoint), folder / "tiny", options, validate=False).bundle


def test_mixtures_are_as_large_as_the_schemes_and_between(source: Bundle) -> None:
    assert module._budgets(source, Pareto(), [1000, 2000, 4000]) == [1000, 1500, 2000, 3000, 4000, 4032]
    asked = Pareto(budgets=("0.5", "7000", "0.5"))
    assert module._budgets(source, asked, [1000]) == [source.model_bytes // 2, 7000]


def test_it_goes_on_where_it_stopped(
    source: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(HELDOUT.read_text(encoding="utf-8")[:24_000], encoding="utf-8")
    monkeypatch.setattr(costs, "FORMS", (form("int4"), form("int8")))
    monkeypatch.setitem(Study.__init__.__kwdefaults__, "most", 1)
    monkeypatch.setattr("doge_export.compress.budget_search.NEIGHBOURS", 1)
    monkeypatch.setattr(tune, "TUNING", 8)
    made, turns = list[str](), list[str]()
    quantize, turn = module.quantize_bundle, module.turn

    def counted(bundle: Path, output: Path, scheme: str, *rest: Any, **named: Any) -> Any:
        made.append(scheme)
        return quantize(bundle, output, scheme, *rest, **named)

    def stopped(bundle: Path, *rest: Any) -> float:
        turns.append(Path(bundle).name)
        if len(turns) in (3, 6):
            raise KeyboardInterrupt
        return turn(bundle, *rest)

    monkeypatch.setattr(module, "quantize_bundle", counted)
    monkeypatch.setattr(module, "turn", stopped)
    output = tmp_path / "front"
    arguments = ["pareto", str(source.path), "--text", str(text), "-o", str(output), "--rounds", "1"]
    arguments += ["--scheme", "int8", "--scheme", "int4-search", "--max-bytes", "0.2", "--new-tokens", "4"]
    for tokens in ("5", "4"):  # what is timed otherwise is made as before
        assert run([*arguments, "--new-tokens", tokens]) == 130
        assert made == ["int8", "int4-search"] and [each.name for each in output.iterdir()] == [".work"]
    capsys.readouterr()
    assert run([*arguments, "--json", "-", "--svg", str(tmp_path / "again.svg")]) == 0
    assert made == ["int8", "int4-search"], "nothing is made twice"
    assert len(turns) == 9, "five layouts, one of them begun twice, two of them timed otherwise before"
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((output / "pareto.json").read_text())
    assert sorted(each.name for each in output.iterdir()) == ["pareto.json", "pareto.svg"]
    assert (tmp_path / "again.svg").read_text() == (output / "pareto.svg").read_text()
    points = {each["name"]: each for each in found["points"]}
    assert set(points) == {"int8", "int4-search", "searched 0.200", "float16", "fp32"}
    assert points["fp32"]["bytes"] == source.model_bytes and points["fp32"]["kl_divergence"] == 0
    assert found["judged_tokens"] > 512 and points["fp32"]["kl_error"] == 0
    assert all(0 < each["kl_error"] < each["kl_divergence"] for each in points.values() if each["command"])
    mixed = points["searched 0.200"]
    assert mixed["of_full"] <= 0.2 and set(mixed["types"].values()) == {"int4", "int8"}
    assert points["int8"]["kl_divergence"] < mixed["kl_divergence"] < points["int4-search"]["kl_divergence"]
    assert all(each["tokens_per_second"] > 0 for each in points.values())
    assert points["int4-search"]["front"] and points["fp32"]["front"]
    # The command that is shown gives the point.
    assert points["int8"]["command"] == "quantize BUNDLE -o DIR --scheme int8 --text FILE"
    shown = mixed["command"].split()[4:-2]
    again = ["quantize", str(source.path), "-o", str(tmp_path / "mixed"), *shown, "--text", str(text)]
    assert run([*again, "--json", "-"]) == 0
    same = json.loads(capsys.readouterr().out)
    assert same["types"] == mixed["types"]
    assert same["kl_divergence"] == pytest.approx(mixed["kl_divergence"], rel=1e-6)
    assert run(arguments) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--scheme", "int5"], "There is no scheme 'int5'"),
        (["--max-bytes", "few"], "neither a number of bytes nor a share"),
    ],
)
def test_wrong_input(
    arguments: list[str], sentence: str, source: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "front"
    given = ["pareto", str(source.path), "--text", str(HELDOUT), "-o", str(output), *arguments]
    assert run(given) == 2
    assert sentence in capsys.readouterr().err and not output.exists()
