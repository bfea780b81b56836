"""A picture, and beside it the figures that it is drawn from (draw_pictures.py draws it again)."""

__all__ = ["save_picture"]

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def save_picture(
    svg: str, report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], keys: Sequence[str], picture: Path
) -> None:
    """Write `svg` to `picture`, and what says where it comes from, with the `keys` of its `rows`, to the JSON
    file beside it."""
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_text(svg, encoding="utf-8")
    kept = {key: report[key] for key in ("command", "date", "machine", "run")}
    figures = {**kept, "results": [{key: row[key] for key in keys} for row in rows]}
    picture.with_suffix(".json").write_text(f"{json.dumps(figures, indent=1)}\n", encoding="utf-8")
