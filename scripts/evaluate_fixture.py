"""Held-out bits per UTF-8 byte of a fixture, beside unigram and bigram baselines.

Every held-out document is scored alone. A window is <|begin_of_text|> and up to 511 tokens before
the last scored one; windows advance by --stride tokens (256 unless told), so that every scored
token after a document's first window has at least 512 - stride tokens of context. Only the
documents' own tokens are scored (no end of text), and the sum of their bits is divided by the
documents' UTF-8 bytes. The baselines score the same tokens with the same tokenizer. They are
counted on train.txt, their smoothing is chosen on every 20th document of train.txt.

unigram: add-k counts.  bigram: interpolated Kneser-Ney with one discount.

For a MoE the figure is with per-token routing, which is causal and is how the model decodes at
batch size 1. `reference_full_forward` is transformers' full forward, whose routing looks at other
tokens, later ones included: it is not a valid compression figure, and is reported to show the gap.
`without_experts` is the same model with the routed experts silenced: what they contribute.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

import doge_fast

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]
BOS = 0
CONTEXT = 512
BATCH = 4


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def encode(tokenizer: Any, documents: list[str]) -> list[Ids]:
    encodings = tokenizer.encode_batch(documents, add_special_tokens=False)
    return [np.asarray(encoding.ids, dtype=np.int64) for encoding in encodings]


class Unigram:
    """Add-k counts."""

    def __init__(self, documents: list[Ids], vocab: int) -> None:
        self.counts = np.bincount(np.concatenate(documents), minlength=vocab).astype(np.float64)

    def bits(self, documents: list[Ids], k: float) -> float:
        counts = self.counts + k
        log = -np.log2(counts / counts.sum())
        return float(sum(log[ids].sum() for ids in documents))


class Bigram:
    """Interpolated Kneser-Ney; the lower order is the add-one continuation unigram."""

    def __init__(self, documents: list[Ids], vocab: int) -> None:
        table = np.zeros(vocab * vocab, dtype=np.int32)
        for ids in documents:
            before = np.concatenate(([BOS], ids[:-1]))
            np.add.at(table, before * vocab + ids, 1)
        self.table = table.reshape(vocab, vocab)
        self.total = self.table.sum(1, dtype=np.int64).astype(np.float64)
        self.kinds = np.count_nonzero(self.table, axis=1).astype(np.float64)
        left = np.count_nonzero(self.table, axis=0) + 1.0
        self.continuation: Floats = left / left.sum()

    def bits(self, documents: list[Ids], discount: float) -> float:
        bits = 0.0
        for ids in documents:
            before = np.concatenate(([BOS], ids[:-1]))
            total = self.total[before]
            seen = np.maximum(self.table[before, ids] - discount, 0.0)
            spare = np.where(total > 0, discount * self.kinds[before], 1.0)
            total = np.maximum(total, 1.0)
            bits -= float(np.log2((seen + spare * self.continuation[ids]) / total).sum())
        return bits


def baselines(train: list[Ids], held_out: list[Ids], vocab: int) -> dict[str, dict[str, float]]:
    fit = [ids for index, ids in enumerate(train) if index % 20]
    tune = train[::20]
    result: dict[str, dict[str, float]] = {}
    kinds: list[tuple[str, type[Unigram] | type[Bigram], list[float]]] = [
        ("unigram", Unigram, [0.1, 1.0, 3.0, 10.0, 30.0, 100.0]),
        ("bigram", Bigram, [0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]),
    ]
    for name, kind, choices in kinds:
        small = kind(fit, vocab)
        best = min(choices, key=lambda value, small=small: small.bits(tune, value))  # type: ignore[misc]
        result[name] = {"bits": kind(train, vocab).bits(held_out, best), "smoothing": best}
    return result


def windows(ids: Ids, stride: int) -> Iterator[tuple[Ids, Ids, int]]:
    """(inputs, targets, first scored target) of one document's windows."""
    start, scored = 0, 0
    while scored < len(ids):
        targets = ids[start : start + CONTEXT]
        yield np.concatenate(([BOS], targets[:-1])), targets, scored - start
        scored = start + len(targets)
        start += stride


def model_bits(
    model: Any, documents: list[Ids], stride: int, routing: doge_fast.Routing, threads: int
) -> float:
    """Sum of the bits of every token, on a pool of one-threaded workers."""
    batch = 1 if routing == "reference" else BATCH  # the reference would mix the batch's rows
    everything = [window for ids in documents for window in windows(ids, stride)]
    everything.sort(key=lambda window: -len(window[0]))
    groups: list[list[tuple[Ids, Ids, int]]] = []
    for window in everything:
        if not groups or len(groups[-1]) == batch or len(groups[-1][0][0]) != len(window[0]):
            groups.append([])
        groups[-1].append(window)

    @torch.no_grad()
    def score(group: list[tuple[Ids, Ids, int]]) -> float:
        inputs = torch.from_numpy(np.stack([w[0] for w in group]))
        targets = torch.from_numpy(np.stack([w[1] for w in group]))
        logits, _ = doge_fast.forward(model, inputs, routing=routing)
        nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        rows = zip(nats.view_as(targets), group, strict=True)
        return sum(float(row[first:].double().sum()) for row, (_, _, first) in rows) / math.log(2)

    bits, began, done = 0.0, time.monotonic(), 0
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for group, group_bits in zip(groups, pool.map(score, groups), strict=True):
            bits += group_bits
            done += len(group)
            if done // 200 > (done - len(group)) // 200 or done == len(everything):
                note(f"{routing}: {done}/{len(everything)} windows, {time.monotonic() - began:.0f} s")
    return bits


@torch.no_grad()
def selection(model: Any, documents: list[Ids]) -> list[dict[str, float]]:
    """How the dynamic mask (and the router) decide on the first full window of each document."""
    rows = [np.concatenate(([BOS], ids[: CONTEXT - 1])) for ids in documents if len(ids) >= CONTEXT]
    ids = torch.from_numpy(np.stack(rows[:8]))
    _, seen = doge_fast.forward(model, ids, trace=True)
    window = int(model.config.keep_window_size)
    position = torch.arange(ids.shape[1])
    causal = position[None, :] <= position[:, None]
    recent = causal & (position[:, None] - position[None, :] < window)
    result = []
    for index, (bias, keep) in enumerate(zip(seen.bias, seen.keep, strict=True)):
        row: dict[str, float] = {
            "layer": index,
            "bias_mean": float(bias.mean()),
            "bias_std": float(bias.std(-1).mean()),
        }
        if keep is not None:
            kept = (keep & causal)[:, :, window:]
            row["kept_beyond_recent"] = float((kept & ~recent[window:]).sum() / kept.sum().clamp(min=1))
            filled = bias[:, :, None, :].masked_fill(~causal, float("-inf"))[:, :, window:]
            order = filled.sort(-1, descending=True).values
            row["rows_cut_in_a_tie"] = float((order[..., window - 1] == order[..., window]).float().mean())
        if model.config.is_moe:
            load = seen.experts[index].sum(0)
            share = load / load.sum()
            row["experts_used"] = float((load > 0).sum())
            row["experts_effective"] = float(torch.exp(torch.special.entr(share).sum()))
        result.append({name: round(value, 4) for name, value in row.items()})
    return result


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    from tokenizers import Tokenizer
    from transformers import DogeForCausalLM

    if not (args.model / "config.json").is_file():
        raise ValueError(f"{args.model} is not a model folder (no config.json)")
    if not 1 <= args.stride <= CONTEXT:
        raise ValueError(f"--stride must be 1 to {CONTEXT}")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    texts = (args.corpus / "heldout.txt").read_text(encoding="utf-8").split("\f")
    size = sum(len(text.encode("utf-8")) for text in texts)
    held_out = encode(tokenizer, texts)
    model: Any = DogeForCausalLM.from_pretrained(
        str(args.model), dtype=torch.float32, attn_implementation="eager"
    )
    model.eval()
    probe = torch.from_numpy(np.concatenate(([BOS], held_out[0][: CONTEXT - 1])))[None]
    result: dict[str, Any] = {
        "model": args.model.resolve().name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "documents": len(texts),
        "bytes": size,
        "tokens": sum(len(ids) for ids in held_out),
        "stride": args.stride,
        "fast_vs_reference": doge_fast.verify(model, probe, tolerance=0.05),
        "fast_vs_reference_decode": doge_fast.verify_decode(model, probe[:, :192], tolerance=0.05),
        "bits_per_byte": model_bits(model, held_out, args.stride, "token", args.threads) / size,
    }
    if model.config.is_moe:
        bits = model_bits(model, held_out, args.stride, "reference", args.threads)
        result["reference_full_forward"] = {"bits_per_byte": bits / size, "causal": False}
    result["selection"] = selection(model, held_out)
    if model.config.is_moe:  # last, as it changes the model
        for layer in model.model.layers:
            torch.nn.init.zeros_(layer.mlp.up_embed.weight)
        bits = model_bits(model, held_out, args.stride, "token", args.threads)
        result["without_experts"] = {"bits_per_byte": bits / size}
    if not args.no_baselines:
        train = encode(tokenizer, (args.corpus / "train.txt").read_text("utf-8").split("\f"))
        for name, baseline in baselines(train, held_out, tokenizer.get_vocab_size()).items():
            result[name] = {"bits_per_byte": baseline["bits"] / size, "smoothing": baseline["smoothing"]}
    return result


def show(result: dict[str, Any]) -> None:
    print(
        f"{result['model']}: {result['parameters']:,} parameters, {result['documents']} held-out "
        f"documents, {result['bytes']:,} bytes, {result['tokens']:,} tokens"
    )
    print(f"  bits per byte          {result['bits_per_byte']:.4f}  (stride {result['stride']})")
    for name in ("bigram", "unigram"):
        if name in result:
            baseline = result[name]
            print(f"  {name:<22} {baseline['bits_per_byte']:.4f}  (smoothing {baseline['smoothing']})")
    if "reference_full_forward" in result:
        bits = result["reference_full_forward"]["bits_per_byte"]
        print(f"  reference full forward {bits:.4f}  (not causal: its routing mixes tokens)")
    if "without_experts" in result:
        bits = result["without_experts"]["bits_per_byte"]
        print(f"  without its experts    {bits:.4f}  (up_embed set to zero)")
    for row in result["selection"]:
        print("  " + "  ".join(f"{name} {value:g}" for name, value in row.items()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("model", type=Path, help="model folder")
    add("--corpus", type=Path, default=Path("build/corpus"), help="folder of fetch_corpus.py")
    add("--stride", type=int, default=256, help="tokens a window advances (default %(default)s)")
    add("--threads", type=int, default=2)
    add("--no-baselines", action="store_true", help="leave unigram and bigram out")
    add("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    try:
        result = evaluate(args)
    except (OSError, ValueError) as error:
        note(f"error: {error}")
        return 2
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        show(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
