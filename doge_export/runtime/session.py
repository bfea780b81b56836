"""A bundle loaded in onnxruntime on the CPU, run step by step."""

__all__ = ["Session"]

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from doge_export.bundle import Bundle, TensorSpec
from doge_export.errors import DogeExportError
from doge_export.plugins import plugin_library
from doge_export.runtime import tensors
from doge_export.runtime.cache import Cache, new_cache

#: onnxruntime's log level for errors; what it warns about is not the user's business.
_ERRORS_ONLY = 3
#: The outputs of a graph that gives tokens, before those of its cache.
_TOKENS = ("token_ids", "token_logits")

#: The domain of this project's operators (doge_export.ops needs torch).
_DOMAIN = "doge"
#: The operators that write a layer's cache, and their kernels do it in place.
_CACHE_WRITERS = ("DecoderLayer", "DynamicMaskAttention")

_log = logging.getLogger(__name__)
_warned: set[str] = set()


@dataclass(frozen=True)
class Session:
    """A bundle in onnxruntime. It holds no state of a conversation, so that one serves many caches.

    A bundle with two graphs is loaded as they are asked for: `step` needs the one that gives all logits,
    `step_tokens` the one that gives tokens. `library` is the native library that was registered.
    """

    bundle: Bundle
    _options: Any = field(repr=False)
    _logits_dtype: str = field(repr=False)
    library: Path | None = None
    _loaded: dict[bool, Any] = field(repr=False, default_factory=dict)
    _loading: threading.Lock = field(repr=False, default_factory=threading.Lock)

    @classmethod
    def open(cls, bundle: Bundle, threads: int | None = None, native: bool = True) -> "Session":
        """Run the bundle with `threads` threads, or as many as onnxruntime chooses.

        The native library is registered where it is there; where it is missing, and the graph could use it,
        one warning is logged. `native` False leaves it out.

        Raises:
            DogeExportError: onnxruntime refuses the graph or the library, or it is not the graph that the
                manifest describes. Where the bundle has two graphs, `load` and the first step raise it.
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
        manifest = bundle.manifest
        outputs = (*manifest.outputs, *(manifest.decode.outputs if manifest.decode else ()))
        needed = {"input_ids", "attention_mask", "position_ids", "logits", *manifest.cache.inputs}
        known = {spec.name for spec in (*manifest.inputs, *outputs)}
        if missing := sorted((needed | set(_TOKENS if manifest.decode else ())) - known):
            raise DogeExportError(f"The graph has no {', '.join(missing)}.", "Export the model again.")
        for spec in (*manifest.inputs, *outputs):
            if spec.dtype not in tensors.ELEMENT_TYPES:
                raise DogeExportError(f"{spec.name} is {spec.dtype}, which this version cannot feed.")
        dtype = next(spec.dtype for spec in manifest.outputs if spec.name == "logits")
        opened = cls(bundle, options, dtype, library)
        if manifest.decode is None:
            opened.load()
        return opened

    @property
    def candidates(self) -> int:
        """How many of the best tokens `step_tokens` gives; 0 where the bundle has no graph for it."""
        return self.bundle.manifest.decode.count if self.bundle.manifest.decode else 0

    def load(self, tokens: bool = False) -> None:
        """Load the graph for `step`, or for `step_tokens`, now and not at the first step.

        Raises:
            DogeExportError: onnxruntime refuses it, or it is not the one that the manifest describes.
        """
        self._graph(tokens)

    def kernels(self, tokens: bool = False) -> dict[str, int]:
        """Operator of ours -> its nodes that run on the library's kernels, as onnxruntime reports it.

        Of the graph for `step`, or for `step_tokens`; it is loaded if need be. A node of ours that is not
        counted runs on the body that the file has for it.

        Raises:
            DogeExportError: see `load`.
        """
        parts = self._graph(tokens).get_provider_graph_assignment_info()
        nodes = (node for part in parts for node in part.get_nodes())
        return dict(Counter(node.op_type for node in nodes if node.domain == _DOMAIN))

    def new_cache(self, batch: int) -> Cache:
        """An empty cache for `batch` rows."""
        cache = self.bundle.manifest.cache
        in_place = False
        if cache.kind == "static" and self.library is not None:
            # Both graphs have the same layers: the one that is loaded will do.
            kernels = self.kernels(tokens=True in self._loaded)
            in_place = sum(kernels.get(name, 0) for name in _CACHE_WRITERS) == cache.layers
        return new_cache(self.bundle.manifest, batch, in_place)

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
        batch, sequence = _checked(input_ids, attention_mask, position_ids, cache)
        feeds = {
            "input_ids": tensors.from_array(input_ids),
            "position_ids": tensors.from_array(position_ids),
            **cache.inputs(attention_mask, sequence),
        }
        graph = self._graph(tokens=False)
        binding, wrap = graph.io_binding(), onnxruntime.OrtValue
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, wrap(value))
        shape = (batch, sequence, self.bundle.config.vocab_size)
        logits, array = tensors.empty(self._logits_dtype, shape)
        binding.bind_ortvalue_output("logits", wrap(logits))
        for name, value in cache.outputs().items():
            if value is None:
                binding.bind_output(name)
            else:
                binding.bind_ortvalue_output(name, wrap(value))
        with _memory_errors():
            graph.run_with_iobinding(binding)
        presents = list(binding.get_outputs_as_ortvaluevector())[1:]
        return tensors.to_float32(array, self._logits_dtype), cache.advanced(presents, sequence)

    def step_tokens(
        self,
        input_ids: npt.NDArray[np.int64],
        attention_mask: npt.NDArray[np.int64],
        position_ids: npt.NDArray[np.int64],
        cache: Cache,
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], Cache]:
        """As `step`, but only the `candidates` best tokens of the last position come out of the graph.

        Returns:
            Token ids [batch, candidates], best first and the lower id first among equals, their logits, and
            the cache to go on with. The same step may be taken again from the cache given.

        Raises:
            DogeExportError: the tokens do not fit in the cache, or the bundle has no such graph.
        """
        batch, sequence = _checked(input_ids, attention_mask, position_ids, cache)
        graph = self._graph(tokens=True)
        feeds = {
            "input_ids": tensors.from_array(input_ids),
            "position_ids": tensors.from_array(position_ids),
            **cache.inputs(attention_mask, sequence),
        }
        targets = cache.outputs()
        into: list[Any] = []
        if None not in targets.values():  # onnxruntime takes tensors for all outputs or for none
            shape = (batch, self.candidates)
            into = [tensors.zeros("int64", shape), tensors.zeros("float32", shape), *targets.values()]
        with _memory_errors():
            ids, logits, *presents = tensors.run(
                graph, list(feeds), feeds.values(), [*_TOKENS, *targets], into
            )
        return ids.numpy(), logits.numpy(), cache.advanced(presents, sequence)

    def _graph(self, tokens: bool) -> Any:
        graph = self._loaded.get(tokens)
        if graph is not None:
            return graph
        bundle, manifest = self.bundle, self.bundle.manifest
        path, outputs = bundle.model_path, manifest.outputs
        if tokens:
            if manifest.decode is None or bundle.decode_path is None:
                raise DogeExportError("The bundle has no graph that gives tokens.", "Export the model again.")
            path, outputs = bundle.decode_path, manifest.decode.outputs
        with self._loading:
            if tokens not in self._loaded:
                self._loaded[tokens] = _load(bundle, path, outputs, self._options)
            return self._loaded[tokens]


def _load(bundle: Bundle, path: Path, outputs: Sequence[TensorSpec], options: Any) -> Any:
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        if "allocate memory" in str(error):
            raise MemoryError from error
        raise DogeExportError(
            f"onnxruntime {onnxruntime.__version__} cannot load {path}: {_first_line(error)}.",
            _remedy(bundle, error),
        ) from error
    for what, found, expected in (
        ("inputs", session.get_inputs(), bundle.manifest.inputs),
        ("outputs", session.get_outputs(), outputs),
    ):
        if (names := {value.name for value in found}) != (wanted := {spec.name for spec in expected}):
            raise DogeExportError(
                f"{path} is not the graph that the manifest describes: the {what} differ by "
                f"{', '.join(sorted(names ^ wanted))}.",
                "Export the model again.",
            )
    return session


def _checked(
    input_ids: npt.NDArray[np.int64],
    attention_mask: npt.NDArray[np.int64],
    position_ids: npt.NDArray[np.int64],
    cache: Cache,
) -> tuple[int, int]:
    """The batch and the number of new tokens, once the shapes are known to fit together."""
    batch, sequence = input_ids.shape
    if position_ids.shape != input_ids.shape:
        raise ValueError(f"position_ids are {position_ids.shape}, input_ids {input_ids.shape}")
    if attention_mask.shape != (batch, cache.length + sequence):
        raise ValueError(f"attention_mask is {attention_mask.shape}, not {(batch, cache.length + sequence)}")
    return batch, sequence


@contextlib.contextmanager
def _memory_errors() -> Generator[None]:
    try:
        yield
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
