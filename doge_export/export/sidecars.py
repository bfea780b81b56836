"""The files of a bundle beside its graph: what the model is, how to generate, what other programs read."""

__all__ = ["copy_sidecars", "say_generation", "write_sidecars"]

import json
import shutil
from pathlib import Path

from doge_export.core.checkpoint.folder import Checkpoint, copy_config
from doge_export.core.json_file import is_there, read_object
from doge_export.core.tokenizer import copy_tokenizer_files
from doge_export.export.genai import GENAI_CONFIG, genai_config
from doge_export.runtime.generation_config import GENERATION_CONFIG, notes_of, of_config, say


def write_sidecars(checkpoint: Checkpoint, folder: Path, genai: bool) -> None:
    """Write config.json, generation_config.json or one made of the config, and with `genai` what
    onnxruntime-genai loads the bundle by."""
    copy_config(checkpoint, folder)
    generation = checkpoint.folder / GENERATION_CONFIG
    if is_there(generation):
        shutil.copyfile(generation, folder / generation.name)
    else:
        text = json.dumps(of_config(checkpoint.config), indent=2, sort_keys=True) + "\n"
        (folder / generation.name).write_text(text, encoding="utf-8")
    if genai:
        settings = genai_config(checkpoint.config, read_object(folder / generation.name))
        (folder / GENAI_CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def copy_sidecars(bundle: Path, folder: Path) -> None:
    """Copy what `write_sidecars` wrote, and the tokenizer, from one bundle to another of the same model."""
    for name in ("config.json", GENERATION_CONFIG, GENAI_CONFIG):
        if is_there(bundle / name):
            shutil.copyfile(bundle / name, folder / name)
    copy_tokenizer_files(bundle, folder)


def say_generation(checkpoint: Checkpoint, model: str) -> None:
    """Log what generation_config.json asks for and does not get, once for `model`.

    Raises:
        DogeExportError: transformers does not load the checkpoint with it.
    """
    path = checkpoint.folder / GENERATION_CONFIG
    say(notes_of(read_object(path) if is_there(path) else None, checkpoint.config), Path(model))
