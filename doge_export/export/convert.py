"""A checkpoint -> one in transformers' format, where the mathematics allow it; and a dense one -> one with
experts."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from doge_export.core import presets
from doge_export.core.adapters import Adapter
from doge_export.core.bundle import check_output, mark_checkpoint, new_folder
from doge_export.core.checkpoint.fit import check_tensors
from doge_export.core.checkpoint.folder import Checkpoint
from doge_export.core.config import DogeConfig
from doge_export.core.errors import DogeExportError
from doge_export.core.generations import CURRENT, GENERATIONS, as_current
from doge_export.core.json_file import is_there
from doge_export.core.progress import Progress, silent
from doge_export.core.tensor_shapes import parameter_count, tensor_shapes
from doge_export.core.tokenizer import copy_tokenizer_files, has_tokenizer
from doge_export.export.init import check_room, draw_tensor, set_keys

__all__ = ["add_experts", "convert"]

#: What a config.json may have kept of an earlier format, and what would have transformers run remote code.
_LEFT_OVER = (
    *("num_cdm", "hidden_bias", "dynamic_mask_ratio", "expert_retrieval_size", "auto_map"),
    *("num_inner_value", "num_value_per_head", "inner_values_", "private_expert_"),
    "transformers_weights",  # the file that they were read from
)

_OF_EXPERTS = ("num_experts", "num_experts_per_tok", "norm_topk_prob")


def convert(
    model: str,
    output: Path,
    *,
    generation: str | None = None,
    adapter: Path | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write the checkpoint `model` (a folder, a fixture's name, a hub id) to the folder `output` as
    transformers writes it: its names, one file, a config.json without keys of earlier formats, a LoRA
    `adapter` merged. `progress` gets numbers read.

    Raises:
        DogeExportError: it is of a generation that transformers' model cannot compute, it is damaged, the
            adapter does not fit, or `output` is in the way.
    """
    checkpoint = Checkpoint.open(presets.resolve_model(model, adapter), generation)
    check_output(output, force, (checkpoint.folder, adapter))
    row = GENERATIONS[checkpoint.config.generation]
    if row.name != CURRENT:
        raise DogeExportError(
            f"{checkpoint.folder} is of generation {row.name} ({row.era}) and has no equal in transformers' "
            "format: that normalises every query and key, whatever their length, and this generation does "
            f"not{_also(row.name)}.",
            "Export it as it is: doge-export export -m takes it.",
        )
    merging = None if adapter is None else Adapter.open(adapter, checkpoint)
    tensors = _checked(checkpoint, merging, progress)
    with new_folder(output, force, (checkpoint.folder, adapter)) as folder:
        raw_config = (checkpoint if merging is None else merging).config.raw
        kept = as_current(raw_config)
        raw = {key: value for key, value in kept.items() if not key.startswith(_LEFT_OVER)}
        tokens = checkpoint.folder if adapter is None or not has_tokenizer(adapter) else adapter
        _write(folder, checkpoint, raw | {"architectures": ["DogeForCausalLM"]}, tensors, tokens)
    return {
        "output": str(output),
        "generation": row.name,
        "parameters": parameter_count((checkpoint if merging is None else merging).config),
        "renamed": sum(ours != theirs for ours, theirs in checkpoint.stored.items()),
        "merged": 0 if merging is None else len(merging.steps),
    }


def add_experts(
    dense: str,
    output: Path,
    *,
    seed: int = 0,
    settings: Sequence[str] = (),
    force: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write the dense checkpoint `dense` with experts beside its MLPs to the folder `output`, as the paper
    says that CDMoE inherits them (arXiv 2412.11834). `up_embed` is zero, so that it computes what the dense
    one does until it is trained; router and `down_embed` are random, in the dtype of the MLPs. `progress`
    gets numbers of the dense one.

    Raises:
        DogeExportError: it has experts already, is of an earlier generation, a setting does not fit, or disk
            or memory are too small.
    """
    checkpoint = Checkpoint.open(presets.resolve_model(dense))
    check_output(output, force, (checkpoint.folder,))
    if checkpoint.config.is_moe or checkpoint.config.generation != CURRENT:
        what = "has experts already" if checkpoint.config.is_moe else "is of an earlier generation"
        raise DogeExportError(
            f"{checkpoint.folder} {what}.", "Give a dense checkpoint of transformers' Doge."
        )
    raw = set_keys({**as_current(checkpoint.config.raw), "is_moe": True}, settings, _OF_EXPERTS)
    config = DogeConfig.from_dict(raw)
    spread = float(raw.get("initializer_range", 0.02))
    with new_folder(output, force, (checkpoint.folder,)) as folder:
        tensors = _checked(checkpoint, None, progress)
        kind = tensors["model.layers.0.mlp.up_proj.weight"].dtype
        check_room(config, kind.itemsize, folder)
        for name, shape in tensor_shapes(config).items():
            if name not in tensors:
                # What the experts add is nothing until they are trained.
                drawn = 0.0 if "up_embed" in name else spread
                tensors[name] = draw_tensor(name, shape, seed, drawn, kind.name)
        _write(folder, checkpoint, raw, tensors, checkpoint.folder)
    return {
        "from": dense,
        "output": str(output),
        "seed": seed,
        "parameters": parameter_count(config),
        "tensors": len(tensors),
    }


def _also(generation: str) -> str:
    return "" if generation == "3c" else ", and masks keys by another rule"


def _checked(checkpoint: Checkpoint, adapter: Adapter | None, progress: Progress) -> dict[str, Any]:
    """The tensors by transformers' names, once they are known to be those of the configuration."""
    check_tensors(checkpoint)
    names = tensor_shapes(checkpoint.config if adapter is None else adapter.config)
    merged = checkpoint.array if adapter is None else adapter.merged
    tensors = {}
    for name in names:
        tensors[name] = np.asarray(merged(name), order="C")
        progress(tensors[name].size)
    return tensors


def _write(
    folder: Path, checkpoint: Checkpoint, raw: Mapping[str, Any], tensors: Mapping[str, Any], tokens: Path
) -> None:
    from safetensors.numpy import save_file

    save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    text = json.dumps(raw, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    (folder / "model.safetensors").chmod((folder / "config.json").stat().st_mode)
    if is_there(checkpoint.folder / "generation_config.json"):
        shutil.copyfile(checkpoint.folder / "generation_config.json", folder / "generation_config.json")
    copy_tokenizer_files(tokens, folder)
    mark_checkpoint(folder)
