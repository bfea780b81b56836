"""A bundle loaded in onnxruntime on the CPU, run step by step."""

__all__ = ["Session"]

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from doge_export.bundle import Bundle
from doge_export.errors import DogeExportError
from doge_export.plugins import plugin_library
from doge_export.runtime import tensors
from doge_export.runtime.cache import Cache, new_cache

#: onnxruntime's log level for errors; what it warns about is not the user's business.
_ERRORS_ONLY = 3

#: The domain of this project's operators (doge_export.ops needs torch).
_DOMAIN = "doge"
#: The operators that write a layer's cache, and their kernels do it in place.
_CACHE_WRITERS = ("DecoderLayer", "DynamicMaskAttention")

_log = logging.getLogger(__name__)
_warned: set[str] = set()


@dataclass(frozen=True)
class Session:
    """A loaded graph. It holds no state of a conversation, so that one serves many caches.

    `library` is the native library that was registered; `kernels` counts the nodes that run on its kernels,
    by operator. A node of ours that is not among them runs on the body that the file has for it.
    """

    bundle: Bundle
    _session: Any = field(repr=False)
    _logits_dtype: str = field(repr=False)
    library: Path | None = None
    kernels: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def open(cls, bundle: Bundle, threads: int | None = None, native: bool = True) -> "Session":
        """Load the graph with `threads` threads, or as many as onnxruntime chooses.

        The native library is registered where it is there; where it is missing, and the graph could use it,
        one warning is logged. `native` False leaves it out.

        Raises:
            DogeExportError: onnxruntime refuses the graph or the library, or it is not the graph that the
                manifest describes.
        """
        if threads is not None and threads < 1:
            raise DogeExportError(f"{threads} threads cannot run anything.", "Give 1 or more.")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if threads is not None:
            options.intra_op_num_threads = threads
            options.add_session_config_entry("doge_export.threads", str(threads))  # for the library
        library = _register(options, bundle) if native else None
        try:
            session = onnxruntime.InferenceSession(
                str(bundle.model_path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's exceptions have no common base of their own
            if "allocate memory" in str(error):
                raise MemoryError from error
            raise DogeExportError(
                f"onnxruntime {onnxruntime.__version__} cannot load {bundle.model_path}: "
                f"{_first_line(error)}.",
                _remedy(bundle, error),
            ) from error
        manifest = bundle.manifest
        for what, found, expected in (
            ("inputs", session.get_inputs(), manifest.inputs),
            ("outputs", session.get_outputs(), manifest.outputs),
        ):
            if (names := {value.name for value in found}) != (wanted := {spec.name for spec in expected}):
                raise DogeExportError(
                    f"{bundle.model_path} is not the graph that the manifest describes: the {what} differ by "
                    f"{', '.join(sorted(names ^ wanted))}.",
                    "Export the model again.",
                )
        needed = {"input_ids", "attention_mask", "position_ids", "logits", *manifest.cache.inputs}
        known = {spec.name for spec in (*manifest.inputs, *manifest.outputs)}
        if missing := sorted(needed - known):
            raise DogeExportError(f"The graph has no {', '.join(missing)}.", "Export the model again.")
        for spec in (*manifest.inputs, *manifest.outputs):
            if spec.dtype not in tensors.ELEMENT_TYPES:
                raise DogeExportError(f"{spec.name} is {spec.dtype}, which this version cannot feed.")
        dtype = next(spec.dtype for spec in manifest.outputs if spec.name == "logits")
        return cls(bundle, session, dtype, library, _kernels(session))

    def new_cache(self, batch: int) -> Cache:
        """An empty cache for `batch` rows."""
        writers = sum(self.kernels.get(name, 0) for name in _CACHE_WRITERS)
        layers = self.bundle.manifest.cache.layers
        return new_cache(self.bundle.manifest, batch, in_place=writers == layers)

    def step(
        self,
        input_ids: npt.NDArray[np.int64],
        attention_mask: npt.NDArray[np.int64],
        position_ids: npt.NDArray[np.int64],
        cache: Cache,
    ) -> tuple[npt.NDArray[np.float32], Cache]:
        """Run `input_ids` [batch, sequence] after what `cache` holds.

        `attention_mask` is [batch, cache.length + sequence], for every kind of cache; 0 marks padding.

        Returns:
            float32 logits [batch, sequence, vocab], and the cache to go on with. The one given is spent.

        Raises:
            DogeExportError: the tokens do not fit in the cache.
        """
        batch, sequence = input_ids.shape
        if position_ids.shape != input_ids.shape:
            raise ValueError(f"position_ids are {position_ids.shape}, input_ids {input_ids.shape}")
        if attention_mask.shape != (batch, cache.length + sequence):
            raise ValueError(
                f"attention_mask is {attention_mask.shape}, not {(batch, cache.length + sequence)}"
            )
        feeds = {
            "input_ids": tensors.from_array(input_ids),
            "position_ids": tensors.from_array(position_ids),
            **cache.inputs(attention_mask, sequence),
        }
        binding = self._session.io_binding()
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, value)
        shape = (batch, sequence, self.bundle.config.vocab_size)
        logits, array = tensors.empty(self._logits_dtype, shape)
        binding.bind_ortvalue_output("logits", logits)
        for name, value in cache.outputs().items():
            if value is None:
                binding.bind_output(name)
            else:
                binding.bind_ortvalue_output(name, value)
        self._run(binding)
        presents = binding.get_outputs()[1:]
        return tensors.to_float32(array, self._logits_dtype), cache.advanced(presents, sequence)

    def _run(self, binding: Any) -> None:
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            if "allocate memory" in str(error):
                raise MemoryError from error
            raise


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
            "`make setup` builds it again; it needs onnxruntime 1.17 or newer.",
        ) from error
    return library


def _uses_our_operators(bundle: Bundle) -> bool:
    import onnx  # late: only who lacks the library pays for it

    try:
        model = onnx.load(bundle.model_path, load_external_data=False)
    except Exception:  # onnxruntime will say what is wrong with it
        return False
    return any(node.domain == _DOMAIN for node in model.graph.node)


def _kernels(session: Any) -> dict[str, int]:
    """Operator of ours -> its nodes that onnxruntime has not replaced by their bodies."""
    nodes = (node for part in session.get_provider_graph_assignment_info() for node in part.get_nodes())
    return dict(Counter(node.op_type for node in nodes if node.domain == _DOMAIN))


def _first_line(error: Exception) -> str:
    line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return line.removeprefix("[ONNXRuntimeError] : ").rstrip(".")


def _remedy(bundle: Bundle, error: Exception) -> str:
    target, dtype = (bundle.manifest.options.get(key) for key in ("target", "dtype"))
    if type(error).__name__ == "NotImplemented" or "is invalid" in str(error):
        return (
            f"It was exported with --target {target} --dtype {dtype}; the CPU runs --target ort-cpu "
            "--dtype float32."
        )
    return "doge-export inspect --no-load shows whether its files are whole."
