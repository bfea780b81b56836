"""Put a checkpoint's tensors into the model, memory-mapped where the dtype is already right."""

import torch

from doge_export.checkpoint import Checkpoint
from doge_export.checkpoint_fit import check_tensors
from doge_export.model.causal_lm import DogeForExport

__all__ = ["DTYPES", "load_model"]

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def load_model(
    checkpoint: Checkpoint, dtype: str = "float32", routing: str = "reference", kv_cache: str = "growing"
) -> DogeForExport:
    """The model of a checkpoint, in evaluation mode.

    A tensor whose dtype is the wanted one stays a view of the file; others are converted one by one.

    Raises:
        DogeExportError: a tensor is missing, is superfluous, or has another shape than the config says.
    """
    check_tensors(checkpoint)
    config = checkpoint.config
    with torch.device("meta"):
        model = DogeForExport(config, routing, kv_cache)
    state = {name: checkpoint.tensor(name).to(DTYPES[dtype]) for name, _ in model.named_parameters()}
    rotary = type(model.rotary_embedding)(config)  # buffers are computed, not loaded
    model.load_state_dict(state, strict=True, assign=True)
    model.rotary_embedding = rotary
    return model.eval().requires_grad_(False)
