"""What a validation measured, as SVG for its page: drift part by part, and margins at the boundary."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from doge_export.render.charts import svg

__all__ = ["drift_svg", "margins_svg"]

_GOOD, _BAD = "#1a7f4b", "#b3261e"
_LOWEST = -9  # powers of ten; what is smaller is drawn there


def drift_svg(drift: Mapping[str, Any]) -> str:
    """Report.drift: one mark a part, in the order in which they are computed, on a logarithmic axis, under
    the line of its limit. Sets of keys and experts, which have none, are left out."""
    parts = {
        name: value for name, value in drift["parts"].items() if not name.endswith((".keys", ".experts"))
    }
    limit = math.log10(drift["limit"])
    width, height, left, top, bottom = 720, 260, 56, 30, 44
    seen = [_power(value) for value in parts.values()]
    high = math.ceil(max([limit, *seen])) + 0.2
    low = math.floor(min([limit, *seen])) - 0.2

    def place(power: float) -> float:
        return top + (high - power) / (high - low) * (height - top - bottom)

    step = (width - left - 16) / max(len(parts), 1)
    drawn = [
        f'<text x="8" y="18" font-weight="bold">{escape(str(drift["schedule"]))}: drift of each part</text>'
    ]
    for power in range(math.ceil(low), math.floor(high) + 1):
        drawn.append(f'<path d="M{left} {place(power):.1f}H{width - 16}" stroke="#ddd"/>')
        drawn.append(f'<text x="{left - 6}" y="{place(power) + 4:.1f}" text-anchor="end">1e{power}</text>')
    drawn.append(
        f'<path d="M{left} {place(limit):.1f}H{width - 16}" stroke="{_BAD}" stroke-dasharray="4 3"/>'
    )
    before = None
    for at, (name, value) in enumerate(parts.items()):
        x = left + step * (at + 0.5)
        number = name.partition(".")[0] if "." in name else None
        if number is not None and number != before:
            drawn.append(f'<path d="M{left + step * at:.1f} {top}V{height - bottom}" stroke="#eee"/>')
            drawn.append(f'<text x="{left + step * at + 3:.1f}" y="{height - bottom + 16}">{number}</text>')
        before = number
        colour = _GOOD if value <= drift["limit"] else _BAD
        drawn.append(
            f'<circle cx="{x:.1f}" cy="{place(_power(value)):.1f}" r="3" fill="{colour}">'
            f"<title>{escape(name)}: {value:.1e}</title></circle>"
        )
    drawn.append(f'<text x="{left}" y="{height - 8}">layers; the dashed line is the limit</text>')
    return svg(width, height, drawn)


def margins_svg(margins: Mapping[str, Sequence[Any]]) -> str:
    """Report.margins: how many rows lie how near to the boundary of the window, and of the experts."""
    bins = margins["bins"]
    shown = [(name, margins[name]) for name in ("keys", "experts") if sum(margins.get(name, ()))]
    width, height, left, top = 720, 200, 56, 30
    tall, step = height - top - 44, (width - left - 16) / len(bins)
    most = max((max(counts) for _, counts in shown), default=1) or 1
    drawn = ['<text x="8" y="18" font-weight="bold">rows by the distance at the boundary</text>']
    for at, label in enumerate(bins):
        x = left + step * at
        drawn.append(
            f'<text x="{x + step / 2:.1f}" y="{height - 28}" text-anchor="middle">{escape(label)}</text>'
        )
        for place, (name, counts) in enumerate(shown):
            bar = tall * math.log1p(counts[at]) / math.log1p(most)
            wide = (step - 8) / len(shown)
            drawn.append(
                f'<rect x="{x + 4 + wide * place:.1f}" y="{top + tall - bar:.1f}" width="{wide - 1:.1f}" '
                f'height="{bar:.1f}" fill="{("#236", "#c80")[place]}"><title>{name}, {escape(label)}: '
                f"{counts[at]:,}</title></rect>"
            )
    legend = ", ".join(f"{name} {('blue', 'orange')[place]}" for place, (name, _) in enumerate(shown))
    drawn.append(
        f'<text x="{left}" y="{height - 8}">{legend or "no row had a choice"}; height: log of rows</text>'
    )
    return svg(width, height, drawn)


def _power(value: float) -> float:
    if not math.isfinite(value):
        return 1.0
    return max(math.log10(value), _LOWEST) if value > 0 else _LOWEST
