"""Small random checkpoints of every generation, as `init` makes them, and what can be wrong with one."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from doge_export.core.generations import CURRENT, GENERATIONS, stored_name
from doge_export.export.init import init

__all__ = [
    "EARLIER",
    "KINDS",
    "SETTINGS",
    "TOKENIZER",
    "TRAINED",
    "change_config",
    "change_tensors",
    "in_new_names",
    "make",
    "trained",
    "with_scales",
]

#: Generations before transformers'.
EARLIER = tuple(name for name in GENERATIONS if name != CURRENT)
#: Each with and without experts; generation 1 always has them, and some are others without.
KINDS = tuple(
    (generation, moe)
    for generation in EARLIER
    for moe in (False, True)
    if moe or not (generation == "1" or GENERATIONS[generation].dense)
)

#: Those that scripts/train_generations.py trained, each with as many kv heads as heads, and their tokenizer.
_FOLDER = Path(__file__).parent / "trained"
TOKENIZER = _FOLDER / "tokenizer"
TRAINED = tuple(sorted(path.name for path in _FOLDER.iterdir() if (path / "config.json").is_file()))

SETTINGS = (
    "vocab_size=257",
    "hidden_size=64",
    "intermediate_size=48",
    "num_hidden_layers=2",
    "num_attention_heads=4",
    "num_key_value_heads=2",
    "keep_window_size=12",
    "max_position_embeddings=24",
    "initializer_range=0.15",
    "num_experts=64",
    "num_experts_per_tok=3",
)


def make(
    folder: Path, generation: str, moe: bool = False, seed: int = 1, settings: Sequence[str] = ()
) -> Path:
    preset = "Doge-20M-MoE" if moe else "Doge-20M"
    asked = (*SETTINGS, *settings)
    if generation == "1":  # it has as many kv heads as heads
        asked = tuple(setting for setting in asked if "num_key_value_heads" not in setting)
    init(preset, folder, seed=seed, settings=asked, generation=generation)
    return folder


def trained(name: str, folder: Path) -> Path:
    """A trained checkpoint in `folder`, with its tokenizer, a byte a token."""
    for part in (name, "tokenizer"):
        shutil.copytree(_FOLDER / part, folder, dirs_exist_ok=True)
    return folder


def change_config(folder: Path, drop: Sequence[str] = (), **changes: Any) -> Path:
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    raw = {key: value for key, value in raw.items() if not key.startswith(tuple(drop))}
    path.write_text(json.dumps({**raw, **changes}))
    return folder


def change_tensors(folder: Path, name: Callable[[str], str | None], **more: npt.NDArray[Any]) -> Path:
    """`name`: of a tensor in the file -> its new one; None drops it."""
    path = folder / "model.safetensors"
    tensors = {name(key): value for key, value in load_file(path).items()}
    tensors.pop(None, None)
    save_file({**tensors, **{key.replace("__", "."): np.asarray(value) for key, value in more.items()}}, path)
    return folder


def with_scales(folder: Path) -> Path:
    """MLP and experts are weighed, as from 5 to 13 March 2025."""
    rng = np.random.default_rng(0)
    more = {
        f"model__layers__{layer}__feed_forward__{part}_scaling": rng.standard_normal(64, np.float32)
        for layer in (0, 1)
        for part in ("mlp", "moe")
    }
    return change_tensors(folder, lambda name: name, **more)


def in_new_names(name: str) -> str:
    """A tensor of an earlier generation by the name that transformers gives it."""
    for ours in ("input_layernorm", "post_attention_layernorm"):
        name = name.replace(stored_name(f".{ours}.", "2"), f".{ours}.")
    for ours in ("input_residual", "post_attention_residual"):
        name = name.replace(stored_name(f".{ours}", "2"), f".{ours}")
    for theirs, ours in (("in_attn", "input"), ("in_ff", "post_attention"), (".attn.", ".self_attn.")):
        name = name.replace(theirs, ours)
    name = name.replace(".feed_forward.", ".mlp.").replace("word_embed", "embed_tokens")
    return name.replace("model.final_layernorm", "model.norm")
