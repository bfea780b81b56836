"""What `export` decides of every generation, unasked, and by what evidence.

    .venv/bin/python scripts/train_generations.py -o build/trained --every
    .venv/bin/python scripts/generation_evidence.py --trained build/trained

A row for each checkpoint that scripts/train_generations.py made (without --trained those of the tests), and
for a random one of its generation, experts and kv heads with the same tokenizer. Figures are bits per byte
of the text that comes with the package, in each candidate that was read; none where tensors and config.json
left one alone. "asks" and "refuses" are exit code 2, with both figures and --generation as the remedy."""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from doge_export.core.errors import DogeExportError
from doge_export.core.generations import GENERATIONS
from doge_export.export.evidence import decide_generation, weigh
from doge_export.export.init import init
from train_generations import Kind, kinds

TRAINED = Path(__file__).resolve().parent.parent / "tests" / "generations" / "trained"


def draw(kind: Kind, folder: Path) -> None:
    """Write a random checkpoint of that kind to `folder`."""
    preset = "Doge-20M-MoE" if kind.experts else "Doge-20M"
    init(preset, folder, seed=1, settings=kind.settings(), generation=kind.generation)


def cells(folder: Path) -> list[str]:
    """What is decided of the checkpoint, by what, and the figures."""
    evidence, scores = weigh(folder)
    try:
        decision = decide_generation(folder)
        decided = [decision.generation, decision.decided_by]
    except DogeExportError:
        decided = ["refuses" if evidence.decided else "asks", "-"]
    figures = [f"{scores[name].bits_per_byte:.2f}" if name in scores else "" for name in GENERATIONS]
    return [*decided, *figures]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trained", type=Path, default=TRAINED, help="what train_generations.py wrote")
    arguments = parser.parse_args()
    print("| checkpoint | weights | decided | by | " + " | ".join(GENERATIONS) + " |")
    print("|---|---|---|---|" + "---|" * len(GENERATIONS))
    for kind in kinds(every=True):
        if not (arguments.trained / kind.name).is_dir():
            continue
        with tempfile.TemporaryDirectory() as name:
            trained, drawn = Path(name) / "trained", Path(name) / "random"
            shutil.copytree(arguments.trained / kind.name, trained)
            draw(kind, drawn)
            for folder in (trained, drawn):
                shutil.copytree(arguments.trained / "tokenizer", folder, dirs_exist_ok=True)
                print(f"| {kind.name} | {folder.name} | " + " | ".join(cells(folder)) + " |", flush=True)


if __name__ == "__main__":
    main()
