"""Names beside points, none on another."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from doge_export.render.canvas import Canvas, text_width

__all__ = ["Area", "Spot", "name_points"]

Spot = tuple[float, float]
Area = tuple[float, float, float, float]  # left, top, right, bottom
_SIZE, _LINE = 13, 16  # of the letters, and how far two lines must be apart


def name_points(
    canvas: Canvas,
    names: Mapping[int, str],
    spots: Sequence[Spot],
    area: Area,
    kinds: Sequence[str],
    line: Sequence[Spot] = (),
) -> None:
    """Write each of `names` beside the spot of its number, inside `area`, in the colour of its kind. Names do
    not lie on each other, and on spots and the `line` only where nothing nearer is free; a thin line leads to
    one far off."""
    covered = [*((spot, 30.0) for spot in spots), *((spot, 12.0) for spot in _along(line))]
    taken = list[tuple[float, float, float]]()  # from x to x, around y
    middle = (area[0] + area[2]) / 2
    for at in sorted(names, key=lambda each: spots[each][1]):
        (x, y), width = spots[at], text_width(names[at], _SIZE)
        begin, end, level = _free(spots[at], width, covered, taken, area, right_first=x <= middle)
        taken.append((begin, end, level))
        beside = not begin < x < end
        edge = (begin - 3 if begin > x else end + 3) if beside else x
        close = level if beside else level + math.copysign(9, y - level)
        if math.hypot(edge - x, close - y) > 16:
            canvas.path(f"M{x:.1f} {y:.1f}L{edge:.1f} {close:.1f}", "peer", width=0.7)
        anchor, start = ("end", end) if end < x else ("start", begin)
        kind = "ours" if kinds[at] == "ours" else "ink"
        canvas.text(start, level + 4.5, names[at], kind=kind, size=_SIZE, anchor=anchor, halo=True)


def _free(
    spot: Spot,
    width: float,
    covered: Sequence[tuple[Spot, float]],
    taken: Sequence[tuple[float, float, float]],
    area: Area,
    *,
    right_first: bool,
) -> tuple[float, float, float]:
    """Where a name of that width goes: its begin, its end, and the middle of its line. The cheapest place by
    the way from its spot and by what it would cover, each at its price; none is on another name."""
    (x, y), (left, top, right, bottom) = spot, area

    def cost(begin: float, end: float, line: float, moved: float) -> float:
        if begin < left or end > right or not top + 8 < line < bottom - 8:
            return math.inf
        if begin < spot[0] < end and abs(line - spot[1]) < 13:
            return math.inf
        if any(begin < last + 4 and first < end + 4 and abs(line - at) < _LINE for first, last, at in taken):
            return math.inf
        crossing = sum(begin < last and first < end and line < at for first, last, at in taken)
        over = (price for (x, y), price in covered if begin < x + 9 and x - 9 < end and abs(line - y) < 11)
        return moved + sum(over) + 40 * crossing

    over = min(max(x - width / 2, left), right - width)
    sides = [(over, over + width, 6.0)]
    for far in (10, 40, 80, 140):
        pair = [(x + far, x + far + width), (x - far - width, x - far)]
        sides += [(*side, 0.6 * (far - 10)) for side in (pair if right_first else pair[::-1])]
    steps = sorted(range(-320, 321, 4), key=abs)
    tried = [
        (cost(begin, end, y + moved, abs(moved) + far), begin, end, y + moved)
        for moved in steps
        for begin, end, far in sides
    ]
    return min(tried, key=lambda each: each[0])[1:]


def _along(line: Sequence[Spot]) -> list[Spot]:
    """Points of a line of straight pieces, 8 pixels apart."""
    found: list[Spot] = []
    for (x, y), (other_x, other_y) in pairwise(line):
        steps = max(int(math.hypot(other_x - x, other_y - y) / 8), 1)
        found += [(x + (other_x - x) * at / steps, y + (other_y - y) * at / steps) for at in range(steps)]
    return found
