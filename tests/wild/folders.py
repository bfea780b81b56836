"""Checkpoint folders as they come: names, shards, buffers, what other programs leave behind."""

from pathlib import Path
from typing import Any

import torch

from doge_export.checkpoint import Checkpoint
from doge_export.model import load_model
from tests.conftest import write_checkpoint
from tests.model._reference import Pair, calls
from tests.wild._specimen import REFUSED, Area, Specimen

__all__ = ["AREA", "ROWS"]

_CALL = calls((14, 1, 1), (0, 3))


def _reference(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return Pair(model.eval(), None).run_reference(_CALL)  # type: ignore[arg-type]


def _ours(folder: Path) -> Any:
    return Pair(None, load_model(Checkpoint.open(folder))).run_ours(_CALL)


def _compare(reference: Any, ours: Any) -> None:
    assert (reference - ours).abs()[_CALL.mask.bool()].max() <= 1e-5


AREA = Area("folders", _reference, _ours, _compare)


def _without_weights(folder: Path) -> None:
    (write_checkpoint(folder) / "model.safetensors").unlink()


ROWS = (
    Specimen("as save_pretrained writes it", write_checkpoint),
    Specimen("config.json alone", _without_weights, REFUSED, "no model.safetensors"),
)
