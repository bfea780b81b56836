"""Checkpoint folders as they come: which files there are, and where, and what stands in the place of one."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from doge_export.core.presets import models_folder
from tests.wild._folders import (
    AREA,
    INDEX,
    SINGLE,
    Make,
    both,
    config,
    file,
    gone,
    moved,
    plain,
    read,
    shards,
)
from tests.wild._specimen import REFUSED, Specimen

__all__ = ["AREA", "ROWS", "leave_trainer_files"]

_EXPLICIT = "transformers_weights"
_LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 52428800\n"
_PAGE = "<!DOCTYPE html>\n<html><head><title>401</title></head></html>\n"


def _in_both_shards(change: Any) -> Make:
    """A norm of the first shard is in the second too, and changed there; the index names the first."""

    def write(folder: Path) -> None:
        places = json.loads((folder / INDEX).read_text())["weight_map"]
        name = next(name for name, file in places.items() if "-00001-" in file and "norm" in name)
        second = folder / next(file for file in places.values() if "-00002-" in file)
        norm = read(folder / places[name])[name]
        save_file({**read(second), name: change(norm)}, second, metadata={"format": "pt"})

    return write


def _with_head_in_index(folder: Path) -> None:
    raw = json.loads((folder / INDEX).read_text())
    raw["weight_map"]["lm_head.weight"] = next(iter(raw["weight_map"].values()))
    (folder / INDEX).write_text(json.dumps(raw))


def leave_trainer_files(folder: Path) -> None:
    """What Trainer leaves beside the weights."""
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        torch.save({}, folder / name)
    (folder / "trainer_state.json").write_text("{}")


def _steps(folder: Path) -> None:
    """The folder of a training, with the last step whole and later ones that are not."""
    for step in (500, 1500):
        inner = folder / f"checkpoint-{step}"
        inner.mkdir()
        plain()(inner)
    (folder / "checkpoint-2000").mkdir()
    torch.save({}, folder / "training_args.bin")


def _in_hub_cache(folder: Path) -> None:
    for commit in ("1111", "9999"):
        inner = folder / "snapshots" / commit
        inner.mkdir(parents=True)
        plain()(inner)
    file("refs/main", "1111")(folder)


def _beside(folder: Path) -> None:
    """A single file, of another model, beside what is there: save_pretrained would remove old shards."""
    with tempfile.TemporaryDirectory() as name:
        plain()(Path(name))
        shutil.copy(Path(name) / SINGLE, folder)


def _linked(folder: Path) -> None:
    plain()(folder)
    (folder / SINGLE).unlink()
    (folder / SINGLE).symlink_to(folder / "blobs" / "gone")


_STALE = both(plain(seed=1), shards(), _beside)
_FILES = (
    Specimen("two shards", both(plain(), shards())),
    Specimen("a single file beside the shards and index of another save", _STALE),
    Specimen(
        "a single file beside an index whose shards are gone",
        both(_STALE, gone(*(f"model-0000{number}-of-00002.safetensors" for number in (1, 2)))),
    ),
    Specimen("an index that lists the tied head too", both(plain(), shards(), _with_head_in_index)),
    Specimen("shards in a folder below", both(plain(), shards("parts/{number}.safetensors"))),
    Specimen("a tensor in both shards", both(plain(), shards(), _in_both_shards(lambda norm: norm))),
    Specimen(
        "a tensor in both shards that differs",
        both(plain(), shards(), _in_both_shards(lambda norm: norm + 1)),
        ours="hold two tensors .* differ",
    ),
    Specimen(
        "a shard that is gone",
        both(plain(), shards(), gone("model-00001-of-00002.safetensors")),
        REFUSED,
        "lacks the shard model-00001-of",
    ),
    Specimen(
        "transformers_weights names the file, beside another",
        both(
            plain(),
            moved(SINGLE, "w.safetensors"),
            config(**{_EXPLICIT: "w.safetensors"}),
            lambda folder: shutil.copy(models_folder() / "doge-tiny" / SINGLE, folder),
        ),
    ),
    Specimen(
        "transformers_weights names a file below",
        both(plain(), moved(SINGLE, "best/w.safetensors"), config(**{_EXPLICIT: "best/w.safetensors"})),
    ),
    Specimen(
        "transformers_weights names an index",
        both(
            plain(),
            shards(index="w.safetensors.index.json"),
            config(**{_EXPLICIT: "w.safetensors.index.json"}),
        ),
    ),
    Specimen("transformers_weights that is null", both(plain(), config(**{_EXPLICIT: None}))),
    Specimen(
        "transformers_weights names what is not there",
        both(plain(), config(**{_EXPLICIT: "w.safetensors"})),
        REFUSED,
        "names 'w.safetensors' .*no such file",
    ),
    Specimen(
        "transformers_weights leads out of the folder",
        both(plain(), config(**{_EXPLICIT: "../w.safetensors"})),
        REFUSED,
        "is no file of",
    ),
    Specimen(
        "transformers_weights that is a number", both(plain(), config(**{_EXPLICIT: 3})), REFUSED, "neither a"
    ),
    Specimen("a step of Trainer", both(plain(), leave_trainer_files)),
)

_ELSEWHERE = (
    Specimen("config.json alone", both(plain(), gone(SINGLE)), REFUSED, "no model.safetensors"),
    Specimen("weights alone", both(plain(), gone("config.json")), REFUSED, "no config.json"),
    Specimen(
        "a variant",
        both(plain(), moved(SINGLE, "model.fp16.safetensors")),
        REFUSED,
        "mv .*model.fp16.safetensors .*/model.safetensors",
    ),
    Specimen(
        "a variant in shards",
        both(
            plain(),
            shards("model.fp16-{number:05}-of-00002.safetensors", "model.safetensors.index.fp16.json"),
        ),
        REFUSED,
        "mv .*index.fp16.json .*/model.safetensors.index.json",
    ),
    Specimen("shards without an index", both(plain(), shards(index=None)), REFUSED, "no index"),
    Specimen(
        "weights under another name",
        both(plain(), moved(SINGLE, "weights.safetensors")),
        REFUSED,
        "mv .*weights.safetensors",
    ),
    Specimen("the folder of a training", _steps, REFUSED, "Give -m .*checkpoint-1500"),
    Specimen(
        "a folder in a folder",
        both(lambda folder: (folder / "doge").mkdir(), lambda folder: plain()(folder / "doge")),
        REFUSED,
        "Give -m .*/doge",
    ),
    Specimen("a repository in the hub's cache", _in_hub_cache, REFUSED, "Give -m .*snapshots/1111"),
    Specimen("a link into a cache that was emptied", _linked, REFUSED, "link to a file that is gone"),
    Specimen(
        "a download that was stopped",
        both(plain(), moved(SINGLE, "model.safetensors.incomplete")),
        REFUSED,
        "not finished",
    ),
    Specimen("a tokenizer alone", file("tokenizer.json", "{}"), REFUSED, "holds a tokenizer"),
)

_CONTENT = (
    Specimen("a Git LFS pointer", both(plain(), file(SINGLE, _LFS)), REFUSED, "Git LFS pointer.*lfs pull"),
    Specimen(
        "a shard that is a Git LFS pointer",
        both(plain(), shards(), file("model-00002-of-00002.safetensors", _LFS)),
        REFUSED,
        "00002-of-00002.safetensors .*Git LFS pointer",
    ),
    Specimen(
        "config.json that is a Git LFS pointer",
        both(plain(), file("config.json", _LFS)),
        REFUSED,
        "config.json is a Git LFS pointer",
    ),
    Specimen(
        "tokenizer.json that is a Git LFS pointer",
        both(plain(), file("tokenizer.json", _LFS)),
        None,
        "tokenizer.json is a Git LFS pointer",
    ),
    Specimen("an index that is a page", both(plain(), shards(), file(INDEX, _PAGE)), REFUSED, "an HTML page"),
    Specimen(
        "a page in the place of the weights", both(plain(), file(SINGLE, _PAGE)), REFUSED, "an HTML page"
    ),
    Specimen(
        "a message in the place of the weights",
        both(plain(), file(SINGLE, "Entry not found")),
        REFUSED,
        "a text that begins with 'Entry not found'",
    ),
    Specimen("an empty file", both(plain(), file(SINGLE)), REFUSED, "is empty"),
    Specimen("an empty config.json", both(plain(), file("config.json")), REFUSED, "config.json is empty"),
    Specimen(
        "zeros, kept free for a download",
        both(plain(), file(SINGLE, bytes(9999))),
        REFUSED,
        "begins with zeros",
    ),
    Specimen(
        "a pickle under the name of safetensors",
        both(plain(), lambda folder: torch.save(read(folder / SINGLE), folder / SINGLE)),
        REFUSED,
        "is a pickle, .*torch.save",
    ),
    Specimen(
        "half a file",
        both(plain(), lambda folder: file(SINGLE, (folder / SINGLE).read_bytes()[:5000])(folder)),
        REFUSED,
        "truncated",
    ),
)

ROWS = (*_FILES, *_ELSEWHERE, *_CONTENT)
