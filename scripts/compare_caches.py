"""Perplexity of a text with the bounded cache beside the growing one: the same calls, the same logits.

    .venv/bin/python scripts/compare_caches.py                        # doge-tiny, 20,000 tokens of held-out
    text .venv/bin/python scripts/compare_caches.py --model doge-tiny --text models/heldout.txt --tokens 20000

Two exports of the model, each in plain onnxruntime and on the native kernels, read the text in calls of 250
tokens and, at the end, one by one. Perplexity is exp of the mean negative log-likelihood of all tokens but
the first.
"""

import argparse
import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from doge_export.core.bundle import Bundle
from doge_export.core.presets import resolve_model
from doge_export.core.tokenizer import Tokenizer
from doge_export.export.options import ExportOptions
from doge_export.export.pipeline import export_model
from doge_export.runtime import Session
from doge_export.runtime.prefill import read_rows

ROOT = Path(__file__).resolve().parent.parent
_CALL, _SINGLE = 250, 500  # tokens of a call; tokens at the end that are fed one by one


def negative_log_likelihood(session: Session, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """-log p of every token of ids [length] but the first."""
    losses, border = [], len(ids) - min(_SINGLE, len(ids) // 2)
    starts = [*range(0, border, _CALL), *range(border, len(ids))]
    parts = [slice(*ends) for ends in itertools.pairwise(starts)]
    for part, logits in read_rows(session, ids[None], parts):
        targets = ids[part.start + 1 : part.stop + 1]
        wide = logits[0].astype(np.float64)
        wide -= wide.max(-1, keepdims=True)
        total = np.log(np.exp(wide).sum(-1))
        losses.append(total - np.take_along_axis(wide, targets[:, None], -1)[:, 0])
        print(f"\r{part.stop:,} of {len(ids):,}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return np.concatenate(losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="doge-tiny")
    parser.add_argument("--text", type=Path, default=ROOT / "models" / "heldout.txt")
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--routing", choices=("reference", "per-token"), default="per-token")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    tokenizer = Tokenizer.load(resolve_model(arguments.model))
    ids = np.array(tokenizer.encode(arguments.text.read_text(encoding="utf-8")))[: arguments.tokens]
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        base: npt.NDArray[np.float64] | None = None
        for kind in ("growing", "bounded"):
            options = ExportOptions.resolve(kv_cache=kind, routing=arguments.routing)
            output = Path(folder) / kind
            export_model(arguments.model, output, options, validate=False)
            for native in (False, True):
                print(f"{kind}, {'kernels' if native else 'plain onnxruntime'}", file=sys.stderr)
                session = Session.open(Bundle.open(output), native=native)
                losses = negative_log_likelihood(session, ids)
                base = losses if base is None else base
                perplexity = float(np.exp(losses.mean()))
                results.append(
                    {
                        "cache": kind,
                        "kernels": native,
                        "perplexity": perplexity,
                        "relative": perplexity / float(np.exp(base.mean())) - 1,
                        "largest": float(np.abs(losses - base).max()),
                    }
                )
    print(f"{arguments.model}, {len(ids):,} tokens of {arguments.text.name}\n")
    print("| cache | runs on | perplexity | relative to the first | largest difference of one token's |")
    print("|---|---|---|---|---|")
    for row in results:
        runtime = "kernels" if row["kernels"] else "plain onnxruntime"
        print(
            f"| {row['cache']} | {runtime} | {row['perplexity']:.6f} | {row['relative']:.1e} | "
            f"{row['largest']:.1e} |"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
