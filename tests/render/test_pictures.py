"""Pictures: what they show, that nothing lies on anything else, and that they can be read in both schemes."""

import random
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from doge_export.render.canvas import DARK, LIGHT, Canvas, text_width, ticks, wrapped
from doge_export.render.charts import pareto_svg, sensitivity_svg
from doge_export.render.parity_charts import drift_svg, margins_svg
from tests.render._svg import NAMESPACE, Label, contrast, faults, labels, parsed

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "docs" / "pictures"
NAMES = ("architecture", "context", "pareto", "pareto-moe", "quantization", "speed")


@pytest.fixture(scope="module")
def draw_pictures() -> Any:
    """scripts/draw_pictures.py."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import draw_pictures
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    return draw_pictures


def test_the_docs_have_these_pictures(draw_pictures: Any) -> None:
    assert sorted(each.stem for each in PICTURES.glob("*.svg")) == list(NAMES) == sorted(draw_pictures.DRAWN)


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_of_the_docs_is_whole_and_drawn_from_its_figures(name: str, draw_pictures: Any) -> None:
    picture = (PICTURES / f"{name}.svg").read_text(encoding="utf-8")
    assert faults(picture) == []
    assert picture == draw_pictures.drawn(name), f"run scripts/draw_pictures.py {name}"
    assert float(parsed(picture).get("width", "")) <= 640, "it is read at 700 pixels and on a phone"
    assert all(float(each.get("font-size", "")) >= 13 for each in parsed(picture).iter(f"{NAMESPACE}text"))


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_every_ink_can_be_read(scheme: dict[str, str]) -> None:
    for ink in ("ink", "soft", "ours", "good", "bad"):
        for ground in ("ground", "panel"):
            assert contrast(scheme[ink], scheme[ground]) >= 4.5, (ink, ground)
    assert contrast(scheme["peer"], scheme["ground"]) >= 3, "bars and dots"
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


def test_words_have_an_ink() -> None:
    """`peer` and `grid` are for bars and lines."""
    for name in NAMES:
        for each in parsed((PICTURES / f"{name}.svg").read_text(encoding="utf-8")).iter(f"{NAMESPACE}text"):
            assert each.get("class", "").split()[0] in ("ink", "soft", "ours", "ground"), each.text


def test_a_bar_is_as_long_as_its_rate() -> None:
    root = parsed((PICTURES / "speed.svg").read_text(encoding="utf-8"))
    found: dict[str, float] = {}
    for bar in root.iter(f"{NAMESPACE}rect"):
        hint = bar.findtext(f"{NAMESPACE}title")
        if hint and not hint.startswith("doge-export int4"):
            found.setdefault(hint, float(bar.get("width", "")))
    for bar in root.iter(f"{NAMESPACE}rect"):
        if (bar.findtext(f"{NAMESPACE}title") or "").startswith("doge-export"):
            assert bar.get("class") == "ours"
    first, other = "llama.cpp F32: 828 tokens per second", "llama.cpp Q8_0: 1,992 tokens per second"
    assert found[other] / found[first] == pytest.approx(1992 / 828, rel=0.01)


def test_the_architecture_names_every_wing() -> None:
    table = (
        (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("| wing |")[2].partition("\n\n")[0]
    )
    wings = [wing for row in table.splitlines()[2:] for wing in re.findall(r"`([\w.]+)`", row.split("|")[1])]
    shown = {label.text for label in labels(parsed((PICTURES / "architecture.svg").read_text("utf-8")))}
    assert len(wings) > 12 and set(wings) <= shown


def points(seed: int, count: int) -> list[dict[str, Any]]:
    """In heaps, as schemes of one size and nearly one loss are."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        heap = rng.choice((1, 2, 4))
        kl = 10 ** -rng.uniform(heap, heap + 0.4)
        found.append({
            "name": f"searched {number / 100:.3f}",
            "bytes": round(heap * 1e6 * rng.uniform(0.97, 1.03)),
            "kl_divergence": kl,
            "kl_error": kl / 5,
            "top1_agreement": 1 - kl,
            "tokens_per_second": rng.uniform(18_000, 40_000),
            "front": rng.random() < 0.3,
        })  # fmt: skip
    return found


@pytest.mark.parametrize("seed", range(8))
def test_names_of_a_front_do_not_lie_on_each_other(seed: int) -> None:
    assert faults(pareto_svg(points(seed, 30), "a <model> & more")) == []


def test_the_loss_of_nothing_stands_at_0() -> None:
    full = {"name": "fp32", "bytes": 4_000_000, "kl_divergence": 0.0, "front": True}
    half = {"name": "half", "bytes": 2_000_000, "kl_divergence": 1e-4, "front": True}
    root = parsed(pareto_svg([full, half], "m"))
    lowest, other = [float(each.get("cy", "")) for each in root.iter(f"{NAMESPACE}circle")]
    found: dict[str, Label] = {label.text: label for label in labels(root)}
    assert lowest > other + 20 and found["0"].top < lowest < found["0"].bottom
    assert found["0.0001"].top < other < found["0.0001"].bottom


def test_a_point_is_told_where_a_pointer_rests() -> None:
    (point,) = points(0, 1)
    root = parsed(pareto_svg([point | {"bytes": 1_500_000, "kl_divergence": 0.0123}], "m"))
    hint = next(root.iter(f"{NAMESPACE}circle")).findtext(f"{NAMESPACE}title") or ""
    assert "1.50 MB" in hint and "KL 1.2e-02" in hint and point["name"] in hint


def test_ours_are_emphasised_where_others_are_beside_them() -> None:
    both = [
        {"name": "mine", "bytes": 3_000_000, "kl_divergence": 0.1, "ours": True},
        {"name": "mine too", "bytes": 1_000_000, "kl_divergence": 0.01, "ours": True},
        {"name": "theirs", "bytes": 2_000_000, "kl_divergence": 0.1, "ours": False},
    ]
    circles = list(parsed(pareto_svg(both, "m")).iter(f"{NAMESPACE}circle"))
    assert [each.get("class") for each in circles] == ["ours ours-rim", "ours ours-rim", "peer peer-rim"]


@pytest.mark.parametrize("layers", [1, 4, 24])
def test_a_table_of_costs_can_be_read(layers: int) -> None:
    rows = [
        {"dtype": dtype, "role": role, "layer": layer, "kl_divergence": cost}
        for dtype, cost in (("int4", 1e-2), ("int8", 1e-5))
        for role in ("q_proj", "embed_tokens")
        for layer in (*range(layers), None)
    ]
    picture = sensitivity_svg(rows, "doge-tiny, a method")
    assert faults(picture) == []
    cells = [each for each in labels(parsed(picture)) if each.text in ("1e-02", "1e-05")]
    assert len(cells) == len(rows)


def test_a_cost_can_be_read_on_its_colour() -> None:
    rows = [
        {"dtype": "int8", "role": "q_proj", "layer": layer, "kl_divergence": 10 ** -(layer / 10)}
        for layer in range(40)
    ]
    inks, shades = {"on-light": "#000000", "on-dark": "#ffffff"}, list[str]()
    cells = [each for each in parsed(sensitivity_svg(rows, "m")) if each.get("class") in ("panel", *inks)]
    for cell, number in zip(cells[::2], cells[1::2], strict=True):
        found = re.fullmatch(r"fill: rgb\((\d+),(\d+),(\d+)\)", cell.get("style", ""))
        assert found is not None
        shades.append("#" + "".join(f"{int(part):02x}" for part in found.groups()))
        assert contrast(shades[-1], inks[number.get("class", "")]) >= 4.5
    assert len(set(shades)) == 40


@pytest.mark.parametrize("layers", [1, 8, 60])
def test_drift_shows_what_is_above_the_limit(layers: int) -> None:
    parts = {f"{layer}.{part}": 1e-6 for layer in range(layers) for part in ("attention", "mlp", "keys")}
    picture = drift_svg({"schedule": "prefill 36", "limit": 1e-4, "parts": parts | {"logits": 3e-3}})
    assert faults(picture) == []
    kinds = [each.get("class") for each in parsed(picture).iter(f"{NAMESPACE}circle")]
    assert kinds.count("bad bad-rim") == 1 and kinds.count("good good-rim") == 2 * layers
    unknown = drift_svg({"schedule": "decode", "limit": 1e-4, "parts": {"logits": float("nan")}})
    assert "bad bad-rim" in unknown and faults(unknown) == []


def test_margins_say_how_many() -> None:
    bins = ["tied", "below 1e-6", "below 1e-5", "more"]
    picture = margins_svg({"bins": bins, "keys": [3, 0, 12, 12_345], "experts": [0, 0, 1, 7]})
    assert faults(picture) == []
    shown = {label.text for label in labels(parsed(picture))}
    assert {"12,345", "tied"} <= shown
    nothing = margins_svg({"bins": bins, "keys": [0] * 4, "experts": [0] * 4})
    assert "No row had a choice." in nothing and faults(nothing) == []


def test_faults_are_found() -> None:
    """The judge above: it sees what it is for."""
    canvas = Canvas(100, "", "about")
    canvas.text(10, 20, "one word")
    canvas.text(12, 22, "another")
    canvas.text(90, 50, "too far")
    canvas.text(10, 80, "grey", kind="mauve")
    found = " ".join(faults(canvas.svg()))
    assert "lies on" in found and "is cut off" in found and "no alt text" in found and "mauve" in found


def test_ticks_are_round_and_within() -> None:
    assert ticks(0.62, 4.8) == [0.7, 1, 2, 3]
    assert ticks(18_000, 40_000) == [20_000, 25_000, 30_000, 35_000, 40_000]
    assert ticks(5, 5) in ([5], [])


def test_lines_are_as_long_as_they_may_be() -> None:
    text = "some words that are cut " * 5
    lines = wrapped(text, 120, 13)
    assert " ".join(lines) == text.strip() and len(lines) > 1
    assert all(text_width(line, 13) <= 120 for line in lines)
