"""An exported graph in plain onnxruntime, without any library of ours, telling what it chose."""

from collections.abc import Container
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

from doge_export.core.bundle import Bundle
from doge_export.core.errors import DogeExportError
from doge_export.core.temporary import temporary_folder
from doge_export.graph.passes import emulate_bfloat16, expose_hidden, expose_selection
from doge_export.runtime.float4 import dequantize_float4
from doge_export.runtime.graph import fold_weights, open_model, session_options
from doge_export.runtime.model_inputs import call_feed, empty_cache
from doge_export.validate.backends.base import Backend, BackendName, Shows
from doge_export.validate.backends.refusals import note_refusal
from doge_export.validate.cache_positions import cache_trace, mask_by_position
from doge_export.validate.run import Run
from doge_export.validate.schedules import Schedule, Tokens

__all__ = ["FunctionBodies", "plain_session"]

_Arrays = dict[str, npt.NDArray[Any]]

#: The cache's dtype -> what a session here takes. bfloat16 is emulated in float32.
_NUMPY = {"float32": np.float32, "float16": np.float16, "bfloat16": np.float32}


class FunctionBodies(Backend):
    """A bundle's graph on the function bodies that it has for our operators. With `selection`, the graph also
    gives the keys and experts it chose; with `trace`, also what goes from part to part. `native` runs it on
    the native kernels, which show less.

    onnxruntime's CPU provider has no bfloat16 arithmetic: of a bfloat16 bundle it runs the same graph in
    float32 that rounds every result to bfloat16 (`graph/passes/emulate_bfloat16.py`), and `emulated` says so.
    """

    name = BackendName.FUNCTION_BODIES

    def __init__(
        self, bundle: Bundle, selection: bool = True, trace: bool = False, native: bool = False
    ) -> None:
        self.bundle = bundle
        dtype = bundle.manifest.cache.dtype
        if dtype not in _NUMPY:
            raise DogeExportError(
                f"onnxruntime's CPU provider cannot compute in {dtype}, so this bundle cannot be "
                "validated here.",
                "Validate a float32 export of the same checkpoint.",
            )
        model = ir.load(bundle.model_path)
        self._shows = Shows.LOGITS | (Shows.SELECTION if selection else Shows(0))
        self._shows |= Shows.TRACE if trace else Shows(0)
        self.masks, self.experts = expose_selection(model) if selection else ([], [])
        self._hidden = expose_hidden(model) if trace else {}
        self.emulated = dtype == "bfloat16"
        if self.emulated:
            self.session = _emulating(model, bundle.path)
        else:
            if native:
                options = session_options(bundle, None, native=True)[0]
            else:
                fold_weights(options := _options(), bundle)
            self.session = plain_session(model, bundle.path, options)

    @property
    def shows(self) -> Shows:
        """What it was opened with."""
        return self._shows

    def run(
        self,
        schedule: Schedule,
        tokens: Tokens,
        *,
        trace: Container[str] | None = None,
        rope_length: int = 0,
    ) -> Run:
        """See Backend. With `rope_length`, the calls are pieces of one call of that length."""
        spec = self.bundle.manifest.cache
        cache: _Arrays = empty_cache(spec, len(schedule.padding), _NUMPY[spec.dtype])
        shown = {part: name for part, name in self._hidden.items() if trace is not None and part in trace}
        outputs = [*dict.fromkeys(("logits", *spec.outputs, *self.masks, *self.experts, *shown.values()))]
        whole = "rope_length" in {value.name for value in self.session.get_inputs()}
        logits: list[npt.NDArray[np.float32]] = []
        run = Run()
        for part, count in zip(schedule.parts, schedule.steps, strict=True):
            feed = call_feed(
                spec,
                tokens.input_ids[:, part],
                tokens.attention_mask[:, : part.stop],
                tokens.position_ids[:, part],
                rope_length if whole else None,
            )
            try:
                results = dict(zip(outputs, self.session.run(outputs, {**feed, **cache}), strict=True))
            except Exception as error:
                note_refusal(run, logits, schedule, self.bundle.config.vocab_size, error)
                break
            logits.append(results["logits"][:, schedule.kept(count)].astype(np.float32))
            run.keys.append(self._keys(results, cache, schedule, part))
            run.experts.append([results[name] for name in self.experts])
            cache = {name: results[output] for name, output in zip(spec.inputs, spec.outputs, strict=True)}
            if trace is not None and self._hidden:
                inner = {part: results[name] for part, name in shown.items()}
                run.trace.append(inner | cache_trace(cache, schedule.padding, part.stop, trace))
        run.logits = np.concatenate(logits, 1)
        return run

    def _keys(
        self, results: _Arrays, cache: _Arrays, schedule: Schedule, part: slice
    ) -> list[npt.NDArray[np.bool_]]:
        """Which keys each layer chose in the call of `part`, by the places of the tokens. `cache` is the one
        that the call was given."""
        spec = self.bundle.manifest.cache
        if spec.kind != "bounded":
            return [results[name][..., : part.stop if spec.kind == "static" else None] for name in self.masks]
        held = [cache[name] for name in spec.inputs if name.endswith(".position")]
        return [
            mask_by_position(results[name], position, schedule.padding, part.start, part.stop)
            for name, position in zip(self.masks, held, strict=bool(self.masks))
        ]


def _options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 4  # TensorScatter warns at every copy; what is refused is in the report
    return options


def plain_session(
    model: ir.Model, folder: Path, options: ort.SessionOptions | None = None
) -> ort.InferenceSession:
    """`model` in onnxruntime as it is, with the weights that lie in `folder`."""
    return open_model(ir.to_proto(model), folder, options or _options())


def _emulating(model: ir.Model, folder: Path) -> ort.InferenceSession:
    """A session of `model` in float32 with its results rounded, whose weights lie in `folder`. It takes twice
    the bytes: through a file, read tensor by tensor."""
    proto = ir.to_proto(model)
    if dequantized := dequantize_float4(proto, folder):
        model = ir.from_proto(proto)
        ir.external_data.set_base_dir(model.graph, folder)
        for weight, numbers in dequantized.items():
            model.graph.initializers[weight].const_value = ir.Tensor(numbers, name=weight)
    emulate_bfloat16(model)
    options = _options()
    # An optimiser may take a Cast to bfloat16 and back for nothing. In 1.32.0 none does at any level; one
    # (optimization.enable_cast_chain_elimination) would, and is off unless asked for.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    with temporary_folder() as whole:
        path = whole / "model.onnx"
        ir.save(model, path, external_data="model.onnx.data", size_threshold_bytes=1024, max_workers=1)
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
