"""transformers with a static cache, its forward compiled by torch.compile."""

import time
from importlib.metadata import version
from typing import Any

import torch
from transformers import DogeForCausalLM
from transformers.cache_utils import StaticCache
from transformers.utils import logging

from peers import base

_model: Any = None
_forward: Any = None
_cache: Any = None
_slots = 0


def open(checkpoint: str, threads: int, slots: int) -> dict[str, Any]:
    global _model, _forward, _cache, _slots
    _slots = slots
    torch.set_num_threads(threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    started = time.perf_counter()
    _model = DogeForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager", use_safetensors=True
    ).eval()
    _cache = StaticCache(config=_model.config, max_cache_len=slots)
    _forward = torch.compile(_model.forward, dynamic=False)
    list(tokens([1, 2], 4))  # compile a decode step
    return {"seconds": time.perf_counter() - started, "versions": {"torch": version("torch").split("+")[0]}}


def tokens(prompt: list[int], new_tokens: int) -> base.Tokens:
    """The prompt goes through the plain forward, which is no part of what this peer is measured for."""
    with torch.inference_mode():
        _cache.reset()
    ids = torch.tensor([prompt])
    call = _model.forward
    position = 0
    with torch.inference_mode():
        for _ in range(new_tokens):
            length = ids.shape[1]
            mask = torch.ones(1, position + length, dtype=torch.int64)
            mask = torch.nn.functional.pad(mask, (0, _slots - position - length))
            positions = torch.arange(position, position + length)[None]
            output = call(ids, mask, positions, _cache, use_cache=True, logits_to_keep=1)
            ids = output.logits[:, -1].argmax(-1, keepdim=True)
            position += length
            call = _forward
            yield int(ids)


if __name__ == "__main__":
    base.serve(open, tokens)
