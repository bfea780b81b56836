"""Pictures as SVG, drawn by hand: what a role costs, and the front of KL against bytes."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

__all__ = ["pareto_svg", "sensitivity_svg", "svg"]

_FONT = 'font-family="sans-serif" font-size="11"'


def sensitivity_svg(rows: Sequence[Mapping[str, Any]], title: str) -> str:
    """Rows of doge_export.sensitivity as a table of colours for each type: roles down, layers across, and the
    role in all layers at the end. Darker costs more; the numbers are KL."""
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    roles = list(dict.fromkeys(row["role"] for row in rows))
    layers = sorted({row["layer"] for row in rows if row["layer"] is not None})
    columns: list[int | None] = [*layers, None]
    costs = [row["kl_divergence"] for row in rows if row["kl_divergence"] > 0] or [1.0]
    low, high = math.log10(min(costs)), math.log10(max(costs))
    width, height, left = 62, 20, 96
    panel = left + width * len(columns) + 20
    parts = [f'<text x="8" y="18" font-weight="bold">{escape(title)}: KL of one matrix rounded</text>']
    found = {(row["dtype"], row["role"], row["layer"]): row["kl_divergence"] for row in rows}
    for number, dtype in enumerate(dtypes):
        x0 = number * panel
        parts.append(f'<text x="{x0 + 8}" y="40">{escape(dtype)}</text>')
        for column, layer in enumerate(columns):
            label = "all" if layer is None else f"layer {layer}"
            x = x0 + left + width * (column + 0.5)
            parts.append(f'<text x="{x:g}" y="40" text-anchor="middle">{label}</text>')
        for line, role in enumerate(roles):
            y = 48 + height * line
            parts.append(f'<text x="{x0 + 8}" y="{y + 14}">{escape(role)}</text>')
            for column, layer in enumerate(columns):
                cost = found.get((dtype, role, layer))
                if cost is None:
                    continue
                share = 0.0 if cost <= 0 else (math.log10(cost) - low) / max(high - low, 1e-9)
                red, other = int(255 - 60 * share), int(250 - 200 * share)
                x = x0 + left + width * column
                ink = "#fff" if share > 0.75 else "#000"
                parts.append(
                    f'<rect x="{x}" y="{y}" width="{width - 2}" height="{height - 2}" '
                    f'fill="rgb({red},{other},{other})"/>'
                    f'<text x="{x + width / 2 - 1:g}" y="{y + 13}" text-anchor="middle" fill="{ink}">'
                    f"{cost:.0e}</text>"
                )
    return svg(panel * len(dtypes), 56 + height * len(roles), parts)


def pareto_svg(points: Sequence[Mapping[str, Any]], title: str) -> str:
    """Points with `name`, `bytes` and `kl_divergence`: KL over megabytes, and where they have
    `tokens_per_second` over those beside it, on logarithmic axes. Points that none beats in both axes are
    joined and named, as are those with `named`; filled are those with `front`, or all without it. A line
    goes over one `kl_error` to both sides, where there is one."""
    parts = [f'<text x="8" y="18" font-weight="bold">{escape(title)}: KL against bytes</text>']
    sizes = [point["bytes"] / 1e6 for point in points]
    parts += _panel(points, sizes, "MB", smaller=True, x0=0)
    if "tokens_per_second" not in points[0]:
        return svg(_PANEL, _HEIGHT, parts)
    speeds = [point["tokens_per_second"] for point in points]
    parts.append(f'<text x="{_PANEL + 8}" y="18" font-weight="bold">KL against tokens per second</text>')
    parts += _panel(points, speeds, "tokens per second", smaller=False, x0=_PANEL)
    return svg(2 * _PANEL, _HEIGHT, parts)


_PANEL, _HEIGHT, _LEFT, _TOP = 640, 440, 64, 36
_RED, _BLUE = "#c33", "#236"


def _panel(
    points: Sequence[Mapping[str, Any]], values: Sequence[float], label: str, *, smaller: bool, x0: float
) -> list[str]:
    """KL over `values`, which are better `smaller`, as parts of an SVG from `x0` on."""
    positive = [point["kl_divergence"] for point in points if point["kl_divergence"] > 0] or [1.0]
    floor = min(positive) / 2  # where a KL of 0 stands
    costs = [math.log10(max(point["kl_divergence"], floor)) for point in points]
    first, last = math.log10(min(values) * 0.95), math.log10(max(values) * 1.05)
    low, high = math.floor(min(costs) * 2) / 2, math.ceil(max(costs) * 2) / 2
    high = high if high > low else low + 0.5
    left, right = x0 + _LEFT, x0 + _PANEL - 20

    def place(value: float, cost: float) -> tuple[float, float]:
        x = left + (math.log10(value) - first) / (last - first) * (right - left)
        return x, _TOP + (high - cost) / (high - low) * (_HEIGHT - _TOP - 48)

    parts = []
    for power in range(math.ceil(low), math.floor(high) + 1):
        _, y = place(values[0], power)
        parts.append(f'<path d="M{left} {y:.1f}H{right}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">1e{power}</text>')
    for step in range(6):
        value = 10 ** (first + (last - first) * step / 5)
        x, _ = place(value, low)
        shown = f"{value:.2f}" if value < 100 else f"{value:,.0f}"
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - 26}" text-anchor="middle">{shown}</text>')
    middle = (left + right) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(label)}</text>')
    order = sorted(range(len(points)), key=lambda at: (values[at] if smaller else -values[at], costs[at]))
    best: list[int] = []
    for at in order:
        if not best or costs[at] < costs[best[-1]]:
            best.append(at)
    path = "L".join("{:.1f} {:.1f}".format(*place(values[at], costs[at])) for at in best)
    parts.append(f'<path d="M{path}" fill="none" stroke="{_RED}"/>')
    spots = [place(*each) for each in zip(values, costs, strict=True)]
    names: dict[int, str] = {}
    for at, (point, (x, y)) in enumerate(zip(points, spots, strict=True)):
        colour, name = _RED if at in best else _BLUE, escape(point["name"])
        fill = colour if point.get("front", True) else "#fff"
        if (error := point.get("kl_error")) and (kl := point["kl_divergence"]) > 0:
            ends = [math.log10(max(each, 10**low)) for each in (kl - error, kl + error)]
            bottom, top = (place(values[at], min(end, high))[1] for end in ends)
            parts.append(f'<path d="M{x:.1f} {bottom:.1f}V{top:.1f}" stroke="{colour}"/>')
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="{colour}">'
            f"<title>{name}</title></circle>"
        )
        if at in best or point.get("named"):
            names[at] = point["name"]
    return parts + _names(names, spots, left, right)


def _names(
    names: Mapping[int, str], spots: Sequence[tuple[float, float]], left: float, right: float
) -> list[str]:
    """A name beside each of these `spots`, one over the other where they would lie on each other, between
    `left` and `right`; a line leads to one that is further away."""
    parts, taken = list[str](), list[tuple[float, float, float]]()  # from x to x, around y

    def cost(begin: float, end: float, y: float, moved: float) -> float:
        if begin < left or end > right or not _TOP < y < _HEIGHT - 44:
            return math.inf
        if any(begin < other_end and other < end and abs(y - line) < 12 for other, other_end, line in taken):
            return math.inf
        return abs(moved) + 4 * sum(begin < x + 4 and x - 4 < end and abs(y - at) < 9 for x, at in spots)

    for at in sorted(names, key=lambda each: spots[each][1]):
        (x, y), width = spots[at], 6.6 * len(names[at])
        sides = (x + 7, x + 7 + width), (x - 7 - width, x - 7)
        nearest = sides[::-1] if x > (left + right) / 2 else sides
        tried = [
            (*side, y - 9 + moved, moved)
            for moved in sorted(range(-264, 265, 4), key=abs)
            for side in nearest
        ]
        begin, end, line, moved = min(tried, key=lambda each: cost(*each))
        taken.append((begin, end, line))
        if abs(moved) > 12:
            edge = begin - 2 if begin > x else end + 2
            parts.append(
                f'<path d="M{x:.1f} {y:.1f}L{edge:.1f} {line:.1f}" stroke="#aaa" stroke-width="0.5"/>'
            )
        anchor, start = ("start", begin) if begin > x else ("end", end)
        parts.append(
            f'<text x="{start:.1f}" y="{line + 4:.1f}" text-anchor="{anchor}">{escape(names[at])}</text>'
        )
    return parts


def svg(width: float, height: float, parts: Sequence[str]) -> str:
    """`parts` on a white ground of that size, in pixels."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" {_FONT}>'
    back = f'<rect width="{width:g}" height="{height:g}" fill="#fff"/>'
    return "\n".join([head, back, *parts, "</svg>"]) + "\n"
