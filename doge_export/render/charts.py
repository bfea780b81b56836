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
    """Points with `name`, `bytes`, `kl_divergence`, `searched` as KL, on a logarithmic axis, over megabytes;
    the mixtures are joined, and the others named."""
    width, height, left, top = 720, 420, 64, 36
    sizes = [point["bytes"] / 1e6 for point in points]
    costs = [math.log10(max(point["kl_divergence"], 1e-9)) for point in points]
    first, last = min(sizes) * 0.95, max(sizes) * 1.05
    low, high = math.floor(min(costs) * 2) / 2, math.ceil(max(costs) * 2) / 2
    high = high if high > low else low + 0.5

    def place(size: float, cost: float) -> tuple[float, float]:
        x = left + (size - first) / (last - first) * (width - left - 20)
        return x, top + (high - cost) / (high - low) * (height - top - 48)

    parts = [f'<text x="8" y="18" font-weight="bold">{escape(title)}: KL against bytes</text>']
    for power in range(math.ceil(low), math.floor(high) + 1):
        _, y = place(first, power)
        parts.append(f'<path d="M{left} {y:.1f}H{width - 20}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">1e{power}</text>')
    for step in range(6):
        size = first + (last - first) * step / 5
        x, _ = place(size, low)
        parts.append(f'<text x="{x:.1f}" y="{height - 26}" text-anchor="middle">{size:.2f}</text>')
    parts.append(f'<text x="{width / 2}" y="{height - 8}" text-anchor="middle">MB</text>')
    line = sorted((size, cost) for size, cost, p in zip(sizes, costs, points, strict=True) if p["searched"])
    if line:
        path = "L".join("{:.1f} {:.1f}".format(*place(*each)) for each in line)
        parts.append(f'<path d="M{path}" fill="none" stroke="#c33"/>')
    for size, cost, point in zip(sizes, costs, points, strict=True):
        x, y = place(size, cost)
        label = escape(point["name"])
        colour = "#c33" if point["searched"] else "#236"
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
        if not point["searched"]:
            end = x > width - 160
            anchor, shift = ("end", -7) if end else ("start", 7)
            parts.append(f'<text x="{x + shift:.1f}" y="{y - 5:.1f}" text-anchor="{anchor}">{label}</text>')
    return svg(width, height, parts)


def svg(width: float, height: float, parts: Sequence[str]) -> str:
    """`parts` on a white ground of that size, in pixels."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" {_FONT}>'
    back = f'<rect width="{width:g}" height="{height:g}" fill="#fff"/>'
    return "\n".join([head, back, *parts, "</svg>"]) + "\n"
