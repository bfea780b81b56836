"""What a picture looks like to somebody who sees it, worked out from its text alone."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from xml.etree import ElementTree

NAMESPACE = "{http://www.w3.org/2000/svg}"
#: Ems of a character: somewhat less than the widest of the fonts that system-ui stands for.
_EM, _NARROW, _BOLD = 0.56, 0.3, 1.06


@dataclass(frozen=True)
class Label:
    """A line of text, and the box around its letters."""

    text: str
    left: float
    top: float
    right: float
    bottom: float

    def covers(self, other: "Label") -> bool:
        """Do the two lie on each other, by more than a pixel?"""
        across = min(self.right, other.right) - max(self.left, other.left)
        return across > 1 and min(self.bottom, other.bottom) - max(self.top, other.top) > 1


def parsed(picture: str) -> ElementTree.Element:
    return ElementTree.fromstring(picture)


def labels(root: ElementTree.Element) -> Iterator[Label]:
    """Every line of text of the picture."""
    for each in root.iter(f"{NAMESPACE}text"):
        text = each.text or ""
        size, x, y = (float(each.get(key, "")) for key in ("font-size", "x", "y"))
        ems = sum(_NARROW if letter in " .,:;'()|ijlI" else _EM for letter in text)
        width = ems * size * (_BOLD if each.get("font-weight") else 1)
        left = x - {"start": 0, "middle": width / 2, "end": width}[each.get("text-anchor", "start")]
        yield Label(text, left, y - 0.73 * size, left + width, y + 0.2 * size)


def faults(picture: str) -> list[str]:
    """Labels on each other, or beyond the edge; a picture without words for those who do not see it; what
    another host would be asked for."""
    root = parsed(picture)
    width, height = map(float, (root.get("viewBox") or "").split()[2:])
    found = list(labels(root))
    said = [
        f"{one.text!r} lies on {other.text!r}" for one, other in combinations(found, 2) if one.covers(other)
    ]
    for label in found:
        if min(label.left, label.top) < 0 or label.right > width or label.bottom > height:
            said.append(f"{label.text!r} is cut off")
    if root.get("role") != "img" or not all(root.findtext(f"{NAMESPACE}{tag}") for tag in ("title", "desc")):
        said.append("it has no alt text")
    if "prefers-color-scheme: dark" not in (root.findtext(f"{NAMESPACE}style") or ""):
        said.append("it has no dark scheme")
    classes = {name for each in root.iter() for name in each.get("class", "").split()} - {"doge-picture"}
    rules = root.findtext(f"{NAMESPACE}style") or ""
    said += [f"no colour: {name}" for name in sorted(classes) if not re.search(rf"\.{name}[ ,]", rules)]
    outside = picture.replace('xmlns="http://www.w3.org/2000/svg"', "")
    if re.search(r"https?:|url\(|href|@import", outside):
        said.append("it asks another host")
    return said


def contrast(one: str, other: str) -> float:
    """The ratio of WCAG of two colours, #rrggbb: 1 to 21."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
