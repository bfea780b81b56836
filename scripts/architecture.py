"""The picture of the architecture: the data from a checkpoint on, and the wing that does each step."""

__all__ = ["architecture_svg"]

from doge_export.render.canvas import Canvas, wrapped

_WIDTH, _LEFT, _BOX, _TALL, _STEP = 560.0, 16.0, 186.0, 50.0, 74.0
_WINGS = _LEFT + _BOX + 18

#: What there is after each step, what it consists of, and the wings that are at work: name and job.
STEPS = (
    ("checkpoint", "config.json, safetensors",
     (("core", "finds and reads it; knows generations, adapters, presets"),)),
    ("torch modules", "shapes, no weights yet",
     (("model", "Doge's modules, the cache as inputs and outputs (torch)"),)),
    ("canonical graph", "operators, no weights",
     (("model", "traces the modules (torch)"), ("graph", "operators, function bodies"))),
    ("plan of types", "a type for each matrix",
     (("export", "reads it from the options"), ("compress", "finds the types that lose least"))),
    ("lowered files", "one target, weights inside",
     (("weights", "rounds and packs matrices"), ("graph", "passes, targets, weights in"))),
    ("bundle", "ONNX files and a manifest",
     (("export", "writes the folder in one go"), ("inspection", "says what is in it"))),
    ("session", "prefill, decode, sampling",
     (("runtime", "onnxruntime, cache, sampling, generation; no torch"),)),
)  # fmt: skip
#: What comes out at the end.
ENDS = (
    ("text", (("serve", "over HTTP"), ("evaluate", "perplexity, tasks"), ("bench", "speed, memory"))),
    ("report", (("validate", "beside the reference"), ("render", "lines, charts, a page"))),
    ("engine", (("engines", "TensorRT's builder"), ("deploy", "for Triton's server"))),
)
AROUND = (
    ("cli", "the commands: calls the wings, and none calls it"),
    ("optimum_tasks.py", "the same export for optimum-cli"),
    ("core", "under all: configuration, bundles, errors"),
)


def architecture_svg() -> str:
    """The steps from top to bottom, and beside each the wings."""
    about = (
        "From top to bottom: " + ", ".join(name for name, *_ in STEPS) + "; from there to "
        "text, report or engine. Beside each step stand the wings, packages of doge_export, that do it."
    )
    canvas = Canvas(_WIDTH, "How doge-export is built: from a checkpoint to text, report or engine", about)
    canvas.text(_LEFT, 30, "The data", bold=True, size=17)
    canvas.text(_WINGS, 30, "The wing at work", bold=True, size=17)
    y = 48.0
    for at, (name, parts, wings) in enumerate(STEPS):
        _box(canvas, _LEFT, y, _BOX, name, parts)
        _wings(canvas, _WINGS, y + 16, wings)
        if at + 1 < len(STEPS):
            _arrow(canvas, _LEFT + _BOX / 2, y + _TALL, y + _STEP)
        y += _STEP
    y = _ends(canvas, y - _STEP + _TALL)
    canvas.path(f"M{_LEFT} {y}H{_WIDTH - 16}", "grid")
    y += 26
    for wing, job in AROUND:
        canvas.text(_LEFT, y, wing, kind="ours", bold=True)
        canvas.text(_LEFT + 160, y, job, size=13.5)
        y += 24
    canvas.height = y - 18
    return canvas.svg()


def _ends(canvas: Canvas, y: float) -> float:
    """Arrows from the session to the three ends, and their wings; where they end."""
    wide, gap = 166.0, 15.0
    start, turn, top = _LEFT + _BOX / 2, y + 14, y + 32
    middles = [_LEFT + wide / 2 + at * (wide + gap) for at in range(len(ENDS))]
    canvas.path(f"M{start} {y}V{turn}", "peer", width=1.5)
    canvas.path(f"M{middles[0]} {turn}H{middles[-1]}", "peer", width=1.5)
    for middle, (name, wings) in zip(middles, ENDS, strict=True):
        _arrow(canvas, middle, turn, top)
        canvas.rect(middle - wide / 2, top, wide, 36, "ours", radius=8)
        canvas.text(middle, top + 24, name, kind="ground", size=16, anchor="middle", bold=True)
        for number, (wing, job) in enumerate(wings):
            line = top + 58 + 40 * number
            canvas.text(middle - wide / 2, line, wing, kind="ours", bold=True)
            canvas.text(middle - wide / 2, line + 18, job, size=13.5)
    return top + 58 + 40 * 3 - 8


def _box(canvas: Canvas, x: float, y: float, width: float, name: str, parts: str) -> None:
    canvas.rect(x, y, width, _TALL, "panel", radius=8)
    canvas.text(x + width / 2, y + 21, name, size=16, anchor="middle", bold=True)
    canvas.text(x + width / 2, y + 40, parts, kind="soft", size=13, anchor="middle")


def _wings(canvas: Canvas, x: float, y: float, wings: tuple[tuple[str, str], ...]) -> None:
    for wing, job in wings:
        canvas.text(x, y, wing, kind="ours", bold=True)
        for words in wrapped(job, _WIDTH - x - 106, 13.5):
            canvas.text(x + 96, y, words, size=13.5)
            y += 17
        y += 3


def _arrow(canvas: Canvas, x: float, start: float, end: float) -> None:
    canvas.path(f"M{x} {start}V{end - 6}", "peer", width=1.5)
    canvas.arrow(x, end - 2, "peer", size=4.5)
