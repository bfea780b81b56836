"""Whatever is wrong with a file or a call is one sentence of ours in onnxruntime's error, never a crash."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from doge_export import plugin_library
from doge_export.graph.operators import dynamic_mask_attention as attention
from doge_export.graph.operators import expert_routing as routing
from tests.ops.bodies import run_body
from tests.ops.cases import AttentionCase, RoutingCase, draw
from tests.ops.test_dynamic_mask_attention import options_of
from tests.ops.test_expert_routing import options_of as routing_options
from tests.plugins._models import Node, decoder_layer, embedding, head

Spoil = Callable[[Node], object]
_REQUIRED = [
    *("hidden_states", "attention_mask", "cos", "sin", "past_key", "past_value", "input_layernorm"),
    *("q_proj", "k_proj", "v_proj", "q_norm", "k_norm", "dt_proj", "A", "o_proj", "input_residual"),
    *("post_attention_layernorm", "gate_proj", "up_proj", "down_proj", "post_attention_residual"),
]


def refused(node: Node, sentence: str) -> None:
    with pytest.raises(Exception, match=sentence) as raised:
        node.run()
    assert f"doge::{node.op}: " in str(raised.value)


def reshaped(role: str, *shape: int) -> Spoil:
    def spoil(node: Node) -> None:
        store = node.weights if role in node.weights else node.inputs
        store[role] = np.ones(shape, store[role].dtype)

    return spoil


def retyped(role: str, dtype: Any) -> Spoil:
    def spoil(node: Node) -> None:
        store = node.weights if role in node.weights else node.inputs
        store[role] = store[role].astype(dtype)

    return spoil


def attribute(name: str, value: Any) -> Spoil:
    return lambda node: node.attributes.update({name: value})


@pytest.mark.parametrize("role", _REQUIRED[1:])
def test_a_layer_without_one_of_its_inputs(role: str) -> None:
    node = decoder_layer()
    (node.weights if role in node.weights else node.inputs).pop(role)
    refused(node, rf"There is no input of the role {role}\.")


def test_a_layer_whose_first_input_is_another() -> None:
    node = decoder_layer()
    node.inputs = dict(reversed(node.inputs.items()))
    refused(node, "The first input must be hidden_states")


@pytest.mark.parametrize("role", _REQUIRED[6:])
def test_a_weight_that_is_computed(role: str) -> None:
    node = decoder_layer()
    node.inputs[role] = node.weights.pop(role)
    refused(node, rf"{role} is not constant: a weight must be an initializer of the file\.")


@pytest.mark.parametrize("role", _REQUIRED)
def test_one_dimension_too_many(role: str) -> None:
    node = decoder_layer()
    store = node.weights if role in node.weights else node.inputs
    store[role] = store[role][None]
    refused(node, f"{role} has the shape")


@pytest.mark.parametrize("role", [role for role in _REQUIRED if role != "attention_mask"])
def test_one_entry_too_many_on_the_last_axis(role: str) -> None:
    node = decoder_layer()
    store = node.weights if role in node.weights else node.inputs
    store[role] = np.concatenate([store[role], store[role][..., :1]], axis=-1)
    refused(node, "has the shape|cannot be rotated in pairs")


LAYER: dict[str, tuple[Spoil, str]] = {
    "roles: too few": (lambda n: setattr(n, "roles", "hidden_states"), "names 1 roles, and the node has 21"),
    "roles: none": (lambda n: setattr(n, "roles", ""), "names 1 roles"),
    "roles: one twice": (
        lambda n: setattr(n, "roles", ",".join([*n.inputs, *n.weights]).replace("k_proj", "q_proj")),
        "Two inputs have the role q_proj",
    ),
    "roles: unknown": (
        lambda n: setattr(n, "roles", ",".join([*n.inputs, *n.weights]).replace("k_proj", "z_proj")),
        "the role 'z_proj', which this library does not know",
    ),
    "no attribute": (lambda n: n.attributes.pop("num_heads"), "num_heads is missing"),
    "attribute of another type": (
        attribute("num_heads", 2.5),
        "num_heads is missing, or is not a whole number",
    ),
    "no heads": (attribute("num_heads", 0), r"num_heads is 0, outside 1 to"),
    "negative heads": (attribute("num_heads", -4), r"num_heads is -4"),
    "heads beyond reason": (attribute("num_heads", 1 << 40), "num_heads is 1099511627776"),
    "heads that cannot be shared": (attribute("num_kv_heads", 3), "4 heads cannot share 3 key heads"),
    "no window": (attribute("keep_window_size", 0), "keep_window_size is 0"),
    "negative sliding window": (attribute("sliding_window", -1), "sliding_window is -1"),
    "scale nan": (attribute("scale", float("nan")), "scale is not finite"),
    "epsilon negative": (attribute("epsilon", -1.0), "epsilon is negative"),
    "activation unknown": (attribute("activation", "swoosh"), "swoosh"),
    "experts without weights": (attribute("num_keys", 4), "num_experts_per_tok|router_gate is missing"),
    "negative keys": (attribute("num_keys", -2), "num_keys is -2"),
    "a flag of 2": (attribute("per_token", 2), "per_token is 2"),
    "an output too many": (lambda n: n.outputs.update(dt="float32"), "has 3 outputs, not 4"),
    "int64 weight": (retyped("q_proj", np.int64), "q_proj is int64"),
    "float64 norm": (retyped("q_norm", np.float64), "q_norm is float64, not float32, float16 or bfloat16"),
    "int8 norm": (retyped("A", np.int8), "A is int8, not float32, float16 or bfloat16"),
    "int8 without scale": (retyped("q_proj", np.int8), r"q_proj is int8 and has no q_proj\.scale"),
    "scale without int8": (
        lambda n: n.weights.update({"q_proj.scale": np.ones((32, 2), np.float16)}),
        r"q_proj is float32, and yet there is a q_proj\.scale",
    ),
    "bias of another length": (
        lambda n: n.weights.update({"q_proj.bias": np.ones(3, np.float32)}),
        r"q_proj\.bias has the shape \[3\], and should have \[32\]",
    ),
    "head_dim odd": (reshaped("q_norm", 7), "7 numbers cannot be rotated in pairs"),
    "empty norm": (reshaped("input_layernorm", 0), r"input_layernorm has the shape \[0\]"),
    "mlp of two sizes": (reshaped("up_proj", 40, 32), r"up_proj has the shape \[40, 32\]"),
    "no rows": (reshaped("gate_proj", 0, 32), r"gate_proj has the shape \[0, 32\]"),
    "dt without position": (
        lambda n: n.inputs.update(past_dt=np.ones((2, 2, 9), np.float32)),
        "past_dt and cache_position go together",
    ),
    "no tokens": (reshaped("hidden_states", 2, 0, 32), "There are no new tokens"),
    "mask too short": (reshaped("attention_mask", 2, 11), r"attention_mask has the shape \[2, 11\]"),
    "mask too long": (reshaped("attention_mask", 2, 13), r"attention_mask has the shape \[2, 13\]"),
    "mask of one row": (reshaped("attention_mask", 1, 12), r"attention_mask has the shape \[1, 12\]"),
    "mask of floats": (retyped("attention_mask", np.float32), "attention_mask is float32"),
    "cache of another batch": (reshaped("past_key", 3, 2, 9, 8), r"past_key has the shape \[3, 2, 9, 8\]"),
    "cache of other heads": (reshaped("past_key", 2, 4, 9, 8), r"past_key has the shape \[2, 4, 9, 8\]"),
    "values too short": (reshaped("past_value", 2, 2, 8, 8), r"past_value has the shape \[2, 2, 8, 8\]"),
    "cache of another dtype": (retyped("past_key", np.float16), "past_key is float16, and should be float32"),
    "angles of one row": (reshaped("cos", 1, 3, 4), r"cos has the shape \[1, 3, 4\]"),
    "angles of whole heads": (reshaped("sin", 2, 3, 8), r"sin has the shape \[2, 3, 8\]"),
}


@pytest.mark.parametrize("name", LAYER)
def test_layer(name: str) -> None:
    spoil, sentence = LAYER[name]
    node = decoder_layer()
    spoil(node)
    refused(node, sentence)


@pytest.mark.parametrize("position", [[-1, 0], [0, 7], [0, 1 << 62], [-(1 << 63), 0], [0, (1 << 63) - 1]])
def test_cache_position_outside(position: list[int]) -> None:
    node = decoder_layer(static=True)
    node.inputs["cache_position"] = np.array(position)
    refused(node, r"cache_position is -?\d+: 3 tokens from there on do not fit in a cache of 9 slots\.")


def test_more_tokens_than_slots() -> None:
    refused(decoder_layer(static=True, past=2), "3 tokens from there on do not fit in a cache of 2 slots")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (reshaped("cache_position", 1), r"cache_position has the shape \[1\]"),
        (retyped("cache_position", np.float32), "cache_position is float32"),
        (reshaped("past_dt", 2, 2, 8), r"past_dt has the shape \[2, 2, 8\]"),
        (reshaped("attention_mask", 2, 12), r"attention_mask has the shape \[2, 12\]"),
        (lambda n: n.outputs.pop("present_dt"), "has 4 outputs, not 3"),
    ],
)
def test_static_layer(spoil: Spoil, sentence: str) -> None:
    node = decoder_layer(static=True)
    spoil(node)
    refused(node, sentence)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (reshaped("q_proj.scale", 32, 3), r"q_proj\.scale has the shape \[32, 3\], which cuts rows of 32"),
        (reshaped("q_proj.scale", 32, 16), "blocks of 4 to 128|blocks of 8 to 128"),
        (reshaped("q_proj.scale", 31, 2), r"q_proj\.scale has the shape \[31, 2\]"),
        (reshaped("q_proj.scale", 64), r"q_proj\.scale has the shape \[64\]"),
        (reshaped("q_proj.scale", 32, 0), r"q_proj\.scale has the shape \[32, 0\]"),
        (retyped("q_proj.scale", np.float32), r"q_proj\.scale is float32, and should be float16"),
    ],
)
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_scales(spoil: Spoil, sentence: str, kind: str) -> None:
    node = decoder_layer(kind=kind)
    spoil(node)
    refused(node, sentence)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda n: n.weights.pop("up_embed"), "num_keys is 3, and up_embed is missing"),
        (attribute("num_keys", 0), "num_experts_per_tok is 3|num_keys is 0, and router_gate is there"),
        (attribute("num_experts_per_tok", 10), "num_experts_per_tok is 10, outside 1 to 9"),
        (attribute("num_experts_per_tok", 0), "num_experts_per_tok is 0"),
        (reshaped("router_gate", 5, 32), r"router_gate has the shape \[5, 32\]"),
        (reshaped("down_embed", 8, 32), "down_embed has 8 experts, and the router chooses of 9"),
        (reshaped("up_embed", 10, 32), r"up_embed has the shape \[10, 32\]"),
    ],
)
def test_experts(spoil: Spoil, sentence: str) -> None:
    node = decoder_layer(experts=3)
    spoil(node)
    refused(node, sentence)


@pytest.mark.parametrize("op", ["LMHead", "TopTokens"])
@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (reshaped("hidden_states", 2, 3, 31), r"hidden_states has the shape \[2, 3, 31\]"),
        (reshaped("hidden_states", 6, 32), r"hidden_states has the shape \[6, 32\]"),
        (reshaped("lm_head", 40, 16), r"lm_head has the shape \[40, 16\]"),
        (reshaped("lm_head", 0, 32), r"lm_head has the shape \[0, 32\]"),
        (reshaped("norm", 1, 32), r"norm has the shape \[1, 32\]"),
        (lambda n: n.weights.pop("norm"), "no input of the role norm"),
        (lambda n: n.inputs.update(norm=n.weights.pop("norm")), "norm is not constant"),
        (attribute("epsilon", float("inf")), "epsilon is not finite"),
    ],
)
def test_head(op: str, spoil: Spoil, sentence: str) -> None:
    node = head(op)
    spoil(node)
    refused(node, sentence)


@pytest.mark.parametrize("count", [0, -1, 41])
def test_count_outside_the_vocabulary(count: int) -> None:
    refused(head("TopTokens", count=count), f"count is {count}, outside 1 to 40")


def test_no_last_position() -> None:
    node = head("TopTokens")
    node.inputs["hidden_states"] = np.ones((2, 0, 32), np.float32)
    refused(node, "There are no new tokens")


@pytest.mark.parametrize("token", [-1, 40, 1 << 40, -(1 << 63)])
def test_token_ids_out_of_range(token: int) -> None:
    node = embedding()
    node.inputs["input_ids"][1, 2] = token
    refused(node, str(token))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda n: n.outputs.update(hidden_states="int64"), "hidden_states is int64, not float32"),
        (lambda n: n.weights.pop("table.scale"), r"table is int8 and has no table\.scale"),
        (retyped("input_ids", np.float32), "input_ids is float32"),
        (reshaped("input_ids", 6), r"input_ids has the shape \[6\]"),
        (reshaped("table", 40), r"table has the shape \[40\]"),
    ],
)
def test_embedding(spoil: Spoil, sentence: str) -> None:
    node = embedding()
    spoil(node)
    refused(node, sentence)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"query": (1, 2, 30)}, r"query has the shape \[1, 2, 30\]"),
        ({"key": (1, 3, 16)}, r"key has the shape \[1, 3, 16\]"),
        ({"value": (2, 2, 16)}, r"value has the shape"),
        ({"past_key": (1, 2, 5, 7)}, "7 numbers cannot be rotated"),
        ({"past_value": (1, 2, 6, 8)}, "past_value has the shape"),
        ({"q_norm": (4,)}, r"q_norm has the shape \[4\]"),
        ({"dt_weight": (2, 8)}, r"dt_weight has the shape \[2, 8\]"),
        ({"dt_bias": (1,)}, r"dt_bias has the shape \[1\]"),
        ({"A": (2, 1)}, r"A has the shape \[2, 1\]"),
        ({"cos": (1, 2, 8)}, r"cos has the shape \[1, 2, 8\]"),
    ],
)
def test_attention(change: dict[str, tuple[int, ...]], sentence: str) -> None:
    case = AttentionCase("", past=5, length=2)
    inputs = draw(case) | {name: torch.ones(shape) for name, shape in change.items()}
    with pytest.raises(Exception, match=f"doge::DynamicMaskAttention: .*{sentence}"):
        run_body(attention.OPERATOR, options_of(case), inputs, case.attributes, library=plugin_library())


def test_attention_with_half_a_static_cache() -> None:
    case = AttentionCase("", length=2, slots=8, position=(3,))
    inputs = draw(case) | {"past_dt": None}
    with pytest.raises(Exception, match="past_dt and cache_position go together"):
        run_body(attention.OPERATOR, options_of(case), inputs, case.attributes, library=plugin_library())


@pytest.mark.parametrize(
    ("attributes", "sentence"),
    [
        ({"num_keys": 0}, "num_keys is 0"),
        ({"num_experts_per_tok": 26}, "num_experts_per_tok is 26, outside 1 to 25"),
        ({"num_keys": 4}, "router_logits has the shape"),
    ],
)
def test_routing(attributes: dict[str, int], sentence: str) -> None:
    case = RoutingCase("")
    inputs: dict[str, torch.Tensor | None] = {"router_logits": case.draw()}
    with pytest.raises(Exception, match=f"doge::ExpertRouting: .*{sentence}"):
        run_body(
            routing.OPERATOR,
            routing_options(case),
            inputs,
            case.attributes | attributes,
            library=plugin_library(),
        )
