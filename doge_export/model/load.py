"""Put a checkpoint's tensors into the model, memory-mapped where the dtype is already right."""

import torch

from doge_export.checkpoint import Checkpoint
from doge_export.checkpoint_fit import check_tensors
from doge_export.generations import GENERATIONS
from doge_export.model.causal_lm import DogeForExport
from doge_export.model.feed_forward import CDMoE

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
        _add_router_biases(model, checkpoint)
    state = {name: checkpoint.tensor(name).to(DTYPES[dtype]) for name, _ in model.named_parameters()}
    rotary = type(model.rotary_embedding)(config)  # buffers are computed, not loaded
    model.load_state_dict(state, strict=True, assign=True)
    model.rotary_embedding = rotary
    return model.eval().requires_grad_(False)


def _add_router_biases(model: DogeForExport, checkpoint: Checkpoint) -> None:
    """A router has a bias where the checkpoint has one, in the generations in which it may."""
    if not GENERATIONS[checkpoint.config.generation].router_bias:
        return
    for name, module in model.named_modules():
        if isinstance(module, CDMoE) and f"{name}.router_gate.bias" in checkpoint.shapes:
            router = module.router_gate
            router.bias = torch.nn.Parameter(torch.empty(router.out_features))
