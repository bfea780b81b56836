"""The picture: milliseconds a token and resident memory by the length of the text.

    python -m context.plot REPORT PICTURE

Runs in an environment of its own, which has matplotlib.
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

_COLOURS = {"Doge-20M": "#0072b2", "Doge-60M": "#d55e00"}
_STYLES = {"int8": ("o", "-"), "fp32": ("s", "-"), "transformers eager": ("^", "--")}


def main() -> None:
    report = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    draw(report, Path(sys.argv[2]))


def draw(report: dict[str, Any], picture: Path) -> None:
    plt.rcParams.update({"svg.hashsalt": "doge-export", "font.size": 9, "svg.fonttype": "none"})
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    series: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in report["results"]:
        series.setdefault((row["model"], row["name"]), []).append(row)
    for (model, name), rows in series.items():
        marker, line = _STYLES.get(name, ("x", ":"))
        ours = "doge-export " if name != "transformers eager" else ""
        for panel, key, scale in ((panels[0], "ms", 1.0), (panels[1], "resident", 2.0**-20)):
            panel.plot(
                [row["context"] for row in rows],
                [row[key] * scale for row in rows],
                marker + line,
                ms=5,
                color=_COLOURS.get(model, "#009e73"),
                label=f"{model}, {ours}{name}",
            )
    for panel, title in zip(panels, ("milliseconds a token", "resident memory, MiB"), strict=True):
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        contexts = sorted({row["context"] for row in report["results"]})
        panel.set_xticks(contexts, [f"{context // 1024}k" for context in contexts])
        panel.grid(color="#dddddd", lw=0.5)
        panel.set_axisbelow(True)
        panel.set_title(title)
        panel.set_xlabel("tokens of context")
    panels[0].legend(fontsize=8)
    figure.suptitle(
        f"{report['machine']['cpu']}, {report['run']['threads']} threads, batch 1, keep_window_size 2048",
        fontsize=9,
    )
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, metadata={"Date": None} if picture.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
