"""What exporter, checker and torch are told of each operator holds for its bodies."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch

from doge_export.graph.operators import DOMAIN, OPERATORS, VERSION, BodyOptions, Operator
from doge_export.graph.operators.dynamic_mask_attention import OPERATOR as ATTENTION
from doge_export.graph.operators.expert_routing import OPERATOR as ROUTING
from doge_export.model.operators.dynamic_mask_attention import dynamic_mask_attention
from doge_export.model.operators.expert_routing import expert_routing
from tests.ops.bodies import one_node_model
from tests.ops.cases import AttentionCase, RoutingCase, draw

operators = pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)
GROWING = AttentionCase("", past=4, length=3, batch=2)
STATIC = replace(GROWING, past=0, slots=9, position=(2, 4))


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """The schemas, as an export registers them; taken away again unless they were there before."""
    mine = [operator for operator in OPERATORS if not onnx.defs.has(operator.name, VERSION, DOMAIN)]
    for operator in mine:
        onnx.defs.register_schema(operator.onnx_schema())
    yield
    for operator in mine:
        onnx.defs.deregister_schema(operator.name, VERSION, DOMAIN)


@operators
def test_schema_is_the_operator(operator: Operator) -> None:
    schema = onnx.defs.get_schema(operator.name, VERSION, DOMAIN)
    assert [value.name for value in schema.inputs] == list(operator.input_names)
    assert [value.name for value in schema.outputs] == list(operator.output_names)
    assert set(schema.attributes) == set(operator.attributes)
    assert all(attribute.required for attribute in schema.attributes.values())
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    named = {value.name for value in (*schema.inputs, *schema.outputs) if value.option == optional}
    assert named == {port.name for port in (*operator.inputs, *operator.outputs) if port.optional}


@operators
def test_torch_operator_takes_the_inputs_and_attributes_in_order(operator: Operator) -> None:
    namespace, name = operator.torch_name.split("::")
    overload = getattr(getattr(torch.ops, namespace), name).default
    arguments = [argument.name for argument in overload._schema.arguments]
    assert arguments == [*operator.input_names, *operator.attributes]
    optional = [argument.name for argument in overload._schema.arguments if "Optional" in str(argument.type)]
    assert optional == [port.name for port in operator.inputs if port.optional]
    assert len(overload._schema.returns) == sum(port.in_torch for port in operator.outputs)


#: Element type -> what ONNX's schema calls it, written out once more.
TYPES = {"T": "T", "int64": "tensor(int64)", "bool": "tensor(bool)", "double": "tensor(double)"}
WHOLE = {"attention_mask", "cache_position", "position_ids", "past_position", "present_position", "indices"}


@operators
def test_types_are_those_of_the_names(operator: Operator) -> None:
    """A name means the same in every operator, and what counts or points is an integer."""
    schema = onnx.defs.get_schema(operator.name, VERSION, DOMAIN)
    for port, value in zip(
        (*operator.inputs, *operator.outputs), (*schema.inputs, *schema.outputs), strict=True
    ):
        wanted = "int64" if port.name in WHOLE else {"keep": "bool", "ratio": "double"}.get(port.name, "T")
        assert port.type == wanted and value.type_str == TYPES[wanted], port


def test_the_graph_needs_no_torch() -> None:
    """Not through a parent's __init__ either: all of it is imported where torch cannot be."""
    code = (
        "import importlib, pkgutil, sys\n"
        "sys.modules.update(dict.fromkeys(('torch', 'transformers')))\n"
        "import doge_export.graph as graph\n"
        "for module in pkgutil.walk_packages(graph.__path__, 'doge_export.graph.'):\n"
        "    importlib.import_module(module.name)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("branches", [True, False])
@pytest.mark.parametrize(
    "case",
    [GROWING, STATIC, replace(GROWING, sliding=3), replace(STATIC, sliding=3)],
    ids=["growing", "static", "sliding", "static, sliding"],
)
def test_checker_accepts_the_attention_body(case: AttentionCase, branches: bool, dtype: torch.dtype) -> None:
    case = replace(case, dtype=dtype)
    options = BodyOptions(
        dtype=onnx_type(dtype),
        opset=24 if case.static else 23,
        static=case.static,
        sliding_window=case.sliding > 0,
        branches=branches,
    )
    check(one_node_model(ATTENTION, options, draw(case), case.attributes, symbolic=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("per_token", [True, False])
def test_checker_accepts_the_routing_body(per_token: bool, dtype: torch.dtype) -> None:
    case = RoutingCase("", per_token=per_token, norm=per_token, dtype=dtype)
    options = BodyOptions(dtype=onnx_type(dtype), per_token=per_token, norm_topk_prob=per_token)
    check(one_node_model(ROUTING, options, {"router_logits": case.draw()}, case.attributes))


def test_checker_misses_an_attribute() -> None:
    """That the schema is looked at, at all."""
    case = RoutingCase("")
    model = one_node_model(ROUTING, BodyOptions(), {"router_logits": case.draw()}, case.attributes)
    del model.graph.node[0].attribute[0]
    with pytest.raises(onnx.checker.ValidationError):
        check(model)


@operators
@pytest.mark.parametrize("static", [False, True])
def test_a_body_is_built_the_same_twice(operator: Operator, static: bool) -> None:
    """Node and value names are counted, not drawn; only standard operators are in it."""
    options = BodyOptions(static=static, opset=24 if static else 23)
    first, second = (ir.to_proto(operator.body(options)) for _ in range(2))
    assert list(first.input) == list(operator.body_inputs(static))
    assert list(first.output) == list(operator.output_names)
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)
    assert first.domain == DOMAIN and first.name == operator.name
    assert set(first.attribute) <= set(operator.attributes)
    nodes = list(first.node)
    for node in nodes:
        assert node.domain == ""
        assert onnx.defs.has(node.op_type, options.opset, "")
        nodes.extend(inner for attribute in node.attribute for inner in attribute.g.node)


ATTENTION_OPCHECKS = {
    "growing": GROWING,
    "first call": replace(GROWING, past=0),
    "static": STATIC,
    "sliding, nothing out of reach": replace(GROWING, sliding=20),
    "float16": replace(GROWING, dtype=torch.float16),
    "bfloat16": replace(GROWING, dtype=torch.bfloat16),
}


@pytest.mark.parametrize("name", ATTENTION_OPCHECKS)
def test_fake_attention_is_like_the_real_one(name: str) -> None:
    case = ATTENTION_OPCHECKS[name]
    opcheck(dynamic_mask_attention, (*draw(case).values(), *case.attributes.values()))


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fake_routing_is_like_the_real_one(per_token: bool, dtype: torch.dtype) -> None:
    case = RoutingCase("", batch=2, per_token=per_token, dtype=dtype)
    opcheck(expert_routing, (case.draw(), *case.attributes.values()))


def opcheck(operator: Any, arguments: tuple[Any, ...]) -> None:
    # No gradients are asked for, so the two tests of autograd do not apply.
    torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


def check(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)


def onnx_type(dtype: torch.dtype) -> ir.DataType:
    names = {torch.float32: "FLOAT", torch.float16: "FLOAT16", torch.bfloat16: "BFLOAT16"}
    return ir.DataType[names[dtype]]
