"""Pictures of what fewer bits cost: of single matrices, and the front of loss and size."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from doge_export.render.canvas import Canvas, powers, text_width, ticks
from doge_export.render.placing import Area, name_points

__all__ = ["pareto_svg", "sensitivity_svg"]

_WIDTH = 560
_TALL, _LEFT = 360, 64  # of a panel's axes, and what its numbers need
Points = Sequence[Mapping[str, Any]]


def sensitivity_svg(rows: Points, title: str) -> str:
    """A table of colours for each type, of rows of doge_export.compress.mixed_precision: roles down, layers
    across, and the role in all layers at the end. Darker costs more; the numbers are KL."""
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    roles = list(dict.fromkeys(row["role"] for row in rows))
    layers = sorted({row["layer"] for row in rows if row["layer"] is not None})
    columns: list[int | None] = [*layers, None]
    costs = [row["kl_divergence"] for row in rows if row["kl_divergence"] > 0] or [1.0]
    low, high = math.log10(min(costs)), math.log10(max(costs))
    cost_of = {(row["dtype"], row["role"], row["layer"]): row["kl_divergence"] for row in rows}
    cell, tall, left = 60, 24, 28 + max(text_width(role, 13) for role in roles)
    heading = f"{title}: KL divergence with one matrix rounded"
    width = max(left + cell * len(columns) + 16, text_width(heading, 15, bold=True) + 32)
    about = (
        "Rows are roles of matrices, columns are layers; a darker cell loses more when it alone is rounded."
    )
    canvas = Canvas(width, heading, about)
    canvas.text(16, 28, heading, bold=True)
    y = 40.0
    for dtype in dtypes:
        canvas.text(16, y + 18, dtype, bold=True, size=13)
        for column, layer in enumerate(columns):
            label = "all" if layer is None else f"layer {layer}"
            canvas.text(left + cell * (column + 0.5), y + 18, label, kind="soft", size=12, anchor="middle")
        y += 26
        for role in roles:
            canvas.text(16, y + 16, role, size=13)
            for column, layer in enumerate(columns):
                cost = cost_of.get((dtype, role, layer))
                if cost is not None:
                    share = 0.0 if cost <= 0 else (math.log10(cost) - low) / max(high - low, 1e-9)
                    _cell(canvas, left + cell * column, y, cell - 2, tall - 2, cost, share)
            y += tall
        y += 12
    return canvas.svg()


def _cell(canvas: Canvas, x: float, y: float, width: float, height: float, cost: float, share: float) -> None:
    """A number on a colour that is the same in both schemes: from nearly white to dark blue."""
    start, end = (236, 242, 252), (11, 60, 150)
    red, green, blue = (round(one + (other - one) * share) for one, other in zip(start, end, strict=True))
    canvas.rect(x, y, width, height, "panel", colour=f"rgb({red},{green},{blue})")
    kind = "on-light" if share < 0.68 else "on-dark"  # each has a contrast of 4.5 there
    canvas.text(x + width / 2, y + 16, f"{cost:.0e}", kind=kind, size=12, anchor="middle")


def pareto_svg(points: Points, title: str) -> str:
    """Points with `name`, `bytes` and `kl_divergence`: KL over megabytes, and where they have
    `tokens_per_second` over those below it. Points that none beats in both axes are joined and named, as are
    those with `named`, with their `top1_agreement` where there is one. Filled are those with `front`, or all
    without it; in colour those joined, and those with `ours`. A thin line goes over one `kl_error` to both
    sides, where there is one."""
    timed = "tokens_per_second" in points[0]
    best = min(points, key=lambda point: point["bytes"])
    about = (
        f"{len(points)} ways to store {title}, by their loss and by their size"
        f"{' and speed' if timed else ''}. The line joins those that no other beats in both. The smallest is "
        f"{best['name']}: {best['bytes'] / 1e6:.2f} MB, KL divergence {best['kl_divergence']:.1e}."
    )
    canvas = Canvas(_WIDTH, f"{title}: what smaller files lose", about)
    canvas.text(16, 28, f"{title}: loss by size of the file", bold=True, size=16)
    y = canvas.note(50, " ".join(_notes(points)))
    sizes = _Axis([point["bytes"] / 1e6 for point in points], "size in MB (smaller is better: left)", True)
    y = _panel(canvas, points, sizes, y + 4)
    if timed:
        canvas.text(16, y + 36, f"{title}: loss by speed", bold=True, size=16)
        rates = [point["tokens_per_second"] for point in points]
        speeds = _Axis(rates, "tokens per second (faster is better: right)", False)
        _panel(canvas, points, speeds, y + 52)
    return canvas.svg()


def _notes(points: Points) -> Iterator[str]:
    """What a reader has to know."""
    if any("ours" in point for point in points):
        yield "Blue: doge-export; grey: onnxruntime's own quantizer."
    yield "The line joins those that no other beats in both."
    if not all(point.get("front", True) for point in points):
        yield "Filled: no other beats it in loss, size and speed together."
    yield "Loss is the KL divergence from the full model: lower is better, 0 is none."
    if any("top1_agreement" in point for point in points):
        yield "Percent: how often both give the same token the highest probability."
    if any(point["name"].startswith("searched") for point in points):
        yield "A searched mixture of types is named by its share of the full model's bytes."


@dataclass(frozen=True)
class _Axis:
    """What a panel has across: values, and whether a smaller one is better."""

    values: Sequence[float]
    label: str
    smaller: bool


def _panel(canvas: Canvas, points: Points, axis: _Axis, top: float) -> float:
    """KL over the values of `axis` below `top`, both logarithmic; where it ends."""
    area = (_LEFT, top, _WIDTH - 20.0, top + _TALL)
    costs = [point["kl_divergence"] for point in points]
    position = _grid(canvas, axis, costs, area)
    best = _best(axis, costs)
    spots = [position(*each) for each in zip(axis.values, costs, strict=True)]
    canvas.path("M" + "L".join("{:.1f} {:.1f}".format(*spots[at]) for at in best), "ours", width=2)
    kinds = ["ours" if at in best or point.get("ours") else "peer" for at, point in enumerate(points)]
    names = dict[int, str]()
    for at, point in enumerate(points):
        kind = kinds[at]
        if (error := point.get("kl_error")) and costs[at] > 0:
            ends = [
                position(axis.values[at], max(end, 0.0))[1] for end in (costs[at] - error, costs[at] + error)
            ]
            bottom, peak = (min(max(end, area[1]), area[3]) for end in ends)
            canvas.path(f"M{spots[at][0]:.1f} {bottom:.1f}V{peak:.1f}", kind)
        hint = _label(point, full=True)
        canvas.dot(*spots[at], kind, filled=bool(point.get("front", True)), hint=hint)
        if at in best or point.get("named"):
            names[at] = _label(point)
    name_points(canvas, names, spots, area, kinds, [spots[at] for at in best])
    return area[3] + 44


def _label(point: Mapping[str, Any], full: bool = False) -> str:
    agreement = f", {point['top1_agreement']:.1%}" if "top1_agreement" in point else ""
    if not full:
        return f"{point['name']}{agreement}"
    return f"{point['name']}: {point['bytes'] / 1e6:.2f} MB, KL {point['kl_divergence']:.1e}{agreement}"


def _best(axis: _Axis, costs: Sequence[float]) -> list[int]:
    """Those that none beats in both, from the best value on."""
    sign = 1 if axis.smaller else -1
    best: list[int] = []
    for at in sorted(range(len(costs)), key=lambda at: (sign * axis.values[at], costs[at])):
        if not best or costs[at] < costs[best[-1]]:
            best.append(at)
    return best


def _grid(
    canvas: Canvas, axis: _Axis, costs: Sequence[float], area: Area
) -> Callable[[float, float], tuple[float, float]]:
    """Lines and numbers of both axes; what gives the place of a value and a cost."""
    left, top, right, bottom = area
    positive = [cost for cost in costs if cost > 0] or [1.0]
    none = min(costs) <= 0  # a loss of 0 stands on the lowest line
    low = math.floor(math.log10(min(positive)) * 2) / 2
    high = max(math.ceil(math.log10(max(positive)) * 4) / 4, low + 0.5)
    floor = bottom - (46 if none else 10)  # where the logarithmic part ends
    first, last = math.log10(min(axis.values) * 0.94), math.log10(max(axis.values) * 1.06)

    def position(value: float, cost: float) -> tuple[float, float]:
        x = left + (math.log10(value) - first) / (last - first) * (right - left)
        if cost <= 0:
            return x, bottom - 12
        power = max(math.log10(cost), low)
        return x, top + (high - power) / (high - low) * (floor - top)

    for power in powers(low, high):
        _, y = position(axis.values[0], 10.0**power)
        canvas.path(f"M{left} {y:.1f}H{right}", "grid")
        canvas.text(left - 8, y + 4.5, f"{10.0**power:g}", kind="soft", size=13, anchor="end")
    if none:
        canvas.path(f"M{left} {bottom - 12:.1f}H{right}", "grid")
        canvas.text(left - 8, bottom - 7.5, "0", kind="soft", size=13, anchor="end")
    canvas.path(f"M{left} {bottom:.1f}H{right}", "peer")
    for value in ticks(10**first, 10**last):
        x, _ = position(value, positive[0])
        canvas.path(f"M{x:.1f} {bottom:.1f}l0 5", "peer")
        canvas.text(x, bottom + 19, f"{value:,g}", kind="soft", size=13, anchor="middle")
    canvas.text((left + right) / 2, bottom + 38, axis.label, size=13, anchor="middle")
    return position
