"""`decode.onnx` in plain onnxruntime, on the function body that the file has for its one node."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from doge_export.bundle import Bundle
from doge_export.runtime.feeds import call_feed, empty_cache
from doge_export.validate.candidate import plain_session, refusal
from doge_export.validate.kernels import BestTokens, padded
from doge_export.validate.places import cache_trace
from doge_export.validate.reference import Run
from doge_export.validate.schedules import Schedule, Tokens

__all__ = ["Decoding"]

_NUMPY = {"float32": np.float32, "float16": np.float16}


class Decoding:
    """The graph that gives the best tokens, with a cache of as many slots as a schedule needs."""

    def __init__(self, bundle: Bundle) -> None:
        assert bundle.decode_path is not None and bundle.manifest.decode is not None
        self.spec, self.vocab_size = bundle.manifest.decode, bundle.config.vocab_size
        self.session = plain_session(ir.load(bundle.decode_path), bundle.path)

    def best(self, schedule: Schedule, tokens: Tokens, steps: int = 1) -> tuple[BestTokens, Run]:
        """The best token after every call, and the cache after it as a trace. With `steps`, what the graph
        makes by itself after the last call: ids and logits [batch, steps] of that call alone."""
        spec, rows = self.spec.cache, len(schedule.padding)
        slots = spec.max_length or schedule.length + steps
        if spec.kind == "bounded":
            slots = min(slots, spec.slots or slots)
        one = replace(spec, max_length=slots)
        cache: dict[str, npt.NDArray[Any]] = {
            name: np.repeat(array[None], spec.layers, 0)
            for name, array in empty_cache(one, rows, _NUMPY[spec.dtype]).items()
        }
        names = {tensor.name for tensor in self.spec.inputs}
        outputs = ["token_ids", "token_logits", *spec.outputs]
        run, at = Run(np.empty(0, np.float32)), 0
        ids: list[npt.NDArray[np.int64]] = []
        logits: list[npt.NDArray[np.float32]] = []
        for number, count in enumerate(schedule.steps):
            part, end = slice(at, at + count), at + count
            last = number == len(schedule.steps) - 1
            feed = call_feed(
                one,
                tokens.input_ids[:, part],
                tokens.attention_mask[:, :end],
                tokens.position_ids[:, part],
                0 if "rope_length" in names else None,
            )
            if spec.kind == "static":  # 1 for the slots of what it makes itself
                feed["attention_mask"][:, end:] = 1
            feed["steps"] = np.array(steps if last else 1, np.int64)
            try:
                given = dict(zip(outputs, self.session.run(outputs, {**feed, **cache}), strict=True))
            except Exception as error:
                run.stopped = f"call {number + 1}: {refusal(error)}"
                break
            cache = {name: given[output] for name, output in zip(spec.inputs, spec.outputs, strict=True)}
            if steps == 1:
                ids.append(given["token_ids"][:, 0, 0])
                logits.append(given["token_logits"][:, 0, 0])
                run.trace.append(cache_trace(_by_layer(cache), schedule.padding, end))
            at = end
        if steps > 1 and run.stopped is None:
            return BestTokens(given["token_ids"][..., 0], given["token_logits"][..., 0]), run
        return padded(ids, logits, rows, steps if steps > 1 else len(schedule.steps)), run


def _by_layer(cache: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """`past_key_values.key` [layers, ...] and so on -> `past_key_values.N.key` ..."""
    return {
        f"{prefix}.{layer}.{part}": array[layer]
        for name, array in cache.items()
        for prefix, part in (name.split("."),)
        for layer in range(len(array))
    }
