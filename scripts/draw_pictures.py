"""The pictures of docs/pictures, drawn again from the figures that lie beside them.

    .venv/bin/python scripts/draw_pictures.py              # all
    .venv/bin/python scripts/draw_pictures.py speed pareto

The figures are those of the run that each file names (`command`, `date`); nothing is measured here.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from architecture import architecture_svg
from context.plot import context_svg
from doge_export.render.charts import pareto_svg
from peers.plot import speed_svg
from quantizer_points import quantizer_points

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "pictures"


def _front(found: dict[str, Any]) -> str:
    return pareto_svg(found["points"], found["model"])


def _quantizers(found: dict[str, Any]) -> str:
    return pareto_svg(quantizer_points(found["results"]), found["model"])


DRAWN: dict[str, Callable[[dict[str, Any]], str]] = {
    "speed": speed_svg,
    "context": context_svg,
    "pareto": _front,
    "pareto-moe": _front,
    "quantization": _quantizers,
    "architecture": lambda _: architecture_svg(),
}


def drawn(name: str) -> str:
    """The picture of that name."""
    figures = FOLDER / f"{name}.json"
    return DRAWN[name](json.loads(figures.read_text(encoding="utf-8")) if figures.exists() else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(DRAWN)}")
    names = parser.parse_args().names or list(DRAWN)
    if unknown := sorted(set(names) - set(DRAWN)):
        parser.error(f"there is no picture {unknown[0]}; there are {', '.join(DRAWN)}")
    for name in names:
        (FOLDER / f"{name}.svg").write_text(drawn(name), encoding="utf-8")
        print(FOLDER / f"{name}.svg")


if __name__ == "__main__":
    main()
