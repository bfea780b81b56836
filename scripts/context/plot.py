"""The picture of a run: milliseconds per token and resident memory by the length of the text.

python -m context.plot REPORT PICTURE
"""

__all__ = ["context_svg", "draw"]

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from doge_export.render.canvas import Canvas, powers, text_width
from recorded import save_picture

_KEPT = ("model", "name", "context", "ms", "resident")
_WIDTH, _LEFT, _TALL = 560, 62, 230
_REFERENCE = "transformers eager"
Series = dict[str, list[tuple[int, float]]]


def main() -> None:
    draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))


def draw(report: Mapping[str, Any], picture: Path) -> None:
    """Write the picture, and beside it the figures that it is drawn from (scripts/draw_pictures.py)."""
    save_picture(context_svg(report), report, report["results"], _KEPT, picture)


def context_svg(report: Mapping[str, Any]) -> str:
    """Time above, memory below, both axes logarithmic; every line has its name and last value at its end."""
    times, memory = _series(report, "ms", 1.0), _series(report, "resident", 2.0**-20)
    about = "By the length of the text, from the shortest to the longest: " + "; ".join(
        f"{name} {rows[0][1]:.3g} to {rows[-1][1]:.4g} ms per token and {memory[name][0][1]:,.0f} to "
        f"{memory[name][-1][1]:,.0f} MiB"
        for name, rows in times.items()
    )
    canvas = Canvas(_WIDTH, "Time per token and memory by the length of the text", f"{about}.")
    canvas.text(16, 30, "Milliseconds per token, by the length of the text", bold=True, size=17)
    run = report["run"]
    y = canvas.note(
        52,
        f"{report['machine']['cpu']}, {run['threads']} threads, one text at a time, keep_window_size 2048.",
    )
    y = _panel(canvas, times, y + 6, "ms")
    canvas.text(16, y + 34, "Resident memory in MiB", bold=True, size=17)
    _panel(canvas, memory, y + 50, "MiB")
    return canvas.svg()


def _series(report: Mapping[str, Any], key: str, scale: float) -> Series:
    found: Series = {}
    for row in sorted(report["results"], key=lambda row: row["context"]):
        side = "transformers" if row["name"] == _REFERENCE else row["name"]
        found.setdefault(f"{row['model']} {side}", []).append((row["context"], row[key] * scale))
    return found


def _panel(canvas: Canvas, series: Series, top: float, unit: str) -> float:
    """Lines below `top`, of values in `unit`; where the panel ends."""
    contexts = sorted({at for rows in series.values() for at, _ in rows})
    values = [value for rows in series.values() for _, value in rows]
    low, high = math.log10(min(values) * 0.8), math.log10(max(values) * 1.25)
    labels = {name: f"{name}: {_shown(rows[-1][1])}" for name, rows in series.items()}
    right = _WIDTH - 28 - max(text_width(label, 14) for label in labels.values())
    bottom, span = top + _TALL, math.log2(contexts[-1] / contexts[0]) or 1.0

    def across(context: int) -> float:
        return _LEFT + 8 + math.log2(context / contexts[0]) / span * (right - _LEFT - 8)

    def down(value: float) -> float:
        return top + (high - math.log10(value)) / (high - low) * _TALL

    for power in powers(low, high):
        y = down(10.0**power)
        canvas.path(f"M{_LEFT} {y:.1f}H{right:.1f}", "grid")
        canvas.text(_LEFT - 8, y + 4.5, f"{10.0**power:,g}", kind="soft", size=13, anchor="end")
    canvas.path(f"M{_LEFT} {bottom:.1f}H{right:.1f}", "peer")
    for context in contexts:
        canvas.path(f"M{across(context):.1f} {bottom:.1f}l0 5", "peer")
        canvas.text(
            across(context), bottom + 19, f"{context // 1024}k", kind="soft", size=13, anchor="middle"
        )
    canvas.text((_LEFT + right) / 2, bottom + 38, "tokens of text", kind="soft", size=13, anchor="middle")
    ends = _apart([down(rows[-1][1]) for rows in series.values()], top, bottom)
    for (name, rows), end in zip(series.items(), ends, strict=True):
        kind = "peer" if name.endswith("transformers") else "ours"
        path = "L".join(f"{across(context):.1f} {down(value):.1f}" for context, value in rows)
        canvas.path(f"M{path}", kind, width=2.5)
        for context, value in rows:
            hint = f"{name}, {context // 1024}k tokens: {_shown(value)} {unit}"
            canvas.dot(across(context), down(value), kind, radius=3.5, hint=hint)
        canvas.path(f"M{right + 5:.1f} {down(rows[-1][1]):.1f}L{right + 11:.1f} {end:.1f}", kind, width=0.8)
        ink = "ours" if kind == "ours" else "ink"
        canvas.text(right + 14, end + 4.5, labels[name], kind=ink, size=14)
    return bottom + 42


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 20 else f"{value:.1f}"


def _apart(wanted: Sequence[float], top: float, bottom: float, line: float = 18) -> list[float]:
    """Heights near the `wanted` ones, at least a line from each other, between `top` and `bottom`."""
    order = sorted(range(len(wanted)), key=lambda at: wanted[at])
    placed = list(wanted)
    last = top
    for at in order:
        placed[at] = last = max(placed[at], last)
        last += line
    limit = bottom
    for at in reversed(order):
        placed[at] = min(placed[at], limit)
        limit = placed[at] - line
    return placed


if __name__ == "__main__":
    main()
