"""A random checkpoint of a preset's shape, or of a changed one, in transformers' format or in that of an
earlier generation, made without torch.

`A` is drawn from a standard normal distribution: at zero, as a fresh model has it, every key of the dynamic
mask ties and nothing about the mask can be tested. Norms and residual weights lie near one, but not at it,
so that a forgotten or swapped one shows in the numbers. Every tensor has its own generator, seeded by the
seed and the tensor's name: a changed shape leaves the other tensors as they were.
"""

__all__ = [
    "DTYPES",
    "apply_settings",
    "check_room",
    "draw_tensor",
    "init",
    "preset_config",
    "set_keys",
    "write_checkpoint",
]

import copy
import difflib
import hashlib
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doge_export.core.bundle import mark_checkpoint, new_folder
from doge_export.core.config import DogeConfig
from doge_export.core.errors import DogeExportError
from doge_export.core.generations import CURRENT, find_generation, stored_name
from doge_export.core.json_file import parse_json
from doge_export.core.memory import available_memory
from doge_export.core.presets import config_dict, find
from doge_export.core.progress import Progress, silent
from doge_export.core.tensor_shapes import parameter_count, tensor_shapes
from doge_export.core.token_ids import ID_KEYS, outside, read_ids
from doge_export.core.tokenizer import check_vocabulary, copy_tokenizer_files

if TYPE_CHECKING:
    from doge_export.weights import Array

DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}

_SPREAD_OF_NORMS = 0.1
#: A safetensors header has 100 MB at most, and a layer's entries need two to four kilobytes of it.
_MOST_LAYERS = 20_000
_SMALLER = "Ask for a smaller model, or another --dtype."
_FIXED = {"architectures", "model_type", "dtype"}  # --dtype sets the last one
_NUMBERS = ("initializer_range", "attention_dropout", "hidden_dropout", "router_aux_loss_coef")
_SWITCHES = ("use_cache", "output_router_logits")
_ROPE_KEYS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor", "original_max_position_embeddings"),
    "yarn": (
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    ),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "longrope": (
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "short_factor",
        "long_factor",
    ),
}
_ROPE_SETTABLE = sorted({"rope_type", "rope_theta"}.union(*_ROPE_KEYS.values()))


def apply_settings(raw: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """A copy of a preset's config.json with every `key=value` of `settings` put in; values are JSON.

    A changed `rope_parameters.rope_type` drops the keys that the new type does not know.

    Raises:
        DogeExportError: a setting without `=`, or a key that a Doge model does not have.
    """
    changed = set_keys(raw, settings, _settable(raw))
    rope = changed["rope_parameters"]
    kind = rope.get("rope_type")
    if kind != raw["rope_parameters"]["rope_type"] and kind in _ROPE_KEYS:
        asked = {setting.partition("=")[0].rpartition(".")[2] for setting in settings}
        allowed = {"rope_type", "rope_theta", *_ROPE_KEYS[kind], *asked}
        changed["rope_parameters"] = {key: value for key, value in rope.items() if key in allowed}
    _check(changed)
    return changed


def set_keys(raw: Mapping[str, Any], settings: Sequence[str], known: Sequence[str]) -> dict[str, Any]:
    """A copy of `raw` with every `key=value` put in, of the `known` keys.

    Raises:
        DogeExportError: a setting without `=`, or of another key.
    """
    changed: dict[str, Any] = copy.deepcopy(dict(raw))
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise DogeExportError(f"--set {setting!r} is not of the form key=value.")
        if key not in known:
            close = [name for name in known if name.endswith(f".{key}")]
            close = close or difflib.get_close_matches(key, known, n=3)
            raise DogeExportError(
                f"A Doge configuration has no key {key!r} to set.",
                f"Did you mean {' or '.join(close)}?" if close else f"There are {', '.join(known)}.",
            )
        outer, _, inner = key.rpartition(".")
        (changed[outer] if outer else changed)[inner] = _value(text)
    return changed


def preset_config(preset: str, settings: Sequence[str] = (), generation: str = CURRENT) -> dict[str, Any]:
    """The config.json of a preset with `settings`, as a checkpoint of `generation` has it. What only that has
    can be set too.

    Raises:
        DogeExportError: as apply_settings; or two settings differ that are one in that generation.
    """
    row = find_generation(generation)
    return row.write(apply_settings({**config_dict(preset), **row.own, **row.fixed}, settings))


def init(
    preset: str,
    output: Path,
    *,
    seed: int = 0,
    settings: Sequence[str] = (),
    dtype: str = "float32",
    generation: str = CURRENT,
    tokenizer: Path | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write a random checkpoint of `preset` with `settings` to the folder `output`, whole or not at all.

    Of an earlier `generation` it has the names and keys of that, and the shapes of the preset. `progress`
    gets parameters. The answer sums up what was written.

    Raises:
        DogeExportError: an unknown preset or key, a shape that no Doge model can have, a folder in the way,
            a tokenizer that does not fit, or too little disk or memory.
    """
    raw = preset_config(preset, settings, generation)
    config = DogeConfig.from_dict(raw, generation)
    _check_ids(raw, config.vocab_size)
    if tokenizer is not None:
        check_vocabulary(tokenizer, config.vocab_size, "Add --set vocab_size={size}.")
    with new_folder(output, force, (tokenizer,)) as folder:
        write_checkpoint(raw, folder, seed=seed, dtype=dtype, generation=generation, progress=progress)
        if tokenizer is not None:
            copy_tokenizer_files(tokenizer, folder)
        mark_checkpoint(folder)
    return {
        "preset": find(preset),
        "generation": generation,
        "output": str(output),
        "seed": seed,
        "dtype": dtype,
        "parameters": parameter_count(config),
        "tensors": len(tensor_shapes(config)),
        "bytes": sum(path.stat().st_size for path in output.iterdir()),
    }


def write_checkpoint(
    raw: Mapping[str, Any],
    folder: Path,
    *,
    seed: int = 0,
    dtype: str = "float32",
    generation: str = CURRENT,
    progress: Progress = silent,
) -> None:
    """Write config.json, generation_config.json and model.safetensors of a random model into `folder`. `raw`
    is a config.json of `generation`.

    Raises:
        DogeExportError: `raw` is not a supported configuration, `seed` is negative, `dtype` is not one of
            `DTYPES`, or disk or memory are too small.
    """
    from safetensors.numpy import save_file

    config = DogeConfig.from_dict(dict(raw), generation)
    if seed < 0:
        raise DogeExportError(f"The seed {seed} is negative.")
    if dtype not in DTYPES:
        raise DogeExportError(f"{dtype!r} is not a dtype.", f"There are {', '.join(DTYPES)}.")
    check_room(config, DTYPES[dtype], folder)
    spread = float(raw.get("initializer_range", 0.02))
    tensors: dict[str, Array] = {}
    for name, shape in tensor_shapes(config).items():
        tensors[stored_name(name, generation)] = draw_tensor(name, shape, seed, spread, dtype)
        progress(math.prod(shape))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    called = "torch_dtype" if find_generation(generation).old_names else "dtype"
    _write_json(folder / "config.json", {**raw, called: dtype})
    # The library makes its file readable by its owner only.
    (folder / "model.safetensors").chmod((folder / "config.json").stat().st_mode)
    written = {key: raw[key] for key in ID_KEYS if raw.get(key) is not None}
    written |= {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.0}
    _write_json(folder / "generation_config.json", written)


def check_room(config: DogeConfig, width: int, folder: Path) -> None:
    """See whether a checkpoint of `config` with numbers of `width` bytes can be made in `folder`.

    Raises:
        DogeExportError: it has more tensors than a file can name, or disk or memory are too small.
    """
    layers = config.num_hidden_layers
    if layers > _MOST_LAYERS:
        raise DogeExportError(
            f"{layers} layers have more tensors than a safetensors file can name.",
            f"Ask for {_MOST_LAYERS} at most.",
        )
    needed, free = parameter_count(config) * width, shutil.disk_usage(folder).free
    if needed > free:
        raise DogeExportError(
            f"The checkpoint needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free on the disk.",
            _SMALLER,
        )
    memory = available_memory()
    if memory is not None and needed > memory:
        raise DogeExportError(
            f"The checkpoint needs {needed / 1e9:.1f} GB, and {memory / 1e9:.1f} GB of memory are available.",
            _SMALLER,
        )


def draw_tensor(name: str, shape: tuple[int, ...], seed: int, spread: float, dtype: str) -> "Array":
    """The tensor that `name` is in a checkpoint of `seed`, with the standard deviation `spread`."""
    import ml_dtypes
    import numpy as np

    digest = hashlib.sha256(name.encode()).digest()
    generator = np.random.default_rng([seed, int.from_bytes(digest[:8], "little")])
    values = generator.standard_normal(shape, dtype=np.float32)
    if name.endswith("norm.weight") or name.endswith("_residual"):
        values *= _SPREAD_OF_NORMS
        values += 1
    elif name.endswith(".dynamic_mask"):  # trained ones are all ones; some zeros, so that it does something
        values = (values > -1).astype(np.float32)
    elif not name.endswith(".A"):
        values *= np.float32(spread)
    target = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    return values.astype(target, copy=False)


def _settable(raw: Mapping[str, Any]) -> list[str]:
    top = (set(raw) | {"head_dim"}) - _FIXED - {"rope_parameters"}
    return sorted(top) + [f"rope_parameters.{key}" for key in _ROPE_SETTABLE]


def _value(text: str) -> Any:
    """The value of a JSON text; of any other the text itself, so that a word needs no quotes."""
    try:
        return parse_json(text)
    except ValueError:
        return text


def _check(raw: Mapping[str, Any]) -> None:
    """Check the settings that DogeConfig does not look at, because no graph depends on them."""
    for key in _NUMBERS:
        value = raw.get(key, 0)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value < 0:
            raise DogeExportError(f"{key} is {value!r}, not a number of at least 0.")
    for key in _SWITCHES:
        if not isinstance(raw.get(key, False), bool):
            raise DogeExportError(f"{key} is {raw[key]!r}, not true or false.")


def _check_ids(raw: Mapping[str, Any], vocab_size: int) -> None:
    """Check that a new checkpoint names only tokens that it has; one that somebody trained may not."""
    for key in ID_KEYS:
        for token in outside(read_ids(raw.get(key)), vocab_size):
            raise DogeExportError(
                f"config.json: {key} {token} is no token of a vocabulary of {vocab_size}.",
                f"Set {key} to a smaller id, or to null.",
            )


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
