"""What every picture is drawn on: colours in light and dark, text of known width, SVG with an alt text."""

import math
from collections.abc import Sequence
from html import escape

__all__ = ["DARK", "LIGHT", "Canvas", "powers", "text_width", "ticks", "wrapped"]

#: Classes of the parts and their colours. Of the inks each has a contrast of at least 4.5 with `ground`.
LIGHT = {"ground": "#ffffff", "ink": "#1f2328", "soft": "#57606a", "ours": "#0b57d0", "good": "#1a7f4b",
         "bad": "#b3261e", "peer": "#8a929b", "grid": "#dfe3e8", "panel": "#f3f5f8"}  # fmt: skip
DARK = {"ground": "#14181d", "ink": "#e6edf3", "soft": "#a3adb8", "ours": "#7ab7ff", "good": "#56c98a",
        "bad": "#ff8a80", "peer": "#7d8791", "grid": "#323a44", "panel": "#1e242b"}  # fmt: skip

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
#: Ems a character takes in DejaVu Sans, which is among the widest that system-ui may be; others take 0.64.
_WIDTHS = {
    width: set(letters)
    for width, letters in (
        (0.3, "ijlI|'"), (0.36, " .,:;!f()[]-/"), (0.44, "tr"), (0.55, "scxkvyzJ"), (0.72, "ABCDRVUHGNKTX"),
        (0.84, "OQw+=<>≤≥±→"), (0.98, "mMW%@…"),
    )
}  # fmt: skip


def text_width(text: str, size: float, bold: bool = False) -> float:
    """Pixels that `text` takes at most, by a table of widths."""
    ems = [next((wide for wide, letters in _WIDTHS.items() if each in letters), 0.64) for each in text]
    return sum(ems) * size * (1.1 if bold else 1.0)


def powers(low: float, high: float) -> list[int]:
    """The whole powers of ten from 10**low to 10**high."""
    return list(range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1))


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from `low` to `high`: about `most` in even steps, or 1, 2, 3, 5, 7 over a wide span."""
    if low > 0 and high / low > 4:
        mantissas: Sequence[float] = (1, 2, 3, 5, 7) if high / low < 30 else (1, 3)
        first = math.floor(math.log10(low))
        last = math.ceil(math.log10(high))
        found = [m * 10.0**power for power in range(first, last + 1) for m in mantissas]
    else:
        rough = max(high - low, 1e-9) / most
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough)
        found = [step * number for number in range(math.floor(low / step), math.ceil(high / step) + 1)]
    return [round(value, 9) for value in found if low <= value <= high]


class Canvas:
    """An SVG in the making. `title` names it and `about` says what it shows, for those who do not see it."""

    def __init__(self, width: float, title: str, about: str) -> None:
        self.width, self.height = width, 0.0
        self._title, self._about = title, about
        self._parts: list[str] = []

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        kind: str = "ink",
        size: float = 15,
        anchor: str = "start",
        bold: bool = False,
        halo: bool = False,
    ) -> None:
        """A line of text on the base line `y`; `anchor` as SVG has it: start, middle or end at `x`. A `halo`
        keeps lines that pass behind it off."""
        weight = ' font-weight="600"' if bold else ""
        place = "" if anchor == "start" else f' text-anchor="{anchor}"'
        classes = f"{kind} halo" if halo else kind
        self._parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" class="{classes}" font-size="{size:g}"{place}{weight}>'
            f"{escape(text)}</text>"
        )
        self.height = max(self.height, y + size * 0.3)

    def rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        kind: str,
        *,
        radius: float = 0,
        hint: str | None = None,
        colour: str | None = None,
    ) -> None:
        """A filled box; `hint` is shown where a pointer rests, and `colour` stands for that of `kind`."""
        corner = f' rx="{radius:g}"' if radius else ""
        fill = f' style="fill: {colour}"' if colour else ""
        place = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{max(height, 0):.1f}"'
        self._parts.append(f'<rect {place}{corner} class="{kind}"{fill}{_hint(hint, "rect")}')
        self.height = max(self.height, y + height)

    def path(self, path: str, kind: str, *, width: float = 1, dash: str | None = None) -> None:
        """A line along `path`, in SVG's letters."""
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self._parts.append(f'<path d="{path}" class="{kind}-line" stroke-width="{width:g}"{dashed}/>')

    def dot(
        self,
        x: float,
        y: float,
        kind: str,
        *,
        radius: float = 4.5,
        filled: bool = True,
        hint: str | None = None,
    ) -> None:
        """A circle, filled or with a rim alone."""
        classes = f"{kind if filled else 'hollow'} {kind}-rim"
        place = f'cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"'
        self._parts.append(f'<circle {place} class="{classes}"{_hint(hint, "circle")}')

    def arrow(self, x: float, y: float, kind: str, *, size: float = 5) -> None:
        """The head of an arrow that points down, with its point at x, y."""
        points = f"M{x - size:.1f} {y - 1.6 * size:.1f}H{x + size:.1f}L{x:.1f} {y:.1f}Z"
        self._parts.append(f'<path d="{points}" class="{kind}"/>')

    def note(self, y: float, text: str, *, x: float = 16) -> float:
        """Small soft text from `y` on, cut into lines that fit; the base line after the last."""
        for line in wrapped(text, self.width - x - 16, 13):
            self.text(x, y, line, kind="soft", size=13)
            y += 18
        return y

    def svg(self) -> str:
        """The picture, on a ground of its own that follows the reader's colour scheme."""
        height = math.ceil(self.height + 14)
        size = f'viewBox="0 0 {self.width:g} {height}" width="{self.width:g}" height="{height}"'
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" class="doge-picture" '
                f'font-family="{_FONT}">',
                f"<title>{escape(self._title)}</title>",
                f"<desc>{escape(self._about)}</desc>",
                f"<style>{_style()}</style>",
                f'<rect width="{self.width:g}" height="{height}" rx="8" class="ground"/>',
                *self._parts,
                "</svg>\n",
            ]
        )


def wrapped(text: str, width: float, size: float) -> list[str]:
    """`text` in lines of at most `width` pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and text_width(longer, size) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _hint(hint: str | None, tag: str) -> str:
    return "/>" if hint is None else f"><title>{escape(hint)}</title></{tag}>"


def _style() -> str:
    """Both schemes. The names of the classes begin with the picture's, for a page holds several."""
    fixed = (
        ".doge-picture { max-width: 100%; height: auto } .doge-picture path[class$=line] { fill: none; "
        "stroke-linejoin: round } .doge-picture .halo { paint-order: stroke; stroke-width: 4px; "
        "stroke-linejoin: round } .doge-picture [class$=rim] { stroke-width: 1.5 }"
    )
    return (
        f"\n{fixed}\n{_rules(LIGHT)}\n@media screen and (prefers-color-scheme: dark) {{\n{_rules(DARK)}\n}}\n"
    )


def _rules(colours: dict[str, str]) -> str:
    fixed = {"hollow": colours["ground"], "on-light": "#000000", "on-dark": "#ffffff"}
    halo = f".doge-picture .halo {{ stroke: {colours['ground']} }}\n"
    return halo + "\n".join(
        f".doge-picture .{kind} {{ fill: {colour} }} .doge-picture .{kind}-line, .doge-picture .{kind}-rim "
        f"{{ stroke: {colour} }}"
        for kind, colour in {**colours, **fixed}.items()
    )
