"""What a validation measured, as SVG for its page: drift part by part, and margins at the boundary."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from doge_export.render.canvas import Canvas, powers, text_width

__all__ = ["drift_svg", "margins_svg"]

_WIDTH, _LEFT, _TALL = 520, 62, 190
_LOWEST = -9  # powers of ten; what is smaller is drawn there


def drift_svg(drift: Mapping[str, Any]) -> str:
    """Report.drift: one mark a part, in the order in which they are computed, on a logarithmic axis, under
    the line of its limit. Sets of keys and experts, which have none, are left out."""
    parts = {
        name: value for name, value in drift["parts"].items() if not name.endswith((".keys", ".experts"))
    }
    limit, schedule = drift["limit"], str(drift["schedule"])
    over = sum(not value <= limit for value in parts.values())
    heading = f"{schedule}: difference of each part from the reference"
    about = f"{len(parts)} parts in the order they are computed; {over} above the limit of {limit:g}."
    canvas = Canvas(_WIDTH, heading, about)
    canvas.text(16, 28, heading, bold=True)
    top, right = 44.0, _WIDTH - 20.0
    bottom = top + _TALL
    seen = [math.log10(limit), *map(_power, parts.values())]
    low, high = math.floor(min(seen)) - 0.2, math.ceil(max(seen)) + 0.2

    def down(power: float) -> float:
        return top + (high - power) / (high - low) * _TALL

    for power in powers(low, high):
        canvas.path(f"M{_LEFT} {down(power):.1f}H{right}", "grid")
        canvas.text(_LEFT - 8, down(power) + 4.5, f"1e{power}", kind="soft", size=13, anchor="end")
    canvas.path(f"M{_LEFT} {down(math.log10(limit)):.1f}H{right}", "bad", width=1.5, dash="5 4")
    canvas.text(right, down(math.log10(limit)) - 6, f"limit {limit:g}", kind="bad", size=13, anchor="end")
    _layers(canvas, list(parts), bottom, right)
    step = (right - _LEFT) / max(len(parts), 1)
    for at, (name, value) in enumerate(parts.items()):
        kind = "good" if value <= limit else "bad"
        x = _LEFT + step * (at + 0.5)
        canvas.dot(x, down(_power(value)), kind, radius=3.5, hint=f"{name}: {value:.1e}")
    canvas.text((_LEFT + right) / 2, bottom + 38, "layer", size=13, anchor="middle")
    return canvas.svg()


def _layers(canvas: Canvas, names: Sequence[str], bottom: float, right: float) -> None:
    """The number of each layer under its first part, as far as there is room for them."""
    step = (right - _LEFT) / max(len(names), 1)
    before, free = None, -math.inf
    for at, name in enumerate(names):
        number = name.partition(".")[0] if "." in name else None
        x = _LEFT + step * at
        if number is not None and number != before and x >= free:
            canvas.path(f"M{x:.1f} {bottom:.1f}l0 6", "peer")
            canvas.text(x + 3, bottom + 18, number, kind="soft", size=13)
            free = x + text_width(number, 13) + 10
        before = number


def margins_svg(margins: Mapping[str, Sequence[Any]]) -> str:
    """Report.margins: how many rows lie how near to the boundary of the window, and of the experts."""
    bins = margins["bins"]
    shown = [(name, margins[name]) for name in ("keys", "experts") if sum(margins.get(name, ()))]
    most = max((max(counts) for _, counts in shown), default=1) or 1
    heading = "How close the choices of keys and experts were"
    about = "; ".join(
        f"{name}: {', '.join(f'{label} {count:,}' for label, count in zip(bins, counts, strict=True))}"
        for name, counts in shown
    )
    canvas = Canvas(_WIDTH, heading, about or "No row had a choice.")
    canvas.text(16, 28, heading, bold=True)
    if not shown:
        canvas.text(16, 52, "No row had a choice.", kind="soft", size=13)
        return canvas.svg()
    y = 40.0
    left = 30 + max(text_width(str(label), 13) for label in bins)
    longest = _WIDTH - 24 - left - text_width(f"{most:,}", 13)
    for name, counts in shown:
        canvas.text(16, y + 16, f"{name}: rows by the distance at the boundary", size=13)
        y += 26
        for label, count in zip(bins, counts, strict=True):
            wide = longest * math.log1p(count) / math.log1p(most)
            canvas.text(left - 8, y + 12, str(label), kind="soft", size=13, anchor="end")
            hint = f"{name}, {label}: {count:,}"
            canvas.rect(left, y, max(wide, 1), 14, "ours", radius=2, hint=hint)
            canvas.text(left + max(wide, 1) + 6, y + 12, f"{count:,}", kind="ink", size=13)
            y += 20
        y += 4
    canvas.text(16, y + 14, "The length of a bar is the logarithm of the rows.", kind="soft", size=13)
    return canvas.svg()


def _power(value: float) -> float:
    if not math.isfinite(value):
        return 1.0
    return max(math.log10(value), _LOWEST) if value > 0 else _LOWEST
