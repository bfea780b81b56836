"""The files of a bundle beside its graph: what the model is, how to generate, what other programs read."""

__all__ = ["say_generation", "write_sidecars"]

import json
import shutil
from pathlib import Path

from doge_export.checkpoint import Checkpoint, copy_config
from doge_export.genai import GENAI_CONFIG, genai_config
from doge_export.json_file import read_object
from doge_export.runtime.generation_config import GENERATION_CONFIG, notes_of, of_config, say


def write_sidecars(checkpoint: Checkpoint, folder: Path, genai: bool) -> None:
    """Write config.json, generation_config.json or one made of the config, and with `genai` what
    onnxruntime-genai loads the bundle by."""
    copy_config(checkpoint, folder)
    generation = checkpoint.folder / GENERATION_CONFIG
    if generation.is_file():
        shutil.copyfile(generation, folder / generation.name)
    else:
        text = json.dumps(of_config(checkpoint.config), indent=2, sort_keys=True) + "\n"
        (folder / generation.name).write_text(text, encoding="utf-8")
    if genai:
        made = genai_config(checkpoint.config, read_object(folder / generation.name))
        (folder / GENAI_CONFIG).write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")


def say_generation(checkpoint: Checkpoint, model: str) -> None:
    """Log what generation_config.json asks for and does not get, once for `model`.

    Raises:
        DogeExportError: transformers does not load the checkpoint with it.
    """
    path = checkpoint.folder / GENERATION_CONFIG
    say(notes_of(read_object(path) if path.is_file() else None, checkpoint.config), Path(model))
