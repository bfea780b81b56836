"""llama.cpp through llama-cpp-python's C interface, on a random Llama of the model's shape.

`llama_decode` token by token with the threads' pool of llama.cpp's own, and numpy's argmax over the logits
where they lie: its high-level `__call__` costs several times as much, and its greedy sampler, which first
copies all logits into an array of candidates, a little more. `all_logits` asks for those of every position
of the prompt, not only the last.
"""

import ctypes
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llama_cpp as api
import numpy as np

from peers import base, gguf_file

_context: Any = None
_vocab = 0
_all_logits = False
_sampler: Any = None


def _quiet(level: int, text: bytes, user_data: Any) -> None: ...


_log = api.llama_log_callback(_quiet)


def open(
    shape: dict[str, Any],
    kind: str,
    folder: str,
    threads: int,
    all_logits: bool = False,
    sampler: bool = False,
    flash: bool | None = None,
    batch: int = 512,
    slots: int = 1024,
) -> dict[str, Any]:
    global _context, _vocab, _all_logits, _sampler
    api.llama_log_set(_log, ctypes.c_void_p(0))
    model_shape = base.Shape(**shape)
    path = Path(folder) / f"llama-{kind}.gguf"
    if not path.exists():
        gguf_file.write(path, model_shape, kind)
    started = time.perf_counter()
    model = api.llama_model_load_from_file(str(path).encode(), api.llama_model_default_params())
    parameters = api.llama_context_default_params()
    parameters.n_ctx = slots
    parameters.n_batch = parameters.n_ubatch = batch
    parameters.n_threads = parameters.n_threads_batch = threads
    if flash is not None:
        parameters.flash_attn_type = (
            api.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
    parameters.no_perf = True
    _context = api.llama_init_from_model(model, parameters)
    if not _context:
        raise RuntimeError(f"llama.cpp cannot make a context for {path}")
    _vocab, _all_logits = model_shape.vocab, all_logits
    _sampler = api.llama_sampler_init_greedy() if sampler else None
    return {
        "seconds": time.perf_counter() - started,
        "versions": {"llama-cpp-python": version("llama-cpp-python")},
        "note": f"Llama of the same shape, {kind}, {'tied' if model_shape.tied else 'untied'} head",
    }


def tokens(prompt: list[int], new_tokens: int) -> base.Tokens:
    api.llama_memory_clear(api.llama_get_memory(_context), True)
    ids: Any = (api.llama_token * len(prompt))(*prompt)
    one: Any = (api.llama_token * 1)()
    if _all_logits:
        batch = api.llama_batch_init(len(prompt), 0, 1)
        batch.n_tokens = len(prompt)
        for at, token in enumerate(prompt):
            batch.token[at], batch.pos[at], batch.n_seq_id[at] = token, at, 1
            batch.seq_id[at][0], batch.logits[at] = 0, 1
    else:
        batch = api.llama_batch_get_one(ids, len(prompt))
    step = api.llama_batch_get_one(one, 1)
    for _ in range(new_tokens):
        status = api.llama_decode(_context, batch)
        if status:
            raise RuntimeError(f"llama_decode gave {status}")
        if _sampler is not None:
            token = int(api.llama_sampler_sample(_sampler, _context, -1))
        else:
            logits = api.llama_get_logits_ith(_context, -1)
            token = int(np.ctypeslib.as_array(logits, (_vocab,)).argmax())
        one[0] = token
        batch = step
        yield token


if __name__ == "__main__":
    base.serve(open, tokens)
