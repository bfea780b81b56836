"""An adapter that was held to its checkpoint, and the checkpoint with it merged."""

import dataclasses
import functools
import json
import logging
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from doge_export.core.adapters.aside import add_rows, add_saved, check_tying, share_table
from doge_export.core.adapters.expressions import check_time
from doge_export.core.adapters.modules import Modules
from doge_export.core.adapters.plan import Plan
from doge_export.core.adapters.settings import Settings
from doge_export.core.adapters.steps import Array, Step
from doge_export.core.adapters.tensors import read_parts
from doge_export.core.checkpoint.folder import Checkpoint, copy_config
from doge_export.core.config import DogeConfig
from doge_export.core.errors import DogeExportError
from doge_export.core.json_file import is_there
from doge_export.core.progress import Progress, silent
from doge_export.core.tensor_shapes import EMBEDDING, HEAD
from doge_export.core.tokenizer import copy_tokenizer_files, has_tokenizer

__all__ = ["Adapter", "write_merged"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Adapter:
    """A checked adapter. `steps` are what it does to each tensor, by transformers' names; `untied` says that
    embedding and head, one table in the checkpoint, are two after the merge, and `shared` that they are one
    that an adapter of one of them changes for both."""

    folder: Path
    checkpoint: Checkpoint
    steps: Mapping[str, tuple[Step, ...]]
    untied: bool
    shared: bool

    @classmethod
    def open(cls, folder: Path, checkpoint: Checkpoint) -> "Adapter":
        """Read the adapter and hold it to the checkpoint.

        Raises:
            DogeExportError: it is no LoRA adapter in safetensors, it is of a kind that cannot be merged here,
                one of its regular expressions does not come to an end, or it was made for a model of another
                shape.
        """
        settings = Settings.read(folder)
        parts = read_parts(folder)
        modules = Modules.of(checkpoint, (part.module for part in parts))
        check_time(folder, settings.expressions, modules.tensors)
        plan = Plan(settings, parts, modules)
        targets = plan.owners() if settings.targets is None else modules.targeted(settings)
        check_tying(plan, targets)
        plan.check_owners(targets)
        saved = add_saved(plan, targets)
        plan.add_biases(targets)
        plan.add_whole(targets)
        for module in targets:
            plan.add_target(module)
        add_rows(plan, [*targets, *saved])
        plan.finish()
        untied, shared = share_table(plan, targets, saved)
        steps = {name: tuple(steps) for name, steps in plan.steps.items()}
        return cls(folder, checkpoint, steps, untied, shared)

    @property
    def config(self) -> DogeConfig:
        """The checkpoint's configuration, as it is after the merge."""
        if not self.untied:
            return self.checkpoint.config
        raw = {**self.checkpoint.config.raw, "tie_word_embeddings": False}
        return dataclasses.replace(self.checkpoint.config, tie_word_embeddings=False, raw=raw)

    def merged(self, name: str) -> Array:
        """A tensor of the checkpoint, or the head of one that is no longer tied, with what the adapter makes
        of it, in the checkpoint's type.

        Raises:
            DogeExportError: the result is not finite, and the checkpoint's tensor is.
        """
        stored = EMBEDDING if name == HEAD and name not in self.checkpoint.shapes else name
        tensor = before = self.checkpoint.array(stored)
        for step in self.steps.get(name, ()):
            tensor = step(tensor)
        if tensor is not before and not np.isfinite(tensor).all() and np.isfinite(before).all():
            raise DogeExportError(
                f"{self.folder} makes numbers of {name} that {before.dtype} does not hold.",
                "Give a checkpoint in float32, or an adapter that was trained to its end.",
            )
        if name == EMBEDDING and self.shared:
            _warn_of_shared(self.folder, self.checkpoint.folder)
        return tensor


@functools.cache
def _warn_of_shared(folder: Path, checkpoint: Path) -> None:
    _log.warning(
        "%s adapts the embedding or the head, which are one table in %s: as in PEFT's merge, what is added "
        "to one changes both.",
        folder,
        checkpoint,
    )


def write_merged(
    checkpoint: Checkpoint,
    adapter: Adapter,
    folder: Path,
    progress: Progress = silent,
) -> None:
    """Write the checkpoint with the adapter merged into `folder`, in its own format and names. The tokenizer
    is the adapter's, where it has one. `progress` gets numbers."""
    from safetensors.numpy import save_file

    names = _file_names(checkpoint, adapter)
    tensors = {}
    for name, stored in names.items():
        tensors[stored] = np.asarray(adapter.merged(name), order="C")
        progress(math.prod(tensors[stored].shape))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if adapter.untied:
        raw = {key: value for key, value in adapter.config.raw.items() if key != "transformers_weights"}
        text = json.dumps(raw, indent=2, sort_keys=True) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")
    else:
        copy_config(checkpoint, folder)
    if is_there(checkpoint.folder / "generation_config.json"):
        shutil.copyfile(checkpoint.folder / "generation_config.json", folder / "generation_config.json")
    copy_tokenizer_files(adapter.folder if has_tokenizer(adapter.folder) else checkpoint.folder, folder)


def _file_names(checkpoint: Checkpoint, adapter: Adapter) -> dict[str, str]:
    """Return the name of each tensor in the file, a head of its own as the embedding is."""
    names = dict(checkpoint.stored)
    if not adapter.config.tie_word_embeddings:
        if names[EMBEDDING] == HEAD:  # the one table, by its other name
            names[EMBEDDING] = EMBEDDING
        wrapped = names[EMBEDDING].removesuffix(EMBEDDING)
        names.setdefault(HEAD, (wrapped if wrapped != names[EMBEDDING] else "") + HEAD)
    elif HEAD in names and np.array_equal(checkpoint.array(HEAD), checkpoint.array(EMBEDDING)):
        del names[HEAD]  # some writers store the one table a second time
    return names
