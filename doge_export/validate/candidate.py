"""An exported graph in plain onnxruntime, without any library of ours, telling what it chose."""

from collections.abc import Container
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

from doge_export.bundle import Bundle
from doge_export.errors import DogeExportError
from doge_export.float4 import dequantize_float4
from doge_export.passes import emulate_bfloat16, expose_hidden, expose_selection
from doge_export.runtime.feeds import call_feed, empty_cache
from doge_export.runtime.graph import fold_weights, open_model, session_options
from doge_export.temporary import temporary_folder
from doge_export.validate.places import cache_trace, mask_by_position
from doge_export.validate.reference import Run
from doge_export.validate.schedules import Schedule, Tokens

__all__ = ["Candidate", "plain_session", "refusal"]

#: The cache's dtype -> what a session here takes. bfloat16 is emulated in float32.
_NUMPY = {"float32": np.float32, "float16": np.float16, "bfloat16": np.float32}


class Candidate:
    """A bundle's graph. With `selection`, the graph also gives the keys and experts it chose; with `trace`,
    also what goes from part to part. `native` runs it on the native kernels, which show less.

    onnxruntime's CPU provider has no bfloat16 arithmetic: of a bfloat16 bundle it runs the float32 twin
    that rounds every result to bfloat16 (`passes/emulate_bfloat16.py`), and `emulated` says so.
    """

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
        self.masks, self.experts = expose_selection(model) if selection else ([], [])
        self.hidden = expose_hidden(model) if trace else {}
        self.emulated = dtype == "bfloat16"
        if self.emulated:
            self.session = _emulating(model, bundle.path)
        else:
            if native:
                options = session_options(bundle, None, native=True)[0]
            else:
                fold_weights(options := _options(), bundle)
            self.session = plain_session(model, bundle.path, options)

    def run(
        self,
        schedule: Schedule,
        tokens: Tokens,
        rope_length: int = 0,
        parts: Container[str] | None = None,
    ) -> Run:
        """The schedule, from an empty cache; with `rope_length`, as pieces of one call of that length. Of a
        graph that shows its `parts`, those are recorded, or all.

        A call that onnxruntime refuses ends the run: `stopped` says with which words, and the logits of that
        call and those after it are NaN.
        """
        cache_spec = self.bundle.manifest.cache
        rows = len(schedule.padding)
        static, bounded = cache_spec.kind == "static", cache_spec.kind == "bounded"
        cache = empty_cache(cache_spec, rows, _NUMPY[cache_spec.dtype])
        hidden = {part: name for part, name in self.hidden.items() if parts is None or part in parts}
        outputs = ["logits", *cache_spec.outputs, *self.masks, *self.experts]
        outputs += [name for name in hidden.values() if name not in outputs]
        whole = "rope_length" in {value.name for value in self.session.get_inputs()}
        logits: list[npt.NDArray[np.float32]] = []
        at = 0
        run = Run(np.empty(0, np.float32))
        for count in schedule.steps:
            part = slice(at, at + count)
            end = at + count
            feed = call_feed(
                cache_spec,
                tokens.input_ids[:, part],
                tokens.attention_mask[:, :end],
                tokens.position_ids[:, part],
                rope_length if whole else None,
            )
            try:
                results = dict(zip(outputs, self.session.run(outputs, {**feed, **cache}), strict=True))
            except Exception as error:
                run.stopped = f"call {len(logits) + 1}: {refusal(error)}"
                missing = sum(len(schedule.kept(count)) for count in schedule.steps[len(logits) :])
                logits.append(np.full((rows, missing, self.bundle.config.vocab_size), np.nan, np.float32))
                break
            logits.append(results["logits"][:, schedule.kept(count)].astype(np.float32))
            if bounded and self.masks:
                held = [cache[name] for name in cache_spec.inputs if name.endswith(".position")]
                run.keys.append(
                    [
                        mask_by_position(results[name], position, schedule.padding, at, end)
                        for name, position in zip(self.masks, held, strict=True)
                    ]
                )
            else:
                run.keys.append([results[name][..., : end if static else None] for name in self.masks])
            cache = {
                name: results[output]
                for name, output in zip(cache_spec.inputs, cache_spec.outputs, strict=True)
            }
            if self.hidden:
                shown = {part: results[name] for part, name in hidden.items()}
                run.trace.append(shown | cache_trace(cache, schedule.padding, end, parts))
            run.experts.append([results[name] for name in self.experts])
            at = end
        run.logits = np.concatenate(logits, 1)
        return run


def refusal(error: Exception) -> str:
    """What onnxruntime says of a call that it refuses.

    Raises:
        Exception: `error`, where it is not onnxruntime's.
    """
    bound = isinstance(error, RuntimeError) and str(error).startswith("Error in execution")
    if not (bound or type(error).__module__.startswith("onnxruntime")):
        raise error
    if "allocate memory" in str(error):
        raise MemoryError from error
    return (
        str(error)
        .strip()
        .splitlines()[0]
        .removeprefix("[ONNXRuntimeError] : ")
        .removeprefix("Error in execution: ")
    )


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
    """A session of the float32 twin of `model`, whose weights lie in `folder`. It takes twice the bytes:
    through a file, read tensor by tensor."""
    proto = ir.to_proto(model)
    if given := dequantize_float4(proto, folder):
        model = ir.from_proto(proto)
        ir.external_data.set_base_dir(model.graph, folder)
        for weight, numbers in given.items():
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
