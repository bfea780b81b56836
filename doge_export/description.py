"""How the graphs of a bundle are called, as its manifest says it: inputs, outputs, cache, a paragraph of
words."""

import importlib.metadata
from typing import TYPE_CHECKING, Any

from doge_export.bundle import DECODE

if TYPE_CHECKING:
    import onnx_ir as ir

    from doge_export.export import GraphFile
    from doge_export.model import DogeForExport

__all__ = ["describe_graphs"]


def describe_graphs(
    model: "DogeForExport",
    graph: "GraphFile",
    decode: "ir.Model | None",
    resolved: dict[str, Any],
    opset: int,
) -> dict[str, Any]:
    """The manifest's entries of a graph and, where there is one, of the `decode` graph beside it, exported
    with the `resolved` options."""
    versions = {
        name: importlib.metadata.version(name).split("+")[0]
        for name in ("torch", "transformers", "onnx", "onnxscript", "onnx-ir")
    }
    interface = _interface(graph.model)
    return {
        "options": {**resolved, "opset": opset},
        "versions": versions,
        "graph": interface,
        "cache": _cache(model, interface, model.kv_cache, resolved),
        "call": _CALL[model.kv_cache],
        "decode": None if decode is None else _decode(model, graph, decode, resolved),
    }


def _decode(
    model: "DogeForExport", graph: "GraphFile", decode: "ir.Model", resolved: dict[str, Any]
) -> dict[str, Any]:
    interface = _interface(decode)
    cache = _cache(model, interface, graph.decode_cache, resolved)
    call = _CALL[f"decode, {graph.decode_cache}"]
    return {"file": DECODE, "count": graph.count, **interface, "cache": cache, "call": call}


def _interface(model: "ir.Model") -> dict[str, Any]:
    graph = model.graph
    return {"inputs": [_spec(v) for v in graph.inputs], "outputs": [_spec(v) for v in graph.outputs]}


def _cache(
    model: "DogeForExport", interface: dict[str, Any], kind: str, resolved: dict[str, Any]
) -> dict[str, Any]:
    config = model.config
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
    shape = [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape]
    return {"name": value.name, "dtype": names[value.dtype.name], "shape": shape}


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
