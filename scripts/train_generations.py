"""Small trained checkpoints of every generation, and what each is worth when it is read as another.

    .venv/bin/python scripts/train_generations.py -o tests/generations/trained
    .venv/bin/python scripts/train_generations.py -o build/trained --every
    .venv/bin/python scripts/train_generations.py -o tests/generations/trained --measure

Each is trained by its own judge (`doge_export.validate`), in its own format: its keys of config.json, its
names of tensors, float16. The first command writes those of the tests, with as many kv heads as heads, where
shapes tell least; `--every` adds those with fewer kv heads. `--measure` trains nothing.

The text is models/heldout.txt, speeches of presidents, as bytes; its last twentieth is kept out of training,
and the bits per byte that are printed are of it: of each checkpoint, read as every generation whose tensors
have the same shapes, in calls of the length it was trained with, one row each, as `export` would read it. In
some generations what a query sees depends on later keys of its call; such a model is trained and measured in
whole calls alike, and those figures are not those of a text that is written token by token.

Experts are trained with each token's own router logits, as the reference has them when it writes one token at
a time (as models/doge-tiny-moe); the second figure of such a model is with `--routing reference`."""

import argparse
import json
import math
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from doge_export.core.checkpoint.folder import Checkpoint
from doge_export.core.errors import DogeExportError
from doge_export.core.generations import GENERATIONS
from doge_export.export.init import init
from doge_export.model import load_model
from doge_export.validate.backends.deterministic_reference import pinned
from doge_export.validate.backends.reference import Reference

ROOT = Path(__file__).resolve().parent.parent
TEXT = ROOT / "models" / "heldout.txt"
LENGTH, ROWS = 64, 16
BOS, EOS, PAD = "<s>", "</s>", "<pad>"
SETTINGS = (
    "vocab_size=259",
    "hidden_size=64",
    "num_hidden_layers=2",
    "num_attention_heads=4",
    "keep_window_size=12",
    "max_position_embeddings=64",
    "initializer_range=0.05",
    "num_experts=64",
    "num_experts_per_tok=8",
    "bos_token_id=0",
    "eos_token_id=1",
    "pad_token_id=2",
)


@dataclass(frozen=True)
class Kind:
    """One checkpoint: of which generation, with experts or not, and its kv heads of 4 heads."""

    generation: str
    experts: bool
    kv_heads: int

    @property
    def name(self) -> str:
        heads = "" if self.kv_heads == 4 else f"-{self.kv_heads}-kv-heads"
        return f"{self.generation}-{'experts' if self.experts else 'dense'}{heads}"

    def settings(self) -> list[str]:
        """The settings that its random checkpoint is made with."""
        row = GENERATIONS[self.generation]
        asked = [*SETTINGS, f"intermediate_size={32 if self.experts else 96}"]
        if "dynamic_mask_ratio" in row.own:
            asked.append("dynamic_mask_ratio=0.6")
        if row.window == "row":  # less would be a worse model than one that drops nothing
            asked.append("keep_window_size=40")
        if "num_key_value_heads" not in row.fixed:
            asked.append(f"num_key_value_heads={self.kv_heads}")
        return asked


def kinds(every: bool) -> list[Kind]:
    """The kinds of checkpoint for the tests, or all: generation 1 always has experts, as many kv heads as
    heads, and the experts are all that some have of their own."""
    rows = []
    for generation, row in GENERATIONS.items():
        for experts in (False, True):
            if not experts and (row.fixed.get("is_moe") or row.dense):
                continue
            for kv_heads in (4, 2) if every and "num_key_value_heads" not in row.fixed else (4,):
                rows.append(Kind(generation, experts, kv_heads))
    return rows


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """The text's tokens, of the part to train with and of the part that is kept out."""
    read = torch.frombuffer(bytearray(TEXT.read_bytes()), dtype=torch.uint8).long()
    ids = _ids_of_bytes()[read]
    kept = len(ids) // 20
    return ids[:-kept], ids[-kept:]


def _alphabet() -> list[str]:
    """The character that stands for each of the 256 bytes in a byte-level vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {byte: chr(byte) for byte in printable}
    characters |= {byte: chr(256 + index) for index, byte in enumerate(others)}
    return [characters[byte] for byte in range(256)]


def _ids_of_bytes() -> torch.Tensor:
    return torch.arange(256) + 3


def write_tokenizer(folder: Path) -> None:
    """A byte is a token, after three special ones."""
    vocabulary = {BOS: 0, EOS: 1, PAD: 2} | {character: at + 3 for at, character in enumerate(_alphabet())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens([BOS, EOS, PAD])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, 0)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64}
    settings |= {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD, "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def train(kind: Kind, folder: Path, steps: int) -> None:
    """Write the checkpoint to `folder`: random at first, then trained for `steps` steps."""
    from transformers.cache_utils import DynamicCache

    row = GENERATIONS[kind.generation]
    preset = "Doge-20M-MoE" if kind.experts else "Doge-20M"
    with tempfile.TemporaryDirectory() as name:
        drawn = Path(name) / "drawn"
        init(preset, drawn, seed=1, settings=kind.settings(), generation=kind.generation)
        _strong_dt(drawn, kind)
        reference = Reference(drawn, per_token=True, generation=kind.generation)
        stored = Checkpoint.open(drawn, kind.generation).stored
        raw = json.loads((drawn / "config.json").read_text(encoding="utf-8"))
    model = reference.model.train().requires_grad_(True)
    ids, _ = data()
    rng = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    masks = [each for name, each in model.named_parameters() if "dt_proj" in name or name.endswith(".A")]
    others = [each for each in model.parameters() if all(each is not mask for mask in masks)]
    groups = [{"params": each} for each in (others, masks) if each]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    max_rates = [6e-3, 1e-3][: len(groups)]  # exp(A * softplus(dt)) is soon too large for float32
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_rates, total_steps=steps)
    mask, positions = torch.ones(ROWS, LENGTH, dtype=torch.int64), torch.arange(LENGTH).expand(ROWS, -1)
    began = time.perf_counter()
    for _ in range(steps):
        starts = torch.randint(0, len(ids) - LENGTH, (ROWS,), generator=rng)
        batch = torch.stack([ids[start : start + LENGTH + 1] for start in starts.tolist()])
        cache = DynamicCache(config=model.config)
        # Bytes tie in the first layer, and so for which of them a window has room is the tie rule's.
        with pinned() if row.window == "row" else nullcontext():
            logits = model(batch[:, :-1], mask, positions, cache, use_cache=True).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    took, bits = time.perf_counter() - began, loss.item() / math.log(2)
    print(f"{kind.name}: {bits:.2f} bits a byte of the last batch, {took:.0f} s", file=sys.stderr)
    learned = dict(model.named_parameters())
    tensors = {theirs: learned[ours].detach().half().contiguous() for ours, theirs in stored.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    called = "torch_dtype" if row.old_names else "dtype"
    text = json.dumps(raw | {called: "float16"}, indent=2, sort_keys=True)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")


def _strong_dt(folder: Path, kind: Kind) -> None:
    """Larger weights for dt at the start: of `init`'s size, the keys of a fresh model have nearly one dt. A
    is smaller, and above 0 in three heads of four. In generation 2, which does not learn it, it is above 0 as
    the authors' is at the start: a head below 0 averages over the whole call. Experts are larger too, and so
    what is computed with others of them is far from what was learned."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name in tensors:
        if name.endswith("self_attn.A"):
            tensors[name] = tensors[name].abs() / 2
            tensors[name][3:] *= 1 if GENERATIONS[kind.generation].repeated else -1
        for part, factor in (("dt_proj.weight", 8), ("down_embed.weight", 2), ("up_embed.weight", 2)):
            if name.endswith(part):
                tensors[name] *= factor
    save_file(tensors, path, metadata={"format": "pt"})


def bits_per_byte(folder: Path, generation: str, routing: str) -> float:
    """Bits per byte of the part of the text that was kept out, in calls of one row."""
    model = load_model(Checkpoint.open(folder, generation), routing=routing)
    _, ids = data()
    total, count = 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(ids) - LENGTH, LENGTH):
            row = ids[None, start : start + LENGTH + 1]
            positions = torch.arange(LENGTH)[None]
            mask = torch.ones_like(positions)
            logits = model(row[:, :-1], mask, positions, model.empty_cache(1))[0]
            total += float(torch.nn.functional.cross_entropy(logits[0], row[0, 1:], reduction="sum"))
            count += LENGTH
    return total / math.log(2) / count


def readings(folder: Path, experts: bool) -> dict[str, list[float]]:
    """Generation -> bits per byte by each routing, of every one whose tensors have these names and shapes."""
    bits = {}
    for generation in GENERATIONS:
        try:
            bits[generation] = [
                bits_per_byte(folder, generation, routing)
                for routing in (("per-token", "reference") if experts else ("reference",))
            ]
        except DogeExportError:
            continue
    return bits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--every", action="store_true", help="also with fewer kv heads than heads")
    parser.add_argument("--kind", action="append", help="by its name, such as 3a-dense; all otherwise")
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--measure", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the models are too small for two
    if not arguments.measure:
        write_tokenizer(arguments.output / "tokenizer")
    print("| checkpoint | " + " | ".join(GENERATIONS) + " |")
    print("|---|" + "---|" * len(GENERATIONS))
    for kind in kinds(arguments.every):
        if arguments.kind and kind.name not in arguments.kind:
            continue
        folder = arguments.output / kind.name
        if not arguments.measure:
            train(kind, folder, arguments.steps)
        measured: dict[str, Any] = readings(folder, kind.experts)
        cells = [", ".join(f"{bits:.2f}" for bits in measured.get(each, [])) or "-" for each in GENERATIONS]
        print(f"| {kind.name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
