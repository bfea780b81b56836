"""`python -m context.reference`: transformers eager on a cache of a given length.

Its prefill of long texts takes hours and more memory than there is, so that the cache is filled with random
keys and values: a step costs the same.
"""

import time
from typing import Any

import torch
from transformers import DogeForCausalLM
from transformers.cache_utils import DynamicCache
from transformers.utils import logging

from context.memory import resident_memory
from doge_export.bench.serve import peak_memory, serve


class Reference:
    """One cache, and the steps after it."""

    def open(self, checkpoint: str, threads: int) -> dict[str, Any]:
        torch.set_num_threads(threads)
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self._model: Any = DogeForCausalLM.from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation="eager", use_safetensors=True
        ).eval()
        return {"cache": "growing"}

    def read(self, context: int) -> dict[str, Any]:
        config = self._model.config
        self._cache: Any = DynamicCache(config=config)
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (1, config.num_key_value_heads, context, head_dim)
        for layer in range(config.num_hidden_layers):
            self._cache.update(torch.randn(shape), torch.randn(shape), layer)
        self._at = context
        return {"seconds": None, "peak": peak_memory(), "resident": resident_memory()}

    def decode(self, calls: int) -> dict[str, Any]:
        milliseconds = []
        with torch.inference_mode():
            for _ in range(calls):
                started = time.perf_counter()
                mask = torch.ones(1, self._at + 1, dtype=torch.int64)
                ids, positions = torch.tensor([[5]]), torch.tensor([[self._at]])
                self._model(ids, mask, positions, self._cache, use_cache=True, logits_to_keep=1)
                milliseconds.append((time.perf_counter() - started) * 1e3)
                self._at += 1
        return {"ms": milliseconds, "peak": peak_memory(), "resident": resident_memory()}


if __name__ == "__main__":
    reference = Reference()
    serve({"open": reference.open, "read": reference.read, "decode": reference.decode})
