"""The matrix of docs/lab/2026-11-30-generations.md, measured: every generation, dense and with
experts, in every cache and routing.

    .venv/bin/python scripts/generation_matrix.py
    .venv/bin/python scripts/generation_matrix.py --generation 2 --weights trained

Each cell is the largest absolute difference of logits between the graph in plain onnxruntime and the
generation's judge, over real positions of all schedules of tests/export/test_parity.py, on a random
checkpoint of `init` and on one that was trained on bytes of models/heldout.txt for some steps. A share below
"all" keys and experts is shown."""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from safetensors.torch import save_file

from doge_export.core.checkpoint.folder import Checkpoint
from doge_export.core.errors import DogeExportError
from doge_export.core.generations import GENERATIONS
from doge_export.export.options import ExportOptions
from doge_export.export.pipeline import export_model
from doge_export.validate.backends.function_bodies import FunctionBodies
from doge_export.validate.backends.reference import Reference
from doge_export.validate.comparison import compare_selection
from doge_export.validate.schedules import draw_tokens
from tests.export.test_parity import TABLE
from tests.generations._checkpoints import make

TEXT = Path(__file__).resolve().parent.parent / "models" / "heldout.txt"
CACHES = ("growing", "static", "bounded")
ROUTINGS = ("reference", "per-token")


def train(folder: Path, generation: str, steps: int, seed: int = 0) -> None:
    """Let the checkpoint in `folder` learn the bytes of a text; it is written back in its own format."""
    from transformers.cache_utils import DynamicCache

    checkpoint = Checkpoint.open(folder, generation)
    model = Reference(folder, generation=generation).model.train().requires_grad_(True)
    data = torch.frombuffer(bytearray(TEXT.read_bytes()), dtype=torch.uint8).long()
    rng = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    length = 24
    for _ in range(steps):
        starts = torch.randint(0, len(data) - length - 1, (8,), generator=rng)
        batch = torch.stack([data[start : start + length + 1] for start in starts])
        input_ids, mask = batch[:, :-1], torch.ones(8, length, dtype=torch.int64)
        positions = torch.arange(length)[None].expand(8, -1)
        cache = DynamicCache(config=model.config)
        logits = model(input_ids, mask, positions, cache, use_cache=True).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    print(f"{folder.name}: loss {float(loss):.2f} nats a byte after {steps} steps", file=sys.stderr)
    learned = dict(model.named_parameters())
    tensors = {stored: learned[name].detach().contiguous() for name, stored in checkpoint.stored.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def measure(
    folder: Path, bundle: Path, generation: str, kind: str, routing: str
) -> tuple[float, float] | str:
    """Measure the largest difference and the share of equal sets; or the reason why there is no such
    export."""
    static: dict[str, Any] = {"max_length": 40} if kind == "static" else {}
    try:
        options = ExportOptions.resolve(generation=generation, kv_cache=kind, routing=routing, **static)
        exported = export_model(str(folder), bundle, options, validate=False).bundle
    except DogeExportError as error:
        return error.message
    reference = Reference(folder, per_token=routing == "per-token", generation=generation)
    candidate = FunctionBodies(exported)
    worst, agreement = 0.0, 1.0
    for seed, schedule in enumerate(TABLE):
        tokens = draw_tokens(schedule, exported.config.vocab_size, seed)
        expected, got = reference.run(schedule, tokens), candidate.run(schedule, tokens)
        worst = max(worst, float(np.abs(expected.logits - got.logits)[tokens.real].max()))
        agreement = min(agreement, compare_selection(expected, got, tokens, schedule.steps).share)
    return worst, agreement


def cell(measured: tuple[float, float] | str) -> str:
    if isinstance(measured, str):
        return "refused"
    worst, agreement = measured
    return f"{worst:.1e}" + ("" if agreement == 1.0 else f" ({agreement:.1%} of the sets)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--generation", action="append", choices=list(GENERATIONS))
    parser.add_argument("--weights", action="append", choices=["random", "trained"])
    parser.add_argument("--steps", type=int, default=60, help="of training")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the models are too small for two
    columns = [("dense", kind, "reference") for kind in CACHES]
    columns += [("experts", kind, routing) for routing in ROUTINGS for kind in CACHES]
    names = [f"{what}, {kind}" + (f", {way}" if what == "experts" else "") for what, kind, way in columns]
    print("| generation | weights | " + " | ".join(names) + " |")
    print("|---|---|" + "---|" * len(names))
    results: dict[str, Any] = {}
    for generation in arguments.generation or GENERATIONS:
        for weights in arguments.weights or ["random", "trained"]:
            cells: list[str] = []
            with tempfile.TemporaryDirectory() as name:
                root = Path(name)
                always = bool(GENERATIONS[generation].fixed.get("is_moe"))  # experts
                for what in ("experts",) if always else ("dense", "experts"):
                    checkpoint = make(root / what, generation, what == "experts")
                    if weights == "trained":
                        train(checkpoint, generation, arguments.steps)
                for column, (what, kind, routing) in zip(names, columns, strict=True):
                    if what == "dense" and always:
                        cells.append("none")
                        continue
                    measured = measure(root / what, root / column, generation, kind, routing)
                    results[f"{generation}, {weights}, {column}"] = measured
                    cells.append(cell(measured))
            print(f"| {generation} | {weights} | " + " | ".join(cells) + " |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
