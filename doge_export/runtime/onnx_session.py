"""A bundle loaded in onnxruntime on the CPU, run step by step."""

__all__ = ["OnnxSession"]

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnxruntime

from doge_export.core.bundle import Bundle, DecodeSpec
from doge_export.core.errors import DogeExportError
from doge_export.core.native_library import HOW_TO_GET
from doge_export.runtime import tensors
from doge_export.runtime.cache import Cache, TensorCache, new_cache
from doge_export.runtime.decoder import TokenDecoder
from doge_export.runtime.graph import Graph, load_graph, session_options
from doge_export.runtime.session import Session, checked_call
from doge_export.runtime.slot_pool import SlotPool

#: What a graph that gives tokens gives, before its cache.
_TOKENS = ("token_ids", "token_logits")
#: What a graph has that can draw them.
_DRAW_INPUTS = {"sampling", "draw_key", "seen", "logit_bias", "allowed"}
#: The operators that write a layer's cache; their kernels do it in place.
_CACHE_WRITERS = ("DecoderLayer", "DynamicMaskAttention")
_WHOLE_MODEL = "DecodeTokens"  # writes that of all layers


@dataclass(frozen=True)
class OnnxSession(Session):
    """A bundle in onnxruntime. It holds no state of a conversation, so that one serves many caches.

    A bundle with two graphs is loaded as they are asked for: `step` needs the one that gives all logits,
    `decoder` the one that gives tokens. `library` is the native library that they may use.
    """

    bundle: Bundle
    _options: Any = field(repr=False)
    _logits_dtype: str = field(repr=False)
    library: Path | None = None
    _loaded: dict[bool, Graph] = field(repr=False, default_factory=dict)
    _loading: threading.Lock = field(repr=False, default_factory=threading.Lock)

    @classmethod
    def open(
        cls, bundle: Bundle | Path | str, threads: int | None = None, native: bool = True
    ) -> "OnnxSession":
        """Run the bundle with `threads` threads, or as many as onnxruntime chooses.

        The native library is registered where it is there; where it is missing, and the bundle could use
        it, one warning is logged. `native` False leaves it out.

        Raises:
            DogeExportError: onnxruntime refuses the graph or the library, or it is not the graph that the
                manifest describes. Where the bundle has two graphs, `load` and the first step raise it.
        """
        bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        options, library = session_options(bundle, threads, native)
        manifest, decode = bundle.manifest, bundle.manifest.decode
        inputs = (*manifest.inputs, *(decode.inputs if decode else ()))
        outputs = (*manifest.outputs, *(decode.outputs if decode else ()))
        needed = {"input_ids", "attention_mask", "position_ids", "logits"}
        needed |= {*manifest.cache.inputs, *manifest.cache.outputs}
        if decode:
            needed |= {*_TOKENS, "steps", *decode.cache.inputs, *decode.cache.outputs}
        if missing := sorted(needed - {spec.name for spec in (*inputs, *outputs)}):
            raise DogeExportError(f"The graph has no {', '.join(missing)}.", "Export the model again.")
        for cache in (manifest.cache, *((decode.cache,) if decode else ())):
            if len(cache.inputs) != len(cache.outputs):
                raise DogeExportError(
                    f"The cache has {len(cache.inputs)} inputs and {len(cache.outputs)} outputs.",
                    "Export the model again.",
                )
        for spec in (*inputs, *outputs):
            if spec.dtype not in tensors.ELEMENT_TYPES:
                raise DogeExportError(f"{spec.name} is {spec.dtype}, which this version cannot feed.")
        dtype = next(spec.dtype for spec in manifest.outputs if spec.name == "logits")
        opened = cls(bundle, options, dtype, library)
        if manifest.decode is None:
            opened.load()
        return opened

    @property
    def candidates(self) -> int:
        """Return how many of the best tokens a `decoder` gives; 0 where the bundle has no graph for it, or
        the library is missing: a cache in place is the kernels' work."""
        decode = self.bundle.manifest.decode
        return decode.count if decode and self.library else 0

    @property
    def draws(self) -> bool:
        """Whether the bundle's graph for a `decoder` says how tokens are drawn; older ones do not."""
        decode = self.bundle.manifest.decode
        return decode is not None and {spec.name for spec in decode.optional_inputs} >= _DRAW_INPUTS

    @property
    def versions(self) -> Mapping[str, str]:
        """The version of onnxruntime."""
        return {"onnxruntime": onnxruntime.__version__}

    @property
    def kernels(self) -> Mapping[str, int]:
        """Operator -> its nodes, of the graph for `step`, that run on native kernels. Loads the graph."""
        return self._graph(tokens=False).kernels

    @property
    def decode_kernels(self) -> Mapping[str, int]:
        """As `kernels`, of the graph for `decoder`; the bundle must have one."""
        return self._graph(tokens=True).kernels

    def load(self, tokens: bool = False) -> None:
        """Load the graph for `step`, or for `decoder`, now and not at the first step.

        Raises:
            DogeExportError: onnxruntime refuses it, or it is not the one that the manifest describes.
        """
        self._graph(tokens)

    def decoder(self, batch: int) -> TokenDecoder:
        """A new conversation of `batch` rows on the graph that gives the best tokens alone.

        Raises:
            DogeExportError: the bundle has no such graph, or its layers do not run on native kernels.
        """
        decode, graph = self._in_place()
        return TokenDecoder(graph, decode, batch)

    @property
    def pools(self) -> bool:
        """Whether there is a `pool`."""
        decode = self.bundle.manifest.decode
        return self.library is not None and decode is not None and decode.ragged and not self._mixes

    def pool(self, slots: int = 4, limit: int | None = None) -> SlotPool:
        """See Session."""
        decode, graph = self._in_place()
        if not decode.ragged:
            raise DogeExportError(
                f"{decode.file} takes one batch of rows at a time: it is of an older version.",
                "Export the model again.",
            )
        if self._mixes:
            raise DogeExportError(
                "The router mixes the tokens of a call, so that rows would change each other.",
                "Export with --routing per-token.",
            )
        return SlotPool(graph, decode, self.bundle.config.vocab_size, slots, limit)

    @property
    def _mixes(self) -> bool:
        return self.bundle.config.mixes(self.bundle.manifest.options.routing)

    def _in_place(self) -> tuple[DecodeSpec, Any]:
        """The graph that gives tokens, loaded, and what the manifest says of it."""
        decode = self.bundle.manifest.decode
        if decode is None:
            raise DogeExportError("The bundle has no graph that gives tokens.", "Export the model again.")
        graph = self._graph(tokens=True)
        if not self._writes_in_place(graph):
            raise DogeExportError(
                f"{decode.file} needs the native kernels, and this session runs without.",
                f"{HOW_TO_GET} model.onnx runs without.",
            )
        return decode, graph.session

    def new_cache(self, batch: int) -> TensorCache:
        """An empty cache for `batch` rows."""
        in_place = self._writes_in_place(self._graph(tokens=False))
        return new_cache(self.bundle.manifest, batch, in_place)

    def step(
        self,
        input_ids: npt.NDArray[np.int64],
        attention_mask: npt.NDArray[np.int64],
        position_ids: npt.NDArray[np.int64],
        cache: Cache,
        rope_length: int = 0,
        last: bool = False,
    ) -> tuple[npt.NDArray[np.float32], TensorCache]:
        """See Session."""
        batch, sequence = checked_call(input_ids, attention_mask, position_ids, cache)
        held = cast(TensorCache, cache)
        model_inputs = {
            "input_ids": tensors.from_array(input_ids),
            "position_ids": tensors.from_array(position_ids),
            **held.inputs(attention_mask, sequence),
        }
        if any(spec.name == "rope_length" for spec in self.bundle.manifest.inputs):
            model_inputs["rope_length"] = tensors.scalar(rope_length)
        session = self._graph(tokens=False).session
        binding, wrap = session.io_binding(), onnxruntime.OrtValue
        for name, value in model_inputs.items():
            binding.bind_ortvalue_input(name, wrap(value))
        shape = (batch, sequence, self.bundle.config.vocab_size)
        logits, array = tensors.empty(self._logits_dtype, shape)
        binding.bind_ortvalue_output("logits", wrap(logits))
        for name, value in held.outputs().items():
            if value is None:
                binding.bind_output(name)
            else:
                binding.bind_ortvalue_output(name, wrap(value))
        with tensors.memory_errors():
            session.run_with_iobinding(binding)
        presents = list(binding.get_outputs_as_ortvaluevector())[1:]
        wanted = array[:, -1:] if last else array
        return tensors.to_float32(wanted, self._logits_dtype), held.advanced(presents, sequence)

    def _writes_in_place(self, graph: Graph) -> bool:
        layers = self.bundle.manifest.cache.layers
        written = sum(graph.kernels.get(name, 0) for name in _CACHE_WRITERS)
        return written == layers or graph.kernels.get(_WHOLE_MODEL, 0) == 1

    def _graph(self, tokens: bool) -> Graph:
        graph = self._loaded.get(tokens)
        if graph is not None:
            return graph
        bundle, manifest = self.bundle, self.bundle.manifest
        path, inputs, outputs = bundle.model_path, manifest.inputs, manifest.outputs
        if tokens:
            assert manifest.decode is not None and bundle.decode_path is not None
            path, inputs, outputs = bundle.decode_path, manifest.decode.inputs, manifest.decode.outputs
        with self._loading:
            if tokens not in self._loaded:
                self._loaded[tokens] = load_graph(bundle, path, inputs, outputs, self._options)
            return self._loaded[tokens]
