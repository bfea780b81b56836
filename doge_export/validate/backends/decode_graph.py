"""`decode.onnx` in plain onnxruntime, on the function body that the file has for its one node."""

from collections.abc import Container, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from doge_export.core.bundle import Bundle
from doge_export.runtime.model_inputs import call_feed, empty_cache
from doge_export.validate.backends.base import BackendName, DecodeBackend, Shows
from doge_export.validate.backends.function_bodies import plain_session
from doge_export.validate.backends.refusals import padded, refusal
from doge_export.validate.cache_positions import cache_trace
from doge_export.validate.run import BestTokens, Run
from doge_export.validate.schedules import Schedule, Tokens

__all__ = ["DecodeGraph"]

_Arrays = dict[str, npt.NDArray[Any]]
_NUMPY = {"float32": np.float32, "float16": np.float16}


class DecodeGraph(DecodeBackend):
    """The graph that gives the best tokens, with a cache of as many slots as a schedule needs."""

    name = BackendName.DECODE_GRAPH

    def __init__(self, bundle: Bundle) -> None:
        assert bundle.decode_path is not None and bundle.manifest.decode is not None
        self.spec, self.vocab_size = bundle.manifest.decode, bundle.config.vocab_size
        self.session = plain_session(ir.load(bundle.decode_path), bundle.path)
        cache = self.spec.cache
        self._cache_names = [*zip(cache.inputs, cache.outputs, strict=True)]

    @property
    def shows(self) -> Shows:
        """The best tokens, and of the trace the cache."""
        return Shows.BEST | Shows.TRACE

    def run(self, schedule: Schedule, tokens: Tokens, *, trace: Container[str] | None = None) -> Run:
        """See Backend."""
        run = Run()
        ids: list[npt.NDArray[np.int64]] = []
        logits: list[npt.NDArray[np.float32]] = []
        for part, results in zip(schedule.parts, self._calls(run, schedule, tokens, 1), strict=False):
            ids.append(results["token_ids"][:, 0, 0])
            logits.append(results["token_logits"][:, 0, 0])
            if trace is not None:
                cache = {name: results[output] for name, output in self._cache_names}
                run.trace.append(cache_trace(_by_layer(cache), schedule.padding, part.stop, trace))
        run.best = padded(ids, logits, len(schedule.padding), len(schedule.steps))
        return run

    def multi_step(self, schedule: Schedule, tokens: Tokens, steps: int) -> BestTokens:
        """See DecodeBackend."""
        run = Run()
        calls = list(self._calls(run, schedule, tokens, steps))
        if run.stopped is not None:
            return padded([], [], len(schedule.padding), steps)
        return BestTokens(calls[-1]["token_ids"][..., 0], calls[-1]["token_logits"][..., 0])

    def _calls(self, run: Run, schedule: Schedule, tokens: Tokens, steps: int) -> Iterator[_Arrays]:
        """What the graph gives in each call, of which the last makes `steps` tokens. A refusal ends them, and
        `run` says so."""
        spec = self.spec.cache
        slots = spec.max_length or schedule.length + steps
        if spec.kind == "bounded":
            slots = min(slots, spec.slots or slots)
        one = replace(spec, max_length=slots)
        cache: _Arrays = {
            name: np.repeat(array[None], spec.layers, 0)
            for name, array in empty_cache(one, len(schedule.padding), _NUMPY[spec.dtype]).items()
        }
        names = {tensor.name for tensor in self.spec.inputs}
        outputs = ["token_ids", "token_logits", *spec.outputs]
        for number, part in enumerate(schedule.parts):
            feed = call_feed(
                one,
                tokens.input_ids[:, part],
                tokens.attention_mask[:, : part.stop],
                tokens.position_ids[:, part],
                0 if "rope_length" in names else None,
            )
            if spec.kind == "static":  # 1 for the slots of what it makes itself
                feed["attention_mask"][:, part.stop :] = 1
            feed["steps"] = np.array(steps if part.stop == schedule.length else 1, np.int64)
            try:
                results = dict(zip(outputs, self.session.run(outputs, {**feed, **cache}), strict=True))
            except Exception as error:
                run.stopped = f"call {number + 1}: {refusal(error)}"
                return
            cache = {name: results[output] for name, output in self._cache_names}
            yield results


def _by_layer(cache: _Arrays) -> _Arrays:
    """`past_key_values.key` [layers, ...] and so on -> `past_key_values.N.key` ..."""
    return {
        f"{prefix}.{layer}.{part}": array[layer]
        for name, array in cache.items()
        for prefix, part in (name.split("."),)
        for layer in range(len(array))
    }
