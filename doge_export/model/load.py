"""Put a checkpoint's tensors into the model, memory-mapped where the dtype is already right."""

from collections.abc import Collection, Iterable, Mapping

import torch

from doge_export.core.checkpoint.fit import check_tensors
from doge_export.core.checkpoint.folder import Checkpoint
from doge_export.core.config import DogeConfig
from doge_export.core.tensor_shapes import optional_shapes
from doge_export.model.causal_lm import DogeForExport

__all__ = ["DTYPES", "empty_model", "load_model", "load_weights"]

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def load_model(
    checkpoint: Checkpoint, dtype: str = "float32", routing: str = "reference", kv_cache: str = "growing"
) -> DogeForExport:
    """The model of a checkpoint, in evaluation mode.

    Raises:
        DogeExportError: a tensor is missing, is superfluous, or has another shape than the config says.
    """
    check_tensors(checkpoint)
    model = _on_meta(checkpoint.config, checkpoint.shapes, routing, kv_cache)
    names = [name for name, _ in model.named_parameters()]
    return _with_tensors(model, load_weights(checkpoint, names, dtype))


def load_weights(
    checkpoint: Checkpoint, names: Iterable[str], dtype: str = "float32"
) -> dict[str, torch.Tensor]:
    """The tensors of those names. One whose dtype is the wanted one stays a view of the file; others are
    converted one by one."""
    return {name: checkpoint.tensor(name).to(DTYPES[dtype]) for name in names}


def empty_model(
    config: DogeConfig, names: Collection[str], dtype: str, routing: str, kv_cache: str
) -> DogeForExport:
    """A model to be traced: its weights have shapes and a dtype, and no numbers that mean anything. Their
    memory is reserved and never touched. `names`: the tensors of the checkpoint, some of which are optional.
    """
    model = _on_meta(config, names, routing, kv_cache)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    return _with_tensors(
        model, {name: torch.empty(shape, dtype=DTYPES[dtype]) for name, shape in shapes.items()}
    )


def _on_meta(config: DogeConfig, names: Collection[str], routing: str, kv_cache: str) -> DogeForExport:
    with torch.device("meta"):
        model = DogeForExport(config, routing, kv_cache)
        for name, shape in optional_shapes(config, names, names).items():
            parent, _, part = name.rpartition(".")
            setattr(model.get_submodule(parent), part, torch.nn.Parameter(torch.empty(shape)))
    return model


def _with_tensors(model: DogeForExport, tensors: Mapping[str, torch.Tensor]) -> DogeForExport:
    rotary = type(model.rotary_embedding)(model.config)  # buffers are computed, not loaded
    model.load_state_dict(tensors, strict=True, assign=True)
    model.rotary_embedding = rotary
    return model.eval().requires_grad_(False)
