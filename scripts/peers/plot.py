"""The picture: decode and prefill, every peer's rate over transformers eager, on a logarithmic axis.

    python -m peers.plot REPORT PICTURE

Runs in the peers' own environment, which has matplotlib.
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from peers.report import BASE, peers, rate

_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
_MARKERS = "osD^vP"


def main() -> None:
    report = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    draw(report, Path(sys.argv[2]))


def draw(report: dict[str, Any], picture: Path) -> None:
    """Write the picture of the run with the most threads."""
    plt.rcParams.update({"svg.hashsalt": "doge-export", "font.size": 9, "svg.fonttype": "none"})
    run, results = report["run"], report["results"]
    threads, models = max(run["threads"]), run["models"]
    parts = {"decode": f"decode, {run['prompt_tokens']} + {run['new_tokens']} tokens",
             "prefill": f"prefill of {run['prefill_tokens']} tokens"}  # fmt: skip
    rows = {part: _rows(results, threads, models, part) for part in parts}
    tallest = max(len(names) for names in rows.values())
    figure, panels = plt.subplots(1, 2, figsize=(12, 1.2 + 0.27 * tallest), layout="constrained")
    for panel, (part, title) in zip(panels, parts.items(), strict=True):
        names = rows[part]
        for at, model in enumerate(models):
            base = rate(results, threads, model, BASE, part)
            points = [
                (value / base, -row)
                for row, name in enumerate(names)
                if base and (value := rate(results, threads, model, name, part))
            ]
            if points:
                x, y = zip(*points, strict=True)
                panel.plot(x, y, _MARKERS[at % len(_MARKERS)], ms=5, color=_COLOURS[at % len(_COLOURS)],
                           label=model, alpha=0.85)  # fmt: skip
        panel.set_yticks([-row for row in range(len(names))], names)
        for label, name in zip(panel.get_yticklabels(), names, strict=True):
            label.set_fontweight("bold" if name.startswith("doge-export") else "normal")
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
        panel.axvline(1, color="#888888", lw=0.8)
        panel.grid(axis="both", color="#dddddd", lw=0.5)
        panel.set_axisbelow(True)
        panel.set_title(title)
        panel.set_xlabel("times transformers eager")
    panels[0].legend(loc="lower right", fontsize=8)
    machine = report["machine"]
    figure.suptitle(
        f"{machine['cpu']}, {threads} threads, batch 1, best of {run['rounds']} interleaved rounds; "
        "llama.cpp and contrib run a Llama of the same shape",
        fontsize=9,
    )
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, metadata={"Date": None} if picture.suffix == ".svg" else None)


def _rows(results: Any, threads: int, models: list[str], part: str) -> list[str]:
    return [
        name for name in peers(results) if any(rate(results, threads, model, name, part) for model in models)
    ]


if __name__ == "__main__":
    main()
