"""Faults that are planted into a bundle, each with what `validate` must say of it."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from doge_export.core.bundle import Bundle, write_manifest

Change = Callable[[onnx.ModelProto], None]


@dataclass(frozen=True)
class Mutation:
    """`change` of the graph in `file`, planted into an export with `options` of a model with `config`.
    `cause`: a pattern that the sentence must match."""

    name: str
    change: Change
    cause: str
    options: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    file: str = "model.onnx"


def plant(mutation: Mutation, bundle: Bundle, folder: Path) -> Bundle:
    """A copy of `bundle` with the fault in it and hashes that fit it."""
    shutil.copytree(bundle.path, folder)
    path = folder / mutation.file
    model = onnx.load(path)  # with the weights, which go into the file then
    before = model.SerializeToString()
    mutation.change(model)
    assert model.SerializeToString() != before, mutation.name
    onnx.save(model, path)
    raw = bundle.read_json("doge_export.json")
    parts = ("options", "versions", "graph", "cache", "call", "decode")
    write_manifest(folder, *(raw.get(part) for part in parts))
    return Bundle.open(folder)


def graph_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of branches and loops too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graph_nodes(attribute.g)


def function(model: onnx.ModelProto, name: str) -> Any:
    (found,) = (function for function in model.functions if function.name == name)
    return found


def nodes(model: onnx.ModelProto, inside: str, op_type: str) -> list[onnx.NodeProto]:
    """The nodes of a function's body, in their order."""
    return [node for node in graph_nodes(function(model, inside)) if node.op_type == op_type]


def layer(model: onnx.ModelProto, number: int) -> onnx.NodeProto:
    return [node for node in model.graph.node if node.op_type == "DecoderLayer"][number]


def roles(node: onnx.NodeProto) -> list[str]:
    (attribute,) = (attribute for attribute in node.attribute if attribute.name == "inputs")
    return attribute.s.decode().split(",")


def attribute(node: onnx.NodeProto, name: str) -> onnx.AttributeProto:
    (found,) = (attribute for attribute in node.attribute if attribute.name == name)
    return found


def set_attribute(name: str, value: float, number: int | None = 1, op_type: str = "DecoderLayer") -> Change:
    def change(model: onnx.ModelProto) -> None:
        found = [node for node in model.graph.node if node.op_type == op_type]
        for node in found if number is None else [found[number]]:
            place = attribute(node, name)
            if place.type == onnx.AttributeProto.INT:
                place.i = int(value)
            else:
                place.f = value

    return change


def scale_attribute(name: str, factor: float, op_type: str = "DecoderLayer", number: int = 1) -> Change:
    def change(model: onnx.ModelProto) -> None:
        node = [node for node in model.graph.node if node.op_type == op_type][number]
        attribute(node, name).f *= factor

    return change


def swap_roles(number: int, first: str, second: str) -> Change:
    """Two inputs of one layer change places."""

    def change(model: onnx.ModelProto) -> None:
        node = layer(model, number)
        one, other = (roles(node).index(role) for role in (first, second))
        node.input[one], node.input[other] = node.input[other], node.input[one]

    return change


def swap_layers(model: onnx.ModelProto) -> None:
    first, second = layer(model, 0), layer(model, 1)
    for place, role in enumerate(roles(first)):
        if role not in ("hidden_states", "attention_mask", "cos", "sin", "past_key", "past_value"):
            first.input[place], second.input[place] = second.input[place], first.input[place]


def replace_input(number: int, role: str, value: Callable[[np.ndarray], np.ndarray]) -> Change:
    """A layer reads another tensor than the checkpoint's, under another name."""

    def change(model: onnx.ModelProto) -> None:
        node = layer(model, number)
        place = roles(node).index(role)
        array = value(tensor(model, node.input[place]))
        name = f"other.{role}"
        model.graph.initializer.append(numpy_helper.from_array(array, name))
        node.input[place] = name

    return change


def tensor(model: onnx.ModelProto, name: str) -> np.ndarray:
    (found,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    return numpy_helper.to_array(found)


def rewrite(inside: str, op_type: str, place: int, change: Callable[[onnx.NodeProto], None]) -> Change:
    """Change the node at `place` among those of `op_type` in a function's body, of all layers."""
    return lambda model: change(nodes(model, inside, op_type)[place])


def identity_of(number: int) -> Callable[[onnx.NodeProto], None]:
    """The node gives its input as it is."""

    def change(node: onnx.NodeProto) -> None:
        given = node.input[number]
        del node.input[:], node.attribute[:]
        node.op_type = "Identity"
        node.input.append(given)

    return change


def set_constant(inside: str, like: Callable[[np.ndarray], bool], value: Callable[[Any], Any]) -> Change:
    """A constant in a function's body becomes another, the first that is `like` it."""

    def change(model: onnx.ModelProto) -> None:
        for node in nodes(model, inside, "Constant"):
            for place in node.attribute:
                if place.name == "value":
                    array = numpy_helper.to_array(place.t)
                    if like(array):
                        place.t.CopyFrom(numpy_helper.from_array(value(array).astype(array.dtype)))
                        return
        raise AssertionError("no such constant")

    return change


def producer(inside: Any, name: str) -> onnx.NodeProto:
    (found,) = (node for node in graph_nodes(inside) if name in node.output)
    return found


def always(place: int) -> Change:
    """One of the two masks of visible keys, the causal one and that of attention_mask, is True everywhere."""

    def change(model: onnx.ModelProto) -> None:
        body = function(model, "DynamicMaskAttention")
        (both,) = nodes(model, "DynamicMaskAttention", "And")
        at = list(body.node).index(both)
        body.node.insert(at, helper.make_node("Not", [both.input[place]], ["not_visible"]))
        body.node.insert(at + 1, helper.make_node("Or", [both.input[place], "not_visible"], ["all_visible"]))
        both.input[place] = "all_visible"

    return change


def negate_a(model: onnx.ModelProto) -> None:
    replace_input(1, "A", lambda array: -array)(model)


def dt_of_key(model: onnx.ModelProto) -> None:
    """dt is computed of the keys: the transposed present_value that it reads becomes present_key."""
    for node in nodes(model, "DynamicMaskAttention", "Transpose"):
        if node.input[0] == "present_value":
            node.input[0] = "present_key"
            return
    raise AssertionError


def ties_to_the_higher(model: onnx.ModelProto) -> None:
    """TopK of the keys in reverse, and its places counted from the end: of equals the later one stays."""
    body = function(model, "DynamicMaskAttention")
    (branch,) = (place.g for node in body.node for place in node.attribute if place.name == "then_branch")
    (topk,) = (node for node in branch.node if node.op_type == "TopK")
    ranked, places = topk.input[0], topk.output[1]
    made = [
        helper.make_node("Constant", [], ["minus"], value=numpy_helper.from_array(np.array([-1]))),
        helper.make_node("Constant", [], ["axis"], value=numpy_helper.from_array(np.array([3]))),
        helper.make_node("Constant", [], ["lowest"], value=numpy_helper.from_array(np.array([-(2**62)]))),
        helper.make_node("Slice", [ranked, "minus", "lowest", "axis", "minus"], ["reversed"]),
        helper.make_node("Shape", [ranked], ["keys"], start=3, end=4),
        helper.make_node("Add", ["keys", "minus"], ["last"]),
    ]
    topk.input[0], topk.output[1] = "reversed", "from_the_end"
    at = list(branch.node).index(topk)
    for offset, node in enumerate(made):
        branch.node.insert(at + offset, node)
    branch.node.insert(at + len(made) + 1, helper.make_node("Sub", ["last", "from_the_end"], [places]))


def interleaved(model: onnx.ModelProto) -> None:
    for node in nodes(model, "DynamicMaskAttention", "RotaryEmbedding"):
        node.attribute.append(helper.make_attribute("interleaved", 1))


def later_position(model: onnx.ModelProto) -> None:
    (node,) = (node for node in model.graph.node if node.op_type == "RotaryAngles")
    one = numpy_helper.from_array(np.array(1), "one")
    model.graph.initializer.append(one)
    shifted = helper.make_node("Add", [node.input[0], "one"], ["shifted"])
    model.graph.node.insert(list(model.graph.node).index(node), shifted)
    node.input[0] = "shifted"


def swap_angles(model: onnx.ModelProto) -> None:
    (node,) = (node for node in model.graph.node if node.op_type == "RotaryAngles")
    node.output[0], node.output[1] = node.output[1], node.output[0]


def other_base(model: onnx.ModelProto) -> None:
    """rope_theta of 20000 below the boundary, too."""
    name = "rotary_embedding.inv_freq"
    (found,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    array = numpy_helper.to_array(found)
    size = 2 * array.size
    found.CopyFrom(
        numpy_helper.from_array(
            (20000.0 ** (-np.arange(0, size, 2) / size)).astype(array.dtype).reshape(array.shape), name
        )
    )


def tanh_for_sigmoid(model: onnx.ModelProto) -> None:
    nodes(model, "DecoderLayer", "Sigmoid")[0].op_type = "Tanh"


def other_head(model: onnx.ModelProto) -> None:
    (node,) = (node for node in model.graph.node if node.op_type == "LMHead")
    place = roles(node).index("lm_head")
    made = helper.make_node("Mul", [node.input[place], "almost_one"], ["other_head"])
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1.001), "almost_one"))
    model.graph.node.insert(list(model.graph.node).index(node), made)
    node.input[place] = "other_head"


def flip_bit(name: str, bit: int = 22) -> Change:
    """One bit of one number of a weight that lies in the graph's file."""

    def change(model: onnx.ModelProto) -> None:
        (found,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
        array = numpy_helper.to_array(found).copy()
        array.reshape(-1).view(np.uint32)[3] ^= np.uint32(1 << bit)
        found.CopyFrom(numpy_helper.from_array(array, name))

    return change


def scale_scales(name: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        (found,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
        array = numpy_helper.to_array(found) * np.float16(1.01)
        found.CopyFrom(numpy_helper.from_array(array, name))

    return change


def forget(part: str, attention: str = "DynamicMaskAttention") -> Change:
    """The cache that goes out is the one that came in; the attention itself reads the right one."""

    def change(model: onnx.ModelProto) -> None:
        body = function(model, attention)
        _rename(body, f"present_{part}", f"whole_{part}")
        body.node.append(helper.make_node("Identity", [f"past_{part}"], [f"present_{part}"]))

    return change


def _rename(body: Any, old: str, new: str) -> None:
    for node in graph_nodes(body):
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == old:
                    names[place] = new


def later_slot(model: onnx.ModelProto) -> None:
    """The new keys go one slot further than they should."""
    body = function(model, "DynamicMaskAttention")
    scatter = nodes(model, "DynamicMaskAttention", "TensorScatter")[0]
    body.node.insert(0, helper.make_node("Constant", [], ["one"], value=numpy_helper.from_array(np.array(1))))
    body.node.insert(1, helper.make_node("Add", ["cache_position", "one"], ["later"]))
    scatter.input[2] = "later"


def regrouped(weight: np.ndarray) -> np.ndarray:
    """o_proj as if head h belonged to kv head h % 2, not h // 2."""
    heads = weight.reshape(64, 2, 2, 16).swapaxes(1, 2)
    return np.ascontiguousarray(heads.reshape(64, 64))


def drop_dt_bias(model: onnx.ModelProto) -> None:
    replace_input(1, "dt_proj.bias", np.zeros_like)(model)


def expert_ids(model: onnx.ModelProto) -> None:
    """Each expert's neighbour: num_keys of 8, the id plus one, round the end."""
    body = function(model, "ExpertRouting")
    _rename(body, "indices", "right")
    for name, value in (("one", 1), ("all", 64)):
        body.node.insert(
            0, helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(value)))
        )
    body.node.append(helper.make_node("Add", ["right", "one"], ["next"]))
    body.node.append(helper.make_node("Mod", ["next", "all"], ["indices"]))


def loop_positions(model: onnx.ModelProto) -> None:
    """decode.onnx goes on two positions further instead of one."""
    body = function(model, "DecodeTokens")
    added = [producer(body, node.input[1]) for node in graph_nodes(body) if node.op_type == "Add"]
    constant = next(node for node in added if node.op_type == "Constant")
    attribute(constant, "value").t.CopyFrom(numpy_helper.from_array(np.array(2)))


def last_but_one(model: onnx.ModelProto) -> None:
    """TopTokens reads the last position but one where there is one: Gather(-1) becomes the first."""
    body = function(model, "TopTokens")
    gather = next(node for node in body.node if node.op_type == "Gather")
    constant = producer(body, gather.input[1])
    attribute(constant, "value").t.CopyFrom(numpy_helper.from_array(np.array(0)))


BIAS = {"attention_bias": True}
MOE = {"is_moe": True}
STATIC = {"kv_cache": "static", "max_length": 64}

# fmt: off
MUTATIONS = (
    Mutation(
        "attention's scale off by 1 %", scale_attribute("scale", 1.01), r"^layer 1, attention: its keys"
    ),
    Mutation("attention_mask dropped", always(1), r"layer 0, attention: its queries see padding"),
    Mutation("causal mask dropped", always(0), r"layer 0, attention: its queries see positions after"),
    Mutation("two layers swapped", swap_layers, r"^layer 0, attention"),
    Mutation("positions shifted by one", later_position, r"^rotary"),
    Mutation("rope's base of 20000", other_base, r"^rotary"),
    Mutation("cos and sin swapped", swap_angles, r"^rotary"),
    Mutation("rotation of neighbours, not halves", interleaved, r"^layer 0, attention: .*keys .*rotation"),
    Mutation(
        "window of 13", set_attribute("keep_window_size", 13),
             r"^layer 1, attention: it keeps up to 13"
    ),
    Mutation(
        "window of 11", set_attribute("keep_window_size", 11),
             r"^layer 1, attention: it keeps up to 11"
    ),
    Mutation("window frozen open", set_attribute("keep_window_size", 1000, None), r"^layer 0, .*the window"),
    Mutation("ties to the higher position", ties_to_the_higher, r"^layer 0, attention: of keys that tie"),
    Mutation("A's sign", negate_a, r"^layer 1, attention: .* dt of its keys"),
    Mutation("dt of the key, not the value", dt_of_key, r"^layer 0, attention: .* dt of its keys"),
    Mutation("dt's bias dropped", drop_dt_bias, r"^layer 1, attention: .* dt of its keys", config=BIAS),
    Mutation(
        "q_norm and k_norm swapped", swap_roles(1, "q_norm", "k_norm"),
             r"^layer 1, attention: .*k_norm"
    ),
    Mutation(
        "kv heads in another order",
        replace_input(
            0,
            "o_proj",
            lambda w: np.ascontiguousarray(w.reshape(64, 2, 2, 16).swapaxes(1, 2).reshape(64, 64)),
        ),
        r"^layer 0, attention: its keys and what it chooses agree",
    ),
    Mutation(
        "o_proj transposed",
        replace_input(1, "o_proj", lambda w: w.T.copy()),
        r"^layer 1, attention: its keys and what it chooses agree",
    ),
    Mutation(
        "first residual scale dropped",
        replace_input(1, "input_residual", np.ones_like),
        r"^layer 1, attention: .*residual",
    ),
    Mutation(
        "second residual scale dropped",
        replace_input(0, "post_attention_residual", np.ones_like),
        r"^layer 0, feed forward",
    ),
    Mutation("rms_norm_eps of 1e-3", set_attribute("epsilon", 1e-3), r"^layer 1, attention"),
    Mutation("rms_norm_eps of 1e-4 in the head", set_attribute("epsilon", 1e-4, 0, "LMHead"), r"^head"),
    Mutation("gate and up swapped", swap_roles(1, "gate_proj", "up_proj"), r"^layer 1, feed forward"),
    Mutation("tanh for the sigmoid", tanh_for_sigmoid, r"^layer 0, feed forward"),
    Mutation("the tied head by 1.001", other_head, r"^head"),
    Mutation(
        "a bit of a norm's weight",
        flip_bit("model.layers.1.input_layernorm.weight", 16),
        r"^layer 1, attention: model\.layers\.1\.input_layernorm\.weight .*\(1 of 64",
    ),
    Mutation(
        "the last bit of a norm's weight",
        flip_bit("model.layers.0.post_attention_residual", 0),
        r"^layer 0, feed forward: model\.layers\.0\.post_attention_residual .*\(1 of 64",
    ),
    Mutation(
        "an int8 scale by 1.01",
        scale_scales("model.layers.1.mlp.up_proj.scale"),
        r"^layer 1, feed forward: model\.layers\.1\.mlp\.up_proj\.weight",
        {"precision": "int8"},
    ),
    Mutation("expert ids off by one", expert_ids, r"^layer 0, feed forward: .*other experts", config=MOE),
    Mutation(
        "softmax of the experts dropped",
        rewrite("ExpertRouting", "Softmax", 0, identity_of(0)),
        r"^layer 0, feed forward: its input agrees, and its result",
        config=MOE,
    ),
    Mutation("keys of the cache returned as they came", forget("key"), r"layer 0, cache: it holds 0 of"),
    Mutation("values of the cache returned as they came", forget("value"), r"layer 0, cache"),
    Mutation("static cache, a slot off by one", later_slot, r"layer 0, cache: each key lies one", STATIC),
    Mutation("static cache, keys returned as they came", forget("key"), r"layer 0, cache: the key", STATIC),
    Mutation(
        "decode.onnx, attention's scale",
        scale_attribute("scale", 1.5, "DecodeTokens", 0),
        r"^decode.onnx only .*layer 0, or layer 1",
        file="decode.onnx",
    ),
    Mutation(
        "decode.onnx, window of 11",
        set_attribute("keep_window_size", 11, 0, "DecodeTokens"),
        r"^decode.onnx only .*layer 0",
        file="decode.onnx",
    ),
    Mutation(
        "decode.onnx, keys returned as they came",
        forget("key", "BoundedMaskAttention"),
        r"^decode.onnx only .*layer 0, cache",
        file="decode.onnx",
    ),
    Mutation("decode.onnx, two positions a token", loop_positions,
             r"^decode.onnx only .*goes on by itself", file="decode.onnx"),
    Mutation(
        "decode.onnx, the first position's tokens",
        last_but_one,
        r"^decode.onnx only.* head",
        file="decode.onnx",
    ),
)
# fmt: on
