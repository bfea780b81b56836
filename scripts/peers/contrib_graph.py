"""A decoder of a Llama's shape out of onnxruntime's own fused operators, as its model builder would write it.

GroupQueryAttention with packed q, k and v, rotary embedding inside and a cache shared by past and present;
SkipSimplifiedLayerNormalization; MatMulNBits with int8 arithmetic (accuracy_level 4) in blocks of 32, or
plain MatMul. It has no q/k norm, dynamic mask or residual weights, which these operators do not know: it
does less than a Doge. Only the last position reaches the head. Weights are random.
"""

__all__ = ["write"]

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from peers.base import Shape

_BLOCK = 32
_CONTRIB = "com.microsoft"


class _Graph:
    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(0)

    def add(
        self, op_type: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any
    ) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, outputs, outputs[0], domain=domain, **attributes))
        return outputs[0]

    def weight(self, name: str, array: np.ndarray[Any, Any]) -> str:
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def normal(self, *shape: int) -> np.ndarray[Any, Any]:
        return self._random.standard_normal(shape, dtype=np.float32) * np.float32(0.02)

    def linear(self, x: str, name: str, inputs: int, outputs: int) -> str:
        if self.bits == 32:
            return self.add(
                "MatMul", [x, self.weight(f"{name}.weight", self.normal(inputs, outputs))], [name]
            )
        blocks = inputs // _BLOCK
        size = (outputs, blocks, _BLOCK * self.bits // 8)
        packed = self.weight(f"{name}.weight", self._random.integers(0, 256, size, np.uint8))
        scales = self.weight(f"{name}.scale", np.full(outputs * blocks, 0.04 / 2**self.bits, np.float32))
        return self.add(
            "MatMulNBits",
            [x, packed, scales],
            [name],
            _CONTRIB,
            K=inputs,
            N=outputs,
            bits=self.bits,
            block_size=_BLOCK,
            accuracy_level=4,
        )


def write(path: Path, shape: Shape, bits: int, slots: int) -> None:
    """Write the graph; `bits` 32 is float32, 8 and 4 quantize every matrix, the embedding table not."""
    g = _Graph(bits)
    ones = g.weight("ones", np.ones(shape.hidden, np.float32))
    table = g.weight("embedding", g.normal(shape.vocab, shape.hidden))
    half = np.outer(np.arange(slots), shape.rope_theta ** -(np.arange(0, shape.head_dim, 2) / shape.head_dim))
    rotary = [g.weight(f, getattr(np, f)(half).astype(np.float32)) for f in ("cos", "sin")]
    hidden = g.add("Gather", [table, "input_ids"], ["hidden"])
    normed = g.add("SimplifiedLayerNormalization", [hidden, ones], ["normed"], axis=-1, epsilon=shape.epsilon)
    queries, values = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim

    def skip_norm(x: str, name: str, residual: str) -> tuple[str, str]:
        outputs = [f"{name}.normed", "", "", f"{name}.sum"]
        g.add(
            "SkipSimplifiedLayerNormalization", [x, residual, ones], outputs, _CONTRIB, epsilon=shape.epsilon
        )
        return outputs[0], outputs[3]

    for layer in range(shape.layers):
        name = f"layer{layer}"
        qkv = g.linear(normed, f"{name}.qkv", shape.hidden, queries + 2 * values)
        past, present = (
            [f"{part}.{layer}.{kind}" for kind in ("key", "value")] for part in ("past", "present")
        )
        attention = g.add(
            "GroupQueryAttention",
            [qkv, "", "", *past, "seqlens_k", "total_sequence_length", *rotary],
            [f"{name}.attention", *present],
            _CONTRIB,
            num_heads=shape.heads,
            kv_num_heads=shape.kv_heads,
            do_rotary=1,
        )
        mixed = g.linear(attention, f"{name}.o", queries, shape.hidden)
        normed, hidden = skip_norm(mixed, f"{name}.attention_norm", hidden)
        gate = g.linear(normed, f"{name}.gate", shape.hidden, shape.ffn)
        up = g.linear(normed, f"{name}.up", shape.hidden, shape.ffn)
        # Quick Gelu with alpha 1 is SiLU, in one pass over the row.
        act = g.add("QuickGelu", [gate], [f"{name}.silu"], _CONTRIB, alpha=1.0)
        inner = g.add("Mul", [act, up], [f"{name}.inner"])
        down = g.linear(inner, f"{name}.down", shape.ffn, shape.hidden)
        normed, hidden = skip_norm(down, f"{name}.mlp_norm", hidden)
    last = g.add("Gather", [normed, g.weight("last", np.array([-1]))], ["last_hidden"], axis=1)
    logits = g.linear(last, "logits", shape.hidden, shape.vocab)

    cache = [1, shape.kv_heads, slots, shape.head_dim]
    float_, int32 = TensorProto.FLOAT, TensorProto.INT32
    kinds = [f"{layer}.{kind}" for layer in range(shape.layers) for kind in ("key", "value")]
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "sequence"]),
        helper.make_tensor_value_info("seqlens_k", int32, [1]),
        helper.make_tensor_value_info("total_sequence_length", int32, [1]),
        *(helper.make_tensor_value_info(f"past.{kind}", float_, cache) for kind in kinds),
    ]
    outputs = [
        helper.make_tensor_value_info(logits, float_, [1, 1, shape.vocab]),
        *(helper.make_tensor_value_info(f"present.{kind}", float_, cache) for kind in kinds),
    ]
    graph = helper.make_graph(g.nodes, "contrib", inputs, outputs, g.weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(_CONTRIB, 1)]
    part = path.with_suffix(".part")
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), part)
    part.rename(path)
