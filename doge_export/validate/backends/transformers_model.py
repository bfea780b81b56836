"""transformers' `DogeForCausalLM`, as it loads itself; and whether it would, without the weights."""

from collections.abc import Mapping
from typing import Any

import torch

from doge_export.core.checkpoint.folder import Checkpoint
from doge_export.core.errors import DogeExportError, refusal
from doge_export.core.generations import CURRENT, as_current, is_doge2
from doge_export.core.quiet import quiet_transformers
from doge_export.model.load import DTYPES

__all__ = ["check_taken", "load_current"]


def load_current(checkpoint: Checkpoint, dtype: str) -> Any:
    """transformers' own reading of the folder; where it would not find the weights under the names that they
    have, and draw others, it is given them, and of a Doge2 the same settings by its own names.

    Raises:
        DogeExportError: transformers refuses, in its words.
    """
    if checkpoint.found_by_transformers and not is_doge2(checkpoint.config.raw):
        return _run(checkpoint, dtype, None)
    return _run(checkpoint, dtype, {name: checkpoint.tensor(name) for name in checkpoint.shapes})


def check_taken(checkpoint: Checkpoint, dtype: str) -> None:
    """See that transformers takes config.json, loads the model and runs it; of an earlier generation it has
    none. It is given zeros that take no memory, and no weight is read.

    Raises:
        DogeExportError: it refuses, in its words.
    """
    if checkpoint.config.generation == CURRENT:
        zero = torch.zeros((), dtype=DTYPES[dtype])
        _run(checkpoint, dtype, {name: zero.expand(shape) for name, shape in checkpoint.shapes.items()})


def _run(checkpoint: Checkpoint, dtype: str, weights: Mapping[str, torch.Tensor] | None) -> Any:
    """The model, of the `weights` or else of those that transformers finds in the folder, after one token."""
    from transformers import DogeConfig as Config
    from transformers import DogeForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    folder, options = checkpoint.folder, {"dtype": DTYPES[dtype], "attn_implementation": "eager"}
    done = "load"
    try:
        with quiet_transformers():
            if weights is None:
                model = DogeForCausalLM.from_pretrained(folder, use_safetensors=True, **options)
            else:
                raw = checkpoint.config.raw  # transformers does not know a Doge2 by its name
                renamed = is_doge2(raw)
                config = Config.from_dict(as_current(raw)) if renamed else Config.from_pretrained(folder)
                model = DogeForCausalLM.from_pretrained(None, config=config, state_dict=weights, **options)
            done = "run"
            with torch.inference_mode():  # some keys of config.json are looked at only then
                _ = model(torch.zeros((1, 1), dtype=torch.int64)).logits
    except DogeExportError:
        raise
    except Exception as error:  # whatever a key makes it raise, NameError included
        raise refusal(f"transformers cannot {done} {folder}", error, _remedy(error)) from error
    return model


def _remedy(error: Exception) -> str:
    """What may be done about a checkpoint that transformers does not take."""
    if isinstance(error, ImportError) or "quant" in f"{error}".lower():
        return (
            "Take quantization_config out of config.json, if the weights are not quantized: those that are "
            "cannot be exported."
        )
    return "Mend config.json: transformers is what an export is held to, and reads it too."
