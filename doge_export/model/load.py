"""Put a checkpoint's tensors into the model, memory-mapped where the dtype is already right."""

import torch

from doge_export.checkpoint import Checkpoint
from doge_export.config import DogeConfig
from doge_export.errors import DogeExportError
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
    config = checkpoint.config
    with torch.device("meta"):
        model = DogeForExport(config, routing, kv_cache)
    wanted = dict(model.named_parameters())
    _check(wanted, checkpoint, config)
    state = {name: checkpoint.tensor(name).to(DTYPES[dtype]) for name in wanted}
    rotary = type(model.rotary_embedding)(config)  # buffers are computed, not loaded
    model.load_state_dict(state, strict=True, assign=True)
    model.rotary_embedding = rotary
    return model.eval().requires_grad_(False)


def _check(wanted: dict[str, torch.nn.Parameter], checkpoint: Checkpoint, config: DogeConfig) -> None:
    """Hold the checkpoint's names and shapes to the model's."""
    present = checkpoint.shapes
    for name, parameter in wanted.items():
        if name not in present:
            raise DogeExportError(
                f"{checkpoint.folder} holds no tensor {name!r}.",
                "The checkpoint is incomplete, or of another generation: --generation names one.",
            )
        if present[name] != tuple(parameter.shape):
            raise DogeExportError(
                f"{name} is {list(present[name])} in {checkpoint.folder}, and config.json makes it "
                f"{list(parameter.shape)}.",
                "Take config.json and weights from the same checkpoint.",
            )
    extra = set(present) - set(wanted)
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    if config.tie_word_embeddings and head in extra:  # some writers store the tied head a second time
        if not torch.equal(checkpoint.tensor(head), checkpoint.tensor(embedding)):
            raise DogeExportError(
                f"config.json ties the embeddings, and {checkpoint.folder} holds another {head!r}, which "
                "transformers would use.",
                "Set tie_word_embeddings to false in config.json, or remove the tensor.",
            )
        extra.discard(head)
    if extra:
        first = sorted(extra)[0]
        raise DogeExportError(
            f"{checkpoint.folder} holds {len(extra)} tensors that config.json has no place for, "
            f"first {first!r}.",
            "Check is_moe, attention_bias, mlp_bias and tie_word_embeddings in config.json.",
        )
