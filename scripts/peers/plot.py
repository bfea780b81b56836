"""The picture of a run: tokens per second of every decoder as bars, a panel a model.

python -m peers.plot REPORT PICTURE
"""

__all__ = ["draw", "speed_svg"]

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from doge_export.render.canvas import Canvas, text_width
from peers.report import peers, rate
from recorded import save_picture

#: What is shown of all that is measured, and the name it has there: float32 first, then 8 bits, then 4.
SHOWN = {
    "transformers eager": "transformers, float32",
    "llama.cpp F32": "llama.cpp, F32",
    "doge-export fp32": "doge-export, fp32",
    "onnxruntime contrib int8": "onnxruntime, int8",
    "llama.cpp Q8_0": "llama.cpp, Q8_0",
    "doge-export int8": "doge-export, int8",
    "llama.cpp Q4_0": "llama.cpp, Q4_0",
    "doge-export int4": "doge-export, int4",
}
_LAST_OF_A_KIND = ("doge-export fp32", "doge-export int8")
_KEPT = ("threads", "model", "peer", "best")
_WIDTH, _ROW, _BAR = 520, 22, 16


def main() -> None:
    draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))


def draw(report: Mapping[str, Any], picture: Path) -> None:
    """Write the picture, and beside it the figures that it is drawn from (scripts/draw_pictures.py)."""
    rows = [row for row in report["results"] if row["best"]]
    save_picture(speed_svg(report), report, rows, _KEPT, picture)


def speed_svg(report: Mapping[str, Any]) -> str:
    """Decoding in the run with the most threads. Bars begin at 0; each panel has a scale of its own."""
    run, results = report["run"], report["results"]
    threads = max(run["threads"])
    names = [name for name in SHOWN if name in peers(results)] or peers(results)
    rates = {
        model: {name: value for name in names if (value := rate(results, threads, model, name, "decode"))}
        for model in run["models"]
    }
    about = "Tokens per second in greedy decoding, more is better. " + " ".join(
        f"{model}: {', '.join(f'{SHOWN.get(name, name)} {value:,.0f}' for name, value in found.items())}."
        for model, found in rates.items()
    )
    canvas = Canvas(_WIDTH, "Tokens per second of doge-export and of other decoders", about)
    canvas.text(16, 30, "Tokens per second in decoding (more is better)", bold=True, size=17)
    y = canvas.note(
        52,
        f"{report['machine']['cpu']}, {threads} threads, greedy, one text at a time, {run['prompt_tokens']} "
        f"tokens of prompt and {run['new_tokens']} new ones, random weights. llama.cpp and onnxruntime run a "
        "Llama of the same shape. Each model has a scale of its own.",
    )
    for model, found in rates.items():
        y = _panel(canvas, model, found, y + 8)
    return canvas.svg()


def _panel(canvas: Canvas, model: str, rates: Mapping[str, float], y: float) -> float:
    """One model's bars below `y`; where they end."""
    if not rates:
        return y
    left = 26 + max(text_width(SHOWN.get(name, name), 15, bold=name.startswith("doge")) for name in rates)
    longest = _WIDTH - 20 - left - text_width(f" {max(rates.values()):,.0f}", 15, bold=True)
    canvas.text(16, y + 12, model, bold=True, size=16)
    y += 22
    for name, value in rates.items():
        ours = name.startswith("doge-export")
        bar, ink, label = "ours" if ours else "peer", "ours" if ours else "ink", SHOWN.get(name, name)
        wide = max(longest * value / max(rates.values()), 1.5)
        canvas.text(left - 8, y + 13, label, kind=ink, anchor="end", bold=ours)
        canvas.rect(left, y, wide, _BAR, bar, radius=2, hint=f"{name}: {value:,.0f} tokens per second")
        canvas.text(left + wide + 6, y + 13, f"{value:,.0f}", kind=ink, bold=ours)
        y += _ROW + (7 if name in _LAST_OF_A_KIND else 0)
    return y + 6


if __name__ == "__main__":
    main()
