"""How the graphs of a bundle are called, as its manifest says it: inputs, outputs, cache, a paragraph of
words."""

import importlib.metadata
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from doge_export.core.bundle import DECODE
from doge_export.core.config import DogeConfig
from doge_export.graph.targets.lowered import DRAW_INPUTS

if TYPE_CHECKING:
    import onnx_ir as ir

    from doge_export.graph.lower import GraphFile

__all__ = ["describe_graphs", "installed_versions"]


def describe_graphs(
    config: DogeConfig,
    graph: "GraphFile",
    decode: "ir.Model | None",
    resolved: dict[str, Any],
    versions: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The manifest's entries of a graph and, where there is one, of the `decode` graph beside it, exported
    with the `resolved` options. `versions`: of the packages that made it; None: those installed."""
    interface = _interface(graph.model)
    return {
        "options": {**resolved, "opset": graph.options.opset},
        "versions": dict(versions or installed_versions()),
        "graph": interface,
        "cache": _cache(config, interface, graph.cache, resolved),
        "call": _CALL[graph.cache] + _END,
        "decode": None if decode is None else _decode(config, graph, decode, resolved),
    }


def installed_versions() -> dict[str, str]:
    """The packages that decide the bytes of a graph, and their versions."""
    names = ("torch", "transformers", "onnx", "onnxscript", "onnx-ir")
    return {name: importlib.metadata.version(name).split("+")[0] for name in names}


def _decode(
    config: DogeConfig, graph: "GraphFile", decode: "ir.Model", resolved: dict[str, Any]
) -> dict[str, Any]:
    interface = _interface(decode)
    cache = _cache(config, interface, graph.decode_cache, resolved)
    call = _CALL[f"decode, {graph.decode_cache}"]
    optional = [_spec(value) for value in decode.graph.inputs if value.name in DRAW_INPUTS]
    entry = {"file": DECODE, "count": graph.count, **interface, "cache": cache, "call": call, "ragged": True}
    return {**entry, "optional_inputs": optional}


def _interface(model: "ir.Model") -> dict[str, Any]:
    graph = model.graph
    # An input with an initializer need not be given; decode.onnx has those of a ragged call, and of draws.
    inputs = [_spec(value) for value in graph.inputs if not value.is_initializer()]
    return {"inputs": inputs, "outputs": [_spec(v) for v in graph.outputs]}


def _cache(
    config: DogeConfig, interface: dict[str, Any], kind: str, resolved: dict[str, Any]
) -> dict[str, Any]:
    names = {key: [spec["name"] for spec in specs] for key, specs in interface.items()}
    return {
        "kind": kind,
        "layers": config.num_hidden_layers,
        "kv_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "dtype": resolved["dtype"],
        "max_length": resolved["max_length"],
        **({"slots": config.keep_window_size} if kind == "bounded" else {}),
        **({"dt_heads": config.dt_heads} if config.dt_heads != config.num_key_value_heads else {}),
        "inputs": [name for name in names["inputs"] if name.startswith("past_")],
        "outputs": [name for name in names["outputs"] if name.startswith("present.")],
    }


def _spec(value: Any) -> dict[str, Any]:
    names = {"FLOAT": "float32", "FLOAT16": "float16", "BFLOAT16": "bfloat16", "INT64": "int64"}
    names["DOUBLE"] = "float64"
    shape = [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape]
    return {"name": value.name, "dtype": names[value.dtype.name], "shape": shape}


_END = " A text ends with one of special_tokens.eos_token_id, where there are any."
_STEPS = (
    "token_ids and token_logits [batch, steps, best] are the `count` best tokens, best first. With steps "
    "above 1 the graph goes on alone: each step takes the best token of the one before, which has a "
    "position more, and best is 1. All new tokens but the last are in the cache then."
)
_CALL = {
    "growing": (
        "Start with empty past_key_values (past = 0). Each call takes new tokens, attention_mask over all "
        "tokens so far and the new ones (0 on left padding), and position_ids = cumsum(mask) - 1, at least "
        "0. Feed each present.N back as past_key_values.N."
    ),
    "static": (
        "Start with past_key_values of zeros, max_length slots each. cache_position [batch] is the slot of "
        "the first new token of each row; new tokens take the slots from there on. attention_mask "
        "[batch, slots] is 1 for every slot that holds a real token, the new ones included. "
        "position_ids = cumsum(mask) - 1 of the new tokens, at least 0. Feed each present.N back as "
        "past_key_values.N; both may be one buffer."
    ),
    "bounded": (
        "Start with empty past_key_values (past = 0), or with more slots of which every position is -1: "
        "such a slot is empty. Each call takes new tokens, attention_mask [batch, sequence] of them alone "
        "(0 on left padding), and position_ids = cumsum(mask) - 1 over all tokens so far, at least 0. Feed "
        "each present.N back as past_key_values.N: it has min(past + sequence, keep_window_size) slots. "
        "rope_length [] (only where the rope depends on the length): 0, or, when a text is read in pieces, "
        "the length of the whole: each piece has the frequencies of one call then."
    ),
    "decode, static": (
        "As with a static cache, but key, value and dt of all layers are one tensor each, with the layer as "
        "its first axis, of as many slots as wanted where there is no max_length. "
        f"{_STEPS} attention_mask must be 1 for their slots."
    ),
    "decode, bounded": (
        "As with a bounded cache, but key, value, dt and position of all layers are one tensor each, with "
        "the layer as its first axis, of keep_window_size slots, or fewer that suffice, which they keep: "
        f"start with positions of -1. {_STEPS}"
    ),
}
