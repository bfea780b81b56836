"""How a checkpoint folder is read here and by transformers, and the ways to spoil one."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from doge_export.core import presets
from doge_export.core.checkpoint.folder import Checkpoint
from doge_export.export.options import ExportOptions
from doge_export.export.pipeline import plan_export
from doge_export.model import load_model
from doge_export.validate.backends.reference import Reference
from doge_export.validate.schedules import Schedule, draw_tokens
from tests.conftest import write_checkpoint
from tests.generations._checkpoints import make
from tests.model._reference import Calls, Pair
from tests.wild._specimen import Area

__all__ = [
    "AREA",
    "INDEX",
    "SINGLE",
    "Make",
    "as_clean",
    "both",
    "config",
    "file",
    "gone",
    "moved",
    "plain",
    "read",
    "rename",
    "shards",
    "tensors",
]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

Make = Callable[[Path], Any]
_SCHEDULE = Schedule("", (14, 1, 1), (0, 3))
_TOKENS = draw_tokens(_SCHEDULE, 257, 0)
_CALL = Calls(
    _SCHEDULE.steps,
    torch.from_numpy(_TOKENS.input_ids),
    torch.from_numpy(_TOKENS.attention_mask),
    torch.from_numpy(_TOKENS.position_ids),
)


def _reference(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    # An adapter was not asked for: what transformers makes of the folder is the model with it.
    return Pair(model.eval(), None).run_reference(_CALL)  # type: ignore[arg-type]


def _ours(folder: Path) -> Any:
    """As `export` goes, and what its --dry-run would not find is found by no row."""
    plan_export(str(folder), ExportOptions.resolve())
    checkpoint = Checkpoint.open(presets.resolve_model(str(folder)))
    return Pair(None, load_model(checkpoint)).run_ours(_CALL)


def _compare(reference: Any, ours: Any) -> None:
    assert (reference - ours).abs()[_CALL.mask.bool()].max() <= 1e-4


AREA = Area("folders", _reference, _ours, _compare)


def as_clean(made: Make) -> Callable[[Any], None]:
    """Our result is that of the judge on the folder that `made` writes, whose names are plain: transformers
    draws the weights of a folder with strange names at random, and of an earlier generation it has no
    model."""

    def check(ours: Any) -> None:
        with tempfile.TemporaryDirectory() as name:
            made(Path(name))
            logits = Reference(Path(name)).run(_SCHEDULE, _TOKENS).logits
        _compare(torch.from_numpy(logits), ours)

    return check


def plain(generation: str = "4", moe: bool = False, **changes: Any) -> Make:
    """A clean checkpoint: of transformers itself, or of an earlier generation."""

    def write(folder: Path) -> None:
        if generation == "4":
            write_checkpoint(folder, is_moe=moe, **changes)
            return
        with tempfile.TemporaryDirectory() as name:
            made = make(Path(name) / "made", generation, moe)
            for path in made.iterdir():
                shutil.copy(path, folder)

    return write


def both(*steps: Make) -> Make:
    """One after the other."""

    def write(folder: Path) -> None:
        for step in steps:
            step(folder)

    return write


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Make:
    """Change the tensors of model.safetensors in their place, or give others."""

    def write(folder: Path) -> None:
        with editing(folder) as found:
            made = change(found)
            if isinstance(made, dict):
                found.clear()
                found.update(made)

    return write


def rename(new: Callable[[str], str]) -> Make:
    """Give every tensor another name."""
    return tensors(lambda found: {new(name): tensor for name, tensor in found.items()})


def config(**changes: Any) -> Make:
    """Change config.json."""

    def write(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return write


def moved(source: str, target: str) -> Make:
    def write(folder: Path) -> None:
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        (folder / source).rename(folder / target)

    return write


def file(name: str, content: str | bytes = "") -> Make:
    def write(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return write


def gone(*names: str) -> Make:
    return lambda folder: [(folder / name).unlink() for name in names]


def shards(name: str = "model-{number:05}-of-00002.safetensors", index: str | None = INDEX) -> Make:
    """model.safetensors in two files."""

    def write(folder: Path) -> None:
        found, places = read(folder / SINGLE), {}
        (folder / SINGLE).unlink()
        for number in (1, 2):
            part = {
                key: value for at, (key, value) in enumerate(sorted(found.items())) if at % 2 == number - 1
            }
            path = folder / name.format(number=number)
            path.parent.mkdir(exist_ok=True)
            save_file(part, path, metadata={"format": "pt"})
            places.update(dict.fromkeys(part, name.format(number=number)))
        if index is not None:
            (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": places}))

    return write


def read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file that will be written over: safetensors' own are views of it."""
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


@contextlib.contextmanager
def editing(folder: Path) -> Iterator[dict[str, torch.Tensor]]:
    """The tensors of model.safetensors, written back afterwards."""
    path = folder / SINGLE
    found = read(path)
    yield found
    save_file(found, path, metadata={"format": "pt"})
