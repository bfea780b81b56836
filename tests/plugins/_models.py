"""Files of one node of the library's operators, every part of which a test can spoil."""

from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from doge_export import plugin_library

__all__ = ["DTYPES", "Node", "decoder_layer", "embedding", "head", "quantized"]

Array = npt.NDArray[Any]
DTYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
_ELEMENTS = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "float64": TensorProto.DOUBLE,
    "int64": TensorProto.INT64,
    "int8": TensorProto.INT8,
    "int4": TensorProto.INT4,
    "bool": TensorProto.BOOL,
}


@dataclass
class Node:
    """`inputs` are fed, `weights` are initializers, both by role; `roles` None: what they have, in order."""

    op: str
    inputs: dict[str, Array]
    weights: dict[str, Array]
    outputs: dict[str, str]
    attributes: dict[str, Any] = field(default_factory=dict)
    roles: str | None = None
    variadic: bool = True

    def model(self) -> onnx.ModelProto:
        names = [*self.inputs, *self.weights]
        node = helper.make_node(self.op, names, list(self.outputs), name="node", domain="doge")
        attributes = dict(self.attributes)
        if self.variadic:
            attributes["inputs"] = ",".join(names) if self.roles is None else self.roles
        node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
        graph = helper.make_graph(
            [node],
            "one node",
            [_info(name, str(array.dtype), array.ndim) for name, array in self.inputs.items()],
            [_info(name, dtype) for name, dtype in self.outputs.items()],
            [_tensor(name, array) for name, array in self.weights.items()],
        )
        opsets = [helper.make_opsetid("", 24), helper.make_opsetid("doge", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=11)

    def session(self, threads: int = 1) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        options.add_session_config_entry("doge_export.threads", str(threads))
        options.register_custom_ops_library(str(plugin_library()))
        return ort.InferenceSession(
            self.model().SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def run(self, threads: int = 1) -> dict[str, Array]:
        values = self.session(threads).run(list(self.outputs), self.inputs)
        return dict(zip(self.outputs, values, strict=True))


def _info(name: str, dtype: str, rank: int | None = None) -> onnx.ValueInfoProto:
    shape = None if rank is None else [None] * rank
    return helper.make_tensor_value_info(name, _ELEMENTS[dtype], shape)


def _tensor(name: str, array: Array) -> onnx.TensorProto:
    if array.dtype == ml_dtypes.int4:
        flat = array.astype(np.int8).reshape(-1)
        packed = (flat[0::2] & 15) | (flat[1::2] << 4)
        raw = packed.astype(np.int8).tobytes()
    else:
        raw = array.tobytes()
    return helper.make_tensor(name, _ELEMENTS[str(array.dtype)], array.shape, raw, raw=True)


def quantized(matrix: Array, kind: str, block: int) -> tuple[Array, Array]:
    """int8 or int4 [n, k] and its float16 scales [n, k / block], by rounding to nearest."""
    n, k = matrix.shape
    blocks = matrix.astype(np.float32).reshape(n, k // block, block)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)[..., 0]
    scale = np.abs(largest) / 127 if kind == "int8" else largest / -8
    scale = scale.astype(np.float16)
    low = -127 if kind == "int8" else -8
    codes = np.clip(np.rint(blocks / scale[..., None].astype(np.float32)), low, -low if kind == "int8" else 7)
    dtype: Any = np.int8 if kind == "int8" else ml_dtypes.int4
    return codes.reshape(n, k).astype(dtype), scale


def decoder_layer(
    dtype: str = "float32",
    kind: str | None = None,
    static: bool = False,
    experts: int = 0,
    batch: int = 2,
    sequence: int = 3,
    past: int = 9,
) -> Node:
    """A random layer; `kind` int8 or int4: its matrices are quantized; `experts`: keys of its router."""
    hidden, heads, kv_heads, dim, intermediate = 32, 4, 2, 8, 48
    rng = np.random.default_rng(3)
    number = DTYPES[dtype]

    def normal(*shape: int, mean: float = 0.0, size: float = 1.0) -> Array:
        return (mean + size * rng.standard_normal(shape)).astype(number)

    weights: dict[str, Array] = {}

    def add(role: str, n: int, k: int) -> None:
        matrix = normal(n, k, size=0.2)
        if kind is None:
            weights[role] = matrix
        else:
            weights[role], weights[f"{role}.scale"] = quantized(matrix, kind, 16)

    weights["input_layernorm"] = normal(hidden, mean=1.0, size=0.1)
    for role, n in (("q_proj", heads * dim), ("k_proj", kv_heads * dim), ("v_proj", kv_heads * dim)):
        add(role, n, hidden)
    weights |= {name: normal(dim, mean=1.0, size=0.1) for name in ("q_norm", "k_norm")}
    weights["dt_proj"] = normal(kv_heads, kv_heads * dim, size=0.2)
    weights["A"] = normal(kv_heads, size=0.3)
    add("o_proj", hidden, heads * dim)
    for name in ("input_residual", "post_attention_residual", "post_attention_layernorm"):
        weights[name] = normal(hidden, mean=1.0, size=0.1)
    for role, n, k in (
        ("gate_proj", intermediate, hidden),
        ("up_proj", intermediate, hidden),
        ("down_proj", hidden, intermediate),
    ):
        add(role, n, k)
    if experts:
        weights["router_gate"] = normal(2 * experts, hidden, size=0.2)
        add("down_embed", experts**2, hidden)
        add("up_embed", experts**2, hidden)
    angles = rng.standard_normal((batch, sequence, dim // 2))
    slots = past + sequence if not static else past
    inputs = {
        "hidden_states": normal(batch, sequence, hidden),
        "attention_mask": np.ones((batch, slots), np.int64),
        "cos": np.cos(angles).astype(number),
        "sin": np.sin(angles).astype(number),
        "past_key": normal(batch, kv_heads, past, dim),
        "past_value": normal(batch, kv_heads, past, dim),
    }
    outputs = dict.fromkeys(("output", "present_key", "present_value"), dtype)
    if static:
        inputs["past_dt"] = np.exp(normal(batch, kv_heads, past, size=0.2))
        inputs["cache_position"] = np.arange(2, 2 + batch)
        outputs["present_dt"] = dtype
    attributes = {
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "keep_window_size": 6,
        "sliding_window": 0,
        "scale": dim**-0.5,
        "epsilon": 1e-6,
        "activation": "silu",
        "num_keys": experts,
        "num_experts_per_tok": 3 if experts else 0,
        "per_token": 0,
        "norm_topk_prob": 0,
    }
    return Node("DecoderLayer", inputs, weights, outputs, attributes)


def head(op: str, dtype: str = "float32", kind: str | None = None, vocab: int = 40, count: int = 7) -> Node:
    """LMHead or TopTokens over random states."""
    rng = np.random.default_rng(5)
    number = DTYPES[dtype]
    matrix = rng.standard_normal((vocab, 32)).astype(number)
    weights = {"norm": (1 + rng.standard_normal(32) / 10).astype(number), "lm_head": matrix}
    if kind is not None:
        weights["lm_head"], weights["lm_head.scale"] = quantized(matrix, kind, 16)
    inputs = {"hidden_states": rng.standard_normal((2, 3, 32)).astype(number)}
    outputs = {"logits": dtype} if op == "LMHead" else {"token_ids": "int64", "token_logits": "float32"}
    attributes: dict[str, Any] = {"epsilon": 1e-6}
    if op == "TopTokens":
        attributes["count"] = count
    return Node(op, inputs, weights, outputs, attributes)


def embedding(dtype: str = "float32", kind: str = "int8", vocab: int = 40) -> Node:
    """TokenEmbedding over a random table."""
    rng = np.random.default_rng(6)
    table, scale = quantized(rng.standard_normal((vocab, 32)).astype(np.float32), kind, 16)
    ids = rng.integers(0, vocab, (2, 3))
    weights = {"table": table, "table.scale": scale}
    return Node("TokenEmbedding", {"input_ids": ids}, weights, {"hidden_states": dtype})
