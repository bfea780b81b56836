"""`python -m doge_export.bench.reference`: the same rounds in transformers, float32."""

__all__ = ["Reference"]

import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from doge_export.bench.serve import peak_memory, serve, timed
from doge_export.core.errors import DogeExportError, refusal
from doge_export.core.quiet import quiet_transformers

_MEND = "Mend config.json: transformers reads it too."


class Reference:
    """A checkpoint in transformers, called as its own greedy generation would call it."""

    model: Any

    def open(self, checkpoint: str, threads: int, attention: str = "eager") -> dict[str, Any]:
        """Load it with `threads` threads; `attention` is one of transformers' implementations."""
        try:
            import torch
            from transformers import DogeForCausalLM
            from transformers.utils import logging
        except ImportError as error:
            raise DogeExportError(
                f"--against transformers needs {error.name}, which is not installed.",
                "pip install 'doge-export[export]'",
            ) from None
        torch.set_num_threads(threads)
        logging.disable_progress_bar()
        started = time.perf_counter()
        try:
            with quiet_transformers():
                self.model = DogeForCausalLM.from_pretrained(
                    checkpoint, dtype=torch.float32, attn_implementation=attention, use_safetensors=True
                ).eval()
        except Exception as error:  # whatever a key of config.json makes it raise
            raise refusal(f"transformers cannot load {checkpoint}", error, _MEND) from error
        return {
            "seconds": time.perf_counter() - started,
            "versions": {name: version(name).split("+")[0] for name in ("torch", "transformers")},
        }

    def round(self, prompt: list[int], new_tokens: int) -> dict[str, Any]:
        """Greedy decoding with a growing cache."""
        return timed(prompt, self._tokens(prompt, new_tokens))

    def memory(self) -> int:
        """Peak resident bytes so far."""
        return peak_memory()

    def _tokens(self, prompt: list[int], new_tokens: int) -> Iterator[int]:
        import torch
        from transformers.cache_utils import DynamicCache

        self.model.model.rotary_emb.__init__(self.model.config)  # a dynamic rope remembers longer texts
        cache = DynamicCache(config=self.model.config)
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        positions = torch.arange(len(prompt))[None]
        with torch.inference_mode():
            for _ in range(new_tokens):
                # The cache by place: its name changed in transformers 5.24.
                output = self.model(ids, mask, positions, cache, use_cache=True, logits_to_keep=1)
                ids = output.logits[:, -1].argmax(-1, keepdim=True)
                mask = torch.cat((mask, mask.new_ones(1, 1)), dim=1)
                positions = positions[:, -1:] + 1
                yield int(ids)


if __name__ == "__main__":
    reference = Reference()
    serve({"open": reference.open, "round": reference.round, "memory": reference.memory})
