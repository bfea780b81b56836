"""A graph of a bundle in onnxruntime: loaded, held to the manifest, on the native kernels where they are."""

__all__ = [
    "MAX_THREADS",
    "Graph",
    "check_threads",
    "fold_weights",
    "load_graph",
    "open_model",
    "session_options",
]

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime

from doge_export.core.bundle import Bundle, TensorSpec
from doge_export.core.errors import DogeExportError
from doge_export.core.native_library import HOW_TO_GET, plugin_library

if TYPE_CHECKING:
    import onnx

#: onnxruntime's log level for errors; what it warns about is not the user's business.
_ERRORS_ONLY = 3
#: The domain of this project's operators (doge_export.graph.operators needs torch).
_DOMAIN = "doge"
#: A manifest's type -> onnxruntime's name of it.
_TYPES = {
    "float32": "tensor(float)",
    "float16": "tensor(float16)",
    "bfloat16": "tensor(bfloat16)",
    "int64": "tensor(int64)",
}

_log = logging.getLogger(__name__)
_warned: set[str] = set()


@dataclass(frozen=True)
class Graph:
    """`session` is onnxruntime's. `kernels` counts the nodes that run on kernels of the native library, by
    operator; a node of ours that is not among them runs on the body that the file has for it."""

    session: Any
    kernels: Mapping[str, int]


#: More than any processor that a small model gains by; each takes some hundred kilobytes.
MAX_THREADS = 1024


def check_threads(threads: int | None) -> None:
    """See whether onnxruntime can run in so many threads; None leaves it to onnxruntime.

    Raises:
        DogeExportError: there are none, or too many.
    """
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise DogeExportError(f"{threads} threads cannot run anything.", f"Give 1 to {MAX_THREADS}.")


def session_options(bundle: Bundle, threads: int | None, native: bool) -> tuple[Any, Path | None]:
    """onnxruntime's SessionOptions, and the native library where they got it.

    Where the library is missing, and the bundle could use it, one warning is logged. `native` False leaves
    it out.

    Raises:
        DogeExportError: onnxruntime refuses the library, or `threads` are none or too many.
    """
    check_threads(threads)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    fold_weights(options, bundle)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
        options.add_session_config_entry("doge_export.threads", str(threads))  # for the library
    return options, _register(options, bundle) if native else None


def fold_weights(options: Any, bundle: Bundle) -> None:
    """Let onnxruntime dequantize the matrices of `bundle` at load, where DequantizeLinear reads them and they
    are multiplied with floats. It would do so in every step otherwise, and multiply as by no constant: with
    other roundings for one row than for many, so that equal keys would get unequal weights.
    """
    if bundle.manifest.options.dequantize_at_load:
        options.add_session_config_entry("session.disable_quant_qdq", "1")


def load_graph(
    bundle: Bundle, path: Path, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], options: Any
) -> Graph:
    """Load the file at `path`, whose interface the manifest gives as `inputs` and `outputs`.

    Raises:
        DogeExportError: onnxruntime refuses the graph, or it has another interface.
    """
    try:
        if bundle.manifest.options.float4:
            import onnx  # late: others do without

            model = onnx.load(path, load_external_data=False)
            session = open_model(model, path.parent, options)
        else:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        if "allocate memory" in str(error):
            raise MemoryError from error
        raise DogeExportError(
            f"onnxruntime {onnxruntime.__version__} cannot load {path}: {_first_line(error)}.",
            _remedy(bundle, error),
        ) from error
    for what, actual, expected in (
        ("inputs", session.get_inputs(), inputs),
        ("outputs", session.get_outputs(), outputs),
    ):
        if (names := {value.name for value in actual}) != (wanted := {spec.name for spec in expected}):
            raise DogeExportError(
                f"{path} is not the graph that the manifest describes: the {what} differ by "
                f"{', '.join(sorted(names ^ wanted))}.",
                "Export the model again.",
            )
        described = {spec.name: spec for spec in expected}
        for value in actual:
            if not _is_described(value, described[value.name]):
                raise DogeExportError(
                    f"{path} is not the graph that the manifest describes: {value.name} is {value.type} "
                    f"{value.shape}.",
                    "Export the model again.",
                )
    nodes = (node for part in session.get_provider_graph_assignment_info() for node in part.get_nodes())
    return Graph(session, dict(Counter(node.op_type for node in nodes if node.domain == _DOMAIN)))


def _is_described(value: Any, spec: TensorSpec) -> bool:
    """Whether a tensor of the graph has the type and the sizes that the manifest says; names of sizes may
    differ."""
    if value.type != _TYPES.get(spec.dtype) or len(value.shape) != len(spec.shape):
        return False
    pairs = zip(value.shape, spec.shape, strict=True)
    return all(one == two for one, two in pairs if isinstance(one, int) or isinstance(two, int))


def open_model(model: "onnx.ModelProto", folder: Path, options: Any) -> Any:
    """onnxruntime's session of `model`, whose weights lie in `folder`. What it has in float4 is float32 there
    (doge_export.runtime.float4)."""
    from doge_export.runtime.float4 import dequantize_float4

    numbers = dequantize_float4(model, folder)
    initializers = {name: onnxruntime.OrtValue.ortvalue_from_numpy(each) for name, each in numbers.items()}
    options.add_external_initializers(list(initializers), list(initializers.values()))
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    session.doge_export_initializers = initializers  # read where they are, as long as it lives
    return session


def _register(options: Any, bundle: Bundle) -> Path | None:
    """Give `options` the native library where it is there."""
    try:
        library = plugin_library()
    except DogeExportError as error:
        if _uses_our_operators(bundle) and error.message not in _warned:
            _warned.add(error.message)
            _log.warning("%s The graph runs without its kernels, and slower.", error.message)
        return None
    try:
        options.register_custom_ops_library(str(library))
    except Exception as error:
        raise DogeExportError(
            f"onnxruntime {onnxruntime.__version__} cannot use the native library {library}: "
            f"{_first_line(error)}.",
            f"{HOW_TO_GET} It needs onnxruntime 1.23 or newer.",
        ) from error
    return library


def _uses_our_operators(bundle: Bundle) -> bool:
    import onnx  # late: only who lacks the library pays for it

    try:
        model = onnx.load(bundle.model_path, load_external_data=False)
    except Exception:  # onnxruntime will say what is wrong with it
        return False
    return any(node.domain == _DOMAIN for node in model.graph.node)


def _first_line(error: Exception) -> str:
    line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return line.removeprefix("[ONNXRuntimeError] : ").rstrip(".")


def _remedy(bundle: Bundle, error: Exception) -> str:
    target, dtype = bundle.manifest.options.target, bundle.manifest.options.dtype
    if type(error).__name__ == "NotImplemented" or any(
        words in str(error) for words in ("is invalid", "has unsupported type")
    ):
        return (
            f"It was exported with --target {target} --dtype {dtype}; the CPU runs --target ort-cpu "
            "--dtype float32."
        )
    return "doge-export inspect --no-load shows whether its files are whole."
