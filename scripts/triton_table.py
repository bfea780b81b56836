"""Registers, spills and shared memory of every Triton kernel in every type, as compiled for GPU generations.

    .venv/bin/python scripts/triton_table.py --cache build/triton-table --into docs/lab/2026-11-26-triton.md
    .venv/bin/python scripts/triton_table.py --plugins SplitAttention --dtypes float32 --sm 80

No GPU takes part: Triton compiles to PTX, and the ptxas in its package assembles that. A row has the most
that any generation takes.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from doge_export.triton.plugin import Plugin, Shapes
from doge_export.triton.ptx import CAPABILITIES, Compiled, compile_launch
from doge_export.triton.table import PLUGINS
from tests._marked import put_between

#: The shape of Doge-160M, and the experts that its configuration names.
BATCH, LENGTH, PAST, HEADS, KV_HEADS, DIM, HIDDEN = 1, 1, 2048, 6, 3, 128, 768
KEYS, TOP, EXPERTS = 128, 64, 16384
ATTRIBUTES = {
    **{"num_heads": HEADS, "epsilon": 1e-6, "scale": DIM**-0.5, "keep_window_size": 2048},
    **{"sliding_window": 0, "bounded": 0, "num_keys": KEYS, "num_experts_per_tok": TOP},
    **{"per_token": 0, "norm_topk_prob": 0, "activation": "silu"},
}

#: A thread's registers, the bytes that it spills, a block's bytes of shared memory.
FIGURES = ("registers", "spills", "shared")
MARKS = ("<!-- table of scripts/triton_table.py -->", "<!-- end of the table -->")


def shapes() -> Shapes:
    """The shape of every input that some plugin has."""
    slots = PAST + LENGTH
    cache, row = (BATCH, KV_HEADS, PAST), (BATCH, KV_HEADS, slots)
    angles = (BATCH, LENGTH, DIM // 2)
    states = (BATCH, LENGTH, KV_HEADS * DIM)
    return {
        "query": (BATCH, LENGTH, HEADS * DIM),
        "key": states,
        "value": states,
        "past_key": (*cache, DIM),
        "past_value": (*cache, DIM),
        "past_dt": cache,
        "past_position": cache,
        "attention_mask": (BATCH, LENGTH),
        "position_ids": (BATCH, LENGTH),
        "first": (BATCH,),
        "cos": angles,
        "sin": angles,
        "q_norm": (DIM,),
        "k_norm": (DIM,),
        "dt_weight": (KV_HEADS, KV_HEADS * DIM),
        "dt_bias": (KV_HEADS,),
        "A": (KV_HEADS,),
        "key_positions": (BATCH, slots),
        "threshold": (BATCH, KV_HEADS, LENGTH),
        "last": (BATCH, KV_HEADS, LENGTH),
        "partial": (BATCH, HEADS, 64, DIM),
        "stats": (BATCH, HEADS, 64, 2),
        **dict.fromkeys(("present_key", "present_value", "all_key", "all_value"), (*row, DIM)),
        **dict.fromkeys(("dt", "all_dt", "all_position"), row),
        "router_logits": (BATCH, LENGTH, 2 * KEYS),
        "hidden_states": (BATCH, LENGTH, HIDDEN),
        "indices": (BATCH * LENGTH, TOP),
        "weights": (BATCH * LENGTH, TOP),
        "down_embed": (EXPERTS, HIDDEN),
        "up_embed": (EXPERTS, HIDDEN),
    }


def compiled(plugin: Plugin, tactic: dict[str, int], dtype: str, capability: int) -> Compiled:
    """The plugin's kernel for the shapes above."""
    inputs = {name: shape for name, shape in shapes().items() if name in plugin.inputs}
    results = dict(zip(plugin.outputs, plugin.shapes(inputs, ATTRIBUTES), strict=True))
    return compile_launch(plugin, plugin.launch({**inputs, **results}, ATTRIBUTES, tactic), dtype, capability)


def assembled(kernel: Compiled, capability: int) -> dict[str, int]:
    """Registers a thread, bytes spilled a thread, and static and dynamic shared memory a block, by ptxas."""
    from triton import knobs

    tool = knobs.nvidia.ptxas if capability < 90 else knobs.nvidia.ptxas_blackwell
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(kernel.ptx)
        target = f"sm_{capability}" + ("a" if capability >= 90 else "")
        command = [
            tool.path,
            "-v",
            f"--gpu-name={target}",
            str(source),
            "-o",
            str(Path(folder) / "kernel.cubin"),
        ]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = re.search(r"Used (\d+) registers", log)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    static = re.search(r"(\d+) bytes smem", log)
    assert registers is not None and spills is not None, log
    return {
        "registers": int(registers[1]),
        "spills": int(spills[1]) + int(spills[2]),
        "shared": kernel.shared + (int(static[1]) if static else 0),
    }


def figures(name: str, number: int, dtype: str, capability: int, cache: Path | None) -> dict[str, int]:
    """The figures of the kernel with its tactic `number`; compiled where no file in `cache` says it."""
    file = cache / f"{name}-{number}-{dtype}-{capability}.json" if cache else None
    if file is not None and file.exists():
        known: dict[str, int] = json.loads(file.read_text())
        return known
    tactic = dict(PLUGINS[name].tactics[number - 1])
    measured = assembled(compiled(PLUGINS[name], tactic, dtype, capability), capability)
    if file is not None:
        file.write_text(json.dumps(measured))
    return measured


def cell(by_capability: dict[int, dict[str, int]]) -> str:
    """The most that any capability takes, and behind it which ones spill, where not all do."""
    shown = " / ".join(str(max(each[key] for each in by_capability.values())) for key in FIGURES)
    spilling = [f"sm_{capability}" for capability, each in by_capability.items() if each["spills"]]
    return shown + (f" ({', '.join(spilling)})" if 0 < len(spilling) < len(by_capability) else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plugins", nargs="+", default=list(PLUGINS), choices=list(PLUGINS))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float16", "bfloat16"])
    parser.add_argument("--sm", nargs="+", type=int, default=list(CAPABILITIES))
    parser.add_argument("--cache", type=Path, help="a folder: what it has is not compiled again")
    parser.add_argument("--into", type=Path, help="put the table between the marks of this file")
    options = parser.parse_args()
    if options.cache:
        options.cache.mkdir(parents=True, exist_ok=True)
    lines = [f"| kernel | tactic | {' | '.join(options.dtypes)} |", "|---" * (2 + len(options.dtypes)) + "|"]
    print("\n".join(lines))
    for name in options.plugins:
        for number in range(1, len(PLUGINS[name].tactics) + 1):
            cells = [
                cell({sm: figures(name, number, dtype, sm, options.cache) for sm in options.sm})
                for dtype in options.dtypes
            ]
            lines.append(f"| {name} | {number} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    if options.into:
        put_between(MARKS, lines, options.into)


if __name__ == "__main__":
    main()
