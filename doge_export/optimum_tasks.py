"""`doge` among the models that optimum's TasksManager knows: what the graph of a bundle with a growing cache
takes and gives, in optimum's terms. Importing this registers it; another configuration that is there stays.

The tasks are text-generation and text-generation-with-past. Both are the same graph: it always has the cache,
which is empty in the first call.
"""

from typing import Any

from doge_export.core.errors import DogeExportError

try:
    from optimum.exporters.base import ExporterConfig
    from optimum.exporters.tasks import TasksManager
    from optimum.utils.input_generators import DEFAULT_DUMMY_SHAPES, DummyInputGenerator
    from optimum.utils.normalized_config import NormalizedTextConfigWithGQA
except ImportError as error:
    raise DogeExportError(
        f"optimum's TasksManager cannot be had: {error}.", "pip install 'doge-export[export,optimum]'"
    ) from None

__all__ = ["TASKS", "DogeExporterConfig", "DogeInputs"]

TASKS = ("text-generation", "text-generation-with-past")


class DogeInputs(DummyInputGenerator):  # type: ignore[misc]
    """Random tokens after a cache of as many, of one graph input at a time."""

    SUPPORTED_INPUT_NAMES = ("input_ids", "attention_mask", "position_ids", "past_key_values")

    def __init__(
        self,
        task: str,
        normalized_config: Any,
        batch_size: int = DEFAULT_DUMMY_SHAPES["batch_size"],
        sequence_length: int = DEFAULT_DUMMY_SHAPES["sequence_length"],
        **ignored: Any,
    ) -> None:
        config = normalized_config
        own = config.has_attribute("head_dim")
        head_dim = config.head_dim if own else config.hidden_size // config.num_attention_heads
        self.batch_size, self.sequence_length, self.vocab_size = (
            batch_size,
            sequence_length,
            config.vocab_size,
        )
        self.cache = (batch_size, config.num_key_value_heads, sequence_length, head_dim)

    def generate(
        self, input_name: str, framework: str = "pt", int_dtype: str = "int64", float_dtype: str = "fp32"
    ) -> Any:
        """A tensor of `framework`, "pt" or "np"."""
        if input_name.startswith("past_key_values"):
            return self.random_float_tensor(self.cache, framework=framework, dtype=float_dtype)
        length = self.sequence_length
        lowest, end, columns = {
            "input_ids": (0, self.vocab_size, length),
            "attention_mask": (1, 2, 2 * length),
            "position_ids": (length, 2 * length, length),
        }[input_name]
        shape = (self.batch_size, columns)
        return self.random_int_tensor(shape, end, min_value=lowest, framework=framework, dtype=int_dtype)


@TasksManager.create_register("onnx")("doge", *TASKS, library_name="transformers")
class DogeExporterConfig(ExporterConfig):  # type: ignore[misc]
    """Names and axes of the graph's inputs and outputs, and inputs to try it with."""

    NORMALIZED_CONFIG_CLASS = NormalizedTextConfigWithGQA
    DUMMY_INPUT_GENERATOR_CLASSES = (DogeInputs,)
    ATOL_FOR_VALIDATION = 1e-4
    SUPPORTS_PAST = True

    def __init__(
        self,
        config: Any,
        task: str = "text-generation",
        int_dtype: str = "int64",
        float_dtype: str = "fp32",
        use_past: bool = False,
    ) -> None:
        super().__init__(config, task, int_dtype=int_dtype, float_dtype=float_dtype)
        self.use_past = use_past

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        """The graph's, in its order."""
        tokens = {0: "batch", 1: "sequence"}
        names = {
            "input_ids": tokens,
            "attention_mask": {0: "batch", 1: "past+sequence"},
            "position_ids": tokens,
        }
        return names | self._cache("past_key_values", "past")

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        """The graph's, in its order."""
        return {"logits": {0: "batch", 1: "sequence"}} | self._cache("present", "past+sequence")

    def _cache(self, prefix: str, length: str) -> dict[str, dict[int, str]]:
        layers, axes = range(self._normalized_config.num_layers), {0: "batch", 2: length}
        return {f"{prefix}.{layer}.{part}": axes for layer in layers for part in ("key", "value")}
